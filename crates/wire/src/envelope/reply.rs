//! What a worker answers: a response, or a signal about a request.

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};

use super::fields::{read_fields, write_fields};
use super::{Elements, FLAG_SIGNAL, read_preamble};
use crate::msgpack::{Reader, put_array, put_bin, put_str, put_unsigned};
use crate::{Error, ErrorKind, Limits, WIRE_VERSION};

/// Any message on a reply subject.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "responses are the rule, and a box would cost each an allocation"
)]
pub enum Reply {
    /// The answer; nothing follows it.
    Response(Response),
    /// News about the request; see each [`Signal`] for what may follow.
    Signal(Signal),
}

/// A response as a gateway reads it. The body shares the message's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status, 100 to 999 as the `http` crate has it; whether it may go to a client is the gateway's to decide.
    pub status: StatusCode,
    /// Header fields, repeats kept.
    pub headers: HeaderMap,
    /// Trailer fields, empty as a rule.
    pub trailers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// What a worker says of a request other than answering it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The handler is running at this instance, and the response follows; cancel it there.
    Accepted {
        /// The instance's id, the last token of its control subject.
        instance: String,
    },
    /// The request did not run and never will: it may be sent again, whatever its method.
    NotRun(NotRun),
}

/// Why a request did not run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NotRun {
    /// The worker is full.
    Overloaded,
    /// This version has no worker any more: resolve the route again.
    Moved,
    /// It reached the worker after its deadline, held up on the way.
    Expired,
    /// The worker cannot read it: a later version or an unknown critical flag.
    Unsupported,
}

impl NotRun {
    const ALL: [NotRun; 4] = [NotRun::Overloaded, NotRun::Moved, NotRun::Expired, NotRun::Unsupported];

    fn code(self) -> u64 {
        match self {
            NotRun::Overloaded => 1,
            NotRun::Moved => 2,
            NotRun::Expired => 3,
            NotRun::Unsupported => 4,
        }
    }

    /// The name that logs and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            NotRun::Overloaded => "overloaded",
            NotRun::Moved => "moved",
            NotRun::Expired => "expired",
            NotRun::Unsupported => "unsupported",
        }
    }
}

/// The code of [`Signal::Accepted`]; those of [`NotRun`] start at 1.
const ACCEPTED: u64 = 0;

/// Writes a response into one buffer.
///
/// # Errors
/// [`ErrorKind::TooLarge`] above [`Limits::header_fields`] or [`Limits::field_bytes`].
pub fn encode_response(
    status: StatusCode,
    headers: &HeaderMap,
    trailers: &HeaderMap,
    body: &[u8],
) -> Result<Bytes, Error> {
    // A typical field is below 40 bytes; the fixed parts are below 24.
    let mut out = BytesMut::with_capacity(24 + 40 * (headers.len() + trailers.len()) + body.len());
    put_array(&mut out, 6);
    put_unsigned(&mut out, u64::from(WIRE_VERSION));
    put_unsigned(&mut out, 0);
    put_unsigned(&mut out, u64::from(status.as_u16()));
    write_fields(&mut out, headers)?;
    write_fields(&mut out, trailers)?;
    put_bin(&mut out, body);
    Ok(out.freeze())
}

/// Writes a signal.
pub fn encode_signal(signal: &Signal) -> Bytes {
    let mut out = BytesMut::with_capacity(40);
    put_array(&mut out, 4);
    put_unsigned(&mut out, u64::from(WIRE_VERSION));
    put_unsigned(&mut out, FLAG_SIGNAL);
    let (code, detail) = match signal {
        Signal::Accepted { instance } => (ACCEPTED, instance.as_str()),
        Signal::NotRun(reason) => (reason.code(), ""),
    };
    put_unsigned(&mut out, code);
    put_str(&mut out, detail);
    out.freeze()
}

/// Reads a reply; the body of a response is a slice of `message`, not a copy.
///
/// # Errors
/// Any [`ErrorKind`]; nothing larger than `limits` was allocated. A body that is not inline (a stream reference of a
/// later version) is [`ErrorKind::Unsupported`].
pub fn decode_reply(message: &Bytes, limits: Limits) -> Result<Reply, Error> {
    let mut reader = Reader::new(message, limits);
    let (flags, left) = read_preamble(&mut reader, FLAG_SIGNAL)?;
    let elements = Elements { reader: &mut reader, left };
    match flags & FLAG_SIGNAL {
        0 => read_response(message, elements).map(Reply::Response),
        _ => read_signal(elements).map(Reply::Signal),
    }
}

fn read_response(message: &Bytes, mut elements: Elements<'_, '_>) -> Result<Response, Error> {
    let status = elements.next(|reader| reader.unsigned("status"))?.ok_or(Error::malformed("status"))?;
    let status = u16::try_from(status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Error::malformed("status"))?;
    let headers = elements.next(read_fields)?.unwrap_or_default();
    let trailers = elements.next(read_fields)?.unwrap_or_default();
    let body = elements.next(read_body)?.unwrap_or_default();
    elements.finish()?;
    Ok(Response { status, headers, trailers, body: message.slice_ref(body) })
}

fn read_body<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Error> {
    reader.blob("body").map_err(|error| match error.kind() {
        // Anything that is not bytes is a reference to a stream, which this version cannot follow.
        ErrorKind::Malformed => Error::new(ErrorKind::Unsupported, "body"),
        _ => error,
    })
}

fn read_signal(mut elements: Elements<'_, '_>) -> Result<Signal, Error> {
    let code = elements.next(|reader| reader.unsigned("signal"))?.ok_or(Error::malformed("signal"))?;
    let detail = elements.next(|reader| reader.field("detail"))?.unwrap_or_default();
    elements.finish()?;
    if code == ACCEPTED {
        return Ok(Signal::Accepted { instance: crate::control::instance_id(detail)? });
    }
    let reason = NotRun::ALL.into_iter().find(|reason| reason.code() == code);
    reason.map(Signal::NotRun).ok_or(Error::new(ErrorKind::Unsupported, "signal"))
}

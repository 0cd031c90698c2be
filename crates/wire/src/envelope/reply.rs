//! What a worker answers: a response, or a signal about a request.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::fields::{fields_bytes, read_fields, write_fields};
use super::{FLAG_SIGNAL, read_body, read_preamble};
use crate::elements::Elements;
use crate::msgpack::{Reader, put_array, put_bin, put_str, put_u16};
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
    /// The status, 100 to 999 as the `http` crate has it; whether it may go to a client is the
    /// gateway's to decide.
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
    const ALL: [NotRun; 4] =
        [NotRun::Overloaded, NotRun::Moved, NotRun::Expired, NotRun::Unsupported];

    fn code(self) -> u16 {
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
const ACCEPTED: u16 = 0;

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
    let capacity_bytes = 24 + fields_bytes(headers) + fields_bytes(trailers) + body.len();
    let mut out = Vec::with_capacity(capacity_bytes);
    put_array(&mut out, 6);
    put_u16(&mut out, u16::from(WIRE_VERSION));
    put_u16(&mut out, 0);
    put_u16(&mut out, status.as_u16());
    write_fields(&mut out, headers)?;
    write_fields(&mut out, trailers)?;
    put_bin(&mut out, body);
    Ok(out.into())
}

/// Writes a signal.
pub fn encode_signal(signal: &Signal) -> Bytes {
    let (code, detail) = match signal {
        Signal::Accepted { instance } => (ACCEPTED, instance.as_str()),
        Signal::NotRun(reason) => (reason.code(), ""),
    };
    let mut out = Vec::with_capacity(8 + detail.len());
    put_array(&mut out, 4);
    put_u16(&mut out, u16::from(WIRE_VERSION));
    put_u16(&mut out, FLAG_SIGNAL as u16);
    put_u16(&mut out, code);
    put_str(&mut out, detail);
    out.into()
}

/// Reads a reply; the body of a response is a slice of `message`, not a copy.
///
/// # Errors
/// Any [`ErrorKind`]; nothing larger than `limits` was allocated. A body that is not inline (a
/// stream reference of a later version) is [`ErrorKind::Unsupported`].
pub fn decode_reply(message: &Bytes, limits: Limits) -> Result<Reply, Error> {
    let (flags, elements) = read_preamble(message, limits, FLAG_SIGNAL)?;
    match flags & FLAG_SIGNAL {
        0 => read_response(message, elements).map(Reply::Response),
        _ => read_signal(elements).map(Reply::Signal),
    }
}

fn read_response(message: &Bytes, mut elements: Elements<'_>) -> Result<Response, Error> {
    let status = elements.required("status", Reader::unsigned)?;
    let status = u16::try_from(status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Error::malformed("status"))?;
    let headers = elements.optional("headers", read_fields)?;
    let trailers = elements.optional("trailers", read_fields)?;
    let body = elements.optional("body", read_body)?;
    elements.finish()?;
    Ok(Response { status, headers, trailers, body: message.slice_ref(body) })
}

fn read_signal(mut elements: Elements<'_>) -> Result<Signal, Error> {
    let code = elements.required("signal", Reader::unsigned)?;
    let detail = elements.optional("detail", Reader::field)?;
    elements.finish()?;
    if code == u64::from(ACCEPTED) {
        return Ok(Signal::Accepted { instance: crate::control::instance_id(detail)? });
    }
    let reason = NotRun::ALL.into_iter().find(|reason| u64::from(reason.code()) == code);
    reason.map(Signal::NotRun).ok_or(Error::new(ErrorKind::Unsupported, "signal"))
}

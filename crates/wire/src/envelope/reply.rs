//! What a worker answers: a response, or a signal about a request.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::fields::{fields_bytes, read_fields, write_fields};
use super::join::read_join;
use super::reference::{BodyOrReference, Reference, read_body_or_reference, sixteen};
use super::{FLAG_SIGNAL, read_preamble};
use crate::elements::Elements;
use crate::msgpack::{Reader, put_array, put_bin, put_str, put_u16};
use crate::offer::{Join, StreamToken, TunnelSecret};
use crate::pipe::is_pipe_subject;
use crate::{Error, ErrorKind, Limits, WIRE_VERSION};

/// Any message on a reply subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The answer; nothing follows it.
    Response(Response),
    /// The answer up to the first bytes of its body, which goes on elsewhere.
    Reference(Response, Reference),
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
    /// By which tunnel its worker takes further requests for this subject.
    pub join: Option<Join>,
}

/// What a worker says of a request other than answering it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Signal {
    /// The handler is running at this instance, and the response follows; cancel it there.
    Accepted {
        /// The instance's id, the last token of its control subject.
        instance: String,
    },
    /// The instance has room for the request and waits for its body, which comes on a stream. It
    /// runs once that is there.
    Ready {
        /// The instance's id.
        instance: String,
        /// What to name on the stream.
        token: StreamToken,
        /// The tunnel on which to open it.
        secret: TunnelSecret,
    },
    /// The instance cannot reach the sender, and asks it to open a [pipe](crate::pipe). What
    /// becomes of the request is said apart from that.
    Invite {
        /// Where it hears the sender's hello; a [subject for pipes](is_pipe_subject).
        subject: String,
    },
    /// The request gets no answer here, and may be sent again.
    NotRun(NotRun),
}

/// Why a request may be sent again: it did not run and never will, but for
/// [`UpstreamBroken`](NotRun::UpstreamBroken).
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
    /// Its body comes on a stream, and the worker cannot reach the sender to take that.
    Unreachable,
    /// The app behind the worker takes no connection. Who does not know it hears
    /// [`Overloaded`](Self::Overloaded).
    UpstreamDown,
    /// The app behind the worker took the request and gave no response. It may have run, so this is
    /// said of idempotent requests only. Who does not know it hears
    /// [`Overloaded`](Self::Overloaded).
    UpstreamBroken,
}

impl NotRun {
    const ALL: [Self; 7] = [
        Self::Overloaded,
        Self::Moved,
        Self::Expired,
        Self::Unsupported,
        Self::Unreachable,
        Self::UpstreamDown,
        Self::UpstreamBroken,
    ];

    fn code(self) -> u16 {
        match self {
            Self::Overloaded | Self::UpstreamDown | Self::UpstreamBroken => 1,
            Self::Moved => 2,
            Self::Expired => 3,
            Self::Unsupported => 4,
            Self::Unreachable => 5,
        }
    }

    /// What is said besides the code, where that is one of several.
    fn detail(self) -> &'static str {
        match self {
            Self::UpstreamDown | Self::UpstreamBroken => self.as_str(),
            _ => "",
        }
    }

    /// Reads a code and its detail. A detail that is not known changes nothing.
    fn of(code: u64, detail: &[u8]) -> Option<Self> {
        let of_code = |reason: &Self| u64::from(reason.code()) == code;
        let mut all = Self::ALL.into_iter().filter(of_code);
        let plain = all.next()?;
        Some(all.find(|reason| reason.detail().as_bytes() == detail).unwrap_or(plain))
    }

    /// The name that logs and metrics use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Overloaded => "overloaded",
            Self::Moved => "moved",
            Self::Expired => "expired",
            Self::Unsupported => "unsupported",
            Self::Unreachable => "unreachable",
            Self::UpstreamDown => "upstream_down",
            Self::UpstreamBroken => "upstream_broken",
        }
    }
}

/// The code of [`Signal::Accepted`]; those of [`NotRun`] start at 1.
const ACCEPTED: u16 = 0;
/// The code of [`Signal::Ready`].
const READY: u16 = 16;

/// The code of [`Signal::Invite`].
const INVITE: u16 = 17;

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
    let mut out = begin_response(status, headers, capacity_bytes)?;
    write_fields(&mut out, trailers)?;
    put_bin(&mut out, body);
    Ok(out.into())
}

/// Writes a response whose body begins with `first` and goes on at `reference`.
///
/// # Errors
/// As [`encode_response`].
pub fn encode_reference(
    status: StatusCode,
    headers: &HeaderMap,
    first: &[u8],
    reference: Reference,
) -> Result<Bytes, Error> {
    let capacity_bytes = 72 + fields_bytes(headers) + first.len();
    let mut out = begin_response(status, headers, capacity_bytes)?;
    write_fields(&mut out, &HeaderMap::new())?;
    put_array(&mut out, 3);
    put_bin(&mut out, &reference.token.0);
    put_bin(&mut out, first);
    put_bin(&mut out, &reference.secret.0);
    Ok(out.into())
}

/// Writes a response up to its headers.
fn begin_response(
    status: StatusCode,
    headers: &HeaderMap,
    capacity_bytes: usize,
) -> Result<Vec<u8>, Error> {
    let mut out = Vec::with_capacity(capacity_bytes);
    put_array(&mut out, 6);
    put_u16(&mut out, u16::from(WIRE_VERSION));
    put_u16(&mut out, 0);
    put_u16(&mut out, status.as_u16());
    write_fields(&mut out, headers)?;
    Ok(out)
}

/// Writes a signal.
pub fn encode_signal(signal: &Signal) -> Bytes {
    let (code, detail, stream) = match signal {
        Signal::Accepted { instance } => (ACCEPTED, instance.as_str(), None),
        Signal::Ready { instance, token, secret } => {
            (READY, instance.as_str(), Some((token, secret)))
        }
        Signal::Invite { subject } => (INVITE, subject.as_str(), None),
        Signal::NotRun(reason) => (reason.code(), reason.detail(), None),
    };
    let mut out = Vec::with_capacity(44 + detail.len());
    put_array(&mut out, if stream.is_some() { 6 } else { 4 });
    put_u16(&mut out, u16::from(WIRE_VERSION));
    put_u16(&mut out, FLAG_SIGNAL as u16);
    put_u16(&mut out, code);
    put_str(&mut out, detail);
    if let Some((token, secret)) = stream {
        put_bin(&mut out, &token.0);
        put_bin(&mut out, &secret.0);
    }
    out.into()
}

/// Reads a reply; the body of a response is a slice of `message`, not a copy.
///
/// # Errors
/// Any [`ErrorKind`]; nothing larger than `limits` was allocated. A body that is neither inline nor
/// a reference is [`ErrorKind::Unsupported`].
pub fn decode_reply(message: &Bytes, limits: Limits) -> Result<Reply, Error> {
    let (flags, elements) = read_preamble(message, limits, FLAG_SIGNAL)?;
    match flags & FLAG_SIGNAL {
        0 => read_response(message, elements),
        _ => read_signal(elements).map(Reply::Signal),
    }
}

fn read_response(message: &Bytes, mut elements: Elements<'_>) -> Result<Reply, Error> {
    let status = elements.required("status", Reader::unsigned)?;
    let status = u16::try_from(status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Error::malformed("status"))?;
    let headers = elements.optional("headers", read_fields)?;
    let trailers = elements.optional("trailers", read_fields)?;
    let body = elements.optional("body", read_body_or_reference)?;
    let join = elements.optional("join", read_join)?;
    elements.finish()?;
    let response =
        |body| Response { status, headers, trailers, body: message.slice_ref(body), join };
    Ok(match body {
        BodyOrReference::Body(body) => Reply::Response(response(body)),
        BodyOrReference::Reference { first, reference } => {
            Reply::Reference(response(first), reference)
        }
    })
}

fn read_signal(mut elements: Elements<'_>) -> Result<Signal, Error> {
    let code = elements.required("signal", Reader::unsigned)?;
    let detail = elements.optional("detail", Reader::field)?;
    if code == u64::from(READY) {
        let instance = crate::control::instance_id(detail)?;
        let token = StreamToken(elements.required("token", sixteen)?);
        let secret = TunnelSecret(elements.required("secret", sixteen)?);
        elements.finish()?;
        return Ok(Signal::Ready { instance, token, secret });
    }
    elements.finish()?;
    if code == u64::from(ACCEPTED) {
        return Ok(Signal::Accepted { instance: crate::control::instance_id(detail)? });
    }
    if code == u64::from(INVITE) {
        let subject = std::str::from_utf8(detail).ok().filter(|subject| is_pipe_subject(subject));
        let subject = subject.ok_or(Error::malformed("subject for a pipe"))?.to_owned();
        return Ok(Signal::Invite { subject });
    }
    NotRun::of(code, detail).map(Signal::NotRun).ok_or(Error::new(ErrorKind::Unsupported, "signal"))
}

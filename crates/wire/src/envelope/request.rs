//! What a gateway asks of a worker.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use rmp::Marker;

use super::fields::{FieldsWriter, read_fields};
use super::reference::read_body;
use super::{FLAG_STREAM, read_preamble};
use crate::msgpack::{Reader, put_bin, put_nil, put_str, put_u32, put_u64};
use crate::{Error, Limits, WIRE_VERSION};

/// A request as a worker reads it. The body shares the message's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What the caller's time budget had left when the message was sent, in milliseconds.
    pub deadline_ms: u32,
    /// When the message was sent, in milliseconds of the *sender's* Unix clock; 0 when it did not
    /// say.
    ///
    /// Clocks differ, so only differences between messages of one sender mean something.
    pub sent_ms: u64,
    /// The method, as the client sent it.
    pub method: Method,
    /// The path and query, as the client sent them (less a prefix that the route strips).
    pub path_and_query: PathAndQuery,
    /// End-to-end header fields, order within a name and repeats kept.
    pub headers: HeaderMap,
    /// The whole body; empty when it comes on a stream.
    pub body: Bytes,
    /// The body comes on a stream, once the worker has said that it is
    /// [ready](super::Signal::Ready).
    pub is_stream: bool,
    /// Where the sender hears the answer, if it says so: see [`with_reply_subject`].
    pub reply_subject: Option<String>,
    /// An encoded [`Offer`](crate::offer::Offer): the sender takes tunnels, and references in
    /// answers. It shares the message's memory.
    pub offer: Option<Bytes>,
}

/// What each of our requests begins with: an array of eight, the version, no flags. The deadline
/// and the sending time follow at a fixed width, so that a retry can stamp a copy in place.
const HEAD: [u8; 3] = [0x98, WIRE_VERSION, 0];
/// Where the flags are in it.
const FLAGS_AT: usize = 2;
/// Behind the head and a marker: the four bytes of `deadline_ms`.
const DEADLINE_AT: usize = HEAD.len() + 1;
/// Behind the deadline and a marker: the eight bytes of `sent_ms`.
const SENT_AT: usize = DEADLINE_AT + 4 + 1;
const STAMP_END: usize = SENT_AT + 8;

/// Writes a request straight into one buffer: head, then [`header`](Self::header) by header, then
/// the body.
///
/// ```
/// use natsway_wire::envelope::{RequestEncoder, decode_request};
/// use natsway_wire::Limits;
///
/// let mut encoder = RequestEncoder::new(1_500, 0, "GET", "/sum?n=1", 128)?;
/// encoder.header("accept", b"text/plain")?;
/// let message = encoder.finish(b"");
/// let request = decode_request(&message, Limits::DEFAULT)?;
/// assert_eq!(request.headers["accept"], "text/plain");
/// # Ok::<(), natsway_wire::Error>(())
/// ```
#[derive(Debug)]
pub struct RequestEncoder {
    out: Vec<u8>,
    fields: FieldsWriter,
}

impl RequestEncoder {
    /// Begins a message; `capacity_bytes` is a guess at its whole size, so that the buffer need not
    /// grow.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge) when the method or the path is above
    /// [`Limits::field_bytes`].
    pub fn new(
        deadline_ms: u32,
        sent_ms: u64,
        method: &str,
        path_and_query: &str,
        capacity_bytes: usize,
    ) -> Result<Self, Error> {
        if path_and_query.len() > Limits::DEFAULT.field_bytes
            || method.len() > Limits::DEFAULT.field_bytes
        {
            return Err(Error::too_large("request line"));
        }
        let mut out = Vec::with_capacity(capacity_bytes);
        out.extend_from_slice(&HEAD);
        put_u32(&mut out, deadline_ms);
        put_u64(&mut out, sent_ms);
        put_str(&mut out, method);
        put_str(&mut out, path_and_query);
        let fields = FieldsWriter::begin(&mut out);
        Ok(Self { out, fields })
    }

    /// Adds a header field.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge) above [`Limits::header_fields`] or
    /// [`Limits::field_bytes`].
    pub fn header(&mut self, name: &str, value: &[u8]) -> Result<(), Error> {
        self.fields.put(&mut self.out, name, value)
    }

    /// Adds the body and gives the message.
    pub fn finish(self, body: &[u8]) -> Bytes {
        self.with_body(body, 0).into()
    }

    /// Adds the body and an encoded [`Offer`](crate::offer::Offer), and gives the message.
    pub fn finish_with_offer(self, body: &[u8], offer: &[u8]) -> Bytes {
        let mut out = self.with_body(body, offer.len() + 1);
        out[0] += 2;
        // Where the reply subject would be.
        put_nil(&mut out);
        out.extend_from_slice(offer);
        out.into()
    }

    /// Says that the body comes on a stream, adds an encoded [`Offer`](crate::offer::Offer), and
    /// gives the message.
    pub fn finish_as_stream(mut self, offer: &[u8]) -> Bytes {
        self.out[FLAGS_AT] = FLAG_STREAM as u8;
        self.finish_with_offer(b"", offer)
    }

    fn with_body(self, body: &[u8], more_bytes: usize) -> Vec<u8> {
        let Self { mut out, fields } = self;
        fields.end(&mut out);
        out.reserve(body.len() + 5 + more_bytes);
        put_bin(&mut out, body);
        out
    }
}

/// A copy of an encoded request with another deadline and sending time, for sending it again.
///
/// # Errors
/// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed) when `message` is not the work of
/// [`RequestEncoder`].
pub fn restamp_request(message: &[u8], deadline_ms: u32, sent_ms: u64) -> Result<Bytes, Error> {
    let ours = message.len() > STAMP_END
        && is_head(message)
        && message[DEADLINE_AT - 1] == Marker::U32.to_u8()
        && message[SENT_AT - 1] == Marker::U64.to_u8();
    if !ours {
        return Err(Error::malformed("request"));
    }
    let mut copy = message.to_vec();
    copy[DEADLINE_AT..DEADLINE_AT + 4].copy_from_slice(&deadline_ms.to_be_bytes());
    copy[SENT_AT..STAMP_END].copy_from_slice(&sent_ms.to_be_bytes());
    Ok(copy.into())
}

/// Whether a message begins as our requests do, with an offer and as a stream or without.
fn is_head(message: &[u8]) -> bool {
    let [elements, version, flags] = HEAD;
    message.starts_with(&[elements, version, flags])
        || message.starts_with(&[elements + 2, version, flags])
        || message.starts_with(&[elements + 2, version, FLAG_STREAM as u8])
}

/// A copy of an encoded request that says behind its body at which subject its sender hears the
/// answer.
///
/// Between accounts the broker puts a reply subject of its own in its place, of which nothing says
/// who asks. Workers tell senders, and the requests that are cancelled, by this one then.
///
/// `offer` is the one that the message was finished with; empty without one.
///
/// # Errors
/// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed) when `message` is not the work of
/// [`RequestEncoder`].
pub fn with_reply_subject(
    message: &[u8],
    offer: &[u8],
    reply_subject: &str,
) -> Result<Bytes, Error> {
    let malformed = Error::malformed("request");
    let (elements, up_to_body) = match offer {
        [] => (HEAD[0] + 1, Some(message)),
        // An empty place is before it.
        offer => (
            HEAD[0] + 2,
            message.strip_suffix(offer).and_then(|rest| rest.split_last()).map(|(_, rest)| rest),
        ),
    };
    let up_to_body = up_to_body.filter(|rest| is_head(rest)).ok_or(malformed)?;
    let mut longer =
        Vec::with_capacity(message.len() + reply_subject.len() + REPLY_SUBJECT_OVERHEAD_BYTES);
    longer.extend_from_slice(up_to_body);
    longer[0] = elements;
    put_str(&mut longer, reply_subject);
    longer.extend_from_slice(offer);
    Ok(longer.into())
}

/// What a reply subject takes in a request besides its own bytes.
pub const REPLY_SUBJECT_OVERHEAD_BYTES: usize = 3;

/// The longest reply subject that is kept; what is longer is no broker's.
const REPLY_SUBJECT_BYTES: usize = 256;

/// Reads a request; its body is a slice of `message`, not a copy.
///
/// # Errors
/// Any [`ErrorKind`](crate::ErrorKind); nothing larger than `limits` was allocated.
pub fn decode_request(message: &Bytes, limits: Limits) -> Result<Request, Error> {
    let (flags, mut elements) = read_preamble(message, limits, FLAG_STREAM)?;
    let deadline_ms = elements.required("deadline", Reader::unsigned)?;
    let deadline_ms = u32::try_from(deadline_ms).map_err(|_| Error::too_large("deadline"))?;
    let sent_ms = elements.required("sending time", Reader::unsigned)?;
    let method = elements.required("method", Reader::field)?;
    let method = Method::from_bytes(method).map_err(|_| Error::malformed("method"))?;
    let path_and_query = elements.required("path", read_path)?;
    let headers = elements.optional("headers", read_fields)?;
    let body = elements.optional("body", read_body)?;
    let reply_subject = elements.optional("reply subject", read_reply_subject)?;
    let offer = elements.optional("offer", read_offer)?;
    elements.finish()?;
    Ok(Request {
        deadline_ms,
        sent_ms,
        method,
        path_and_query,
        headers,
        body: message.slice_ref(body),
        is_stream: flags & FLAG_STREAM != 0,
        reply_subject,
        offer: offer.map(|offer| message.slice_ref(offer)),
    })
}

/// Reads where an offer is, if there is one; what it says is read when it is needed.
fn read_offer<'a>(reader: &mut Reader<'a>, what: &'static str) -> Result<Option<&'a [u8]>, Error> {
    let is_offer = reader.is_array();
    let element = reader.span(1, what)?;
    Ok(Some(element).filter(|_| is_offer))
}

/// Reads a path and query as a request line has it: from the root (or `*`) and without a fragment,
/// which the `http` crate would take and cut off.
fn read_path(reader: &mut Reader<'_>, what: &'static str) -> Result<PathAndQuery, Error> {
    let path = reader.field(what)?;
    let from_root = path.starts_with(b"/") || path == b"*";
    let parsed = PathAndQuery::try_from(path).ok().filter(|_| from_root && !path.contains(&b'#'));
    parsed.ok_or(Error::malformed(what))
}

/// Reads a reply subject; anything else that a newer writer may have put there is passed over.
fn read_reply_subject(
    reader: &mut Reader<'_>,
    what: &'static str,
) -> Result<Option<String>, Error> {
    let element = reader.span(1, what)?;
    let text = Reader::new(element, reader.limits()).field(what).ok();
    let text = text.and_then(|text| std::str::from_utf8(text).ok());
    Ok(text.filter(|text| text.len() <= REPLY_SUBJECT_BYTES).map(str::to_owned))
}

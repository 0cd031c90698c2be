//! What a gateway asks of a worker.

use bytes::{BufMut, Bytes, BytesMut};
use http::uri::PathAndQuery;
use http::{HeaderMap, Method};
use rmp::Marker;

use super::fields::{FieldsWriter, read_fields};
use super::{Elements, read_preamble};
use crate::msgpack::{Reader, put_array, put_bin, put_str, put_unsigned};
use crate::{Error, Limits, WIRE_VERSION};

/// A request as a worker reads it. The body shares the message's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What the caller's time budget had left when the message was sent, in milliseconds.
    pub deadline_ms: u32,
    /// When the message was sent, in milliseconds of the *sender's* Unix clock; 0 when it did not say.
    ///
    /// Clocks differ, so only differences between messages of one sender mean something.
    pub sent_ms: u64,
    /// The method, as the client sent it.
    pub method: Method,
    /// The path and query, as the client sent them (less a prefix that the route strips).
    pub path_and_query: PathAndQuery,
    /// End-to-end header fields, order within a name and repeats kept.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Bytes,
}

/// `array header, version, flags, marker`: where the four bytes of `deadline_ms` begin.
const DEADLINE_AT: usize = 4;
/// Behind the deadline and a marker: where the eight bytes of `sent_ms` begin.
const SENT_AT: usize = DEADLINE_AT + 4 + 1;

/// Writes a request straight into one buffer: head, then [`header`](Self::header) by header, then the body.
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
    out: BytesMut,
    fields: FieldsWriter,
}

impl RequestEncoder {
    /// Begins a message; `capacity_bytes` is a guess at its whole size, so that the buffer need not grow.
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
    ) -> Result<RequestEncoder, Error> {
        if path_and_query.len() > Limits::DEFAULT.field_bytes || method.len() > Limits::DEFAULT.field_bytes {
            return Err(Error::too_large("request line"));
        }
        let mut out = BytesMut::with_capacity(capacity_bytes);
        put_array(&mut out, 8);
        put_unsigned(&mut out, u64::from(WIRE_VERSION));
        put_unsigned(&mut out, 0);
        // Fixed width, so that a retry can restamp a copy in place.
        out.put_u8(Marker::U32.to_u8());
        out.put_u32(deadline_ms);
        out.put_u8(Marker::U64.to_u8());
        out.put_u64(sent_ms);
        put_str(&mut out, method);
        put_str(&mut out, path_and_query);
        let fields = FieldsWriter::begin(&mut out);
        Ok(RequestEncoder { out, fields })
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
        let RequestEncoder { mut out, fields } = self;
        fields.end(&mut out);
        out.reserve(body.len() + 5);
        put_bin(&mut out, body);
        out.freeze()
    }
}

/// A copy of an encoded request with another deadline and sending time, for sending it again.
///
/// # Errors
/// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed) when `message` is not the work of [`RequestEncoder`].
pub fn restamp_request(message: &[u8], deadline_ms: u32, sent_ms: u64) -> Result<Bytes, Error> {
    let stamped_by_us = message.len() > SENT_AT + 8
        && message[DEADLINE_AT - 1] == Marker::U32.to_u8()
        && message[SENT_AT - 1] == Marker::U64.to_u8();
    if !stamped_by_us {
        return Err(Error::malformed("request"));
    }
    let mut copy = BytesMut::from(message);
    copy[DEADLINE_AT..DEADLINE_AT + 4].copy_from_slice(&deadline_ms.to_be_bytes());
    copy[SENT_AT..SENT_AT + 8].copy_from_slice(&sent_ms.to_be_bytes());
    Ok(copy.freeze())
}

/// Reads a request; its body is a slice of `message`, not a copy.
///
/// # Errors
/// Any [`ErrorKind`](crate::ErrorKind); nothing larger than `limits` was allocated.
pub fn decode_request(message: &Bytes, limits: Limits) -> Result<Request, Error> {
    let mut reader = Reader::new(message, limits);
    let (_flags, left) = read_preamble(&mut reader, 0)?;
    let mut elements = Elements { reader: &mut reader, left };
    let deadline_ms = elements.next(|reader| reader.unsigned("deadline"))?.unwrap_or(0);
    let deadline_ms = u32::try_from(deadline_ms).map_err(|_| Error::too_large("deadline"))?;
    let sent_ms = elements.next(|reader| reader.unsigned("sending time"))?.unwrap_or(0);
    let method = elements.next(|reader| reader.field("method"))?.unwrap_or(b"GET");
    let method = Method::from_bytes(method).map_err(|_| Error::malformed("method"))?;
    let path = elements.next(|reader| reader.field("path"))?.unwrap_or(b"/");
    let path_and_query = PathAndQuery::try_from(path).map_err(|_| Error::malformed("path"))?;
    let headers = elements.next(read_fields)?.unwrap_or_default();
    let body = elements.next(|reader| reader.blob("body"))?.unwrap_or_default();
    elements.finish()?;
    Ok(Request { deadline_ms, sent_ms, method, path_and_query, headers, body: message.slice_ref(body) })
}

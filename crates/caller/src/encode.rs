//! A request as it is published: written once, stamped anew for each attempt.

use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use bytes::Bytes;
use http::HeaderValue;
use http::Method;
use natsway_routes::table::Codec;
use natsway_wire::Error;
use natsway_wire::envelope::{RequestEncoder, restamp_request};
use natsway_wire::native::{DEADLINE, METHOD, PATH, canonical_name, is_reserved, may_join};

use crate::pending::ReplyPolicy;

/// The fields that a message carries so that its receiver continues the trace (W3C Trace Context).
#[derive(Clone, Debug)]
pub struct TraceFields {
    /// `traceparent`.
    pub parent: [u8; 55],
    /// `tracestate`, if there is one.
    pub state: Option<HeaderValue>,
}

/// What differs from attempt to attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// The time that the attempt has left, in milliseconds, rounded up.
    pub deadline_ms: u32,
    /// When it is sent, by the connection's clock.
    pub sent_ms: u64,
}

impl Sending {
    /// Of a message that is stored: nobody waits for an answer, and it is never too late.
    pub const NEVER: Self = Self { deadline_ms: u32::MAX, sent_ms: 0 };

    /// An attempt that is sent at `now` and given up at `until`.
    pub fn new(now: Instant, until: Instant, sent_ms: u64) -> Self {
        let left = until.saturating_duration_since(now) + Duration::from_micros(999);
        Self { deadline_ms: u32::try_from(left.as_millis()).unwrap_or(u32::MAX), sent_ms }
    }
}

/// The header fields that a worker is to see.
pub trait Fields {
    /// A guess at their size with what holds them together, so that a buffer need not grow.
    fn bytes(&self) -> usize;

    /// Calls `put` with each, in their order.
    ///
    /// # Errors
    /// The first of `put`.
    fn each<E>(&self, put: impl FnMut(&str, &[u8]) -> Result<(), E>) -> Result<(), E>;
}

/// Where a request's body is.
#[derive(Clone, Copy, Debug)]
pub enum MessageBody<'b> {
    /// In the message.
    Whole(&'b Bytes),
    /// On a stream, once a worker is ready for it.
    Stream,
}

/// A request in its route's codec.
#[derive(Debug)]
pub enum Encoded {
    /// The envelope.
    Http(Bytes),
    /// The raw body, or one map, and its NATS headers.
    Native(HeaderMap, Bytes),
}

/// A message of one attempt.
#[derive(Debug)]
pub struct Stamped {
    /// The payload.
    pub payload: Bytes,
    /// NATS headers, for native backends.
    pub headers: Option<HeaderMap>,
}

impl Encoded {
    /// Writes a request for its first attempt. Where the `offer` of tunnels is not empty, it goes
    /// along with an envelope.
    ///
    /// # Errors
    /// Above the wire's limits.
    pub fn new(
        codec: Codec,
        sending: Sending,
        method: &Method,
        path: &str,
        fields: &impl Fields,
        body: MessageBody<'_>,
        offer: &[u8],
    ) -> Result<Self, Error> {
        let nothing = Bytes::new();
        let (body, is_stream) = match body {
            MessageBody::Whole(body) => (body, false),
            MessageBody::Stream => (&nothing, true),
        };
        match codec {
            Codec::Http => {
                let capacity = 70 + path.len() + fields.bytes() + body.len() + offer.len();
                let Sending { deadline_ms, sent_ms } = sending;
                let mut encoder =
                    RequestEncoder::new(deadline_ms, sent_ms, method.as_str(), path, capacity)?;
                fields.each(|name, value| encoder.header(name, value))?;
                Ok(Self::Http(match offer {
                    offer if is_stream => encoder.finish_as_stream(offer),
                    [] => encoder.finish(body),
                    offer => encoder.finish_with_offer(body, offer),
                }))
            }
            Codec::Native => {
                let mut headers = HeaderMap::new();
                fields.each(|name, value| {
                    // NATS headers are text: a value that is not UTF-8 cannot cross. Names that
                    // mean something to the broker are not a client's to use.
                    match std::str::from_utf8(value) {
                        Ok(value) if !is_reserved(name) => put_once(&mut headers, name, value),
                        _ => {}
                    }
                    Ok::<(), Error>(())
                })?;
                headers.insert(METHOD, method.as_str());
                headers.insert(PATH, path);
                if sending != Sending::NEVER {
                    headers.insert(DEADLINE, sending.deadline_ms.to_string().as_str());
                }
                Ok(Self::Native(headers, body.clone()))
            }
            // All else is in the map that the body is.
            Codec::Args => {
                let mut headers = HeaderMap::new();
                fields.each(|name, value| {
                    if let Ok(value) = std::str::from_utf8(value) {
                        put_once(&mut headers, name, value);
                    }
                    Ok::<(), Error>(())
                })?;
                if sending != Sending::NEVER {
                    headers.insert(DEADLINE, sending.deadline_ms.to_string().as_str());
                }
                Ok(Self::Native(headers, body.clone()))
            }
        }
    }

    /// The message of the first attempt.
    pub fn first(&self) -> Stamped {
        match self {
            Self::Http(message) => Stamped { payload: message.clone(), headers: None },
            Self::Native(headers, body) => {
                Stamped { payload: body.clone(), headers: Some(headers.clone()) }
            }
        }
    }

    /// The message of a later attempt.
    pub fn stamped(&mut self, sending: Sending) -> Stamped {
        match self {
            Self::Http(message) => {
                let Sending { deadline_ms, sent_ms } = sending;
                *message =
                    restamp_request(message, deadline_ms, sent_ms).expect("the encoder wrote it");
            }
            Self::Native(headers, _) => {
                headers.insert(DEADLINE, sending.deadline_ms.to_string().as_str())
            }
        }
        self.first()
    }
}

/// Adds a field so that each is there once: many clients of NATS read headers into a dictionary,
/// which keeps one of several.
fn put_once(headers: &mut HeaderMap, name: &str, value: &str) {
    let name = canonical_name(name);
    match headers.get(name.as_str()).filter(|_| may_join(&name)) {
        Some(before) => {
            let joined = format!("{before}, {value}");
            headers.insert(name.as_str(), joined.as_str());
        }
        None => headers.append(name.as_str(), value),
    }
}

impl Stamped {
    /// The size that counts against the broker's `max_payload`, headers included.
    pub fn bytes(&self) -> usize {
        // Each field is `Name: value\r\n`, behind a version line and before an empty one.
        let fields = self.headers.iter().flat_map(|headers| headers.iter());
        let field_bytes = |name: &str, value: &str| name.len() + value.len() + 4;
        let bytes = |(name, values): (&async_nats::HeaderName, &Vec<async_nats::HeaderValue>)| {
            values.iter().map(|value| field_bytes(name.as_ref(), value.as_str())).sum::<usize>()
        };
        self.payload.len()
            + self.headers.as_ref().map_or(0, |_| 14)
            + fields.map(bytes).sum::<usize>()
    }

    /// What may come back for it, and what may be done about it; `cancel` is whether its route
    /// wants abandoned work cancelled, `repeatable` whether it may run twice.
    pub fn policy(&self, cancel: bool, repeatable: bool) -> ReplyPolicy {
        let signals = self.headers.is_none();
        ReplyPolicy { signals, cancel: cancel && signals, repeatable }
    }
}

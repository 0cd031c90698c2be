//! What a route says of its arguments.

use http::HeaderName;

use crate::{Format, Limits};

/// What a route with the codec `args` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// How requests are written and replies read.
    pub format: Format,
    /// The header fields that are arguments.
    pub headers: Vec<HeaderName>,
    /// Whether `a[b]` in the name of a field is a map.
    pub nested: bool,
    /// Whether `?callback=` has a reply wrapped for a script.
    pub jsonp: bool,
    /// The bodies that it takes; all when there are none.
    pub bodies: Vec<BodyKind>,
    /// Bounds of a request's values.
    pub limits: Limits,
    /// How messages of a WebSocket are answered, if they are.
    pub websocket: Option<WebSocket>,
}

/// What a route says of WebSockets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WebSocket {
    /// The most requests of one connection at a time.
    pub concurrency: usize,
    /// The origins whose pages may open one, or `*`; that of the gateway alone when there are none.
    pub origins: Vec<String>,
}

impl WebSocket {
    /// What a route has that does not say how many requests.
    pub const CONCURRENCY: usize = 16;

    /// The most that a route may ask for.
    pub const MOST_CONCURRENCY: usize = 1_000;
}

impl Default for Limits {
    fn default() -> Self {
        Self::REQUEST
    }
}

/// What a body is, by its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BodyKind {
    /// `application/json`, or any type that ends with `+json`.
    Json,
    /// `application/msgpack` by one of its names, or any type that ends with `+msgpack`.
    Msgpack,
    /// `application/cbor`, or any type that ends with `+cbor`.
    Cbor,
    /// `application/x-www-form-urlencoded`.
    Form,
    /// `multipart/form-data`.
    Multipart,
    /// `text/*`.
    Text,
    /// Any other type, and none.
    Other,
}

impl BodyKind {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Json,
        Self::Msgpack,
        Self::Cbor,
        Self::Form,
        Self::Multipart,
        Self::Text,
        Self::Other,
    ];

    /// Returns the type by which a client sends it.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Msgpack => "application/msgpack",
            Self::Cbor => "application/cbor",
            Self::Form => "application/x-www-form-urlencoded",
            Self::Multipart => "multipart/form-data",
            Self::Text => "text/plain",
            Self::Other => "application/octet-stream",
        }
    }
}

impl Options {
    /// Whether it takes such a body.
    pub fn takes(&self, kind: BodyKind) -> bool {
        self.bodies.is_empty() || self.bodies.contains(&kind)
    }
}

//! The codec `args`: any request becomes one map, and any reply goes back as its client asks for
//! it. Pure.
//!
//! A backend gets a [`Value`], written in the [`Format`] of its route. [`request`] merges what a
//! request has into it: path parameters, named header fields, the body, the query. [`reply`] reads
//! what the backend answers, and writes it as [`accept`] says that the client takes it.
//!
//! Each reader is told by [`Limits`] how much it may make of what it reads. `docs/args.md` has the
//! rules with tables and golden bytes.
//!
//! A backend in Rust needs a NATS client and this:
//!
//! ```
//! use natsway_args::{Format, Limits, ReadError, Value, reply::with_head};
//!
//! /// Answers the payload of one message.
//! fn hello(payload: &[u8]) -> Result<Vec<u8>, ReadError> {
//!     let Value::Map(args) = Format::Json.read(payload, Limits::REPLY)? else {
//!         return Err(ReadError::Malformed("the gateway sends a map".to_owned()));
//!     };
//!     let answer = match args.get("name") {
//!         Some(name) => Value::Array(vec![Value::text("hello"), name.clone()]),
//!         None => with_head(http::StatusCode::BAD_REQUEST, &[], Some(Value::text("who?"))),
//!     };
//!     Ok(Format::Json.write(&answer))
//! }
//! # fn main() -> Result<(), ReadError> {
//! assert_eq!(hello(br#"{"name": "ann"}"#)?, br#"["hello","ann"]"#);
//! let nobody = br#"{"_reply":{"status":400,"headers":{}},"body":"who?"}"#;
//! assert_eq!(hello(b"{}")?, nobody);
//! # Ok(())
//! # }
//! ```

pub mod accept;
mod form;
mod format;
mod limits;
mod media;
pub mod message;
mod multipart;
mod options;
pub mod reply;
pub mod request;
mod value;

pub use format::Format;
pub use limits::{Limits, ReadError};
pub use options::{BodyKind, Options, WebSocket};
pub use value::{Map, Value};

/// The key under which the gateway says what a request is besides its arguments.
pub const REQUEST: &str = "_request";

/// The key under which a backend says the status and the header fields of its reply.
pub const REPLY: &str = "_reply";

/// The key of a body that is no map.
pub const BODY: &str = "body";

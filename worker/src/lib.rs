//! Serves any [`tower::Service`] of HTTP requests over NATS: an axum `Router` moves by changing one
//! line.
//!
//! [`serve`] takes requests that a Natsway gateway sends to a subject, from a queue group that all
//! workers of that subject share, and answers them. [`serve_local`] does it on one thread per core
//! without `Send`, for services that never block. Both leave without losing a request, and are NATS
//! micro services (`nats micro ls`).
//!
//! # Map
//!
//! A request passes these, in this order:
//!
//! - `reader`: a thread with a broker connection of its own, which it replaces when it is lost and
//!   leaves in order when told to. `subscriptions` holds the queue subscriptions and the fence by
//!   which they are left; `leave` has others stand in for the last member.
//! - `admission`: admits or sheds, decodes, refuses what is stale (`staleness`), starts a handler
//!   and watches those that take long (`running`). Nothing here waits for a handler.
//! - `handler`: a `job` calls the service, catches its panic (`panics`), collects the `body` within
//!   limits, encodes; `outbox` hands the reply to the newest session.
//!
//! What does not fit in a message goes on by `streams`, on tunnels that are dialled to gateways:
//! bodies of any size, event streams, WebSockets and gRPC, from handlers that know nothing of it
//! ([`Body`], [`Draining`]).
//!
//! Whole requests come by `unary` tunnels as well, to gateways whose routes send them so.
//!
//! Requests that a stream has stored come by a `work_queue`, and their results are kept
//! ([`WorkQueue`]).
//!
//! `control_plane` answers questions and takes commands; its `discovery` writes ADR-32 documents.
//! `telemetry` counts all of it (`metrics`) and makes a span of each request (`trace`). `serve`
//! puts these together, and its `directives` open and drain whole subscription sets as an
//! autoscaler says. `options` says how.
//!
//! [`upstream`] (feature `upstream`) is a service that passes requests on to an app which listens
//! somewhere: the sidecar of programs in other languages.
//!
//! [`Client`] (feature `client`) calls other services by the names of their routes, from handlers
//! or from elsewhere.

mod admission;
#[cfg(feature = "client")]
mod client;
mod content_type;
mod control_plane;
mod error;
mod handler;
mod inbox;
mod options;
mod reader;
mod serve;
mod streams;
mod telemetry;
mod unary;
#[cfg(feature = "upstream")]
pub mod upstream;
mod work_queue;

#[cfg(feature = "client")]
pub use client::{CallError, CallErrorKind, Client, ClientOptions, Context};
pub use error::Error;
pub use handler::body::{Body, BodyError, BoxError};
pub use handler::deadline::Deadline;
pub use handler::draining::Draining;
pub use handler::panics::log_panics_once;
#[cfg(feature = "trace")]
pub use natsway_boot::trace::HeadSampler;
pub use natsway_boot::{
    BrokerConfig, BrokerConfigError, Credentials, DialError, DialErrorKind, Tls,
};
pub use options::{OnCancel, Options};
pub use serve::{serve, serve_local, serve_scaled};
pub use streams::TunnelMode;
pub use telemetry::metrics::Summary;
pub use work_queue::WorkQueue;

/// Completes at the first SIGTERM or SIGINT; a second one ends the process with status 130.
///
/// # Errors
/// The system's, when a signal handler cannot be installed.
pub fn shutdown_signal() -> std::io::Result<impl Future<Output = ()> + use<>> {
    natsway_boot::shutdown::on_signal().map(tokio_util::sync::CancellationToken::cancelled_owned)
}

#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

#[cfg(doctest)]
#[doc = include_str!("../../docs/streams.md")]
struct StreamsPage;

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
//!   which they are left; `leave` has others stand in for the last member; `control_plane` answers
//!   questions and takes commands; `discovery` writes ADR-32 documents.
//! - `admission`: admits or sheds, decodes, refuses what is stale (`staleness`), starts a handler
//!   and watches those that take long (`running`). Nothing here waits for a handler.
//! - `job`: calls the service, within a span (`trace`) if told to, catches its panic (`panics`),
//!   collects the `body` within limits, encodes.
//! - `outbox`: hands the reply to the newest session.
//!
//! [`Client`] (feature `client`) calls other services by the names of their routes, from handlers
//! or from elsewhere.
//!
//! `directives` opens and drains whole subscription sets as an autoscaler says. `metrics` counts
//! all of it, `options` says how.

mod admission;
mod body;
#[cfg(feature = "client")]
mod client;
mod control_plane;
mod directives;
mod discovery;
mod error;
mod job;
mod leave;
mod metrics;
mod options;
mod outbox;
mod panics;
mod reader;
mod running;
mod serve;
mod staleness;
mod subscriptions;
#[cfg_attr(not(feature = "trace"), path = "trace_noop.rs")]
mod trace;

pub use body::Body;
#[cfg(feature = "client")]
pub use client::{CallError, CallErrorKind, Client, ClientOptions, Context};
pub use directives::serve_scaled;
pub use error::Error;
pub use job::{BoxError, Deadline};
pub use metrics::Summary;
#[cfg(feature = "trace")]
pub use natsway_boot::trace::HeadSampler;
pub use natsway_boot::{
    BrokerConfig, BrokerConfigError, Credentials, DialError, DialErrorKind, Tls,
};
pub use options::{OnCancel, Options};
pub use panics::log_panics_once;
pub use serve::{serve, serve_local};

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

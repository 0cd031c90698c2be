//! Streams as the dispatcher gives them: what a body goes on by, and what it is sent with.
//!
//! What a route says of its streams holds for whoever sends: [`upload`] bounds what goes up,
//! [`download`] what comes down, and [`activity`] ends what stands still.

pub mod activity;
pub mod download;
pub mod upload;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use natsway_routes::metrics::{OpenStream, Recorder};
use natsway_tunnel::body::{DrainedBody, DrainedBodyError};
use natsway_tunnel::http2::{RecvBody, StreamPermit, Upgraded, is_leaving};
use natsway_wire::envelope::Response;

/// A body broke off: whoever reads it sees that it is not whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokenOff {
    /// The worker's stream did.
    #[error("the worker broke off")]
    Worker,
    /// Nothing came in either direction for the route's `stream_idle_timeout`.
    #[error("the stream stood still")]
    Idle,
    /// It was there for the route's `stream_max_age`.
    #[error("the stream was as old as it may be")]
    Age,
}

/// The body of a request that goes up on a stream.
pub type Upload = UnsyncBoxBody<Bytes, io::Error>;

/// What a request asks of the stream that carries its body.
#[derive(Debug)]
pub enum Opening {
    /// A body goes up, and a response comes down.
    Upload {
        /// The body.
        body: Upload,
        /// Its length, where that is known.
        length: Option<u64>,
    },
    /// Both ends send what they like: a WebSocket, say.
    Upgrade {
        /// The protocol, as `:protocol` has it (RFC 8441).
        protocol: String,
    },
}

/// A response that goes on by a stream.
#[derive(Debug)]
pub struct Streamed {
    /// Its head, and the bytes of the body that came with it.
    pub response: Response,
    /// What comes behind them.
    pub rest: Rest,
}

/// What comes behind a response's head.
#[derive(Debug)]
pub enum Rest {
    /// More of the body, and trailers.
    Body(StreamBody),
    /// A connection, both ways.
    Upgraded(UpgradedStream),
}

/// The part of a body that comes on a stream. Dropping it cancels the work at its worker.
#[derive(Debug)]
pub struct StreamBody {
    incoming: DrainedBody<RecvBody>,
    open: OpenStream,
    has_broken_off: bool,
    _permit: StreamPermit,
}

/// A connection to a handler. Dropping it ends that.
#[derive(Debug)]
pub struct UpgradedStream {
    io: Upgraded,
    place: StreamPlace,
}

/// The place of a stream: on its tunnel, and in what is counted of its version.
#[derive(Debug)]
pub struct StreamPlace {
    _permit: StreamPermit,
    open: OpenStream,
}

impl StreamPlace {
    /// The worker's end broke, which is a failure of its version.
    pub fn broke_off(&self) {
        self.open.broke_off();
    }
}

impl StreamBody {
    pub(crate) fn new(incoming: RecvBody, permit: StreamPermit, version: &Arc<Recorder>) -> Self {
        let (incoming, open) = (DrainedBody::new(incoming), version.open_stream());
        Self { incoming, open, has_broken_off: false, _permit: permit }
    }
}

impl UpgradedStream {
    pub(crate) fn new(io: Upgraded, permit: StreamPermit, version: &Arc<Recorder>) -> Self {
        Self { io, place: StreamPlace { _permit: permit, open: version.open_stream() } }
    }

    /// Returns the bytes, both ways, and the place of the stream, which is to be held as long.
    pub fn into_parts(self) -> (Upgraded, StreamPlace) {
        (self.io, self.place)
    }
}

impl Body for StreamBody {
    type Data = Bytes;
    type Error = DrainedBodyError<h2::Error>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = std::task::ready!(Pin::new(&mut self.incoming).poll_frame(cx));
        if let Some(Err(error)) = &frame {
            // It was counted when it began; that it broke off is one more failure of its version,
            // unless its worker leaves.
            if !is_leaving(error) && !std::mem::replace(&mut self.has_broken_off, true) {
                self.open.broke_off();
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}

/// Returns a response as the dispatcher gives it, of a stream's head.
pub(crate) fn head_of(status: http::StatusCode, headers: HeaderMap) -> Response {
    Response { status, headers, trailers: HeaderMap::new(), body: Bytes::new(), join: None }
}

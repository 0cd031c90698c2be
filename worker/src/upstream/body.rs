//! The body of an app's response on its way back.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;

use super::metrics::UpstreamMetrics;
use super::pool::Lease;
use crate::BoxError;

/// The body of an app's answer, as it comes.
pub struct UpstreamBody(Kind);

enum Kind {
    /// Of this worker's own making.
    Whole(Option<Bytes>),
    Incoming {
        body: Incoming,
        /// The connection, which is free for another request at the body's end.
        lease: Option<Lease>,
        metrics: Arc<UpstreamMetrics>,
    },
}

impl UpstreamBody {
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self(Kind::Whole(Some(bytes).filter(|bytes| !bytes.is_empty())))
    }

    pub(super) fn incoming(body: Incoming, lease: Lease, metrics: Arc<UpstreamMetrics>) -> Self {
        let lease = match body.is_end_stream() {
            true => {
                lease.give_back();
                None
            }
            false => Some(lease),
        };
        Self(Kind::Incoming { body, lease, metrics })
    }
}

impl std::fmt::Debug for UpstreamBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UpstreamBody").finish_non_exhaustive()
    }
}

impl HttpBody for UpstreamBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        match &mut self.0 {
            Kind::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Kind::Incoming { body, lease, metrics } => {
                let frame = std::task::ready!(Pin::new(&mut *body).poll_frame(cx));
                match frame {
                    Some(Err(error)) => {
                        *lease = None;
                        UpstreamMetrics::count(&metrics.broken_bodies);
                        Poll::Ready(Some(Err(error.into())))
                    }
                    frame => {
                        if (frame.is_none() || body.is_end_stream())
                            && let Some(lease) = lease.take()
                        {
                            lease.give_back();
                        }
                        Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::Whole(bytes) => bytes.is_none(),
            Kind::Incoming { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Kind::Incoming { body, .. } => body.size_hint(),
        }
    }
}

//! What comes down a stream.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::RecvStream;
use http::Response;
use http::header::CONTENT_LENGTH;
use http_body::{Body, Frame, SizeHint};

use super::{GoingUp, Upgraded};

/// The body of a response, as it comes. Dropped before its end, it resets the stream; read to its
/// end, it leaves what still goes up to itself.
#[derive(Debug)]
pub struct RecvBody {
    stream: RecvStream,
    going_up: GoingUp,
    /// What is left of a length that the head said.
    left: Option<u64>,
    is_data_over: bool,
    has_ended: bool,
}

impl RecvBody {
    /// Takes the body of a response, whose length its head may say.
    pub(super) fn of(response: Response<RecvStream>, going_up: GoingUp) -> Response<Self> {
        let (head, stream) = response.into_parts();
        let length = head.headers.get(CONTENT_LENGTH);
        let left = length.and_then(|length| length.to_str().ok()?.parse().ok());
        let is_whole = stream.is_end_stream();
        let mut body = Self { stream, going_up, left, is_data_over: false, has_ended: false };
        if is_whole {
            body.end();
        }
        Response::from_parts(head, body)
    }

    /// Returns the connection that a CONNECT became, with a response of 200; `None` for any other
    /// request.
    pub fn into_upgraded(self) -> Option<Upgraded> {
        match self.going_up {
            GoingUp::Connection(up) => Some(Upgraded::new(up, self.stream)),
            GoingUp::Nothing | GoingUp::Body(_) => None,
        }
    }

    fn end(&mut self) {
        self.has_ended = true;
        if let GoingUp::Body(upload) = std::mem::replace(&mut self.going_up, GoingUp::Nothing) {
            drop(upload.detach());
        }
    }

    /// What an error means: that the worker wants no more of the request says that its response is
    /// complete (RFC 9113, 8.1).
    fn fail(&mut self, error: h2::Error) -> Option<Result<Frame<Bytes>, h2::Error>> {
        if is_complete(&error) {
            self.end();
            return None;
        }
        Some(Err(error))
    }
}

/// Whether a reset says that all had come before it.
pub(super) fn is_complete(error: &h2::Error) -> bool {
    error.is_reset() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
}

impl Body for RecvBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = self.get_mut();
        if this.has_ended {
            return Poll::Ready(None);
        }
        if !this.is_data_over {
            match ready!(this.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // That the stream is gone meanwhile, the next read says.
                    this.stream.flow_control().release_capacity(data.len()).ok();
                    this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                    if this.stream.is_end_stream() {
                        this.end();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(error)) => return Poll::Ready(this.fail(error)),
                None => this.is_data_over = true,
            }
        }
        Poll::Ready(match ready!(this.stream.poll_trailers(cx)) {
            Ok(trailers) => {
                this.end();
                trailers.map(|trailers| Ok(Frame::trailers(trailers)))
            }
            Err(error) => this.fail(error),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.has_ended
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

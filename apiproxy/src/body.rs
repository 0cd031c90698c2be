//! Bodies that are whole: what goes back to clients, and the reading of what they send.

use std::convert::Infallible;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::memory::BodyBudget;
use crate::memory::cost::{COPIED_BYTES, body_bytes};
use crate::stall::{StallDetector, UnsentBytes};

/// A response's body: one piece, and trailers where there are some. It carries what its response
/// holds of the memory.
#[derive(Debug, Default)]
pub struct ReplyBody {
    data: Option<Piece>,
    trailers: Option<HeaderMap>,
    /// Where there is no piece to carry it.
    held: Option<BodyBudget>,
}

/// The one piece of a body.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    /// Whether it gets on, where that is watched.
    unsent: Option<UnsentBytes>,
    /// Given back when the client has taken it whole.
    _held: Option<BodyBudget>,
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        if let Some(unsent) = &mut self.unsent {
            unsent.got_on(count);
        }
    }
}

impl ReplyBody {
    /// A body with trailers; without any it is a body of known length.
    pub fn new(data: Bytes, trailers: HeaderMap) -> ReplyBody {
        let piece = |bytes| Piece { bytes, unsent: None, _held: None };
        let data = Some(data).filter(|data| !data.is_empty()).map(piece);
        ReplyBody {
            data,
            trailers: Some(trailers).filter(|trailers| !trailers.is_empty()),
            held: None,
        }
    }

    /// Has it carry what its response holds, until its client has taken it.
    #[must_use]
    pub fn holding(mut self, held: BodyBudget) -> ReplyBody {
        match &mut self.data {
            Some(piece) => piece._held = Some(held),
            None => self.held = Some(held),
        }
        self
    }

    /// Counts it among what its connection has not sent yet, until all of it is.
    pub fn watch(&mut self, unsent: &Rc<StallDetector>) {
        if let Some(piece) = &mut self.data {
            piece.unsent = Some(unsent.begin(piece.bytes.len()));
        }
    }
}

impl Drop for ReplyBody {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            // Its head is still to be written.
            held.until_flushed();
        }
    }
}

/// Returns a body that keeps nothing else in memory: a small one is cut out of the buffer that it
/// came in.
pub fn compact(body: Bytes) -> Bytes {
    if body.len() <= COPIED_BYTES { Bytes::copy_from_slice(&body) } else { body }
}

impl From<Bytes> for ReplyBody {
    fn from(data: Bytes) -> ReplyBody {
        ReplyBody::new(data, HeaderMap::new())
    }
}

impl Body for ReplyBody {
    type Data = Piece;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, Infallible>>> {
        let data = self.data.take().map(Frame::data);
        let frame = data.or_else(|| self.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        // Exact, so that HTTP/1 sends a length, unless trailers demand chunks.
        match &self.trailers {
            None => {
                SizeHint::with_exact(self.data.as_ref().map_or(0, |data| data.remaining() as u64))
            }
            Some(_) => SizeHint::default(),
        }
    }
}

/// Why a request's body could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// Longer than its limit.
    TooLarge,
    /// The client broke off, or what it sent is not a body.
    Broken,
    /// The shard holds as much as it may.
    NoRoom,
}

/// A request's body, all of it.
#[derive(Debug, Default)]
pub struct WholeBody {
    /// What it is.
    pub bytes: Bytes,
    /// Trailer fields that came behind it. They are not forwarded: no field that matters may come
    /// after the decision is taken.
    pub trailer_fields: usize,
}

/// The least that hyper reads into at once: a piece that is much smaller keeps all of that.
const PIECE_BYTES: usize = 4 * 1024;

/// Reads a whole body of at most `limit_bytes`; nothing is read of one that says itself that it is
/// longer. With the `head_bytes` before it, `held` counts it as it comes: who only says that much
/// will come holds nothing.
pub async fn read_whole(
    mut body: Incoming,
    limit_bytes: usize,
    head_bytes: usize,
    held: &mut BodyBudget,
) -> Result<WholeBody, ReadError> {
    let said_bytes = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if said_bytes > limit_bytes {
        return Err(ReadError::TooLarge);
    }
    let mut first = Bytes::new();
    let mut rest = BytesMut::new();
    let mut trailer_fields = 0;
    while let Some(frame) = body.frame().await {
        let data = match frame.map_err(|_| ReadError::Broken)?.into_data() {
            Ok(data) => data,
            Err(other) => {
                trailer_fields += other.trailers_ref().map_or(0, HeaderMap::len);
                continue;
            }
        };
        let read_bytes = first.len() + rest.len() + data.len();
        if read_bytes > limit_bytes {
            return Err(ReadError::TooLarge);
        }
        if !held.reach(head_bytes + body_bytes(read_bytes)) {
            return Err(ReadError::NoRoom);
        }
        // Most bodies come in one piece, which is then used as it is.
        if first.is_empty() && rest.is_empty() {
            first = if data.len() < PIECE_BYTES { Bytes::copy_from_slice(&data) } else { data };
        } else {
            if rest.is_empty() {
                rest.extend_from_slice(&std::mem::take(&mut first));
            }
            rest.extend_from_slice(&data);
        }
    }
    let bytes = if rest.is_empty() { first } else { rest.freeze() };
    Ok(WholeBody { bytes, trailer_fields })
}

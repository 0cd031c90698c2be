//! Bodies that are whole: what goes back to clients, and the reading of what they send.

use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use natsway_caller::stream::BrokenOff;

use crate::memory::BodyBudget;
use crate::memory::cost::{COPIED_BYTES, body_bytes};
use crate::open_requests::OpenRequest;
use crate::stall::{StallDetector, UnsentBytes};
use crate::stream::becomes::Becomes;
use crate::stream::download::Download;

/// A response's body: one piece, and trailers where there are some, or more that comes by a stream.
/// It carries what its response holds of the memory.
#[derive(Debug, Default)]
pub struct ReplyBody {
    data: Option<Piece>,
    /// What comes behind the piece; in a box, and rare.
    stream: Option<Box<Streaming>>,
    /// What its stream of HTTP/2 becomes; in a box, and rarer.
    becomes: Option<Box<Becoming>>,
    trailers: Option<HeaderMap>,
    /// Where there is no piece to carry it.
    held: Option<BodyBudget>,
}

/// What comes of a body by a stream, and who is to know of it.
#[derive(Debug)]
struct Streaming {
    download: Download,
    /// Counts each piece until it is sent.
    unsent: Option<Rc<StallDetector>>,
    /// Its connection is not idle.
    busy: Option<OpenRequest>,
}

/// A stream of HTTP/2 that becomes a connection.
#[derive(Debug)]
pub(crate) struct Becoming {
    pub(crate) client: OnUpgrade,
    pub(crate) becomes: Becomes,
}

/// One piece of a body.
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
    pub fn new(data: Bytes, trailers: HeaderMap) -> Self {
        let piece = |bytes| Piece { bytes, unsent: None, _held: None };
        let data = Some(data).filter(|data| !data.is_empty()).map(piece);
        let trailers = Some(trailers).filter(|trailers| !trailers.is_empty());
        Self { data, stream: None, becomes: None, trailers, held: None }
    }

    /// No body: its stream of HTTP/2 becomes a connection.
    pub(crate) fn becoming(client: OnUpgrade, becomes: Becomes) -> Self {
        let becomes = Some(Box::new(Becoming { client, becomes }));
        Self { data: None, stream: None, becomes, trailers: None, held: None }
    }

    /// Takes what its stream of HTTP/2 becomes.
    pub(crate) fn take_becoming(&mut self) -> Option<Box<Becoming>> {
        self.becomes.take()
    }

    /// A body that begins with `first` and goes on by a stream.
    pub(crate) fn streamed(first: Bytes, download: Download) -> Self {
        let stream = Streaming { download, unsent: None, busy: None };
        let data = Self::new(first, HeaderMap::new()).data.take();
        Self { data, stream: Some(Box::new(stream)), becomes: None, trailers: None, held: None }
    }

    /// Has its connection not be idle as long as the body comes by a stream.
    pub(crate) fn keep_busy(&mut self, busy: impl FnOnce() -> OpenRequest) {
        if let Some(stream) = &mut self.stream {
            stream.busy = Some(busy());
        }
    }

    /// Takes its one piece, and what its response holds; what comes by a stream is given up.
    pub(crate) fn into_whole(mut self) -> (Bytes, Option<BodyBudget>) {
        match self.data.take() {
            Some(piece) => (piece.bytes, piece._held),
            None => (Bytes::new(), self.held.take()),
        }
    }

    /// Has it carry what its response holds, until its client has taken it.
    #[must_use]
    pub fn holding(mut self, held: BodyBudget) -> Self {
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
        if let Some(stream) = &mut self.stream {
            stream.unsent = Some(Rc::clone(unsent));
        }
    }
}

impl Streaming {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Piece>, BrokenOff>>> {
        self.download.poll(cx).map(|frame| {
            frame.map(|frame| {
                if let (Err(_), Some(busy)) = (&frame, &self.busy) {
                    busy.reset_on_close();
                }
                frame.map(|frame| {
                    frame.map_data(|bytes| {
                        let unsent = self.unsent.as_ref().map(|unsent| unsent.begin(bytes.len()));
                        Piece { bytes, unsent, _held: None }
                    })
                })
            })
        })
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
    fn from(data: Bytes) -> Self {
        Self::new(data, HeaderMap::new())
    }
}

impl Body for ReplyBody {
    type Data = Piece;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, BrokenOff>>> {
        let data = self.data.take().map(Frame::data);
        if let (None, Some(stream)) = (&data, &mut self.stream) {
            return stream.poll(cx);
        }
        let frame = data.or_else(|| self.trailers.take().map(Frame::trailers));
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none()
            && self.trailers.is_none()
            && self.stream.as_ref().is_none_or(|stream| stream.download.is_over())
    }

    fn size_hint(&self) -> SizeHint {
        // Exact, so that HTTP/1 sends a length, unless trailers demand chunks.
        let first = self.data.as_ref().map_or(0, |data| data.remaining() as u64);
        let left = match &self.stream {
            None => Some(0),
            Some(stream) => stream.download.left(),
        };
        match (&self.trailers, left) {
            (None, Some(left)) => SizeHint::with_exact(first + left),
            _ => SizeHint::default(),
        }
    }
}

/// As much of a request's body as may travel in a message.
#[derive(Debug)]
pub enum Inline<B> {
    /// All of it.
    Whole(WholeBody),
    /// It is longer.
    GoesOn {
        /// What was read.
        first: Bytes,
        /// What was not.
        rest: B,
    },
}

/// Why a request's body could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadError {
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

/// Reads a whole body of at most `limit_bytes`, or as much as shows that it is longer; nothing is
/// read of one that says so itself. With the `head_bytes` before it, `held` counts it as it comes:
/// who only says that much will come holds nothing.
///
/// # Errors
/// [`ReadError`].
pub async fn read_inline<B: Body<Data = Bytes> + Unpin>(
    mut body: B,
    is_http2: bool,
    limit_bytes: usize,
    head_bytes: usize,
    held: &mut BodyBudget,
) -> Result<Inline<B>, ReadError> {
    let said_bytes = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
    if said_bytes > limit_bytes {
        return Ok(Inline::GoesOn { first: Bytes::new(), rest: body });
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
        if read_bytes > limit_bytes {
            let first = if rest.is_empty() { first } else { rest.freeze() };
            return Ok(Inline::GoesOn { first, rest: body });
        }
    }
    // When a client of HTTP/2 leaves in some ways, hyper reports the end of its body as if it were
    // whole.
    if is_http2 && !body.is_end_stream() {
        return Err(ReadError::Broken);
    }
    let bytes = if rest.is_empty() { first } else { rest.freeze() };
    Ok(Inline::Whole(WholeBody { bytes, trailer_fields }))
}

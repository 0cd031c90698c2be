//! Bodies: what a service is given, and what it gives back, collected within a limit.

use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

/// Any error that a service or a body may give.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body: of a request as it comes, or of a response that a [`Client`](crate::Client) got, with
/// its trailers.
///
/// What is small is there at once; what is large or endless comes as it is read, and is sent no
/// faster than that. It is a [`http_body::Body`], so that tower and axum take it as they take
/// hyper's. A response's body may be any such type, and is sent as it comes.
///
/// ```
/// use http::{Request, Response};
/// use http_body_util::BodyExt;
/// use natsway_worker::{Body, BodyError};
///
/// /// Counts a body of any size, a piece at a time.
/// async fn count(request: Request<Body>) -> Result<Response<Body>, BodyError> {
///     let (mut body, mut bytes) = (request.into_body(), 0);
///     while let Some(frame) = body.frame().await {
///         bytes += frame?.data_ref().map_or(0, |piece| piece.len());
///     }
///     Ok(Response::new(Body::from(bytes.to_string())))
/// }
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), BodyError> {
/// # let answer = count(Request::new(Body::from("four"))).await?;
/// # assert_eq!(answer.into_body().into_bytes().await?, "4");
/// # Ok(())
/// # }
/// ```
///
/// # Cancel safety
/// Waiting for a frame can be given up and begun again; nothing is lost.
#[derive(Default)]
pub struct Body {
    data: Option<Bytes>,
    /// What comes behind the data; in a box, and rare.
    rest: Option<Box<dyn DynBody>>,
    /// In a box, and rare.
    trailers: Option<Box<HeaderMap>>,
}

/// A body that comes.
trait DynBody: http_body::Body<Data = Bytes, Error = BodyError> + Send + Unpin {}
impl<B: http_body::Body<Data = Bytes, Error = BodyError> + Send + Unpin> DynBody for B {}

/// A body broke off: its sender left, or the connection that it came by was lost.
#[derive(Debug, thiserror::Error)]
#[error("the body broke off")]
pub struct BodyError(#[source] BoxError);

/// A response body and its trailers.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Collected {
    pub(crate) data: Bytes,
    pub(crate) trailers: HeaderMap,
}

/// Why a response body could not be had.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum CollectError<E> {
    TooLarge,
    Body(E),
}

impl Body {
    /// A body that gives `bytes`.
    pub fn new(bytes: Bytes) -> Self {
        let data = Some(bytes).filter(|bytes| !bytes.is_empty());
        Self { data, rest: None, trailers: None }
    }

    /// A body that gives what `body` gives, as it comes: for a call by a
    /// [`Client`](crate::Client) whose body does not fit in memory, or is not there yet.
    ///
    /// It is read on the client's own thread, which a body that blocks would hold up.
    ///
    /// ```
    /// # use futures_util::StreamExt;
    /// use bytes::Bytes;
    /// use http_body_util::{Full, StreamBody};
    /// use natsway_worker::Body;
    ///
    /// let known = Body::wrap(Full::new(Bytes::from("four")));
    /// assert_eq!(http_body::Body::size_hint(&known).exact(), Some(4));
    ///
    /// let pieces = futures_util::stream::iter(["one", "two"])
    ///     .map(|piece| Ok::<_, std::io::Error>(http_body::Frame::data(Bytes::from(piece))));
    /// let endless = Body::wrap(StreamBody::new(pieces));
    /// assert!(!endless.is_whole());
    /// ```
    pub fn wrap<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        Self::streamed(Bytes::new(), Box::pin(body))
    }

    /// A body that gives `first`, and then what `rest` gives.
    pub(crate) fn streamed<B>(first: Bytes, rest: B) -> Self
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let rest = rest.map_err(|error| BodyError(error.into()));
        Self { rest: Some(Box::new(rest)), ..Self::new(first) }
    }

    /// The same body with trailers, which a request's are not sent with.
    #[must_use]
    pub fn with_trailers(self, trailers: HeaderMap) -> Self {
        let trailers = Some(trailers).filter(|trailers| !trailers.is_empty());
        Self { trailers: trailers.map(Box::new), ..self }
    }

    /// Whether all of it is there.
    pub fn is_whole(&self) -> bool {
        self.rest.is_none()
    }

    /// All of it but for trailers, once it is there. Without a bound: it is for bodies that are
    /// known to be small, or whose sender is trusted.
    ///
    /// # Errors
    /// It broke off.
    ///
    /// # Cancel safety
    /// What was read is lost.
    pub async fn into_bytes(self) -> Result<Bytes, BodyError> {
        if self.rest.is_none() {
            return Ok(self.data.unwrap_or_default());
        }
        self.collect().await.map(http_body_util::Collected::to_bytes)
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Body")
            .field("bytes", &self.data.as_ref().map_or(0, Bytes::len))
            .field("is_whole", &self.rest.is_none())
            .finish_non_exhaustive()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::new(bytes)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(bytes.into())
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::new(text.into())
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::new(Bytes::from_static(text.as_bytes()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if let Some(data) = self.data.take() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(rest) = &mut self.rest {
            match std::task::ready!(Pin::new(rest).poll_frame(cx)) {
                None => self.rest = None,
                frame => return Poll::Ready(frame),
            }
        }
        let trailers = self.trailers.take().map(|trailers| Ok(Frame::trailers(*trailers)));
        Poll::Ready(trailers)
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none()
            && self.trailers.is_none()
            && self.rest.as_ref().is_none_or(|rest| rest.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.data.as_ref().map_or(0, |bytes| bytes.len() as u64);
        let Some(rest) = &self.rest else { return SizeHint::with_exact(first) };
        let (rest, mut both) = (rest.size_hint(), SizeHint::new());
        both.set_lower(first + rest.lower());
        if let Some(upper) = rest.upper() {
            both.set_upper(first + upper);
        }
        both
    }
}

/// How much of a body came while nothing else was waited for.
pub(crate) enum Begun<B> {
    /// All of it.
    Whole(Collected),
    /// It goes on.
    GoesOn(Partial<B>),
}

/// A body of which some was read.
pub(crate) struct Partial<B> {
    /// What was read, up to the bound.
    pub(crate) first: Bytes,
    /// What was read beyond it.
    pub(crate) beyond: Option<Bytes>,
    pub(crate) body: Pin<Box<B>>,
}

/// Reads a body until it ends, `inline_bytes` of it are there, or nothing more came for
/// `patience` since this was called. A body of one piece is not copied, and one that says that it
/// is longer is not read.
///
/// # Errors
/// The body's.
pub(crate) async fn begin<B: http_body::Body>(
    body: B,
    inline_bytes: usize,
    patience: Duration,
) -> Result<Begun<B>, B::Error> {
    let mut body = Box::pin(body);
    let (mut first, mut joined) = (Bytes::new(), BytesMut::new());
    if body.size_hint().lower() > inline_bytes as u64 {
        return Ok(Begun::GoesOn(Partial { first, beyond: None, body }));
    }
    let mut patience = pin!(tokio::time::sleep(patience));
    let mut trailers = HeaderMap::new();
    loop {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = &mut patience => {
                let first = if joined.is_empty() { first } else { joined.freeze() };
                return Ok(Begun::GoesOn(Partial { first, beyond: None, body }));
            }
        };
        let Some(frame) = frame else { break };
        match frame?.into_data() {
            Ok(mut data) => {
                let room = inline_bytes - first.len().max(joined.len());
                let length = data.remaining();
                let taken = data.copy_to_bytes(length.min(room));
                append(&mut first, &mut joined, taken);
                if length > room {
                    let beyond = Some(data.copy_to_bytes(length - room));
                    let first = if joined.is_empty() { first } else { joined.freeze() };
                    return Ok(Begun::GoesOn(Partial { first, beyond, body }));
                }
            }
            Err(frame) => {
                if let Ok(fields) = frame.into_trailers() {
                    trailers.extend(fields);
                }
            }
        }
    }
    let data = if joined.is_empty() { first } else { joined.freeze() };
    Ok(Begun::Whole(Collected { data, trailers }))
}

/// Adds a piece to those before it; one alone is not copied.
fn append(first: &mut Bytes, joined: &mut BytesMut, piece: Bytes) {
    if first.is_empty() && joined.is_empty() {
        *first = piece;
    } else {
        joined.extend_from_slice(&std::mem::take(first));
        joined.extend_from_slice(&piece);
    }
}

impl<B: http_body::Body> Partial<B> {
    /// Reads the rest, where no stream takes it.
    ///
    /// # Errors
    /// It is longer than `limit_bytes` in all, or the body's.
    pub(crate) async fn collect(
        self,
        limit_bytes: usize,
    ) -> Result<Collected, CollectError<B::Error>> {
        let Self { first, beyond, body } = self;
        let read = first.len() + beyond.as_ref().map_or(0, Bytes::len);
        let left = limit_bytes.checked_sub(read).ok_or(CollectError::TooLarge)?;
        let Collected { data, trailers } = collect(body, left).await?;
        let (mut first, mut joined) = (first, BytesMut::new());
        for piece in beyond.into_iter().chain([data]).filter(|piece| !piece.is_empty()) {
            append(&mut first, &mut joined, piece);
        }
        let data = if joined.is_empty() { first } else { joined.freeze() };
        Ok(Collected { data, trailers })
    }
}

/// Reads a body to its end, or until it is longer than `limit_bytes`. A body of one piece is not
/// copied.
pub(crate) async fn collect<B>(
    body: B,
    limit_bytes: usize,
) -> Result<Collected, CollectError<B::Error>>
where
    B: http_body::Body,
{
    if body.size_hint().lower() > limit_bytes as u64 {
        return Err(CollectError::TooLarge);
    }
    let mut body = std::pin::pin!(body);
    let mut first = Bytes::new();
    let mut joined = BytesMut::new();
    let mut trailers = HeaderMap::new();
    while let Some(frame) = body.frame().await {
        match frame.map_err(CollectError::Body)?.into_data() {
            Ok(mut data) => {
                let length = data.remaining();
                if first.len().max(joined.len()) + length > limit_bytes {
                    return Err(CollectError::TooLarge);
                }
                append(&mut first, &mut joined, data.copy_to_bytes(length));
            }
            Err(frame) => {
                if let Ok(fields) = frame.into_trailers() {
                    trailers.extend(fields);
                }
            }
        }
    }
    let data = if joined.is_empty() { first } else { joined.freeze() };
    Ok(Collected { data, trailers })
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use futures_util::StreamExt;
    use futures_util::stream;
    use http_body_util::StreamBody;

    use super::*;

    fn pieces(
        pieces: &[&'static str],
    ) -> impl http_body::Body<Data = Bytes, Error = Infallible> + use<> {
        let frames: Vec<_> = pieces
            .iter()
            .map(|piece| Ok(Frame::data(Bytes::from_static(piece.as_bytes()))))
            .collect();
        StreamBody::new(stream::iter(frames))
    }

    #[tokio::test]
    async fn pieces_are_joined_in_order() {
        for (given, joined) in [(&["ab"][..], "ab"), (&["ab", "", "c", "de"], "abcde"), (&[], "")] {
            assert_eq!(collect(pieces(given), 100).await.unwrap().data, joined);
        }
    }

    #[tokio::test]
    async fn a_body_is_read_no_further_than_its_limit() {
        assert!(collect(pieces(&["abc", "de"]), 5).await.is_ok());
        assert_eq!(collect(pieces(&["abc", "def"]), 5).await, Err(CollectError::TooLarge));
        let endless = StreamBody::new(stream::repeat_with(|| {
            Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"abc")))
        }));
        assert_eq!(collect(endless, 1_000).await, Err(CollectError::TooLarge));
    }

    #[tokio::test]
    async fn a_body_that_ends_small_and_soon_is_whole() {
        for (given, joined) in [(&["ab"][..], "ab"), (&["ab", "", "c", "de"], "abcde"), (&[], "")] {
            let Ok(Begun::Whole(whole)) = begin(pieces(given), 5, Duration::ZERO).await else {
                panic!("{given:?} goes on");
            };
            assert_eq!(whole.data, joined);
        }
    }

    #[tokio::test]
    async fn a_body_that_is_large_goes_on_where_it_is() {
        for given in [&["abc", "def", "g"][..], &["abcdefg"], &["abcde", "fg"]] {
            let Ok(Begun::GoesOn(partial)) = begin(pieces(given), 5, Duration::ZERO).await else {
                panic!("{given:?} is whole");
            };
            assert_eq!(partial.first, "abcde");
            assert_eq!(partial.collect(7).await.unwrap().data, "abcdefg");
        }
        let Ok(Begun::GoesOn(partial)) = begin(pieces(&["abcdefg"]), 5, Duration::ZERO).await
        else {
            panic!("it is whole");
        };
        assert!(matches!(partial.collect(6).await, Err(CollectError::TooLarge)));
    }

    #[tokio::test]
    async fn a_body_that_pauses_goes_on_with_what_came() {
        let frames = stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"abc")))]);
        let body = StreamBody::new(frames.chain(stream::pending()));
        let begun = begin(body, 100, Duration::from_millis(1)).await;
        let Ok(Begun::GoesOn(partial)) = begun else { panic!("it has no end") };
        assert_eq!((&partial.first[..], partial.beyond), (&b"abc"[..], None));
    }

    #[tokio::test]
    async fn trailers_are_kept() {
        let mut fields = HeaderMap::new();
        fields.insert("x-checksum", "1".parse().unwrap());
        let frames: Vec<Result<_, Infallible>> =
            vec![Ok(Frame::data(Bytes::from_static(b"a"))), Ok(Frame::trailers(fields.clone()))];
        let collected = collect(StreamBody::new(stream::iter(frames)), 10).await.unwrap();
        assert_eq!(collected, Collected { data: Bytes::from_static(b"a"), trailers: fields });
    }

    #[tokio::test]
    async fn a_request_body_gives_what_it_holds_once() {
        let body = Body::new(Bytes::from_static(b"abc"));
        assert!(body.is_whole());
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(3));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
        assert!(http_body::Body::is_end_stream(&Body::new(Bytes::new())));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", "1".parse().unwrap());
        let collected = Body::from("abc").with_trailers(trailers.clone()).collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
    }
}

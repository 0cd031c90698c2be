//! Bodies: what a service is given, and what it gives back, collected within a limit.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;

/// A body that is whole: of a request as it came, or of a response that a [`Client`](crate::Client)
/// got, with its trailers.
///
/// It is a [`http_body::Body`], so that tower and axum take it as they take hyper's.
#[derive(Clone, Debug, Default)]
pub struct Body {
    data: Option<Bytes>,
    /// In a box, and rare.
    trailers: Option<Box<HeaderMap>>,
}

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
    pub fn new(bytes: Bytes) -> Body {
        Body { data: Some(bytes).filter(|bytes| !bytes.is_empty()), trailers: None }
    }

    /// The same body with trailers, which a request's are not sent with.
    #[must_use]
    pub fn with_trailers(self, trailers: HeaderMap) -> Body {
        let trailers = Some(trailers).filter(|trailers| !trailers.is_empty());
        Body { trailers: trailers.map(Box::new), ..self }
    }

    /// All of it but for trailers, without waiting.
    pub fn into_bytes(self) -> Bytes {
        self.data.unwrap_or_default()
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Body {
        Body::new(bytes)
    }
}

impl From<Vec<u8>> for Body {
    fn from(bytes: Vec<u8>) -> Body {
        Body::new(bytes.into())
    }
}

impl From<String> for Body {
    fn from(text: String) -> Body {
        Body::new(text.into())
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Body {
        Body::new(Bytes::from_static(text.as_bytes()))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let data = self.data.take().map(Frame::data);
        let frame =
            data.or_else(|| self.trailers.take().map(|trailers| Frame::trailers(*trailers)));
        Poll::Ready(frame.map(Ok))
    }

    fn is_end_stream(&self) -> bool {
        self.data.is_none() && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.data.as_ref().map_or(0, |bytes| bytes.len() as u64))
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
                if first.is_empty() && joined.is_empty() {
                    first = data.copy_to_bytes(length);
                } else {
                    joined.extend_from_slice(&std::mem::take(&mut first));
                    joined.extend_from_slice(&data.copy_to_bytes(length));
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
    Ok(Collected { data, trailers })
}

#[cfg(test)]
mod tests {
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
        assert_eq!(http_body::Body::size_hint(&body).exact(), Some(3));
        assert_eq!(body.collect().await.unwrap().to_bytes(), "abc");
        assert!(http_body::Body::is_end_stream(&Body::new(Bytes::new())));
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", "1".parse().unwrap());
        let collected = Body::from("abc").with_trailers(trailers.clone()).collect().await.unwrap();
        assert_eq!(collected.trailers(), Some(&trailers));
    }
}

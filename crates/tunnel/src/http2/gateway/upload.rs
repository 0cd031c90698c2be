//! A body on its way up a stream, no faster than the worker reads.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::{Body, Frame};

/// Sends a body to its end, or until the worker wants no more of it. A body that fails resets the
/// stream, so that the worker does not take a part for the whole.
///
/// # Cancel safety
/// Dropping the future leaves the stream without its end: it is reset once nobody reads it either.
pub(super) async fn send<B>(mut body: B, mut stream: SendStream<Bytes>)
where
    B: Body<Data = Bytes> + Unpin,
{
    loop {
        let next = tokio::select! {
            biased;
            // Or the tunnel is lost.
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return,
            next = next(&mut body) => next,
        };
        let is_last = body.is_end_stream();
        let sent = match next.transpose() {
            Ok(Some(frame)) => send_frame(&mut stream, frame, is_last).await,
            Ok(None) => stream.send_data(Bytes::new(), true).map(|()| true),
            Err(Broken) => return stream.send_reset(Reason::INTERNAL_ERROR),
        };
        // An error is the worker's, or the tunnel's: there is nobody to tell.
        if sent.unwrap_or(true) {
            return;
        }
    }
}

/// A body that is to go up has failed.
struct Broken;

async fn next<B>(body: &mut B) -> Option<Result<Frame<Bytes>, Broken>>
where
    B: Body<Data = Bytes> + Unpin,
{
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
    frame.map(|frame| frame.map_err(|_| Broken))
}

/// Returns whether the stream has ended with it.
async fn send_frame(
    stream: &mut SendStream<Bytes>,
    frame: Frame<Bytes>,
    is_last: bool,
) -> Result<bool, h2::Error> {
    match frame.into_data() {
        Ok(data) => send_data(stream, data, is_last).await.map(|()| is_last),
        Err(frame) => match frame.into_trailers() {
            Ok(trailers) => stream.send_trailers(trailers).map(|()| true),
            // HTTP knows no other frames.
            Err(_) => Ok(false),
        },
    }
}

async fn send_data(
    stream: &mut SendStream<Bytes>,
    mut data: Bytes,
    is_last: bool,
) -> Result<(), h2::Error> {
    if data.is_empty() && is_last {
        return stream.send_data(data, true);
    }
    while !data.is_empty() {
        let room = poll_fn(|cx| poll_room(stream, data.len(), cx)).await?;
        let piece = data.split_to(room.min(data.len()));
        // The last byte carries the end: see `MergedBody`.
        stream.send_data(piece, is_last && data.is_empty())?;
    }
    Ok(())
}

/// Waits until some of `bytes` may leave, and says how many: nothing is ever queued above the
/// window.
pub(super) fn poll_room(
    stream: &mut SendStream<Bytes>,
    bytes: usize,
    cx: &mut Context<'_>,
) -> Poll<Result<usize, h2::Error>> {
    stream.reserve_capacity(bytes);
    loop {
        // What is there already is not said again.
        match stream.capacity() {
            0 => {}
            room => return Poll::Ready(Ok(room)),
        }
        match ready!(stream.poll_capacity(cx)) {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Poll::Ready(Err(error)),
            // The worker reset it.
            None => return Poll::Ready(Err(Reason::STREAM_CLOSED.into())),
        }
    }
}

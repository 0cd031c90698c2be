//! A stream that became a connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::body::is_complete;
use super::upload::poll_room;

/// The gateway's end of a connection to a handler. Each direction ends by itself; dropped before
/// both have, it is reset, and its handler sees that.
#[derive(Debug)]
pub struct Upgraded {
    up: SendStream<Bytes>,
    down: RecvStream,
    /// What came and was not read yet: of one frame.
    read: Bytes,
    is_shut: bool,
}

impl Upgraded {
    pub(super) fn new(up: SendStream<Bytes>, down: RecvStream) -> Self {
        Self { up, down, read: Bytes::new(), is_shut: false }
    }
}

impl AsyncRead for Upgraded {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        while this.read.is_empty() {
            match ready!(this.down.poll_data(cx)) {
                Some(Ok(data)) => this.read = data,
                None => return Poll::Ready(Ok(())),
                Some(Err(error)) if is_complete(&error) => return Poll::Ready(Ok(())),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
            }
        }
        let taken = this.read.len().min(buffer.remaining());
        buffer.put_slice(&this.read[..taken]);
        this.read.advance(taken);
        // That the stream is gone meanwhile, the next read says.
        this.down.flow_control().release_capacity(taken).ok();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Upgraded {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.is_shut {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(poll_room(&mut this.up, bytes.len(), cx)).map_err(broken)?;
        let taken = &bytes[..room.min(bytes.len())];
        this.up.send_data(Bytes::copy_from_slice(taken), false).map_err(broken)?;
        Poll::Ready(Ok(taken.len()))
    }

    /// There is nothing to do: the connection sends what it has.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !std::mem::replace(&mut this.is_shut, true) {
            this.up.send_data(Bytes::new(), true).map_err(broken)?;
        }
        Poll::Ready(Ok(()))
    }
}

fn broken(error: h2::Error) -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, error)
}

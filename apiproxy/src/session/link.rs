//! The protocol's end of a session: what goes out, and how it closes (RFC 6455 section 7.4).

use std::io;
use std::rc::Rc;
use std::time::Duration;

use futures_util::SinkExt;
use natsway_args::Format;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::frame::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{Message, Role, WebSocketConfig};

use super::metered::{Meter, Metered, READ_BUFFER_BYTES};
use crate::stream::splice::SpliceEnd;

/// How long a client has to take a Close, and to close itself.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Why a session ends.
#[derive(Debug)]
pub(super) enum End {
    /// The client is gone, without a word.
    Gone,
    /// The client closes.
    Closed,
    /// It takes nothing of what it is sent.
    Slow,
    /// Others need the room, or there is none for what it sends.
    NoRoom,
    /// We close, for a reason.
    Close(CloseCode, &'static str),
}

impl End {
    /// Why a session ends of which nothing more can be read.
    pub(super) fn of(error: &Error) -> Self {
        match error {
            Error::Capacity(_) => Self::Close(CloseCode::Size, "the message is too large"),
            Error::Utf8(_) => Self::Close(CloseCode::Invalid, "a text is not UTF-8"),
            Error::Io(error) if error.kind() == io::ErrorKind::OutOfMemory => Self::NoRoom,
            Error::Protocol(error) if is_broken(error) => {
                Self::Close(CloseCode::Protocol, "a frame is not as the protocol has it")
            }
            _ => Self::Gone,
        }
    }

    /// The Close that says so to the client, if it is to be told.
    fn frame(&self) -> Option<CloseFrame> {
        let (code, reason) = match self {
            Self::Close(code, reason) => (*code, *reason),
            Self::NoRoom => (CloseCode::Again, "the gateway holds as much as it may"),
            Self::Gone | Self::Closed | Self::Slow => return None,
        };
        Some(CloseFrame { code, reason: reason.into() })
    }
}

/// Whether a frame was wrong, and not just the end of the connection.
fn is_broken(error: &tokio_tungstenite::tungstenite::error::ProtocolError) -> bool {
    use tokio_tungstenite::tungstenite::error::ProtocolError::{
        ReceivedAfterClosing, ResetWithoutClosingHandshake, SendAfterClosing,
    };
    !matches!(error, ReceivedAfterClosing | ResetWithoutClosingHandshake | SendAfterClosing)
}

/// A client's WebSocket.
pub(super) struct Link<C> {
    pub(super) socket: WebSocketStream<Metered<C>>,
    pub(super) meter: Rc<Meter>,
    write_timeout: Duration,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Link<C> {
    /// Begins; `first` is what was read before.
    pub(super) async fn new(
        stream: C,
        first: &[u8],
        meter: Rc<Meter>,
        write_timeout: Duration,
    ) -> Self {
        let most_bytes = Some(meter.most_bytes());
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BUFFER_BYTES)
            .write_buffer_size(0)
            .max_message_size(most_bytes)
            .max_frame_size(most_bytes);
        let stream = Metered { stream, meter: Rc::clone(&meter) };
        let first = first.to_vec();
        let socket =
            WebSocketStream::from_partially_read(stream, first, Role::Server, Some(config)).await;
        Self { socket, meter, write_timeout }
    }

    /// Sends an answer.
    ///
    /// # Errors
    /// The client is gone, or takes nothing.
    pub(super) async fn say(&mut self, format: Format, written: Vec<u8>) -> Result<(), End> {
        let message = match format {
            Format::Json => {
                let text = String::from_utf8(written).expect("JSON is written as UTF-8");
                Message::text(text)
            }
            _ => Message::binary(written),
        };
        self.send(message).await
    }

    /// Sends a message, as long as the client takes some of it.
    ///
    /// # Errors
    /// The client is gone, or takes nothing.
    pub(super) async fn send(&mut self, message: Message) -> Result<(), End> {
        self.meter.begin_to_send();
        let mut sending = std::pin::pin!(self.socket.send(message));
        loop {
            let until = self.meter.taken_at() + self.write_timeout;
            match timeout_at(until, &mut sending).await {
                Ok(Ok(())) => return Ok(()),
                // The socket has the same patience.
                Ok(Err(Error::Io(error))) if error.kind() == io::ErrorKind::TimedOut => {
                    return Err(End::Slow);
                }
                Ok(Err(_)) => return Err(End::Gone),
                Err(_) if self.meter.taken_at() + self.write_timeout <= Instant::now() => {
                    return Err(End::Slow);
                }
                Err(_) => {}
            }
        }
    }

    /// Ends it, with a Close where the client is to be told why.
    pub(super) async fn end(mut self, end: End) -> SpliceEnd {
        let frame = end.frame();
        let is_told = frame.is_some();
        let ending = async {
            match (frame, &end) {
                (Some(frame), _) => self.socket.send(Message::Close(Some(frame))).await,
                // The answer to the client's own waits there.
                (None, End::Closed) => self.socket.flush().await,
                (None, _) => Err(Error::ConnectionClosed),
            }
            .map_err(|_| ())?;
            let stream = self.socket.get_mut();
            stream.shutdown().await.map_err(|_| ())?;
            // A socket that is closed with bytes unread is reset, which overtakes the Close.
            discard(&mut stream.stream).await;
            Ok::<(), ()>(())
        };
        let has_ended = timeout(CLOSE_LIMIT, ending).await;
        match (is_told, has_ended) {
            (true, Ok(Ok(())) | Err(_)) => SpliceEnd::Announced,
            (false, Ok(Ok(()))) => SpliceEnd::Closed,
            _ => SpliceEnd::Client,
        }
    }
}

async fn discard(stream: &mut (impl AsyncRead + Unpin)) {
    let mut bytes = [0; 1_024];
    while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {}
}

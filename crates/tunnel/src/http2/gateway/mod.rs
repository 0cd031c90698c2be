//! The gateway's end: opens streams on a connection that a worker dialled.
//!
//! Written on `h2`, not on `hyper`'s client: there, what goes up a stream is a task that waits for
//! the worker's window and for nothing else once the head of the response is there. A client that
//! left while its handler did not read would leave the stream open at both ends, for ever.

mod alive;
mod body;
mod upgraded;
mod upload;

use std::sync::Arc;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, Response};
use http_body::Body;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;

use super::Settings;

pub use alive::ConnectionLost;
pub use body::RecvBody;
pub use upgraded::Upgraded;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Opens streams on one tunnel, as many at a time as the tunnel may carry.
///
/// `h2` queues what is above the limit without a word, so the streams are counted here.
#[derive(Clone, Debug)]
pub struct StreamSender {
    sender: SendRequest<Bytes>,
    streams: Streams,
}

/// The streams of one tunnel.
#[derive(Clone, Debug)]
pub struct Streams {
    permits: Arc<Semaphore>,
    most: u32,
}

/// One of a tunnel's streams. It is free again when this is dropped: hold it as long as the
/// response's body, or what the stream was upgraded to.
#[derive(Debug)]
pub struct StreamPermit {
    _permit: OwnedSemaphorePermit,
}

/// What goes up a stream while something comes down. Dropped, it stops.
#[derive(Debug)]
enum GoingUp {
    /// All of it has left, or goes on by itself.
    Nothing,
    /// A body.
    Body(AbortOnDropHandle<()>),
    /// What the owner of a connection writes, if the worker says yes to one.
    Connection(h2::SendStream<Bytes>),
}

/// Why a stream was not opened, or not answered.
#[derive(Debug, thiserror::Error)]
pub enum OpenError<B> {
    /// Nothing of the request was written: another tunnel may have it, whatever its method.
    #[error("the tunnel took nothing of the request")]
    NotSent {
        /// The request, whole.
        request: Box<Request<B>>,
        /// What the connection said.
        #[source]
        source: h2::Error,
    },
    /// The worker took nothing of the request, as its goodbye or its refusal says: another may have
    /// a copy of it, whatever its method.
    #[error("the worker did not take the request")]
    NotTaken(#[source] h2::Error),
    /// The request may have run.
    #[error("the tunnel gave no response")]
    NoResponse(#[source] h2::Error),
}

/// Begins HTTP/2 on a connection that a worker dialled.
///
/// The connection lives while the returned future is polled, and ends when that does.
///
/// # Errors
/// If the worker does not speak HTTP/2.
pub async fn connect<T>(
    io: T,
    settings: &Settings,
) -> Result<
    (StreamSender, impl Future<Output = Result<(), ConnectionLost>> + Send + use<T>),
    h2::Error,
>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = settings.client().handshake(io).await?;
    let most = settings.max_streams;
    let streams = Streams { permits: Arc::new(Semaphore::new(most as usize)), most };
    let (interval, timeout) = (settings.keep_alive_interval, settings.keep_alive_timeout);
    let driven = alive::drive(connection, interval, timeout);
    Ok((StreamSender { sender, streams }, driven))
}

impl StreamSender {
    /// The streams of this tunnel, to choose by and to take one of.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Sends a request on a stream of its own and waits for the head of its response. What comes
    /// behind that goes on while the request's body goes up; a CONNECT may become a
    /// [connection](RecvBody::into_upgraded).
    ///
    /// # Errors
    /// [`OpenError::NotSent`] gives the request back, if nothing of it was written. The others tell
    /// whether it may have run.
    ///
    /// # Cancel safety
    /// Dropping the future, or the response's body before its end, resets the stream: the worker
    /// drops what it does for it, also where it reads nothing of what goes up.
    pub async fn open<B>(
        &mut self,
        request: Request<B>,
        permit: StreamPermit,
    ) -> Result<(Response<RecvBody>, StreamPermit), OpenError<B>>
    where
        B: Body<Data = Bytes, Error: Into<BoxError>> + Send + Unpin + 'static,
    {
        let sent = match std::future::poll_fn(|cx| self.sender.poll_ready(cx)).await {
            Ok(()) => self.send(&request),
            Err(source) => Err(source),
        };
        let (response, stream) = match sent {
            Ok(sent) => sent,
            Err(source) => {
                return Err(OpenError::NotSent { request: Box::new(request), source });
            }
        };
        let is_connect = request.method() == Method::CONNECT;
        let body = request.into_body();
        let going_up = match (is_connect, body.is_end_stream()) {
            (true, _) => GoingUp::Connection(stream),
            (false, true) => GoingUp::Nothing,
            (false, false) => {
                GoingUp::Body(AbortOnDropHandle::new(tokio::spawn(upload::send(body, stream))))
            }
        };
        let response = response.await.map_err(OpenError::after_writing)?;
        Ok((RecvBody::of(response, going_up), permit))
    }

    fn send<B: Body>(
        &mut self,
        request: &Request<B>,
    ) -> Result<(h2::client::ResponseFuture, h2::SendStream<Bytes>), h2::Error> {
        let mut head = Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.headers_mut() = request.headers().clone();
        *head.extensions_mut() = request.extensions().clone();
        let is_whole = request.method() != Method::CONNECT && request.body().is_end_stream();
        self.sender.send_request(head, is_whole)
    }
}

impl<B> OpenError<B> {
    /// Tells by the error of a request that was written whether it may have run.
    ///
    /// A goodbye without an error names the last stream that was taken, and `h2` fails those above
    /// it alone (RFC 9113, 6.8). A worker refuses a stream whose token it does not know.
    fn after_writing(said: h2::Error) -> Self {
        let is_goodbye = said.is_go_away() && said.reason() == Some(h2::Reason::NO_ERROR);
        let is_refusal = said.is_reset() && said.reason() == Some(h2::Reason::REFUSED_STREAM);
        if said.is_remote() && (is_goodbye || is_refusal) {
            return Self::NotTaken(said);
        }
        Self::NoResponse(said)
    }
}

impl Streams {
    /// Takes one of the streams, or none if all are open.
    pub fn try_take(&self) -> Option<StreamPermit> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(StreamPermit { _permit: permit })
    }

    /// Streams that are open.
    pub fn open(&self) -> u32 {
        let free = u32::try_from(self.permits.available_permits()).unwrap_or(u32::MAX);
        self.most.saturating_sub(free)
    }
}

//! The gateway's end: opens streams on a connection that a worker dialled.

use std::sync::Arc;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Settings;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Opens streams on one tunnel, as many at a time as the tunnel may carry.
///
/// `hyper` queues what is above the limit without a word, so the streams are counted here.
#[derive(Debug)]
pub struct StreamSender<B> {
    sender: SendRequest<B>,
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
        source: hyper::Error,
    },
    /// The worker took nothing of the request, as its goodbye or its refusal says: another may have
    /// a copy of it, whatever its method.
    #[error("the worker did not take the request")]
    NotTaken(#[source] hyper::Error),
    /// The request may have run.
    #[error("the tunnel gave no response")]
    NoResponse(#[source] hyper::Error),
}

/// Begins HTTP/2 on a connection that a worker dialled.
///
/// The connection lives while the returned future is polled, and ends when that does.
///
/// # Errors
/// If the worker does not speak HTTP/2.
pub async fn connect<T, B>(
    io: T,
    settings: &Settings,
) -> Result<
    (StreamSender<B>, impl Future<Output = hyper::Result<()>> + Send + use<T, B>),
    hyper::Error,
>
where
    T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    B: Body<Error: Into<BoxError>, Data: Send> + Send + Unpin + 'static,
{
    let (sender, connection) = settings.client().handshake(TokioIo::new(io)).await?;
    let most = settings.max_streams;
    let streams = Streams { permits: Arc::new(Semaphore::new(most as usize)), most };
    Ok((StreamSender { sender, streams }, connection))
}

impl<B> StreamSender<B>
where
    B: Body + Send + 'static,
{
    /// The streams of this tunnel, to choose by and to take one of.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    /// Whether the connection ended.
    pub fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request on a stream of its own and waits for the head of its response.
    ///
    /// # Errors
    /// [`OpenError::NotSent`] gives the request back, if nothing of it was written. The others tell
    /// whether it may have run.
    ///
    /// # Cancel safety
    /// Dropping the future resets the stream: the worker drops what it does for it.
    pub async fn open(
        &mut self,
        request: Request<B>,
        permit: StreamPermit,
    ) -> Result<(Response<Incoming>, StreamPermit), OpenError<B>> {
        match self.sender.try_send_request(request).await {
            Ok(response) => Ok((response, permit)),
            Err(mut failed) => Err(match failed.take_message() {
                Some(request) => {
                    OpenError::NotSent { request: Box::new(request), source: failed.into_error() }
                }
                None => OpenError::after_writing(failed.into_error()),
            }),
        }
    }
}

impl<B> OpenError<B> {
    /// Tells by the error of a request that was written whether it may have run.
    ///
    /// A goodbye without an error names the last stream that was taken, and `h2` fails those above
    /// it alone (RFC 9113, 6.8). A worker refuses a stream whose token it does not know.
    fn after_writing(error: hyper::Error) -> Self {
        let said =
            std::error::Error::source(&error).and_then(|source| source.downcast_ref::<h2::Error>());
        let is_untouched = |said: &h2::Error| {
            let is_goodbye = said.is_go_away() && said.reason() == Some(h2::Reason::NO_ERROR);
            let is_refusal = said.is_reset() && said.reason() == Some(h2::Reason::REFUSED_STREAM);
            said.is_remote() && (is_goodbye || is_refusal)
        };
        if said.is_some_and(is_untouched) {
            return Self::NotTaken(error);
        }
        Self::NoResponse(error)
    }
}

impl<B> Clone for StreamSender<B> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone(), streams: self.streams.clone() }
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

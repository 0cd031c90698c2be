//! The forms of serving, on whatever threads.

use std::num::NonZeroUsize;

use http::{Request, Response};
use natsway_worker::{Body, BoxError, Error, Options, Summary};
use tower::Service;

/// The forms of serving.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    /// Handlers run on the runtime.
    Plain,
    /// Handlers run on the threads that read requests.
    PerCore,
    /// As plain, with so many subscription sets that directives may open.
    Scaled(NonZeroUsize),
}

impl Form {
    /// Serves in this form until `shutdown`, and then until what is in hand has ended.
    ///
    /// # Errors
    /// Those of [`natsway_worker::serve`].
    pub(crate) async fn serve<S, B>(
        self,
        options: Options,
        service: S,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<Summary, Error>
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send,
        S::Error: Into<BoxError>,
        B: http_body::Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        // In boxes, for their state is large.
        match self {
            Self::PerCore => {
                Box::pin(natsway_worker::serve_local(options, move || service, shutdown)).await
            }
            Self::Scaled(most) => {
                Box::pin(natsway_worker::serve_scaled(options, most, service, shutdown)).await
            }
            Self::Plain => Box::pin(natsway_worker::serve(options, service, shutdown)).await,
        }
    }
}

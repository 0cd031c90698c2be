//! A service that has others do its work: it calls the service of another route with every request,
//! by that route's name, with no address and no gateway between them.

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use natsway_boot::BrokerConfig;
use natsway_worker::{Body, Client, ClientOptions, HeadSampler};

/// Which service is called, and how.
pub(crate) struct CalledRoute {
    pub(crate) broker: BrokerConfig,
    /// The name of who calls.
    pub(crate) name: String,
    /// The other route's name.
    pub(crate) route: String,
    /// How requests are sampled, if traces are exported.
    pub(crate) traced: Option<HeadSampler>,
}

impl CalledRoute {
    /// The service, and its client, to be closed when it serves no longer.
    ///
    /// # Errors
    /// The client cannot be had.
    pub(crate) async fn connect(self) -> Result<(Router, Client), natsway_worker::Error> {
        let mut options = ClientOptions::new(self.name).broker(self.broker);
        if let Some(sampler) = self.traced {
            options = options.sampled(sampler);
        }
        let client = Client::connect(options).await?;
        let service = Router::new().fallback(call).with_state((client.clone(), self.route));
        Ok((service, client))
    }
}

/// The call has the request's own deadline, trace and id, and what it says is passed back.
async fn call(State((client, route)): State<(Client, String)>, request: Request) -> Response {
    let (mut head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let Ok(uri) = format!("http://{route}{path}").parse() else {
        return (StatusCode::INTERNAL_SERVER_ERROR, format!("{route:?} is no name of a route"))
            .into_response();
    };
    // The worker has bounded it before this is called.
    let Ok(body) = to_bytes(body, usize::MAX).await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let client = client.within(&head);
    head.uri = uri;
    match client.send(Request::from_parts(head, Body::from(body))).await {
        Ok(answer) => answer.into_response(),
        Err(error) => (error.status(), error.to_string()).into_response(),
    }
}

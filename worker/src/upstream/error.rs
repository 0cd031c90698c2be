//! Why an app gave no response, and what is told of it.

use http::{Response, StatusCode};
use natsway_wire::envelope::NotRun;
use natsway_wire::problem::Problem;

use super::UpstreamBody;
use super::metrics::UpstreamMetrics;
use crate::BoxError;
use crate::handler::job::TryElsewhere;

/// Why there is no response.
#[derive(Debug, thiserror::Error)]
pub(super) enum UpstreamError {
    /// No connection: nothing of the request reached the app.
    #[error("the app takes no connection")]
    Down(#[source] BoxError),
    /// It was not begun in time.
    #[error("the app did not begin to answer in time")]
    TimedOut,
    /// The connection broke, or what came is no HTTP.
    #[error("the app's answer broke off before its head was there")]
    Broken(#[source] BoxError),
    /// The app was found unhealthy while it had the request.
    #[error("the app was found unhealthy while it had the request")]
    GivenUp,
    /// The protocol cannot be had of the app.
    #[error("an app that speaks HTTP/2 alone is not asked to upgrade")]
    NoUpgrade,
}

impl UpstreamError {
    /// The response that says it. What is repeatable may go elsewhere although it may have run.
    pub(super) fn into_response(
        self,
        is_repeatable: bool,
        request_id: Option<&str>,
    ) -> Response<UpstreamBody> {
        let problem = self.problem();
        let body = UpstreamBody::whole(problem.document(request_id));
        let mut response = Response::new(body);
        *response.status_mut() = problem.status;
        *response.headers_mut() = problem.fields();
        let elsewhere = match self {
            Self::Down(_) => Some(NotRun::UpstreamDown),
            Self::Broken(_) | Self::GivenUp if is_repeatable => Some(NotRun::UpstreamBroken),
            _ => None,
        };
        if let Some(reason) = elsewhere {
            response.extensions_mut().insert(TryElsewhere(reason));
        }
        response
    }

    pub(super) fn count(&self, metrics: &UpstreamMetrics) {
        let counter = match self {
            Self::Down(_) => &metrics.down,
            Self::TimedOut => &metrics.timed_out,
            Self::Broken(_) | Self::GivenUp => &metrics.broken,
            Self::NoUpgrade => return,
        };
        UpstreamMetrics::count(counter);
    }

    fn problem(&self) -> Problem {
        let (status, code, detail) = match self {
            Self::Down(_) => {
                (StatusCode::BAD_GATEWAY, "upstream_down", "the app takes no connection")
            }
            Self::TimedOut => (
                StatusCode::GATEWAY_TIMEOUT,
                "upstream_timeout",
                "the app did not begin to answer in time",
            ),
            Self::Broken(_) => (
                StatusCode::BAD_GATEWAY,
                "upstream_broken",
                "the app closed the connection, or answered what is no HTTP",
            ),
            Self::GivenUp => (
                StatusCode::BAD_GATEWAY,
                "upstream_broken",
                "the app was found unhealthy while it had the request",
            ),
            Self::NoUpgrade => (
                StatusCode::NOT_IMPLEMENTED,
                "not_implemented",
                "the app speaks HTTP/2 alone, where nothing upgrades",
            ),
        };
        Problem::new(status, code, detail)
    }
}

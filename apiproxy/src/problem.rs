//! The errors that the gateway answers by itself.

use http::{HeaderValue, Response, StatusCode, header};
use natsway_caller::attempt::AttemptError;
use natsway_caller::connection::AdmissionError;
pub use natsway_wire::problem::Problem;

use crate::body::ReplyBody;
use crate::stream::StreamsFull;

/// The response that says a problem.
pub(crate) fn into_response(problem: &Problem, request_id: &str) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::from(problem.document(Some(request_id))));
    *response.status_mut() = problem.status;
    *response.headers_mut() = problem.fields();
    if problem.status == StatusCode::UPGRADE_REQUIRED {
        // The one version that there is (RFC 6455 section 4.4).
        let version = HeaderValue::from_static("13");
        response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, version);
    }
    response
}

/// No attempt gave a response.
pub(crate) fn given_up(error: AttemptError, attempts: u32) -> Problem {
    let detail = || format!("no answer after {attempts} attempts; the request may have run");
    match error {
        AttemptError::NotConnected => {
            unavailable(error.as_str(), "the gateway has no connection to the broker")
        }
        AttemptError::NoResponders | AttemptError::Moved => {
            unavailable(error.as_str(), "no worker of this service is there")
        }
        AttemptError::Overloaded => {
            unavailable(error.as_str(), "the workers of this service are full")
        }
        AttemptError::Expired => {
            unavailable(error.as_str(), "the request reached no worker in time")
        }
        AttemptError::StreamNotOpened => unavailable(
            error.as_str(),
            "no tunnel came from a worker of this service to take the request's body",
        ),
        AttemptError::StreamLost => {
            let detail = "the tunnel from the worker was lost before the response could be had";
            bad_gateway(error.as_str(), detail.to_owned())
        }
        AttemptError::UpstreamDown => {
            bad_gateway(error.as_str(), "no app of this service takes a connection".to_owned())
        }
        AttemptError::UpstreamBroken => {
            let detail = "the app closed the connection, or was found unhealthy with the request";
            bad_gateway(error.as_str(), detail.to_owned())
        }
        AttemptError::InstanceLost => {
            bad_gateway(error.as_str(), "the worker that ran this request is gone".to_owned())
        }
        AttemptError::ConnectionLost | AttemptError::NotAccepted | AttemptError::TimedOut => {
            Problem::new(StatusCode::GATEWAY_TIMEOUT, error.as_str(), detail())
        }
    }
}

/// The broker connection does not take the request.
pub(crate) fn not_admitted(refused: AdmissionError) -> Problem {
    match refused {
        AdmissionError::TooLarge { most_bytes } => {
            let detail = format!(
                "with its headers this request is above the broker's limit of {most_bytes} bytes"
            );
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
        }
        AdmissionError::Full => {
            unavailable("overloaded", "the gateway has as many requests out as it may")
        }
    }
}

pub(crate) fn unavailable(code: &'static str, detail: &'static str) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, detail)
}

pub(crate) fn memory_full() -> Problem {
    unavailable(
        "memory_full",
        "the gateway holds as much for its clients, or for this one, as it may",
    )
}

/// There is no place for one more stream, and the request did not run.
pub(crate) fn streams_full(full: StreamsFull) -> Problem {
    match full {
        StreamsFull::Shard => {
            unavailable("streams_full", "the gateway has as many streams open as it may")
        }
        StreamsFull::Client => Problem::new(
            StatusCode::TOO_MANY_REQUESTS,
            "client_streams_full",
            "this client has as many streams open as one client may",
        ),
    }
}

/// The same of a response that goes on: the request ran.
pub(crate) fn response_streams_full(full: StreamsFull) -> Problem {
    let (code, detail) = match full {
        StreamsFull::Shard => {
            ("streams_full", "the request ran, and the gateway has as many streams open as it may")
        }
        StreamsFull::Client => (
            "client_streams_full",
            "the request ran, and this client has as many streams open as one client may",
        ),
    };
    bad_gateway(code, detail.to_owned())
}

pub(crate) fn bad_gateway(code: &'static str, detail: String) -> Problem {
    Problem::new(StatusCode::BAD_GATEWAY, code, detail)
}

pub(crate) fn too_large(limit_bytes: u64) -> Problem {
    let detail = format!("the body is above this route's limit of {limit_bytes} bytes");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", detail)
}

pub(crate) fn request_timeout() -> Problem {
    Problem::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", "the body did not arrive in time")
}

//! What the demo answers to a request that a handler refuses.

use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde_json::json;

/// A request that a handler refuses, as RFC 9457 has it.
pub(crate) fn bad_request(detail: impl Into<String>) -> Response {
    let status = StatusCode::BAD_REQUEST;
    let problem =
        json!({ "title": "Bad Request", "status": status.as_u16(), "detail": detail.into() })
            .to_string();
    (status, [(CONTENT_TYPE, "application/problem+json")], problem).into_response()
}

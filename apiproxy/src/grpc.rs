//! What the gateway knows of gRPC: which requests are calls, how long their callers wait, and how
//! it says that there is no answer.

use std::time::Duration;

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version};
use natsway_wire::content_type::is_grpc;
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};

use crate::body::ReplyBody;
use crate::problem::Problem;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// What a message may not have as it is.
const UNSAFE: &AsciiSet = &CONTROLS.add(b'%');

/// Whether the caller reads problems as gRPC has them.
pub fn reads_grpc(version: Version, headers: &HeaderMap) -> bool {
    version >= Version::HTTP_2 && is_grpc(headers)
}

/// How long a caller by gRPC waits, if it says so: `grpc-timeout`, at most eight digits and a unit.
pub fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let is_number = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
    let amount = digits.parse().ok().filter(|_| is_number)?;
    match unit {
        "H" => Some(Duration::from_secs(amount * 3_600)),
        "M" => Some(Duration::from_secs(amount * 60)),
        "S" => Some(Duration::from_secs(amount)),
        "m" => Some(Duration::from_millis(amount)),
        "u" => Some(Duration::from_micros(amount)),
        "n" => Some(Duration::from_nanos(amount)),
        _ => None,
    }
}

/// The response that says a problem to a caller: one head, which has the status of the call.
pub(crate) fn into_response(problem: &Problem) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::default());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(STATUS, code(problem.status).into());
    let text = format!("{}: {}", problem.code, problem.detail);
    let message = utf8_percent_encode(&text, UNSAFE).to_string();
    headers.insert(MESSAGE, HeaderValue::try_from(message).expect("it is ASCII without controls"));
    response
}

/// The code of a call that failed for this. Callers try 14 again, so it is for what did not run.
fn code(status: StatusCode) -> u16 {
    const DEADLINE_EXCEEDED: u16 = 4;
    const RESOURCE_EXHAUSTED: u16 = 8;
    const UNIMPLEMENTED: u16 = 12;
    const INTERNAL: u16 = 13;
    const UNAVAILABLE: u16 = 14;
    match status {
        StatusCode::GATEWAY_TIMEOUT | StatusCode::REQUEST_TIMEOUT => DEADLINE_EXCEEDED,
        StatusCode::PAYLOAD_TOO_LARGE
        | StatusCode::URI_TOO_LONG
        | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => RESOURCE_EXHAUSTED,
        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::NOT_IMPLEMENTED => {
            UNIMPLEMENTED
        }
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => UNAVAILABLE,
        _ => INTERNAL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_head_with_the_status_of_the_call() {
        let problem = Problem::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", "100 % \u{fc}\n");
        let response = into_response(&problem);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()[STATUS], "14");
        assert_eq!(response.headers()[MESSAGE], "overloaded: 100 %25 %C3%BC%0A");
        assert!(http_body::Body::is_end_stream(response.body()));
    }

    #[test]
    fn a_grpc_timeout_is_read_as_the_protocol_has_it() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", http::HeaderValue::from_static(text));
            grpc_timeout(&headers)
        };
        assert_eq!(read("1H"), Some(Duration::from_secs(3_600)));
        assert_eq!(read("99999999n"), Some(Duration::from_nanos(99_999_999)));
        assert_eq!(read("250m"), Some(Duration::from_millis(250)));
        for odd in ["", "1", "S", "-1S", "+1S", "1.5S", "123456789S", "1s"] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }
}

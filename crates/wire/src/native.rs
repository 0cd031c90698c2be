//! The `native` codec: the raw body and NATS headers, so that any NATS client is a backend.
//!
//! A request carries the end-to-end header fields in canonical case (see [`canonical_name`]),
//! because NATS headers are case-sensitive, but for those with a [reserved name](is_reserved), and
//! [`METHOD`], [`PATH`] and [`DEADLINE`]. A reply is the raw body; `Nats-Service-Error-Code` and
//! `Nats-Service-Error` (ADR-32) make it an error, [`STATUS`] sets any other status, and the
//! remaining headers become header fields of the response.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use crate::envelope::Response;
use crate::{Error, Limits};

/// Request header: the HTTP method.
pub const METHOD: &str = "Natsway-Method";
/// Request header: the path and query.
pub const PATH: &str = "Natsway-Path";
/// Request header: what the caller's time budget had left when the message was sent, in
/// milliseconds.
pub const DEADLINE: &str = "Natsway-Deadline-Ms";
/// Reply header: the HTTP status, for a backend that wants another than 200.
pub const STATUS: &str = "Natsway-Status";
/// Reply header of ADR-32: the error's number; 400 to 599 becomes the status, anything else is 500.
pub const ERROR_CODE: &str = "Nats-Service-Error-Code";
/// Reply header of ADR-32: the error's text.
pub const ERROR: &str = "Nats-Service-Error";

/// What a native backend answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NativeReply {
    /// An answer.
    Response(Response),
    /// An ADR-32 service error; its text and body are the service's own.
    ServiceError {
        /// 400 to 599.
        status: StatusCode,
        /// The text of `Nats-Service-Error`, empty when there was none.
        text: String,
        /// The remaining headers.
        headers: HeaderMap,
        /// The message's body, which may explain more.
        body: Bytes,
    },
}

/// Beginnings of names that mean something to the broker or to us.
const RESERVED: [&str; 2] = ["nats-", "natsway-"];

/// Names under which clients of NATS show what the broker itself says
/// (`NATS/1.0 503 No Responders`).
const OF_THE_STATUS_LINE: [&str; 2] = ["status", "description"];

/// Whether a header name, in any case, means something to the broker, to clients of NATS or to
/// Natsway: a client that could set it would have its message traced to a subject of its choice
/// (`Nats-Trace-Dest`), not delivered at all (`Nats-Trace-Only`), stored, rolled up or expired by a
/// stream (`Nats-Msg-Id`, `Nats-Rollup`, `Nats-TTL`), taken for another request, or for the
/// broker's own word (`Status`).
pub fn is_reserved(name: &str) -> bool {
    let begins_with = |prefix: &&str| {
        name.get(..prefix.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(prefix))
    };
    RESERVED.iter().any(begins_with)
        || OF_THE_STATUS_LINE.iter().any(|reserved| name.eq_ignore_ascii_case(reserved))
}

/// Whether fields of one name may be one field with commas between. HTTP lets everybody join them
/// (RFC 9110 section 5.3) but for this one, whose values have commas of their own.
pub fn may_join(name: &str) -> bool {
    !name.eq_ignore_ascii_case("set-cookie")
}

/// A header name in the case that NATS services look for: `content-type` gives `Content-Type`.
pub fn canonical_name(name: &str) -> String {
    let mut begins_word = true;
    name.chars()
        .map(|letter| {
            let cased =
                if begins_word { letter.to_ascii_uppercase() } else { letter.to_ascii_lowercase() };
            begins_word = letter == '-';
            cased
        })
        .collect()
}

/// Reads a reply from its NATS headers, given as pairs in any case, and its body.
///
/// # Errors
/// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed) for a name or value that HTTP cannot carry
/// or a status that is none, [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge) above
/// [`Limits::header_fields`] or [`Limits::field_bytes`].
pub fn decode_reply<'a>(
    fields: impl Iterator<Item = (&'a str, &'a str)>,
    body: Bytes,
) -> Result<NativeReply, Error> {
    let mut headers = HeaderMap::new();
    let mut status = StatusCode::OK;
    let mut error_code = None;
    let mut error_text = None;
    for (count, (name, value)) in fields.enumerate() {
        let Limits { header_fields, field_bytes } = Limits::DEFAULT;
        if count >= header_fields || name.len() > field_bytes || value.len() > field_bytes {
            return Err(Error::too_large("headers"));
        }
        if name.eq_ignore_ascii_case(ERROR_CODE) {
            error_code = Some(value);
        } else if name.eq_ignore_ascii_case(ERROR) {
            error_text = Some(value);
        } else if name.eq_ignore_ascii_case(STATUS) {
            status = value.trim().parse().map_err(|_| Error::malformed("status"))?;
        } else {
            let name = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| Error::malformed("header name"))?;
            let value =
                HeaderValue::from_str(value).map_err(|_| Error::malformed("header value"))?;
            headers.try_append(name, value).map_err(|_| Error::too_large("headers"))?;
        }
    }
    if error_code.is_some() || error_text.is_some() {
        let text = error_text.unwrap_or_default().to_owned();
        return Ok(NativeReply::ServiceError {
            status: error_status(error_code),
            text,
            headers,
            body,
        });
    }
    Ok(NativeReply::Response(Response {
        status,
        headers,
        trailers: HeaderMap::new(),
        body,
        join: None,
    }))
}

/// The status for an error's code: HTTP's own error numbers are kept, others (say gRPC's) mean
/// nothing to a client.
fn error_status(code: Option<&str>) -> StatusCode {
    code.and_then(|code| code.trim().parse::<u16>().ok())
        .filter(|code| (400..600).contains(code))
        .and_then(|code| StatusCode::from_u16(code).ok())
        .unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(fields: &[(&str, &str)]) -> Result<NativeReply, Error> {
        decode_reply(fields.iter().copied(), Bytes::from_static(b"body"))
    }

    #[test]
    fn names_get_the_case_that_services_look_for() {
        assert_eq!(canonical_name("content-type"), "Content-Type");
        assert_eq!(canonical_name("X-REQUEST-ID"), "X-Request-Id");
        assert_eq!(canonical_name("etag"), "Etag");
    }

    #[test]
    fn names_of_the_broker_and_of_ours_are_reserved_in_any_case() {
        for name in [
            "nats-trace-dest",
            "Nats-Msg-Id",
            "NATS-",
            "natsway-method",
            "NatsWay-Path",
            "status",
            "Description",
        ] {
            assert!(is_reserved(name), "{name}");
        }
        for name in
            ["nats", "natsy-x", "x-status", "status-x", "x-nats-trace-dest", "n\u{e4}ts-x", ""]
        {
            assert!(!is_reserved(name), "{name}");
        }
    }

    #[test]
    fn a_bare_body_is_a_200() {
        let Ok(NativeReply::Response(response)) = decode(&[]) else { panic!("a response") };
        assert_eq!((response.status, &response.body[..]), (StatusCode::OK, &b"body"[..]));
    }

    #[test]
    fn headers_and_a_status_of_its_own_are_kept() {
        let fields = [("X-A", "1"), ("x-a", "2"), ("natsway-status", "201")];
        let Ok(NativeReply::Response(response)) = decode(&fields) else { panic!("a response") };
        assert_eq!(response.status, StatusCode::CREATED);
        assert_eq!(response.headers.get_all("x-a").iter().count(), 2);
    }

    #[test]
    fn a_service_error_becomes_the_status_when_http_knows_it() {
        for (code, status) in
            [("404", 404), ("503", 503), ("13", 500), ("200", 500), ("x", 500), ("70000", 500)]
        {
            let fields = [
                ("Nats-Service-Error-Code", code),
                ("X-Why", "gone"),
                ("Nats-Service-Error", "no such thing"),
            ];
            let Ok(NativeReply::ServiceError { status: got, text, headers, .. }) = decode(&fields)
            else {
                panic!("an error")
            };
            assert_eq!((got.as_u16(), text.as_str()), (status, "no such thing"), "{code}");
            assert_eq!((headers.len(), &headers["x-why"]), (1, &HeaderValue::from_static("gone")));
        }
    }

    #[test]
    fn what_http_cannot_carry_is_refused() {
        assert!(decode(&[("bad name", "x")]).is_err());
        assert!(decode(&[("X-A", "line\nbreak")]).is_err());
        assert!(decode(&[("Natsway-Status", "teapot")]).is_err());
        let many = vec![("X-A", "1"); Limits::DEFAULT.header_fields + 1];
        assert!(decode(&many).is_err());
    }
}

//! What a request's head must be before it is looked at further: pure.

use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, Method, StatusCode, Version, header};

use crate::fields::Survey;
use crate::problem::Problem;
use crate::settings::ClientLimits;
use crate::target::check_target;

/// A host and maybe a port that a request is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestAuthority {
    authority: Authority,
    /// Where its host ends.
    host_bytes: usize,
}

impl RequestAuthority {
    /// The type in it takes users, no host at all, and anything for a port.
    fn checked(authority: Authority) -> Result<Self, Problem> {
        let text = authority.as_str();
        if text.contains('@') {
            return Err(bad_request("bad_host", "the host must not name a user"));
        }
        let host_end = match text.starts_with('[') {
            true => text.find(']').map(|at| at + 1),
            false => text.find(':'),
        };
        let host_bytes = host_end.unwrap_or(text.len());
        let port = text[host_bytes..].strip_prefix(':').unwrap_or_default();
        let is_port = port.bytes().all(|byte| byte.is_ascii_digit())
            && (port.is_empty() || port.parse::<u16>().is_ok());
        match host_bytes == 0 || !is_port {
            true => Err(bad_request("bad_host", "the host must be a host and, if need be, a port")),
            false => Ok(Self { authority, host_bytes }),
        }
    }

    /// Returns its host, an IPv6 address in brackets.
    pub fn host(&self) -> &str {
        &self.authority.as_str()[..self.host_bytes]
    }

    /// Returns all of it.
    pub fn authority(&self) -> &Authority {
        &self.authority
    }
}

/// Refuses heads that are too large, malformed, or ask for what the gateway does not do.
///
/// # Errors
/// The [`Problem`] to answer.
pub fn inspect(head: &Parts, survey: &Survey, limits: &ClientLimits) -> Result<(), Problem> {
    if head.method == Method::CONNECT {
        return Err(not_implemented("CONNECT is not served here"));
    }
    if head.method == Method::TRACE {
        // It would send back to a script what only its browser knows (RFC 9110 section 9.3.8).
        return Err(not_implemented("TRACE is not served here"));
    }
    let path_bytes = head.uri.path_and_query().map_or(0, |path| path.as_str().len());
    if path_bytes > limits.path_bytes {
        let detail = format!("the path and query are above {} bytes", limits.path_bytes);
        return Err(Problem::new(StatusCode::URI_TOO_LONG, "path_too_long", detail));
    }
    check_target(head, limits.strict_queries)?;
    check_header_size(head.headers.len(), survey, limits)?;
    if survey.has_transfer_encoding {
        check_transfer_coding(&head.headers)?;
    }
    match survey.has_expect {
        true => check_expectation(&head.headers),
        false => Ok(()),
    }
}

fn check_header_size(fields: usize, survey: &Survey, limits: &ClientLimits) -> Result<(), Problem> {
    if survey.text_bytes <= limits.header_bytes && fields <= limits.header_fields {
        return Ok(());
    }
    let detail = format!(
        "more than {} header fields or {} bytes of them",
        limits.header_fields, limits.header_bytes
    );
    Err(Problem::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "head_too_large", detail))
}

/// Hyper reads every list of codings that ends with `chunked`, and what the others made of the body
/// would pass for the body. RFC 9112 section 6.1 has 501 for that.
fn check_transfer_coding(headers: &HeaderMap) -> Result<(), Problem> {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => Ok(()),
        (Some(coding), None) if coding.as_bytes().eq_ignore_ascii_case(b"chunked") => Ok(()),
        _ => Err(not_implemented(
            "the only transfer coding that is read here is chunked, applied once",
        )),
    }
}

fn check_expectation(headers: &HeaderMap) -> Result<(), Problem> {
    match headers.get(header::EXPECT) {
        Some(expected) if !expected.as_bytes().eq_ignore_ascii_case(b"100-continue") => {
            let detail = "the only expectation that is met here is 100-continue";
            Err(Problem::new(StatusCode::EXPECTATION_FAILED, "expectation_failed", detail))
        }
        _ => Ok(()),
    }
}

/// The authority that a request is for: of its target if that has one (HTTP/2, absolute form), else
/// of its one `Host`.
///
/// # Errors
/// The [`Problem`] to answer when there is none, more than one, one that is not an authority, or
/// two that differ.
pub fn authority(head: &Parts, survey: &Survey) -> Result<RequestAuthority, Problem> {
    if survey.hosts > 1 {
        return Err(bad_request("bad_host", "there is more than one Host field"));
    }
    let host = match head.headers.get(header::HOST).filter(|_| survey.hosts == 1) {
        Some(host) => Some(
            Authority::try_from(host.as_bytes())
                .map_err(|_| bad_request("bad_host", "the Host field is not a host and port"))?,
        ),
        None => None,
    };
    let authority = match (head.uri.authority(), host) {
        // RFC 9113 section 8.3.1. In HTTP/1.1 a target in absolute form goes before the field.
        (Some(target), Some(host))
            if head.version >= Version::HTTP_2 && !same_host(target, &host) =>
        {
            return Err(bad_request(
                "bad_host",
                "the Host field is not the authority that is asked for",
            ));
        }
        // RFC 9112 section 3.2 demands the field even where the target has all that is in it.
        (Some(target), host) if host.is_some() || head.version != Version::HTTP_11 => {
            target.clone()
        }
        (None, Some(host)) => host,
        // HTTP/1.0 clients may leave it out.
        (None, None) if head.version == Version::HTTP_10 => Authority::from_static("localhost"),
        (_, _) => return Err(bad_request("bad_host", "the Host field is missing")),
    };
    RequestAuthority::checked(authority)
}

fn same_host(one: &Authority, other: &Authority) -> bool {
    one.host().eq_ignore_ascii_case(other.host())
}

fn bad_request(code: &'static str, detail: &'static str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, code, detail)
}

pub(crate) fn not_implemented(detail: &'static str) -> Problem {
    Problem::new(StatusCode::NOT_IMPLEMENTED, "not_implemented", detail)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;

    use super::*;
    use crate::linger::LingerLimits;
    use crate::stall::SendRate;

    const LIMITS: ClientLimits = ClientLimits {
        path_bytes: 20,
        header_bytes: 64,
        header_fields: 3,
        head_timeout: Duration::from_secs(1),
        body_timeout: Duration::from_secs(1),
        send: SendRate { span: Duration::from_secs(1), bytes_per_second: 1 },
        http2_idle_timeout: Duration::from_secs(1),
        half_close: false,
        linger: LingerLimits { time: Duration::ZERO, bytes: 1 },
        strict_queries: false,
        http2_streams: 1,
    };

    fn head(request: http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn status(request: http::request::Builder) -> u16 {
        let head = head(request);
        let inspected = inspect(&head, &Survey::of(&head.headers), &LIMITS);
        inspected.map_or_else(|problem| problem.status.as_u16(), |()| 200)
    }

    #[test]
    fn each_fault_has_its_status() {
        let get = |uri: &str| Request::get(uri.to_owned());
        assert_eq!(status(get("/a%20b?x=1")), 200);
        assert_eq!(status(get("/a%2")), 400);
        assert_eq!(status(get("/a%zz")), 400);
        assert_eq!(status(get("/?q=%")), 200);
        assert_eq!(status(get("/a-path-that-is-too-long")), 414);
        assert_eq!(status(get("/").header("x", "y".repeat(64))), 431);
        assert_eq!(
            status(get("/").header("a", "1").header("b", "1").header("c", "1").header("d", "1")),
            431
        );
        assert_eq!(status(Request::builder().method("TRACE").uri("/")), 501);
        assert_eq!(status(get("/").header("expect", "100-Continue")), 200);
        assert_eq!(status(get("/").header("expect", "miracles")), 417);
        assert_eq!(status(Request::builder().method("CONNECT").uri("a:1")), 501);
        assert_eq!(status(get("/").header("transfer-encoding", "Chunked")), 200);
        assert_eq!(status(get("/").header("transfer-encoding", "gzip, chunked")), 501);
        assert_eq!(status(get("/").header("transfer-encoding", "chunked, chunked")), 501);
        let twice =
            get("/").header("transfer-encoding", "gzip").header("transfer-encoding", "chunked");
        assert_eq!(status(twice), 501);
    }

    #[test]
    fn a_host_ends_where_the_uri_has_it_end() {
        for text in ["a", "a:80", "a:", "shop.example:8080", "[::1]", "[::1]:80", "127.0.0.1:1"] {
            let asked = RequestAuthority::checked(text.parse().unwrap()).unwrap();
            assert_eq!(asked.host(), asked.authority().host(), "{text}");
        }
    }

    #[test]
    fn the_authority_is_one_and_sound() {
        let of = |request: http::request::Builder| {
            let head = head(request);
            authority(&head, &Survey::of(&head.headers))
                .map(|found| found.authority.to_string())
                .ok()
        };
        assert_eq!(of(Request::get("/").header("host", "a:80")).as_deref(), Some("a:80"));
        assert_eq!(of(Request::get("http://b/").header("host", "a")).as_deref(), Some("b"));
        assert_eq!(of(Request::get("/").header("host", "[::1]:80")).as_deref(), Some("[::1]:80"));
        assert_eq!(of(Request::get("/")), None);
        assert_eq!(of(Request::get("/").header("host", "a").header("host", "b")), None);
        assert_eq!(of(Request::get("/").header("host", "me@a")), None);
        assert_eq!(of(Request::get("/").header("host", "a/b")), None);
        assert_eq!(of(Request::get("/").version(Version::HTTP_10)).as_deref(), Some("localhost"));
        for host in [":80", ":", "a:b", "a:99999", "a:+1", "a:1:2", ""] {
            assert_eq!(of(Request::get("/").header("host", host)), None, "{host}");
        }
        assert_eq!(of(Request::get("/").header("host", "a:")).as_deref(), Some("a:"));
        assert_eq!(of(Request::get("http://b/")), None, "HTTP/1.1 demands the field");
        assert_eq!(of(Request::get("http://b/").header("host", "x/y")), None);
        let http2 = || Request::get("http://b:80/").version(Version::HTTP_2);
        assert_eq!(of(http2()).as_deref(), Some("b:80"));
        assert_eq!(of(http2().header("host", "B")).as_deref(), Some("b:80"));
        assert_eq!(of(http2().header("host", "a")), None, "two that differ");
    }
}

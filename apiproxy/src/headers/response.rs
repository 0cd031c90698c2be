//! Of a response: RFC 9110 sections 6.5 (trailers) and 7.6.1 (hop-by-hop fields).

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode, Version};

use super::hop_by_hop::{connection_lists, is_listed, takes_trailers};
use crate::fields::FieldKind;

/// Why a worker's response may not go to a client: its status is 1xx, or above 599.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("status {0} is not one that a worker may answer")]
pub struct ResponseFault(StatusCode);

/// Whether an answer with that status has a body, were it not for its request's method.
pub fn has_content(status: StatusCode) -> bool {
    ![StatusCode::NO_CONTENT, StatusCode::RESET_CONTENT, StatusCode::NOT_MODIFIED].contains(&status)
}

/// Takes those out of a response's trailers that must not be trailers, and all where the client
/// takes none.
///
/// RFC 9110 section 6.5.1: none that frames or routes a message, says how to read its body, or
/// proves who asks; and section 6.5.2: only to who says `TE: trailers`, which HTTP/2 clients need
/// not. `content` is whether there is a body, behind which they could stand.
pub fn passable_trailers(
    mut trailers: HeaderMap,
    request: &HeaderMap,
    version: Version,
    content: bool,
) -> HeaderMap {
    if !(content && may_have_trailers(request, version)) {
        return HeaderMap::new();
    }
    let never: Vec<HeaderName> =
        trailers.keys().filter(|name| is_never_trailer(name)).cloned().collect();
    for name in never {
        trailers.remove(name);
    }
    trailers
}

/// Whether a client may have trailers: HTTP/2 clients, and those that say so.
pub fn may_have_trailers(request: &HeaderMap, version: Version) -> bool {
    version >= Version::HTTP_2 || version == Version::HTTP_11 && takes_trailers(request)
}

fn is_never_trailer(name: &HeaderName) -> bool {
    const NEVER: [&HeaderName; 9] = [
        &header::AUTHORIZATION,
        &header::CACHE_CONTROL,
        &header::CONTENT_ENCODING,
        &header::CONTENT_LENGTH,
        &header::CONTENT_RANGE,
        &header::CONTENT_TYPE,
        &header::HOST,
        &header::MAX_FORWARDS,
        &header::SET_COOKIE,
    ];
    NEVER.contains(&name) || FieldKind::of(name.as_str()) == FieldKind::HopByHop
}

/// The value of `Trailer` that announces these.
pub fn announced(trailers: &HeaderMap) -> Option<HeaderValue> {
    let names: Vec<&str> = trailers.keys().map(HeaderName::as_str).collect();
    HeaderValue::try_from(names.join(", ")).ok().filter(|names| !names.is_empty())
}

/// Takes the length out of a worker's head, if it says one that can be read.
pub fn take_length(headers: &mut HeaderMap) -> Option<u64> {
    headers.remove(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// Checks a worker's response head and takes out what is the gateway's own to say.
///
/// # Errors
/// [`ResponseFault`]: then the client gets a 502.
pub fn check_response(
    method: &Method,
    status: StatusCode,
    headers: &mut HeaderMap,
    body_bytes: usize,
) -> Result<(), ResponseFault> {
    if !(200..600).contains(&status.as_u16()) {
        return Err(ResponseFault(status));
    }
    let (mut has_hop_by_hop, mut has_length) = (false, false);
    for name in headers.keys() {
        has_hop_by_hop |= FieldKind::of(name.as_str()) == FieldKind::HopByHop;
        has_length |= *name == header::CONTENT_LENGTH;
    }
    if has_hop_by_hop {
        remove_hop_by_hop(headers);
    }
    // A length is what the body has, which hyper writes. Only where there is no body by rule does a
    // worker's own figure stand: it says what a GET would have given.
    let stands = *method == Method::HEAD || status == StatusCode::NOT_MODIFIED;
    let length = if has_length { headers.remove(header::CONTENT_LENGTH) } else { None };
    if stands {
        let said =
            length.filter(|value| value.to_str().is_ok_and(|text| text.parse::<u64>().is_ok()));
        let had = body_bytes > 0 && has_content(status);
        let length = said.or_else(|| had.then(|| HeaderValue::from(body_bytes as u64)));
        if let Some(length) = length {
            headers.insert(header::CONTENT_LENGTH, length);
        }
    }
    Ok(())
}

/// Takes out what concerns one connection only, and what `Connection` says does.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let listed = connection_lists(headers);
    let is_hop_by_hop = |name: &HeaderName| {
        FieldKind::of(name.as_str()) == FieldKind::HopByHop
            || (!listed.is_empty() && is_listed(&listed, name))
    };
    let doomed: Vec<HeaderName> =
        headers.keys().filter(|name| is_hop_by_hop(name)).cloned().collect();
    for name in doomed {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), value.parse::<HeaderValue>().unwrap())
        };
        fields.iter().map(pair).collect()
    }

    #[test]
    fn a_response_keeps_its_end_to_end_fields_alone() {
        let mut fields = headers(&[
            ("connection", "x-hop"),
            ("x-hop", "1"),
            ("transfer-encoding", "chunked"),
            ("content-length", "7"),
            ("set-cookie", "a"),
            ("set-cookie", "b"),
        ]);
        check_response(&Method::GET, StatusCode::OK, &mut fields, 3).unwrap();
        assert_eq!(fields, headers(&[("set-cookie", "a"), ("set-cookie", "b")]));
    }

    #[test]
    fn the_length_of_a_head_response_is_that_of_the_get() {
        let mut said = headers(&[("content-length", "7")]);
        check_response(&Method::HEAD, StatusCode::OK, &mut said, 0).unwrap();
        assert_eq!(said, headers(&[("content-length", "7")]));
        let mut forged = headers(&[("content-length", "7, 8")]);
        check_response(&Method::HEAD, StatusCode::OK, &mut forged, 0).unwrap();
        assert!(forged.is_empty());
    }

    #[test]
    fn trailers_go_to_whom_takes_them_without_what_must_not_be_one() {
        let trailers =
            || headers(&[("x-sum", "1"), ("set-cookie", "a"), ("connection", "x"), ("x-sum", "2")]);
        let te = headers(&[("te", "gzip, Trailers")]);
        let passed = |request: &HeaderMap, version, content| {
            passable_trailers(trailers(), request, version, content).len()
        };
        assert_eq!(passed(&te, Version::HTTP_11, true), 2);
        assert_eq!(passed(&HeaderMap::new(), Version::HTTP_2, true), 2);
        assert_eq!(passed(&HeaderMap::new(), Version::HTTP_11, true), 0);
        assert_eq!(passed(&te, Version::HTTP_10, true), 0);
        assert_eq!(passed(&te, Version::HTTP_11, false), 0);
        assert_eq!(
            announced(&headers(&[("x-a", "1"), ("x-a", "2"), ("x-b", "3")])).unwrap(),
            "x-a, x-b"
        );
        assert_eq!(announced(&HeaderMap::new()), None);
    }

    #[test]
    fn a_body_that_is_left_out_is_not_a_length() {
        let mut fields = HeaderMap::new();
        check_response(&Method::GET, StatusCode::NOT_MODIFIED, &mut fields, 3).unwrap();
        assert!(fields.is_empty());
    }

    #[test]
    fn statuses_that_a_worker_may_not_answer_are_refused() {
        for code in [100, 101, 199, 600, 999] {
            let status = StatusCode::from_u16(code).unwrap();
            assert!(
                check_response(&Method::GET, status, &mut HeaderMap::new(), 0).is_err(),
                "{code}"
            );
        }
    }
}

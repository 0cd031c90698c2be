//! What a request is for: the form of its target, its path, its query. Pure.
//!
//! RFC 9112 section 3.2 has four forms. CONNECT's authority is refused before anything here is
//! asked.

use std::borrow::Cow;
use std::fmt::Write;

use http::request::Parts;
use http::uri::Scheme;
use http::{HeaderMap, Method, StatusCode, header};

use crate::problem::Problem;

/// Refuses targets of a form that their method may not have, of a foreign scheme, and with bytes
/// that could be read in two ways.
///
/// A path decides where a request goes, so it must be percent-encoded as RFC 3986 has it. A query
/// is its worker's alone: it passes as clients send it, `?q=100%` and raw UTF-8 included, unless
/// `strict_queries`.
///
/// # Errors
/// The [`Problem`] to answer.
pub fn check_target(head: &Parts, strict_queries: bool) -> Result<(), Problem> {
    let uri = &head.uri;
    match uri.scheme() {
        Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => {}
        Some(_) => return Err(bad_target("the target's scheme is neither http nor https")),
        // Hyper takes `GET name` for an authority, as it is with CONNECT.
        None if uri.authority().is_some() => {
            return Err(bad_target("the target is neither a path nor an absolute address"));
        }
        None => {}
    }
    let (path, query) = split(uri.path_and_query().map_or("", |target| target.as_str()));
    if path == "*" && head.method != Method::OPTIONS {
        return Err(bad_target("the target * is for OPTIONS alone"));
    }
    if !is_encoded(path) {
        return Err(bad_path("the path is not percent-encoded ASCII"));
    }
    match strict_queries && !is_encoded(query.unwrap_or_default()) {
        true => Err(bad_path("the query is not percent-encoded ASCII")),
        false => Ok(()),
    }
}

/// Whether a request asks the server itself what it can do: `OPTIONS *`.
pub fn is_server_wide(head: &Parts) -> bool {
    head.method == Method::OPTIONS && head.uri.path() == "*"
}

/// The method that a preflight of CORS asks for on behalf of a script: that one's route is asked,
/// for OPTIONS is served by few that list their methods.
pub fn preflight_method(method: &Method, headers: &HeaderMap) -> Option<Method> {
    if *method != Method::OPTIONS || !headers.contains_key(header::ORIGIN) {
        return None;
    }
    headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?.to_str().ok()?.parse().ok()
}

/// A path and query as a worker gets it: ASCII, so that it is text in every codec and language.
/// What is not is percent-encoded byte by byte, as a browser would have sent it.
pub fn forwardable(path_and_query: &str) -> Cow<'_, str> {
    if path_and_query.is_ascii() {
        return path_and_query.into();
    }
    let mut encoded = String::with_capacity(path_and_query.len() * 2);
    for letter in path_and_query.chars() {
        if letter.is_ascii() {
            encoded.push(letter);
            continue;
        }
        for byte in letter.encode_utf8(&mut [0; 4]).bytes() {
            write!(encoded, "%{byte:02X}").expect("a string takes all");
        }
    }
    encoded.into()
}

fn split(path_and_query: &str) -> (&str, Option<&str>) {
    match path_and_query.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (path_and_query, None),
    }
}

/// Percent signs stand before two hexadecimal digits, and nothing but printable ASCII stands bare.
fn is_encoded(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_sound = |(at, byte): (usize, &u8)| match byte {
        b'%' => {
            bytes.get(at + 1..at + 3).is_some_and(|digits| digits.iter().all(u8::is_ascii_hexdigit))
        }
        byte => byte.is_ascii_graphic(),
    };
    bytes.iter().enumerate().all(is_sound)
}

fn bad_path(detail: &'static str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_path", detail)
}

fn bad_target(detail: &'static str) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad_target", detail)
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;

    fn head(method: &str, uri: &str) -> Parts {
        let uri =
            http::Uri::from_maybe_shared(bytes::Bytes::copy_from_slice(uri.as_bytes())).unwrap();
        Request::builder().method(method).uri(uri).body(()).unwrap().into_parts().0
    }

    fn code(method: &str, uri: &str, strict: bool) -> &'static str {
        check_target(&head(method, uri), strict).map_or_else(|problem| problem.code, |()| "")
    }

    #[test]
    fn each_form_is_for_its_methods() {
        for (method, uri, expected) in [
            ("GET", "/a", ""),
            ("GET", "http://a/b", ""),
            ("GET", "https://a", ""),
            ("OPTIONS", "*", ""),
            ("GET", "*", "bad_target"),
            ("GET", "echo", "bad_target"),
            ("GET", "echo:80", "bad_target"),
            ("GET", "ftp://a/b", "bad_target"),
        ] {
            assert_eq!(code(method, uri, false), expected, "{method} {uri}");
        }
        assert!(is_server_wide(&head("OPTIONS", "*")) && !is_server_wide(&head("OPTIONS", "/*")));
    }

    #[test]
    fn paths_are_strict_and_queries_are_when_they_are_to_be() {
        for path in ["/%", "/%2", "/%zz", "/caf\u{e9}", "/a%u00e9?x"] {
            assert_eq!(code("GET", path, false), "bad_path", "{path}");
        }
        for query in ["/?q=100%", "/?q=%u00e9", "/?q=caf\u{e9}", "/?%", "/?a=%zz&b"] {
            assert_eq!(code("GET", query, false), "", "{query}");
            assert_eq!(code("GET", query, true), "bad_path", "{query}");
        }
        for both in ["/a%20b?c=%C3%A9", "/?", "/", "/?a?b"] {
            assert_eq!(code("GET", both, true), "", "{both}");
        }
    }

    #[test]
    fn raw_letters_are_encoded_and_all_else_stays() {
        assert_eq!(forwardable("/a?q=caf\u{e9}&r=100%&s=%u00e9"), "/a?q=caf%C3%A9&r=100%&s=%u00e9");
        assert_eq!(forwardable("/?q=\u{1f980}"), "/?q=%F0%9F%A6%80");
        assert!(matches!(forwardable("/a?b=%20"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_preflight_names_its_method() {
        let headers = |fields: &[(header::HeaderName, &'static str)]| -> HeaderMap {
            fields.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect()
        };
        let (origin, asked) = (header::ORIGIN, header::ACCESS_CONTROL_REQUEST_METHOD);
        let preflight = headers(&[(origin.clone(), "https://a"), (asked.clone(), "PUT")]);
        assert_eq!(preflight_method(&Method::OPTIONS, &preflight), Some(Method::PUT));
        assert_eq!(preflight_method(&Method::GET, &preflight), None);
        assert_eq!(preflight_method(&Method::OPTIONS, &headers(&[(asked.clone(), "PUT")])), None);
        assert_eq!(
            preflight_method(&Method::OPTIONS, &headers(&[(origin.clone(), "https://a")])),
            None
        );
        let odd = headers(&[(origin, "https://a"), (asked, "P UT")]);
        assert_eq!(preflight_method(&Method::OPTIONS, &odd), None);
    }

    proptest! {
        #[test]
        fn what_is_forwarded_is_ascii_and_decodes_to_the_same(query in "\\PC{0,40}") {
            let forwarded = forwardable(&query).into_owned();
            prop_assert!(forwarded.is_ascii());
            let decoded = |text: &str| percent_encoding::percent_decode_str(text).collect::<Vec<u8>>();
            prop_assert_eq!(decoded(&forwarded), decoded(&query));
        }
    }
}

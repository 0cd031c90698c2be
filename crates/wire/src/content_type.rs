//! What is known of a message by its content type.

use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};

/// Whether a request is a call by gRPC, or a response is one's.
///
/// gRPC-Web is not: it has a type of its own (`application/grpc-web`), and fits in HTTP/1.1.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    let kind = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes);
    let Some((start, rest)) = kind.and_then(|kind| kind.split_at_checked(TYPE.len())) else {
        return false;
    };
    start.eq_ignore_ascii_case(TYPE) && matches!(rest.first(), None | Some(b'+' | b';'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_known_by_its_type() {
        for (kind, expected) in [
            ("application/grpc", true),
            ("application/GRPC+proto", true),
            ("application/grpc;charset=utf-8", true),
            ("application/grpc-web", false),
            ("application/grpc-web+proto", false),
            ("application/grpc-web-text", false),
            ("application/json", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(kind))]);
            assert_eq!(is_grpc(&headers), expected, "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}

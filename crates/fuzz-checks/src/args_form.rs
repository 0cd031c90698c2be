//! A query and a form of any bytes, with the names in brackets that the first byte asks for, become
//! arguments or are refused; what only the gateway says stays its own.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, header};
use natsway_args::request::{Request, merge};
use natsway_args::{Limits, Map, Options, Value};

/// Small, so that they are reached.
pub(crate) const LIMITS: Limits = Limits { values: 50, depth: 6 };

/// See the module.
pub fn check(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else { return };
    let (query, body) = match bytes.iter().position(|byte| *byte == b'\n') {
        Some(end) => (&bytes[..end], &bytes[end + 1..]),
        None => (bytes, &b""[..]),
    };
    let options = Options {
        nested: first & 1 != 0,
        jsonp: first & 2 != 0,
        headers: vec![header::AUTHORIZATION],
        limits: LIMITS,
        ..Options::default()
    };
    let query = std::str::from_utf8(query).ok();
    merged(query, "application/x-www-form-urlencoded", body, &options);
}

/// Merges a request, and checks what must hold of any.
pub(crate) fn merged(query: Option<&str>, content_type: &str, body: &[u8], options: &Options) {
    let head = HeaderMap::from_iter([(
        header::CONTENT_TYPE,
        HeaderValue::from_str(content_type).expect("a check's own"),
    )]);
    let parameters = [("id".to_owned(), "7".to_owned())];
    let body = Bytes::copy_from_slice(body);
    let request = Request {
        method: &Method::GET,
        path: "/",
        query,
        peer: [192, 0, 2, 7].into(),
        id: "r",
        parameters: &parameters,
        named: &[],
        head: &head,
        body: &body,
    };
    let map = match merge(&request, options) {
        Ok(map) => map,
        Err(problem) => return assert!(problem.status.is_client_error(), "{problem:?}"),
    };
    let Some(Value::Map(own)) = map.get("_request") else { panic!("{map:?}") };
    assert_eq!(own["peer"], Value::text("192.0.2.7"));
    assert_eq!(map["id"], Value::text("7"));
    for absent in ["_reply", "authorization"] {
        assert!(!map.contains_key(absent), "{map:?}");
    }
    // The gateway's own stands beside what is bounded.
    assert!(count(&map) <= options.limits.values + 1 + own.len(), "{map:?}");
    for format in natsway_args::Format::ALL {
        let written = format.write_map(&map);
        let again = format.read(&written, Limits::REPLY).expect("what is written can be read");
        assert_eq!(format.write(&again), written);
    }
}

fn count(map: &Map) -> usize {
    fn of(value: &Value) -> usize {
        match value {
            Value::Array(values) => 1 + values.iter().map(of).sum::<usize>(),
            Value::Map(map) => 1 + count(map),
            _ => 1,
        }
    }
    map.values().map(of).sum()
}

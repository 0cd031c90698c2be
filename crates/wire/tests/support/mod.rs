//! The golden messages, and the values that they stand for.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test binary takes its part"
)]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use natsway_wire::control::WorkerCommand;
use natsway_wire::envelope::{
    NotRun, Reply, Request, RequestEncoder, Response, Signal, encode_response, encode_signal,
    with_reply_subject,
};

/// The bytes that text in hexadecimal stands for, less comments (`#` to the end of a line) and
/// white space.
pub fn from_hex(text: &str) -> Vec<u8> {
    let digits: String = text.lines().filter_map(|line| line.split('#').next()).collect();
    let digits: Vec<u8> = digits.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    assert!(digits.len().is_multiple_of(2), "a digit too few or too many");
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

pub fn golden_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden")
}

/// The checked-in bytes of the message of this name.
pub fn golden(name: &str) -> Bytes {
    let path = golden_directory().join(name).with_extension("hex");
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    from_hex(&text).into()
}

pub fn fields(pairs: &[(&str, &[u8])]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.append(name, HeaderValue::from_bytes(value).unwrap());
    }
    map
}

pub fn request_get() -> Request {
    Request {
        deadline_ms: 1_500,
        sent_ms: 1_700_000_000_000,
        method: Method::GET,
        path_and_query: "/".parse().unwrap(),
        headers: HeaderMap::new(),
        body: Bytes::new(),
        reply_subject: None,
    }
}

pub fn request_across() -> Request {
    Request { reply_subject: Some("_INBOX_apiproxy.7".to_owned()), ..request_get() }
}

pub fn request_post() -> Request {
    Request {
        deadline_ms: 60_000,
        sent_ms: 1_700_000_000_001,
        method: Method::POST,
        path_and_query: "/sum?n=1%20".parse().unwrap(),
        headers: fields(&[
            ("content-type", b"text/plain"),
            ("x-tag", b"one"),
            ("x-tag", b"two\xe9"),
        ]),
        body: Bytes::from_static(b"hello"),
        reply_subject: None,
    }
}

pub fn response_ok() -> Response {
    Response {
        status: StatusCode::OK,
        headers: fields(&[("content-type", b"application/json")]),
        trailers: HeaderMap::new(),
        body: Bytes::from_static(b"{\"sum\":6}"),
    }
}

pub fn response_trailers() -> Response {
    Response {
        status: StatusCode::NOT_FOUND,
        headers: fields(&[("set-cookie", b"a=1"), ("set-cookie", b"b=2")]),
        trailers: fields(&[("x-checksum", b"0f1e")]),
        body: Bytes::new(),
    }
}

/// Every golden request by name.
pub fn requests() -> [(&'static str, Request); 3] {
    [
        ("request_get", request_get()),
        ("request_post", request_post()),
        ("request_across", request_across()),
    ]
}

/// Every golden reply by name.
pub fn replies() -> [(&'static str, Reply); 7] {
    let not_run = |reason| Reply::Signal(Signal::NotRun(reason));
    let accepted = Signal::Accepted { instance: "k3v9".to_owned() };
    [
        ("response_ok", Reply::Response(response_ok())),
        ("response_trailers", Reply::Response(response_trailers())),
        ("signal_accepted", Reply::Signal(accepted)),
        ("signal_overloaded", not_run(NotRun::Overloaded)),
        ("signal_moved", not_run(NotRun::Moved)),
        ("signal_expired", not_run(NotRun::Expired)),
        ("signal_unsupported", not_run(NotRun::Unsupported)),
    ]
}

/// Every golden command by name.
pub fn commands() -> [(&'static str, WorkerCommand); 2] {
    let cancel = WorkerCommand::Cancel { reply: "_INBOX_apiproxy.7".to_owned() };
    [("command_cancel", cancel), ("command_ping", WorkerCommand::Ping)]
}

pub fn encode_request(request: &Request) -> Bytes {
    let path_and_query = request.path_and_query.as_str();
    let Request { deadline_ms, sent_ms, method, headers, body, reply_subject, .. } = request;
    let mut encoder =
        RequestEncoder::new(*deadline_ms, *sent_ms, method.as_str(), path_and_query, 64).unwrap();
    for (name, value) in headers {
        encoder.header(name.as_str(), value.as_bytes()).unwrap();
    }
    let message = encoder.finish(body);
    match reply_subject {
        Some(reply_subject) => with_reply_subject(&message, reply_subject).unwrap(),
        None => message,
    }
}

pub fn encode_reply(reply: &Reply) -> Bytes {
    match reply {
        Reply::Response(Response { status, headers, trailers, body }) => {
            encode_response(*status, headers, trailers, body).unwrap()
        }
        Reply::Signal(signal) => encode_signal(signal),
    }
}

//! A request as our envelope, and as others would write it: derived MessagePack, JSON, protobuf.
//!
//! The derived forms decode into borrowed strings, or in protobuf's case owned ones; only ours
//! ends, as it must, in the types that an HTTP service is called with. `rmp-serde+HeaderMap` goes
//! that way too, and `HeaderMap alone` is what the last step of it costs.

use std::hint::black_box;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use natsway_wire::Limits;
use natsway_wire::envelope::{RequestEncoder, decode_reply, decode_request, encode_response};
use prost::Message;
use serde::{Deserialize, Serialize};

use super::{Micro, Operation};

/// What a browser and the proxies in front of it send with a small form: common names, and some
/// that `http` does not know.
const TWELVE_HEADERS: [(&str, &str); 12] = [
    ("host", "shop.example.com"),
    ("user-agent", "Mozilla/5.0 (X11; Linux x86_64; rv:143.0) Gecko/20100101 Firefox/143.0"),
    ("accept", "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"),
    ("accept-language", "en-US,en;q=0.5"),
    ("accept-encoding", "gzip, deflate, br, zstd"),
    ("content-type", "application/json"),
    ("cookie", "session=4f9c1b7ad0e84d25; theme=dark"),
    ("x-forwarded-for", "203.0.113.7"),
    ("x-forwarded-proto", "https"),
    ("x-forwarded-host", "shop.example.com"),
    ("x-request-id", "01JB3TQ5W8Z6V9Q2M4R7X0K1YH"),
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
];

const DEADLINE_MS: u32 = 1_500;
const SENT_MS: u64 = 1_700_000_000_000;

/// A request as plain data, from which every codec writes.
#[derive(Clone, Copy)]
struct Request {
    name: &'static str,
    method: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body_bytes: usize,
}

const REQUESTS: [Request; 2] = [
    Request { name: "get", method: "GET", path: "/", headers: &[], body_bytes: 0 },
    Request {
        name: "post_12_headers_1KiB",
        method: "POST",
        path: "/orders?dry_run=1",
        headers: &TWELVE_HEADERS,
        body_bytes: 1_024,
    },
];

/// The envelope's fields for serde: positional in MessagePack, an object in JSON.
#[derive(Serialize, Deserialize)]
struct Derived<'a> {
    version: u8,
    flags: u8,
    deadline_ms: u32,
    sent_ms: u64,
    method: &'a str,
    path: &'a str,
    #[serde(borrow)]
    headers: Vec<(&'a str, &'a str)>,
    body: &'a str,
}

/// The same for protobuf.
#[derive(Clone, PartialEq, Message)]
struct Protobuf {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint32, tag = "2")]
    flags: u32,
    #[prost(uint32, tag = "3")]
    deadline_ms: u32,
    #[prost(uint64, tag = "4")]
    sent_ms: u64,
    #[prost(string, tag = "5")]
    method: String,
    #[prost(string, tag = "6")]
    path: String,
    #[prost(message, repeated, tag = "7")]
    headers: Vec<Field>,
    #[prost(bytes = "vec", tag = "8")]
    body: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct Field {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    value: String,
}

impl Request {
    fn body(&self) -> String {
        "abcdefghijklmnopqrstuvwxyz 012345".chars().cycle().take(self.body_bytes).collect()
    }

    fn encode(&self, body: &[u8]) -> Bytes {
        let capacity_bytes = 64 + self.path.len() + 64 * self.headers.len() + body.len();
        let encoder =
            RequestEncoder::new(DEADLINE_MS, SENT_MS, self.method, self.path, capacity_bytes);
        let mut encoder = encoder.expect("a short request line");
        for (name, value) in self.headers {
            encoder.header(name, value.as_bytes()).expect("few short fields");
        }
        encoder.finish(body)
    }

    fn derived<'a>(&self, body: &'a str) -> Derived<'a> {
        Derived {
            version: 1,
            flags: 0,
            deadline_ms: DEADLINE_MS,
            sent_ms: SENT_MS,
            method: self.method,
            path: self.path,
            headers: self.headers.to_vec(),
            body,
        }
    }

    fn protobuf(&self, body: &str) -> Protobuf {
        let field =
            |(name, value): &(&str, &str)| Field { name: (*name).into(), value: (*value).into() };
        Protobuf {
            version: 1,
            flags: 0,
            deadline_ms: DEADLINE_MS,
            sent_ms: SENT_MS,
            method: self.method.into(),
            path: self.path.into(),
            headers: self.headers.iter().map(field).collect(),
            body: body.as_bytes().to_vec(),
        }
    }
}

pub(super) fn all() -> Vec<Micro> {
    let mut all = Vec::new();
    for request in REQUESTS {
        let mut add = |what: &str, codec: &str, make: fn(Request) -> Operation| {
            all.push(Micro::new(format!("envelope/{what}/{}/{codec}", request.name), move || {
                make(request)
            }));
        };
        add("encode", "natsway", |request| {
            let body = request.body();
            Box::new(move || drop(black_box(black_box(&request).encode(body.as_bytes()))))
        });
        add("encode", "rmp-serde", |request| {
            let body = request.body();
            Box::new(move || drop(black_box(rmp_serde::to_vec(&request.derived(black_box(&body))))))
        });
        add("encode", "json", |request| {
            let body = request.body();
            Box::new(move || {
                drop(black_box(serde_json::to_vec(&request.derived(black_box(&body)))))
            })
        });
        add("encode", "prost", |request| {
            let body = request.body();
            Box::new(move || drop(black_box(request.protobuf(black_box(&body)).encode_to_vec())))
        });
        add("decode", "natsway", |request| {
            let message = request.encode(request.body().as_bytes());
            Box::new(move || drop(black_box(decode_request(black_box(&message), Limits::DEFAULT))))
        });
        add("decode", "rmp-serde", |request| {
            let message = rmp_serde::to_vec(&request.derived(&request.body())).expect("plain data");
            Box::new(move || {
                drop(black_box(rmp_serde::from_slice::<Derived<'_>>(black_box(&message))))
            })
        });
        add("decode", "rmp-serde+HeaderMap", |request| {
            let message = rmp_serde::to_vec(&request.derived(&request.body())).expect("plain data");
            Box::new(move || {
                let derived: Derived<'_> =
                    rmp_serde::from_slice(black_box(&message)).expect("our own");
                let method = Method::from_bytes(derived.method.as_bytes()).expect("a method");
                let body = Bytes::copy_from_slice(derived.body.as_bytes());
                drop(black_box((method, header_map(&derived.headers), body)));
            })
        });
        add("decode", "json", |request| {
            let message =
                serde_json::to_vec(&request.derived(&request.body())).expect("plain data");
            Box::new(move || {
                drop(black_box(serde_json::from_slice::<Derived<'_>>(black_box(&message))))
            })
        });
        add("decode", "prost", |request| {
            let message = request.protobuf(&request.body()).encode_to_vec();
            Box::new(move || drop(black_box(Protobuf::decode(black_box(message.as_slice())))))
        });
    }
    all.push(Micro::new("envelope/HeaderMap alone/12_headers", || {
        Box::new(|| drop(black_box(header_map(black_box(&TWELVE_HEADERS)))))
    }));
    all.push(Micro::new("envelope/answer/encode", || {
        let (headers, trailers, body) = (answer_headers(), HeaderMap::new(), [b'x'; 39]);
        Box::new(move || {
            let message =
                encode_response(http::StatusCode::OK, &headers, &trailers, black_box(&body));
            drop(black_box(message));
        })
    }));
    all.push(Micro::new("envelope/answer/decode", || {
        let message = encode_response(
            http::StatusCode::OK,
            &answer_headers(),
            &HeaderMap::new(),
            &[b'x'; 39],
        );
        let message = message.expect("a small response");
        Box::new(move || drop(black_box(decode_reply(black_box(&message), Limits::DEFAULT))))
    }));
    all
}

fn answer_headers() -> HeaderMap {
    header_map(&[("content-type", "application/json"), ("x-version", "blue")])
}

/// The step from borrowed strings to what a service is called with.
fn header_map(headers: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::with_capacity(headers.len());
    for (name, value) in headers {
        let name = HeaderName::from_bytes(name.as_bytes()).expect("a field name");
        map.append(name, HeaderValue::from_str(value).expect("a field value"));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_codec_gives_back_what_it_was_given() {
        let request = REQUESTS[1];
        let body = request.body();
        let ours = decode_request(&request.encode(body.as_bytes()), Limits::DEFAULT);
        assert!(ours.is_ok());
        let packed = rmp_serde::to_vec(&request.derived(&body)).unwrap();
        assert_eq!(rmp_serde::from_slice::<Derived<'_>>(&packed).unwrap().body, body);
        let json = serde_json::to_vec(&request.derived(&body)).unwrap();
        assert_eq!(serde_json::from_slice::<Derived<'_>>(&json).unwrap().headers.len(), 12);
        let protobuf = request.protobuf(&body);
        assert_eq!(Protobuf::decode(protobuf.encode_to_vec().as_slice()).unwrap(), protobuf);
    }
}

//! What an envelope costs, beside the same fields through derived MessagePack and JSON.
//!
//! Derived rows decode into borrowed strings; only the rows that say `HeaderMap` end, as ours must, in the types that
//! an HTTP service is called with. JSON carries the body as a string, which real bodies would not always allow.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use natsway_wire::Limits;
use natsway_wire::envelope::{RequestEncoder, decode_reply, decode_request, encode_response};
use serde::{Deserialize, Serialize};

/// What a browser and the proxies in front of it send with a small form: seven common names, five that `http` does
/// not know.
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

/// A request as plain data, from which every codec writes.
struct Sample {
    name: &'static str,
    method: &'static str,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: String,
}

/// The envelope's fields for derived codecs: positional in MessagePack, an object in JSON.
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
    #[serde(borrow)]
    body: Body<'a>,
}

/// Bytes for a binary format, a string for a readable one.
struct Body<'a>(&'a str);

impl Serialize for Body<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.serialize_str(self.0),
            false => serde_bytes::serialize(self.0.as_bytes(), serializer),
        }
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Body<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Body<'a>, D::Error> {
        match deserializer.is_human_readable() {
            true => <&str>::deserialize(deserializer).map(Body),
            false => {
                let bytes: &[u8] = serde_bytes::deserialize(deserializer)?;
                std::str::from_utf8(bytes).map(Body).map_err(serde::de::Error::custom)
            }
        }
    }
}

impl Sample {
    fn all() -> [Sample; 2] {
        let filler = "abcdefghijklmnopqrstuvwxyz 012345";
        [
            Sample { name: "get", method: "GET", path: "/", headers: &[], body: String::new() },
            Sample {
                name: "post_12_headers_1KiB",
                method: "POST",
                path: "/orders?dry_run=1",
                headers: &TWELVE_HEADERS,
                body: filler.chars().cycle().take(1024).collect(),
            },
        ]
    }

    fn encode(&self) -> Bytes {
        let capacity_bytes = 64 + self.path.len() + 64 * self.headers.len() + self.body.len();
        let mut encoder =
            RequestEncoder::new(1_500, 1_700_000_000_000, self.method, self.path, capacity_bytes)
                .expect("a short request line");
        for (name, value) in self.headers {
            encoder.header(name, value.as_bytes()).expect("few short fields");
        }
        encoder.finish(self.body.as_bytes())
    }

    fn derived(&self) -> Derived<'_> {
        Derived {
            version: 1,
            flags: 0,
            deadline_ms: 1_500,
            sent_ms: 1_700_000_000_000,
            method: self.method,
            path: self.path,
            headers: self.headers.to_vec(),
            body: Body(&self.body),
        }
    }
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

fn encode(criterion: &mut Criterion) {
    for sample in Sample::all() {
        let mut group = criterion.benchmark_group(format!("encode/{}", sample.name));
        group.throughput(Throughput::Elements(1));
        group.bench_function("natsway", |bencher| bencher.iter(|| black_box(&sample).encode()));
        let derived = sample.derived();
        group.bench_function("rmp_serde", |bencher| {
            bencher.iter(|| rmp_serde::to_vec(black_box(&derived)).expect("plain data"));
        });
        group.bench_function("serde_json", |bencher| {
            bencher.iter(|| serde_json::to_vec(black_box(&derived)).expect("plain data"));
        });
        group.finish();
    }
}

fn decode(criterion: &mut Criterion) {
    for sample in Sample::all() {
        let message = sample.encode();
        let packed = rmp_serde::to_vec(&sample.derived()).expect("plain data");
        let json = serde_json::to_vec(&sample.derived()).expect("plain data");
        let mut group = criterion.benchmark_group(format!("decode/{}", sample.name));
        group.throughput(Throughput::Elements(1));
        group.bench_function("natsway", |bencher| {
            bencher.iter(|| decode_request(black_box(&message), Limits::DEFAULT).expect("our own"));
        });
        group.bench_function("rmp_serde", |bencher| {
            bencher.iter(|| rmp_serde::from_slice::<Derived<'_>>(black_box(&packed)).expect("our own"));
        });
        group.bench_function("rmp_serde+HeaderMap", |bencher| {
            bencher.iter(|| {
                let derived: Derived<'_> = rmp_serde::from_slice(black_box(&packed)).expect("our own");
                let method = Method::from_bytes(derived.method.as_bytes()).expect("a method");
                let body = Bytes::copy_from_slice(derived.body.0.as_bytes());
                (method, header_map(&derived.headers), body)
            });
        });
        group.bench_function("serde_json", |bencher| {
            bencher.iter(|| serde_json::from_slice::<Derived<'_>>(black_box(&json)).expect("our own"));
        });
        group.bench_function("HeaderMap_alone", |bencher| {
            bencher.iter(|| header_map(black_box(sample.headers)));
        });
        group.finish();
    }
}

fn response(criterion: &mut Criterion) {
    let headers = header_map(&[("content-type", "application/json"), ("x-version", "blue")]);
    let body = vec![b'x'; 39];
    let encode = || encode_response(StatusCode::OK, &headers, &HeaderMap::new(), black_box(&body));
    let message = encode().expect("a small response");
    let mut group = criterion.benchmark_group("response/2_headers_39B");
    group.throughput(Throughput::Elements(1));
    group.bench_function("encode", |bencher| bencher.iter(encode));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| decode_reply(black_box(&message), Limits::DEFAULT).expect("our own"));
    });
    group.finish();
}

criterion_group!(benches, encode, decode, response);
criterion_main!(benches);

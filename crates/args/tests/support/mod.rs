//! What the tests share.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test binary takes its part"
)]

use std::path::Path;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method};
use natsway_args::request::{Request, merge};
use natsway_args::{Format, Map, Options, Value};
use natsway_wire::problem::Problem;
use proptest::prelude::*;

/// A request that owns its parts.
#[derive(Clone, Debug)]
pub struct Sent {
    pub method: Method,
    pub path: &'static str,
    pub query: Option<String>,
    pub peer: &'static str,
    pub id: &'static str,
    pub parameters: Vec<(String, String)>,
    pub named: Vec<(String, Vec<u8>)>,
    pub head: HeaderMap,
    pub body: Bytes,
}

impl Default for Sent {
    fn default() -> Self {
        Self {
            method: Method::POST,
            path: "/",
            query: None,
            peer: "192.0.2.7",
            id: "r-1",
            parameters: Vec::new(),
            named: Vec::new(),
            head: HeaderMap::new(),
            body: Bytes::new(),
        }
    }
}

impl Sent {
    pub fn query(query: &str) -> Self {
        Self { query: Some(query.to_owned()), ..Self::default() }
    }

    pub fn body(content_type: &str, body: impl AsRef<[u8]>) -> Self {
        let mut sent = Self { body: Bytes::copy_from_slice(body.as_ref()), ..Self::default() };
        sent.head.insert("content-type", content_type.parse().unwrap());
        sent
    }

    pub fn parameter(mut self, name: &str, value: &str) -> Self {
        self.parameters.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn named(mut self, name: &str, value: &[u8]) -> Self {
        self.named.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn request(&self) -> Request<'_> {
        Request {
            method: &self.method,
            path: self.path,
            query: self.query.as_deref(),
            peer: self.peer.parse().unwrap(),
            id: self.id,
            parameters: &self.parameters,
            named: &self.named,
            head: &self.head,
            body: &self.body,
        }
    }

    pub fn merged(&self, options: &Options) -> Result<Map, Problem> {
        merge(&self.request(), options)
    }

    /// The arguments as JSON, without the gateway's own key.
    pub fn arguments(&self, options: &Options) -> String {
        let mut map = self.merged(options).unwrap_or_else(|problem| panic!("{problem:?}"));
        assert_eq!(map.get_index(0).map(|(key, _)| key.as_str()), Some("_request"));
        map.shift_remove("_request");
        json(&Value::Map(map))
    }
}

pub fn options(headers: &[&str]) -> Options {
    let headers = headers.iter().map(|name| name.parse::<HeaderName>().unwrap()).collect();
    Options { headers, ..Options::default() }
}

pub fn json(value: &Value) -> String {
    String::from_utf8(Format::Json.write(value)).unwrap()
}

/// The checked-in bytes of this name: hexadecimal where `#` begins a comment, or a line of JSON.
pub fn golden(name: &str) -> Bytes {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    if let Ok(text) = std::fs::read_to_string(directory.join(format!("{name}.json"))) {
        return text.trim_end().to_owned().into();
    }
    let text = std::fs::read_to_string(directory.join(format!("{name}.hex"))).unwrap();
    from_hex(&text)
}

pub fn from_hex(text: &str) -> Bytes {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default());
    let digits: String =
        lines.flat_map(str::chars).filter(|letter| !letter.is_whitespace()).collect();
    let byte = |place: usize| u8::from_str_radix(&digits[place..place + 2], 16).unwrap();
    (0..digits.len()).step_by(2).map(byte).collect()
}

/// Any value of the model; numbers are finite where the format has no others.
pub fn values(finite: bool) -> impl Strategy<Value = Value> {
    let float = match finite {
        true => {
            (proptest::num::f64::NORMAL | proptest::num::f64::ZERO | proptest::num::f64::SUBNORMAL)
                .boxed()
        }
        false => proptest::num::f64::ANY
            .prop_filter("nothing equals it", |float| !float.is_nan())
            .boxed(),
    };
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::Bool),
        any::<i64>().prop_map(Value::Integer),
        any::<i8>().prop_map(|small| Value::Integer(small.into())),
        any::<u64>().prop_map(Value::from),
        float.prop_map(Value::Float),
        any::<String>().prop_map(Value::Text),
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Value::Bytes),
    ];
    leaf.prop_recursive(5, 60, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
            prop::collection::vec((keys(), inner), 0..8)
                .prop_map(|pairs| Value::Map(pairs.into_iter().collect())),
        ]
    })
}

/// Keys, those among them that mean something to somebody.
pub fn keys() -> impl Strategy<Value = String> {
    prop_oneof![
        3 => any::<String>(),
        1 => "\\${0,3}base64",
        1 => proptest::sample::select(vec!["_request", "_reply", "body", "callback", "a", "b", "x-user"])
            .prop_map(str::to_owned),
    ]
}

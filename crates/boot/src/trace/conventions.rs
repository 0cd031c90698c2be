//! What the spans of all our programs have in common, by OpenTelemetry's semantic conventions.

use http::Method;
use opentelemetry::trace::{Status, TraceContextExt};
use opentelemetry::{Context, InstrumentationScope, KeyValue};
use opentelemetry_semantic_conventions::{SCHEMA_URL, attribute as key};

/// What the conventions have for a method that is not of RFC 9110 or 5789: its values are a small
/// set.
const OTHER_METHOD: &str = "_OTHER";

/// What makes spans, with its version and that of the conventions by which it names them.
pub fn scope(name: &'static str) -> InstrumentationScope {
    InstrumentationScope::builder(name)
        .with_version(env!("CARGO_PKG_VERSION"))
        .with_schema_url(SCHEMA_URL)
        .build()
}

/// The method as a span's name has it: those that nobody knows would make names without end.
pub fn method_in_name(method: &Method) -> &'static str {
    match known_method(method) {
        OTHER_METHOD => "HTTP",
        known => known,
    }
}

/// The method as attributes; one that nobody knows stands beside its kind.
pub fn method_attributes(method: &Method) -> impl Iterator<Item = KeyValue> {
    let known = known_method(method);
    let original = (known == OTHER_METHOD)
        .then(|| KeyValue::new(key::HTTP_REQUEST_METHOD_ORIGINAL, method.as_str().to_owned()));
    std::iter::once(KeyValue::new(key::HTTP_REQUEST_METHOD, known)).chain(original)
}

fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        Method::TRACE => "TRACE",
        _ => OTHER_METHOD,
    }
}

/// The broker, `host:port`, as attributes of what goes over it.
pub fn broker_attributes(address: &str) -> impl Iterator<Item = KeyValue> + use<> {
    let (host, port) = address.rsplit_once(':').unwrap_or((address, ""));
    let host = host.trim_matches(['[', ']']).to_owned();
    let port =
        port.parse::<u16>().ok().map(|port| KeyValue::new(key::SERVER_PORT, i64::from(port)));
    std::iter::once(KeyValue::new(key::SERVER_ADDRESS, host)).chain(port)
}

/// Says that what a span stands for failed, and how.
pub fn failed(context: &Context, kind: String) {
    let span = context.span();
    span.set_status(Status::error(kind.clone()));
    span.set_attribute(KeyValue::new(key::ERROR_TYPE, kind));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(attributes: impl Iterator<Item = KeyValue>) -> Vec<(String, String)> {
        attributes.map(|one| (one.key.to_string(), one.value.to_string())).collect()
    }

    #[test]
    fn methods_are_a_small_set_and_the_unknown_one_stands_beside() {
        assert_eq!(method_in_name(&Method::PUT), "PUT");
        assert_eq!(
            pairs(method_attributes(&Method::PUT)),
            [("http.request.method".to_owned(), "PUT".to_owned())]
        );
        let odd = Method::from_bytes(b"BREW").unwrap();
        assert_eq!(method_in_name(&odd), "HTTP");
        let values: Vec<_> =
            pairs(method_attributes(&odd)).into_iter().map(|(_, value)| value).collect();
        assert_eq!(values, ["_OTHER", "BREW"]);
        // Names of methods are told apart by case.
        assert_eq!(method_in_name(&Method::from_bytes(b"get").unwrap()), "HTTP");
    }

    #[test]
    fn a_broker_has_a_host_and_a_port() {
        let values = |address| {
            pairs(broker_attributes(address))
                .into_iter()
                .map(|(_, value)| value)
                .collect::<Vec<_>>()
        };
        assert_eq!(values("nats:4222"), ["nats", "4222"]);
        assert_eq!(values("[::1]:4222"), ["::1", "4222"]);
        assert_eq!(values("nats"), [""; 0].into_iter().chain(["nats"]).collect::<Vec<_>>());
    }
}

use proptest::option::of;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

/// A document of the least that a route needs, and these members.
fn document(members: &Value) -> RouteDocument {
    RouteDocument::from_json(text(members).as_bytes()).unwrap()
}

fn text(members: &Value) -> String {
    let mut whole = json!({
        "name": "a", "path": "/a", "target": [{ "version": "v", "subject": "svc.a.v", "weight": 1 }],
    });
    whole.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    whole.to_string()
}

fn route(members: &Value) -> Route {
    document(members).check(None).unwrap()
}

fn written_schema(document: &RouteDocument) -> Value {
    serde_json::from_str::<Value>(&document.to_json()).unwrap()["schema"].clone()
}

#[test]
fn a_document_is_written_as_the_oldest_schema_that_has_its_keys() {
    for (members, schema) in [
        (json!({}), 1),
        (json!({ "schema": 1, "max_body_bytes": 5, "codec": "native" }), 1),
        (json!({ "schema": 2 }), 2),
        (json!({ "transport": "broker" }), 2),
        (json!({ "schema": 1, "inline_body_bytes": 0 }), 2),
        (json!({ "stream_idle_timeout": "5s" }), 2),
        (json!({ "stream_max_age": "5s" }), 2),
    ] {
        assert_eq!(written_schema(&document(&members)), schema, "{members}");
    }
}

#[test]
fn a_default_of_the_second_schema_makes_a_document_of_it() {
    let mut filled = document(&json!({ "stream_max_age": "2h" }));
    let defaults: Tuning = serde_json::from_value(json!({
        "transport": "auto", "inline_body_bytes": 100, "stream_idle_timeout": "5s",
        "stream_max_age": "1h",
    }))
    .unwrap();
    let mut plain = document(&json!({}));
    assert_eq!(written_schema(&plain), 1);
    plain.fill_in(&defaults);
    filled.fill_in(&defaults);
    for (document, hours) in [(plain, 1), (filled, 2)] {
        assert_eq!(written_schema(&document), 2);
        let route = document.check(None).unwrap();
        assert_eq!(route.transport, Transport::Auto);
        assert_eq!(route.limits.inline_body_bytes, 100);
        assert_eq!(route.streams.idle_timeout, Some(Duration::from_secs(5)));
        assert_eq!(route.streams.max_age, Some(Duration::from_secs(hours * 3_600)));
    }
}

#[test]
fn a_body_is_bounded_in_one_message_and_in_all() {
    const MOST: usize = MOST_INLINE_BODY_BYTES;
    for (members, inline, max) in [
        (json!({}), 65_536, None),
        (json!({ "codec": "native" }), 65_536, Some(65_536)),
        // As schema 1 meant it: one message, up to what a broker takes.
        (json!({ "max_body_bytes": 10 }), 10, Some(10)),
        (json!({ "max_body_bytes": 200_000 }), 200_000, Some(200_000)),
        (json!({ "max_body_bytes": 200_000, "codec": "native" }), 200_000, Some(200_000)),
        (json!({ "max_body_bytes": 5_000_000_000_u64 }), MOST, Some(5_000_000_000)),
        (
            json!({ "max_body_bytes": 5_000_000_000_u64, "codec": "native" }),
            MOST,
            Some(MOST as u64),
        ),
        // Schema 2 has a key for it.
        (json!({ "schema": 2, "max_body_bytes": 200_000 }), 65_536, Some(200_000)),
        (json!({ "schema": 2, "max_body_bytes": 10 }), 10, Some(10)),
        (json!({ "inline_body_bytes": 0 }), 0, None),
        (json!({ "inline_body_bytes": 0, "codec": "native" }), 0, Some(0)),
        (json!({ "inline_body_bytes": MOST, "max_body_bytes": 7 }), 7, Some(7)),
        (json!({ "transport": "auto", "max_body_bytes": 200_000 }), 65_536, Some(200_000)),
        (
            json!({ "inline_body_bytes": 9, "max_body_bytes": 200_000, "codec": "native" }),
            9,
            Some(9),
        ),
    ] {
        let expected = RouteLimits { inline_body_bytes: inline, max_body_bytes: max };
        assert_eq!(route(&members).limits, expected, "{members}");
    }
}

#[test]
fn streams_have_an_idle_time_by_kind_unless_the_route_sets_it_for_all() {
    let seconds = |members| {
        let streams = route(&members).streams;
        (streams.body_idle_timeout().as_secs(), streams.session_idle_timeout().as_secs())
    };
    assert_eq!(seconds(json!({})), (60, 3_600));
    assert_eq!(seconds(json!({ "stream_idle_timeout": "24h" })), (86_400, 86_400));
    assert_eq!(route(&json!({})).streams.max_age, None);
    let oldest = route(&json!({ "stream_max_age": "30days" })).streams.max_age.unwrap();
    assert_eq!(oldest.as_secs(), 30 * 86_400);
}

#[test]
fn native_routes_go_by_the_broker_whatever_the_defaults_say() {
    assert_eq!(route(&json!({})).transport, Transport::Broker);
    assert_eq!(route(&json!({ "transport": "auto" })).transport, Transport::Auto);
    let native = route(&json!({ "transport": "auto", "codec": "native" }));
    assert_eq!(native.transport, Transport::Broker);
}

/// A durable route of these members, and the faults of it.
fn durable(members: &Value) -> Result<Route, Faults> {
    let mut whole = json!({ "name": "a", "path": "/a/{b}", "mode": "publish" });
    whole.as_object_mut().unwrap().extend(members.as_object().unwrap().clone());
    RouteDocument::from_json(whole.to_string().as_bytes())?.check(Some("svc"))
}

#[test]
fn a_durable_route_has_a_subject_and_no_versions() {
    let route = durable(&json!({
        "publish": { "subject": "hooks.{b}", "tokens": { "b": ["x"] }, "expect_stream": "HOOKS" },
        "max_body_bytes": 5_000_000, "transport": "auto",
    }))
    .unwrap();
    let publish = route.publish.unwrap();
    assert_eq!(publish.subject.subject("/a/x").unwrap(), "hooks.x");
    assert_eq!(publish.ack_timeout, Duration::from_secs(5));
    assert_eq!(publish.expect_stream.as_deref(), Some("HOOKS"));
    assert_eq!((route.split.targets().len(), route.split.pick(0)), (0, None));
    assert_eq!(route.methods.to_string(), "POST");
    assert_eq!(route.limits.max_body_bytes, Some(65_536), "a stream keeps one message");
    assert_eq!(route.transport, Transport::Broker);
}

#[test]
fn a_durable_route_is_of_the_second_schema_and_reads_the_same_again() {
    let text = r#"{ "name": "a", "path": "/a/{b}", "mode": "publish", "publish": {
        "subject": "hooks.{b}", "ack_timeout": "3s", "tokens": { "b": { "%20": "blank" } } } }"#;
    let read = RouteDocument::from_json(text.as_bytes()).unwrap();
    assert_eq!(written_schema(&read), 2);
    let again = RouteDocument::from_json(read.to_json().as_bytes()).unwrap();
    assert_eq!(again.check(None).unwrap(), read.check(None).unwrap());
}

#[test]
fn a_route_that_keeps_results_says_where_they_are() {
    let publish = json!({ "subject": "jobs.x", "status_path": "/results/{id}" });
    let route = durable(&json!({ "mode": "enqueue", "publish": publish })).unwrap();
    assert_eq!(route.methods.to_string(), "POST");
    let status = route.publish.unwrap().status.unwrap();
    assert_eq!(status.of_token("0a"), "/results/0a");
    let publish = json!({ "subject": "jobs.x" });
    let route = durable(&json!({ "publish": publish })).unwrap();
    assert_eq!(route.publish.unwrap().status, None, "publish keeps none");
}

#[test]
fn every_fault_of_a_durable_route_is_named() {
    let one_token = json!({ "b": ["x"] });
    for (members, fault) in [
        (json!({}), "mode=\"publish\": expected `publish"),
        (
            json!({ "mode": "request", "publish": { "subject": "x" } }),
            "publish={..}: expected `mode",
        ),
        (
            json!({ "publish": { "subject": "x" }, "target": [{ "version": "v", "subject": "x" }] }),
            "target=[..]: expected none",
        ),
        (json!({ "publish": { "subject": "x" }, "sticky": { "client": true } }), "sticky=[..]"),
        (json!({ "publish": { "subject": "x" }, "methods": ["POST", "GET"] }), "no safe method"),
        (json!({ "publish": { "subject": "svc.a" } }), "where workers listen"),
        (json!({ "publish": { "subject": "$JS.API.x" } }), "is reserved"),
        (json!({ "publish": { "subject": "_INBOX.x" } }), "is reserved"),
        (json!({ "publish": { "subject": "natsway.x" } }), "is reserved"),
        (json!({ "publish": { "subject": "a.*" } }), "wildcard"),
        (json!({ "publish": { "subject": "a.>" } }), "wildcard"),
        (json!({ "publish": { "subject": "a..b" } }), "empty token"),
        (json!({ "publish": { "subject": "" } }), "is empty"),
        (json!({ "publish": { "subject": "{b}", "tokens": one_token } }), "begin with a token"),
        (json!({ "publish": { "subject": "h.x{b}", "tokens": one_token } }), "as a whole token"),
        (json!({ "publish": { "subject": "h.{b}" } }), "0 of \"b\": expected 1 to 1024"),
        (json!({ "publish": { "subject": "h", "tokens": one_token } }), "expected a parameter of"),
        (
            json!({ "publish": { "subject": "h.{c}", "tokens": { "c": ["x"] } } }),
            "expected `{c}` as a whole segment",
        ),
        (
            json!({ "publish": { "subject": "h.{b}", "tokens": { "b": ["x.y"] } } }),
            "publish.tokens=\"x.y\": expected 1 to 64 letters",
        ),
        (
            json!({ "publish": { "subject": "h.{b}", "tokens": { "b": { "x": "*" } } } }),
            "publish.tokens=\"*\": expected 1 to 64 letters",
        ),
        (
            json!({ "publish": { "subject": "h.{b}", "tokens": { "b": { "x/y": "x" } } } }),
            "expected a segment",
        ),
        (json!({ "publish": { "subject": "h", "expect_stream": "a.b" } }), "name of a stream"),
        (json!({ "publish": { "subject": "h", "ack_timeout": "2h" } }), "expected 1ms to 1h"),
        (json!({ "publish": { "subject": "h", "colour": "red" } }), "unknown field `colour`"),
        (json!({ "mode": "store" }), "unknown variant `store`"),
        (json!({ "mode": "enqueue" }), "mode=\"enqueue\": expected `publish"),
        (
            json!({ "mode": "enqueue", "publish": { "subject": "h" } }),
            "mode=\"enqueue\": expected `status_path",
        ),
        (
            json!({ "publish": { "subject": "h", "status_path": "/s/{id}" } }),
            "publish.status_path=\"/s/{id}\": expected `mode",
        ),
        (
            json!({ "mode": "enqueue", "publish": { "subject": "h", "status_path": "/s" } }),
            "publish.status_path=\"/s\": expected one parameter",
        ),
        (
            json!({
                "mode": "enqueue", "codec": "native",
                "publish": { "subject": "h", "status_path": "/s/{id}" },
            }),
            "codec=\"native\": expected `http`",
        ),
    ] {
        let Faults(found) = durable(&members).unwrap_err();
        assert!(found.iter().any(|found| found.contains(fault)), "{members}: {found:?}");
    }
}

#[test]
fn every_fault_of_the_second_schema_is_named_at_once() {
    let Faults(found) = document(&json!({
        "schema": 0, "inline_body_bytes": MOST_INLINE_BODY_BYTES + 1,
        "stream_idle_timeout": "999ms", "stream_max_age": "31days",
    }))
    .check(None)
    .unwrap_err();
    assert_eq!(
        found,
        [
            "route \"a\": schema=0: expected 1 to 2",
            "route \"a\": inline_body_bytes=983041: expected 0 to 983040",
            "route \"a\": stream_idle_timeout=999ms: expected 1s to 24h",
            "route \"a\": stream_max_age=1month 13h 26m 24s: expected 1s to 30days",
        ]
    );
    for members in [json!({ "stream_idle_timeout": "86401s" }), json!({ "stream_max_age": "0s" })] {
        assert_eq!(document(&members).check(None).unwrap_err().0.len(), 1, "{members}");
    }
    for members in [
        json!({ "transport": "tunnel" }),
        json!({ "transport": "Auto" }),
        json!({ "inline_body_bytes": -1 }),
        json!({ "max_body_bytes": 1.5 }),
        json!({ "stream_max_age": 5 }),
    ] {
        assert!(RouteDocument::from_json(text(&members).as_bytes()).is_err(), "{members}");
    }
}

#[test]
fn a_document_of_a_later_schema_is_refused_for_that_and_not_for_its_members() {
    let later = text(&json!({ "schema": 3, "colour": "red" }));
    let Faults(found) = RouteDocument::from_json(later.as_bytes()).unwrap_err();
    assert_eq!(found, ["route \"a\": schema=3: expected 1 to 2: a newer gateway wrote this"]);
    let known = text(&json!({ "schema": 2, "colour": "red" }));
    let Faults(found) = RouteDocument::from_json(known.as_bytes()).unwrap_err();
    assert!(found[0].contains("unknown field `colour`"), "{found:?}");
}

/// What a gateway of schema 1 knows of a route: it refuses all else.
const KEYS_OF_1: [&str; 18] = [
    "schema",
    "name",
    "host",
    "path",
    "methods",
    "strip_prefix",
    "codec",
    "internal",
    "timeout",
    "try_timeout",
    "max_body_bytes",
    "retries",
    "retry_window",
    "cancel",
    "target",
    "rule",
    "sticky",
    "rollout",
];

#[test]
fn arguments_are_checked_and_make_a_document_of_schema_2() {
    let route = document(&json!({ "codec": "args" })).check(None).unwrap();
    assert_eq!((route.codec, &*route.args), (Codec::Args, &natsway_args::Options::default()));
    assert_eq!((route.transport, route.limits.max_body_bytes), (Transport::Broker, Some(65_536)));
    assert_eq!(document(&json!({ "codec": "args" })).schema(), 2);

    let args = json!({ "format": "cbor", "headers": ["X-User"], "bodies": ["json", "form"],
        "nested": true, "jsonp": true, "max_values": 5, "max_depth": 2, "websocket": true,
        "websocket_concurrency": 3, "websocket_origins": ["https://a.example"] });
    let read = document(&json!({ "codec": "args", "args": args }));
    assert_eq!(RouteDocument::from_json(read.to_json().as_bytes()).unwrap(), read);
    let options = &read.check(None).unwrap().args;
    assert_eq!(options.headers, [http::HeaderName::from_static("x-user")]);
    assert_eq!((options.limits.values, options.limits.depth), (5, 2));
    let websocket = options.websocket.as_ref().unwrap();
    assert_eq!((websocket.concurrency, &*websocket.origins[0]), (3, "https://a.example"));
    assert!(options.nested && options.jsonp && options.format == natsway_args::Format::Cbor);

    let faults = |members: Value| document(&members).check(None).unwrap_err().to_string();
    for (args, expected) in [
        (json!({ "headers": ["a b"] }), "args.headers=\"a b\""),
        (json!({ "headers": ["x", "X"] }), "expected each once"),
        (json!({ "max_values": 0 }), "args.max_values=0: expected 1 to 1000000"),
        (json!({ "max_depth": 101 }), "args.max_depth=101: expected 1 to 100"),
        (json!({ "websocket_concurrency": 3 }), "args.websocket=false: expected true"),
        (json!({ "websocket": true, "websocket_concurrency": 0 }), "expected 1 to 1000"),
        (
            json!({ "websocket": true, "websocket_origins": ["a.example"] }),
            "expected `*` or an origin",
        ),
        (
            json!({ "websocket": true, "websocket_origins": ["https://a/"] }),
            "expected `*` or an origin",
        ),
    ] {
        let said = faults(json!({ "codec": "args", "args": args }));
        assert!(said.contains(expected), "{said}");
    }
    let args = json!({ "websocket": true });
    let said = faults(json!({ "codec": "args", "args": args, "methods": ["GET"] }));
    assert!(said.contains("args.websocket=true: expected GET and POST among"), "{said}");
    let said = faults(json!({ "codec": "native", "args": {} }));
    assert!(said.contains("expected codec = \"args\""), "{said}");
    for path in ["/{_request}", "/a/{*_reply}"] {
        let said = faults(json!({ "codec": "args", "path": path }));
        assert!(said.contains("expected no parameter of the name"), "{said}");
    }
    let said = faults(json!({ "codec": "args", "path": "/{id}", "args": { "headers": ["id"] } }));
    assert!(said.contains("expected no name of a parameter"), "{said}");
    for unknown in [json!({ "format": "xml" }), json!({ "bodies": ["xml"] }), json!({ "x": 1 })] {
        let text = text(&json!({ "codec": "args", "args": unknown }));
        assert!(RouteDocument::from_json(text.as_bytes()).is_err(), "{text}");
    }
}

prop_compose! {
    /// Members of both schemas, sound ones for the most part.
    fn any_members()(
        schema in of(1..=2_u32),
        timeout in of(1..3_600_u32),
        transport in of(prop::sample::select(vec!["broker", "auto"])),
        codec in prop::sample::select(vec!["http", "native", "args"]),
        inline in of(0..=MOST_INLINE_BODY_BYTES),
        max in of(0..=10_000_000_000_u64),
        idle in of(1..=86_400_u32),
        age in of(1..=2_592_000_u32),
    ) -> Value {
        let seconds = |seconds: Option<u32>| seconds.map(|seconds| format!("{seconds}s"));
        let mut members = json!({
            "schema": schema, "timeout": seconds(timeout), "transport": transport, "codec": codec,
            "inline_body_bytes": inline, "max_body_bytes": max,
            "stream_idle_timeout": seconds(idle), "stream_max_age": seconds(age),
        });
        members.as_object_mut().unwrap().retain(|_, value| !value.is_null());
        members
    }
}

proptest! {
    #[test]
    fn what_is_written_reads_the_same(members in any_members()) {
        let read = document(&members);
        let again = RouteDocument::from_json(read.to_json().as_bytes()).unwrap();
        prop_assert_eq!(&again, &read);
        prop_assert_eq!(again.check(None).unwrap(), read.check(None).unwrap());
        prop_assert_eq!(again.to_json(), read.to_json());
    }

    #[test]
    fn a_gateway_of_schema_1_reads_what_is_written_as_1_and_nothing_else(members in any_members()) {
        let written: Value = serde_json::from_str(&document(&members).to_json()).unwrap();
        let mut keys = written.as_object().unwrap().keys();
        let is_known = keys.all(|key| KEYS_OF_1.contains(&key.as_str())) && written["codec"] != "args";
        let said_2 = members["schema"] == 2;
        prop_assert_eq!(written["schema"] == 1, is_known && !said_2);
    }

    #[test]
    fn bounds_agree_and_small_bodies_of_schema_1_keep_theirs(members in any_members()) {
        let document = document(&members);
        let limits = document.check(None).unwrap().limits;
        let inline = limits.inline_body_bytes as u64;
        prop_assert!(inline <= MOST_INLINE_BODY_BYTES as u64);
        prop_assert!(limits.max_body_bytes.is_none_or(|max| inline <= max));
        if document.schema() == 1 {
            let most_inline = MOST_INLINE_BODY_BYTES as u64;
            let before = members["max_body_bytes"].as_u64().unwrap_or(65_536);
            prop_assert_eq!(inline, before.min(most_inline));
        }
    }
}

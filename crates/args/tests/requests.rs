//! What becomes of a request: the tables of `docs/args.md`, and hostile ones.

#![expect(clippy::unwrap_used, reason = "what a test does not expect ends it")]

mod support;

use bytes::Bytes;
use http::Method;
use natsway_args::{BodyKind, Format, Limits, Map, Options, Value};
use support::{Sent, json, options};

fn plain() -> Options {
    Options::default()
}

/// The code of what a request is refused with.
fn refused(sent: &Sent, options: &Options) -> (u16, &'static str) {
    let problem = sent.merged(options).unwrap_err();
    (problem.status.as_u16(), problem.code)
}

#[test]
fn the_gateway_says_what_it_knows() {
    let sent = Sent::body("text/plain", "x");
    let sent = Sent { method: Method::PUT, path: "/a%20b", peer: "2001:db8::1", ..sent };
    let map = sent.merged(&plain()).unwrap();
    assert_eq!(
        json(&map["_request"]),
        r#"{"method":"PUT","path":"/a%20b","peer":"2001:db8::1","id":"r-1","type":"text/plain"}"#
    );
    let map = Sent::default().merged(&plain()).unwrap();
    assert!(!json(&map["_request"]).contains("type"), "no body, no type");
}

#[test]
fn path_beats_head_beats_body_beats_query() {
    let body = r#"{"id":"body","x-user":"body","n":"body","only-body":1}"#;
    let mut sent = Sent::body("application/json", body).parameter("id", "path");
    sent.query = Some("id=query&x-user=query&n=query&only-query=1".to_owned());
    let named = sent.clone().named("x-user", b"head");
    assert_eq!(
        named.arguments(&options(&["x-user"])),
        r#"{"id":"path","x-user":"head","n":"body","only-body":1,"only-query":"1"}"#
    );
    assert_eq!(
        sent.arguments(&options(&["x-user"])),
        r#"{"id":"path","n":"body","only-body":1,"only-query":"1"}"#,
        "what the route takes from the head is nobody else's, also where it is not there"
    );
}

#[test]
fn reserved_keys_are_dropped_wherever_a_client_says_them() {
    let bodies = [
        ("application/json", r#"{"_request":{"user":"root"},"_reply":{"status":500},"a":1}"#),
        ("application/x-www-form-urlencoded", "_request=1&_reply=2&_request[user]=root&a=1"),
    ];
    for (content_type, body) in bodies {
        let mut sent = Sent::body(content_type, body);
        sent.query = Some("_request=1&_reply[status]=500&_request[user]=root".to_owned());
        let nested = Options { nested: true, ..plain() };
        // Without `nested` what is in brackets is a name like others.
        for options in [plain(), nested] {
            let map = sent.merged(&options);
            let Ok(map) = map else { continue };
            let Value::Map(own) = &map["_request"] else { panic!("a map") };
            assert!(!own.contains_key("user") && !map.contains_key("_reply"), "{map:?}");
        }
    }
}

#[test]
fn numbers_are_text_unless_the_body_says_otherwise_and_empty_is_not_absent() {
    let mut sent = Sent::body("application/json", r#"{"n":1,"e":"","z":null,"a":[]}"#);
    sent.query = Some("q=1&r=&s".to_owned());
    assert_eq!(sent.arguments(&plain()), r#"{"n":1,"e":"","z":null,"a":[],"q":"1","r":"","s":""}"#);
    assert_eq!(Sent::body("application/json", "").arguments(&plain()), "{}", "no bytes, no body");
}

#[test]
fn each_body_becomes_what_it_is() {
    let form = "--x\r\ncontent-disposition: form-data; name=\"a\"\r\n\r\n1\r\n--x\r\n\
                content-disposition: form-data; name=\"a\"\r\n\r\n2\r\n--x--\r\n";
    for (content_type, body, expected) in [
        ("application/json", "[1,2]", r#"{"body":[1,2]}"#),
        ("application/json", "\"x\"", r#"{"body":"x"}"#),
        ("application/vnd.api+json", "{\"a\":1}", r#"{"a":1}"#),
        ("application/x-www-form-urlencoded", "a=1&a=2&b=%20", r#"{"a":["1","2"],"b":" "}"#),
        ("multipart/form-data; boundary=x", form, r#"{"a":["1","2"]}"#),
        ("text/plain", "hé", r#"{"body":"hé"}"#),
        ("text/plain; charset=iso-8859-1", "h", r#"{"body":{"$base64":"aA=="}}"#),
        ("application/xml", "<a/>", r#"{"body":{"$base64":"PGEvPg=="}}"#),
        ("nonsense", "x", r#"{"body":{"$base64":"eA=="}}"#),
    ] {
        assert_eq!(Sent::body(content_type, body).arguments(&plain()), expected, "{content_type}");
    }
    let latin = Sent::body("text/plain", [0xe9]);
    assert_eq!(latin.arguments(&plain()), r#"{"body":{"$base64":"6Q=="}}"#, "not UTF-8");
    let mut untyped = Sent::body("text/plain", "x");
    untyped.head.clear();
    assert_eq!(untyped.arguments(&plain()), r#"{"body":{"$base64":"eA=="}}"#);
    let map = Value::Map(Map::from_iter([("b".to_owned(), Value::Bytes(vec![0xff]))]));
    for (format, name) in [
        (Format::Msgpack, "application/x-msgpack"),
        (Format::Cbor, "application/cbor"),
        (Format::Json, "application/json"),
    ] {
        let sent = Sent::body(name, format.write(&map));
        assert_eq!(sent.arguments(&plain()), r#"{"b":{"$base64":"/w=="}}"#, "{name}");
    }
}

#[test]
fn header_fields_come_again_as_arrays_and_bytes_as_bytes() {
    let sent = Sent::default().named("x-tag", b"a").named("x-tag", b"b").named("x-raw", &[0xe9]);
    assert_eq!(
        sent.arguments(&options(&["x-tag", "x-raw", "x-none"])),
        r#"{"x-tag":["a","b"],"x-raw":{"$base64":"6Q=="}}"#
    );
}

#[test]
fn parameters_of_the_path_are_decoded_once_and_must_be_text() {
    let sent = Sent::default().parameter("a", "%2E%2e%2F%252e").parameter("b", "");
    assert_eq!(sent.arguments(&plain()), r#"{"a":"../%2e","b":""}"#);
    assert_eq!(refused(&Sent::default().parameter("a", "%ff"), &plain()), (400, "bad_args"));
}

#[test]
fn a_callback_is_no_argument_where_it_is_the_gateways() {
    let ask = |jsonp, method: Method| {
        let sent = Sent { method, ..Sent::query("callback=f&a=1") };
        sent.arguments(&Options { jsonp, ..plain() })
    };
    assert_eq!(ask(true, Method::GET), r#"{"a":"1"}"#);
    assert_eq!(ask(true, Method::POST), r#"{"callback":"f","a":"1"}"#);
    assert_eq!(ask(false, Method::GET), r#"{"callback":"f","a":"1"}"#);
}

#[test]
fn what_cannot_be_read_is_refused() {
    let bodies: [(&str, &[u8]); 17] = [
        ("application/json", b"{\"a\":1,\"a\":2}"),
        ("application/json", b"{\"a\":{\"b\":1,\"b\":2}}"),
        ("application/json", b"{} x"),
        ("application/json", b"{\"a\":"),
        ("application/json", b"[1e999]"),
        ("application/json", b"{\"$base64\":\"?\"}"),
        ("application/json", b"{\"$base64\":7}"),
        ("application/json", b"\"\xff\""),
        ("application/msgpack", b"\x82\xa1a\x01\xa1a\x02"),
        ("application/msgpack", b"\x81\x01\x02"),
        ("application/msgpack", b"\xc1"),
        ("application/msgpack", b"\xa1\xff"),
        ("application/msgpack", b"\xd6\xff\x00\x00\x00\x00"),
        ("application/msgpack", b"\x01\x02"),
        ("application/cbor", b"\xa1\x01\x02"),
        ("application/cbor", b"\x3b\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("application/cbor", b"\xf0"),
    ];
    for (content_type, body) in bodies {
        let sent = Sent::body(content_type, body);
        assert_eq!(refused(&sent, &plain()), (400, "bad_args"), "{content_type} {body:?}");
    }
    let mut twice = Sent::body("text/plain", "x");
    twice.head.append("content-type", "application/json".parse().unwrap());
    assert_eq!(refused(&twice, &plain()), (400, "bad_args"));
    let unbounded = Sent::body("multipart/form-data", "x");
    assert_eq!(refused(&unbounded, &plain()), (400, "bad_args"));
}

#[test]
fn a_strangers_cbor_is_read() {
    for (hex, expected) in [
        ("d9d9f7 a1 61 61 01", "{\"a\":1}"),
        ("bf 61 61 9f 01 02 ff 61 62 7f 61 78 61 79 ff ff", "{\"a\":[1,2],\"b\":\"xy\"}"),
        ("83 f9 3c00 f9 c400 f9 0001", "[1.0,-4.0,5.960464477539063e-8]"),
        ("82 f9 7bff fa 3fc00000", "[65504.0,1.5]"),
        (
            "83 f7 5f 41 00 41 ff ff 1bffffffffffffffff",
            "[null,{\"$base64\":\"AP8=\"},18446744073709551615]",
        ),
        ("3b7fffffffffffffff", "-9223372036854775808"),
    ] {
        let read = Format::Cbor.read(&support::from_hex(hex), Limits::REQUEST).unwrap();
        assert_eq!(json(&read), expected, "{hex}");
    }
}

#[test]
fn what_the_route_does_not_take_is_unsupported_and_says_what_would_do() {
    let options = Options { bodies: vec![BodyKind::Json, BodyKind::Form], ..plain() };
    let problem = Sent::body("application/xml", "<a/>").merged(&options).unwrap_err();
    assert_eq!((problem.status.as_u16(), problem.code), (415, "unsupported_media_type"));
    assert!(problem.detail.contains("application/json, application/x-www-form-urlencoded"));
    assert!(Sent::body("application/json", "{}").merged(&options).is_ok());
    let mut coded = Sent::body("application/json", "{}");
    coded.head.insert("content-encoding", "gzip".parse().unwrap());
    assert_eq!(refused(&coded, &plain()), (415, "unsupported_media_type"));
    let file = "--x\r\ncontent-disposition: form-data; name=a; filename=b\r\n\r\n1\r\n--x--\r\n";
    let file = Sent::body("multipart/form-data; boundary=x", file);
    assert_eq!(refused(&file, &plain()), (415, "unsupported_media_type"));
}

#[test]
fn every_bound_holds_in_every_format() {
    let options = Options { limits: Limits { values: 100, depth: 5 }, ..plain() };
    let nested =
        |depth: usize| (1..depth).fold(Value::Array(vec![]), |inner, _| Value::Array(vec![inner]));
    let wide = |length: usize| Value::Array(vec![Value::Null; length]);
    for (kind, format) in [
        (BodyKind::Json, Format::Json),
        (BodyKind::Msgpack, Format::Msgpack),
        (BodyKind::Cbor, Format::Cbor),
    ] {
        let send = |value: &Value| Sent::body(kind.media_type(), format.write(value));
        assert!(send(&nested(5)).merged(&options).is_ok());
        assert_eq!(refused(&send(&nested(6)), &options), (413, "too_many_args"));
        assert!(send(&wide(99)).merged(&options).is_ok());
        assert_eq!(refused(&send(&wide(100)), &options), (413, "too_many_args"));
    }
    // What only announces much, or stands deep, costs neither memory nor the stack.
    let deep: [(&str, Vec<u8>); 4] = [
        ("application/json", b"[".repeat(1_000_000)),
        ("application/msgpack", vec![0x91; 1_000_000]),
        ("application/cbor", vec![0x81; 1_000_000]),
        ("application/cbor", vec![0x9f; 1_000_000]),
    ];
    for (content_type, body) in deep {
        assert_eq!(refused(&Sent::body(content_type, body), &plain()).1, "too_many_args");
    }
    let announced: [(&str, &[u8]); 6] = [
        ("application/msgpack", b"\xdd\xff\xff\xff\xff"),
        ("application/msgpack", b"\xdf\xff\xff\xff\xff"),
        ("application/msgpack", b"\xc6\xff\xff\xff\xff"),
        ("application/cbor", b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("application/cbor", b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff"),
        ("application/cbor", b"\x5b\xff\xff\xff\xff\xff\xff\xff\xff"),
    ];
    for (content_type, body) in announced {
        assert_eq!(
            refused(&Sent::body(content_type, body), &plain()),
            (400, "bad_args"),
            "{body:?}"
        );
    }
    let tags = Sent::body("application/cbor", vec![0xc0; 1_000_000]);
    assert_eq!(refused(&tags, &plain()), (400, "bad_args"), "tags are no depth");
    let query = Sent::query(&"a&".repeat(101));
    assert_eq!(refused(&query, &options), (413, "too_many_args"));
    let mut both = Sent::body("application/json", r#"{"a":1,"b":[1,2]}"#);
    both.query = Some("x&".repeat(96));
    assert_eq!(refused(&both, &options).1, "too_many_args", "one bound for all of a request");
    let parts = "--x\r\ncontent-disposition: form-data; name=a\r\n\r\n\r\n".repeat(101);
    let form = Sent::body("multipart/form-data; boundary=x", format!("{parts}--x--\r\n"));
    assert_eq!(refused(&form, &options), (413, "too_many_args"));
    let empty = Sent { body: Bytes::new(), ..Sent::default() };
    assert!(empty.merged(&options).is_ok());
}

//! What becomes of a backend's reply.

#![expect(clippy::unwrap_used, reason = "what a test does not expect ends it")]

mod support;

use bytes::Bytes;
use http::StatusCode;
use natsway_args::accept::Rendering;
use natsway_args::reply::{Rendered, ReplyError, render};
use natsway_args::{Format, Limits};
use support::golden;

const JSON: Rendering = Rendering::Value(Format::Json, "application/json");

fn rendered(payload: &str, to: &Rendering) -> Result<Rendered, ReplyError> {
    render(Format::Json, &Bytes::copy_from_slice(payload.as_bytes()), to)
}

fn text(rendered: &Rendered) -> &str {
    std::str::from_utf8(&rendered.body).unwrap()
}

#[test]
fn one_reply_goes_back_in_every_way() {
    let payload = r#"{"a": [1, "x"], "b": {"c": null}}"#;
    for (to, content_type, body) in [
        (JSON, "application/json", payload),
        (Rendering::Text, "text/plain; charset=utf-8", r#"{"a":[1,"x"],"b":{"c":null}}"#),
        (Rendering::Form, "application/x-www-form-urlencoded", "a=1&a=x&b%5Bc%5D="),
        (
            Rendering::Script("f.g".to_owned()),
            "text/javascript; charset=utf-8",
            r#"/**/f.g({"a":[1,"x"],"b":{"c":null}});"#,
        ),
    ] {
        let rendered = rendered(payload, &to).unwrap();
        assert_eq!((text(&rendered), rendered.status), (body, None));
        assert_eq!(rendered.headers["content-type"], content_type);
        assert_eq!(rendered.headers["x-content-type-options"], "nosniff");
        assert_eq!(rendered.headers["vary"], "Accept");
    }
    let cbor = rendered(payload, &Rendering::Value(Format::Cbor, "application/cbor")).unwrap();
    let read = |format: Format, bytes: &[u8]| format.read(bytes, Limits::REPLY).unwrap();
    assert_eq!(read(Format::Cbor, &cbor.body), read(Format::Json, payload.as_bytes()));
}

#[test]
fn a_plain_value_is_a_body() {
    for (payload, json, plain) in [
        ("7", "7", "7"),
        ("\"x\"", "\"x\"", "x"),
        ("null\n", "null\n", ""),
        ("", "null", ""),
        ("{\"$base64\":\"AA==\"}", "{\"$base64\":\"AA==\"}", "AA=="),
    ] {
        assert_eq!(text(&rendered(payload, &JSON).unwrap()), json);
        assert_eq!(text(&rendered(payload, &Rendering::Text).unwrap()), plain);
    }
}

#[test]
fn a_reply_says_its_status_and_its_fields() {
    let rendered = render(Format::Msgpack, &golden("reply_head"), &JSON).unwrap();
    assert_eq!((rendered.status, text(&rendered)), (Some(StatusCode::CREATED), "{\"id\":9}"));
    assert_eq!(rendered.headers["location"], "/orders/9");
    let cookies: Vec<_> = rendered.headers.get_all("set-cookie").iter().collect();
    assert_eq!(cookies, ["a=1", "b=2"]);
}

#[test]
fn a_reply_without_a_body_has_none_and_one_with_a_type_is_sent_as_it_is() {
    let empty =
        rendered(r#"{"_reply":{"status":202,"headers":{"Retry-After":3}}}"#, &JSON).unwrap();
    assert!(empty.body.is_empty() && !empty.headers.contains_key("content-type"));
    assert_eq!(empty.headers["retry-after"], "3");
    let own = r#"{"_reply":{"headers":{"Content-Type":"text/html"}},"body":"<p>"}"#;
    let own = rendered(own, &Rendering::Script("f".to_owned())).unwrap();
    assert_eq!((text(&own), &own.headers["content-type"]), ("<p>", &"text/html".parse().unwrap()));
    let bytes = r#"{"_reply":{"headers":{"content-type":"image/png"}},"body":{"$base64":"AP8="}}"#;
    assert_eq!(&rendered(bytes, &JSON).unwrap().body[..], [0, 0xff]);
}

#[test]
fn what_a_backend_must_not_say_goes_to_nobody() {
    let fields = |fields: &str| format!(r#"{{"_reply":{{"headers":{fields}}},"body":1}}"#);
    let head = |head: &str| format!(r#"{{"_reply":{head},"body":1}}"#);
    for payload in [
        "{".to_owned(),
        "no".to_owned(),
        head("7"),
        head(r#"{"status":"200"}"#),
        head(r#"{"status":199}"#),
        head(r#"{"status":600}"#),
        head(r#"{"status":-1}"#),
        head(r#"{"code":200}"#),
        fields("[]"),
        fields(r#"{"a b":"x"}"#),
        fields(r#"{"a":"x\r\nset-cookie: y"}"#),
        fields(r#"{"a":{"b":1}}"#),
        fields(r#"{"a":[null]}"#),
        fields(r#"{"Connection":"close"}"#),
        fields(r#"{"Content-Length":"1"}"#),
        fields(r#"{"transfer-encoding":"chunked"}"#),
        fields(r#"{"x-request-id":"1"}"#),
        fields(r#"{"content-type":"text/plain"}"#),
        r#"{"_reply":{},"body":1,"id":2}"#.to_owned(),
        fields(&format!("{{\"a\":[{}]}}", vec!["1"; 129].join(","))),
    ] {
        assert!(rendered(&payload, &JSON).is_err(), "{payload}");
    }
    assert!(rendered(&fields(&format!("{{\"a\":[{}]}}", vec!["1"; 128].join(","))), &JSON).is_ok());
    let deep = Bytes::from(vec![0x91; 1_000_000]);
    assert!(render(Format::Msgpack, &deep, &JSON).is_err());
}

#[test]
fn a_script_cannot_be_broken_out_of() {
    let payload = "\"\u{2028}</script>\u{2029}\"";
    let script = rendered(payload, &Rendering::Script("f".to_owned())).unwrap();
    assert_eq!(text(&script), "/**/f(\"\\u2028</script>\\u2029\");");
}

//! The bytes of messages are those that are checked in, and those that `docs/args.md` shows.

mod support;

use http::{Method, StatusCode};
use natsway_args::reply::with_head;
use natsway_args::request::encode;
use natsway_args::{Format, Limits, Options, Value};
use support::{Sent, from_hex, golden, options};

fn order() -> Sent {
    let sent = Sent::body("application/json", r#"{"n": 1.5, "page": null}"#);
    let sent = sent.parameter("id", "7%2F8").named("x-user", b"ann");
    let query = Some("page=2&tag=a&tag=b".to_owned());
    Sent { path: "/orders/7%2F8", query, ..sent }
}

#[test]
fn a_request_has_the_golden_bytes_in_each_format() {
    for format in Format::ALL {
        let options = Options { format, ..options(&["x-user"]) };
        let name = format!("request_{}", format.as_str());
        assert_eq!(encode(&order().request(), &options).unwrap(), golden(&name), "{name}");
    }
}

#[test]
fn bytes_have_the_golden_bytes() {
    let sent = Sent::body("application/octet-stream", [0, 0xff, 0x0a]).parameter("rest", "a.bin");
    let sent =
        Sent { method: Method::PUT, path: "/files/a.bin", peer: "2001:db8::1", id: "r-2", ..sent };
    assert_eq!(encode(&sent.request(), &Options::default()).unwrap(), golden("request_bytes"));
}

#[test]
fn replies_have_the_golden_bytes() {
    let body = Value::Map([("id".to_owned(), Value::Integer(9))].into_iter().collect());
    assert_eq!(Format::Msgpack.write(&body), golden("reply_plain"));
    let fields = [("location", "/orders/9"), ("set-cookie", "a=1"), ("set-cookie", "b=2")];
    let reply = with_head(StatusCode::CREATED, &fields, Some(body));
    assert_eq!(Format::Msgpack.write(&reply), golden("reply_head"));
}

#[test]
fn a_stranger_reads_in_them_what_we_meant() {
    for name in ["request_msgpack", "request_bytes", "reply_head", "reply_plain"] {
        let message = golden(name);
        let mut rest = &message[..];
        let strangers = rmpv::decode::read_value(&mut rest).unwrap();
        assert!(rest.is_empty(), "{name}");
        let ours = Format::Msgpack.read(&message, Limits::REQUEST).unwrap();
        let mut again = Vec::new();
        rmpv::encode::write_value(&mut again, &strangers).unwrap();
        assert_eq!(Format::Msgpack.write(&ours), again, "{name}");
    }
    // One map in three formats.
    let read = |format: Format| {
        format.read(&golden(&format!("request_{}", format.as_str())), Limits::REQUEST).unwrap()
    };
    assert_eq!(read(Format::Msgpack), read(Format::Cbor));
    assert_eq!(read(Format::Msgpack), read(Format::Json));
    let strangers: serde_json::Value = serde_json::from_slice(&golden("request_json")).unwrap();
    assert_eq!(strangers["tag"][1], "b");
}

#[test]
fn the_document_shows_these_bytes() {
    let document = include_str!("../../../docs/args.md");
    let mut shown = Vec::new();
    for (kind, is_hex) in [("```hex ", true), ("```json ", false)] {
        for fence in document.split(kind).skip(1) {
            let (name, rest) = fence.split_once('\n').unwrap();
            let (text, _) = rest.split_once("```").unwrap();
            let bytes = if is_hex { from_hex(text) } else { text.trim().to_owned().into() };
            assert_eq!(bytes, golden(name), "docs/args.md, {name}");
            shown.push(name.to_owned());
        }
    }
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden")).unwrap();
    for file in files {
        let path = file.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        assert!(shown.iter().any(|shown| shown == name), "docs/args.md does not show {name}");
    }
}

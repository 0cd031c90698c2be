//! Routes of the codec `args`: a plain NATS client is the backend, and sees one map.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures_util::StreamExt;
use natsway_testkit::TestBroker;
use serde_json::{Value, json};

use crate::backend::settled;
use crate::client::Reply;
use crate::fixture::Gateway;

const ROUTES: &str = r#"
    [[route]]
    name = "orders"
    path = "/orders/{id}"
    codec = "args"
    args = { format = "json", headers = ["x-user"], jsonp = true, max_depth = 4 }
    target = [{ version = "v1", subject = "svc.orders.v1" }]

    [[route]]
    name = "strict"
    path = "/api/strict/{*rest}"
    strip_prefix = "/api"
    codec = "args"
    args = { format = "json", bodies = ["json"], nested = true }
    target = [{ version = "v1", subject = "svc.orders.v1" }]

    [[route]]
    name = "packed"
    path = "/packed"
    codec = "args"
    target = [{ version = "v1", subject = "svc.packed.v1" }]
"#;

/// What a backend answers.
type Answer = (HeaderMap, Bytes);

/// A broker, a gateway, and a backend that answers as it is told and keeps what it saw.
struct Stage {
    gateway: Gateway,
    seen: Arc<Mutex<Vec<Message>>>,
    calls: Arc<AtomicUsize>,
    _broker: TestBroker,
}

impl Stage {
    async fn with(answer: impl Fn(&Message) -> Answer + Send + 'static) -> Self {
        let broker = TestBroker::start().await;
        let client = broker.connect().await;
        let mut requests = client.queue_subscribe("svc.*.v1", "q".to_owned()).await.unwrap();
        settled(&client).await;
        let (seen, calls) = (Arc::<Mutex<Vec<Message>>>::default(), Arc::<AtomicUsize>::default());
        let (kept, counted) = (Arc::clone(&seen), Arc::clone(&calls));
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                let reply = request.reply.clone().unwrap();
                let (headers, body) = answer(&request);
                kept.lock().unwrap().push(request);
                counted.fetch_add(1, Ordering::SeqCst);
                client.publish_with_headers(reply, headers, body).await.unwrap();
            }
        });
        let gateway = Gateway::start(&broker, ROUTES, &[]).await;
        Self { gateway, seen, calls, _broker: broker }
    }

    /// One that answers what it was sent, but for what the gateway says.
    async fn echoing() -> Self {
        Self::with(|request| {
            let mut map: Value = serde_json::from_slice(&request.payload).unwrap();
            map.as_object_mut().unwrap().remove("_request");
            (HeaderMap::new(), serde_json::to_vec(&map).unwrap().into())
        })
        .await
    }

    /// One that always answers the same.
    async fn saying(headers: &[(&str, &str)], body: &'static str) -> Self {
        let headers: Vec<(String, String)> =
            headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self::with(move |_| {
            let mut all = HeaderMap::new();
            for (name, value) in &headers {
                all.append(name.as_str(), value.as_str());
            }
            (all, Bytes::from_static(body.as_bytes()))
        })
        .await
    }

    async fn ask(&self, method: &str, target: &str, fields: &str, body: &[u8]) -> Reply {
        let length = body.len();
        let mut request = format!(
            "{method} {target} HTTP/1.1\r\nhost: a\r\n{fields}content-length: {length}\r\n\r\n"
        )
        .into_bytes();
        request.extend_from_slice(body);
        let mut client = self.gateway.client().await;
        tokio::io::AsyncWriteExt::write_all(&mut client.stream, &request).await.unwrap();
        client.reply(method == "HEAD").await.unwrap()
    }

    async fn get(&self, target: &str, fields: &str) -> Reply {
        self.ask("GET", target, fields, b"").await
    }

    /// The arguments that the backend saw last.
    fn last(&self) -> Value {
        let seen = self.seen.lock().unwrap();
        serde_json::from_slice(&seen.last().expect("it was asked").payload).unwrap()
    }
}

fn json_of(reply: &Reply) -> Value {
    assert_eq!(reply.header("content-type"), Some("application/json"), "{}", reply.text());
    serde_json::from_slice(&reply.body).unwrap()
}

#[tokio::test]
async fn any_request_reaches_a_plain_nats_client_as_one_map() {
    let stage = Stage::echoing().await;
    let typed = |name: &str| format!("content-type: {name}\r\n");
    let form = b"--x\r\ncontent-disposition: form-data; name=\"n\"\r\n\r\n1\r\n--x--\r\n";
    for (content_type, body, expected) in [
        (
            "application/json",
            &br#"{"n": 1, "id": 9}"#[..],
            json!({ "id": "7/8", "n": 1, "q": ["1", "2"] }),
        ),
        (
            "application/x-www-form-urlencoded",
            b"n=1",
            json!({ "id": "7/8", "n": "1", "q": ["1", "2"] }),
        ),
        (
            "multipart/form-data; boundary=x",
            form,
            json!({ "id": "7/8", "n": "1", "q": ["1", "2"] }),
        ),
        ("application/msgpack", b"\x81\xa1n\x01", json!({ "id": "7/8", "n": 1, "q": ["1", "2"] })),
        ("application/cbor", b"\xa1\x61n\x01", json!({ "id": "7/8", "n": 1, "q": ["1", "2"] })),
        ("text/plain", b"hi", json!({ "id": "7/8", "body": "hi", "q": ["1", "2"] })),
        (
            "application/xml",
            b"<a/>",
            json!({ "id": "7/8", "body": { "$base64": "PGEvPg==" }, "q": ["1", "2"] }),
        ),
    ] {
        let reply =
            stage.ask("POST", "/orders/7%2F8?q=1&q=2&id=6", &typed(content_type), body).await;
        assert_eq!((reply.status, json_of(&reply)), (200, expected), "{content_type}");
        assert_eq!(stage.last()["_request"]["type"], content_type);
    }
    let reply = stage.get("/orders/7", "x-user: ann\r\nx-request-id: r-1\r\n").await;
    assert_eq!(json_of(&reply), json!({ "id": "7", "x-user": "ann" }));
    assert_eq!(
        stage.last()["_request"],
        json!({ "method": "GET", "path": "/orders/7", "peer": "127.0.0.1", "id": "r-1" })
    );
    stage.ask("POST", "/api/strict/a/b?x[y]=1", &typed("application/json"), b"{\"z\":[]}").await;
    let mut last = stage.last();
    assert_eq!(last["_request"]["path"], "/strict/a/b");
    last.as_object_mut().unwrap().remove("_request");
    assert_eq!(last, json!({ "rest": "a/b", "x": { "y": "1" }, "z": [] }));
    let seen = stage.seen.lock().unwrap();
    let headers = seen.last().unwrap().headers.as_ref().unwrap();
    assert_eq!(headers.get("Content-Type").unwrap().as_str(), "application/json");
    let left: u64 = headers.get("Natsway-Deadline-Ms").unwrap().as_str().parse().unwrap();
    assert!((1..=30_000).contains(&left), "no more than the route allows: {left}");
    assert_eq!(headers.len(), 2, "all else is in the map: {headers:?}");
}

#[tokio::test]
async fn a_client_cannot_say_what_is_the_gateways_or_the_routes() {
    let stage = Stage::echoing().await;
    let body =
        br#"{"_request":{"user":"root"},"_reply":{"status":500},"x-user":"root","id":"9","a":1}"#;
    let target = "/orders/7?_request=1&_reply=2&x-user=root&id=9";
    let reply = stage.ask("POST", target, "content-type: application/json\r\n", body).await;
    assert_eq!((reply.status, json_of(&reply)), (200, json!({ "id": "7", "a": 1 })));
    assert_eq!(stage.last()["_request"].as_object().unwrap().len(), 5);
}

#[tokio::test]
async fn what_goes_wrong_is_said_before_anything_runs() {
    let stage = Stage::echoing().await;
    let json = "content-type: application/json\r\n";
    for (method, target, fields, body, status, code) in [
        ("GET", "/orders/7", "accept: image/png\r\n", &b""[..], 406, "not_acceptable"),
        ("POST", "/orders/7", "accept: image/png\r\n", b"x", 406, "not_acceptable"),
        ("GET", "/orders/7?callback=a(b)", "", b"", 400, "bad_callback"),
        (
            "POST",
            "/api/strict/x",
            "content-type: text/plain\r\n",
            b"x",
            415,
            "unsupported_media_type",
        ),
        ("POST", "/orders/7", "content-encoding: gzip\r\n", b"x", 415, "unsupported_media_type"),
        ("POST", "/orders/7", json, b"{", 400, "bad_args"),
        ("POST", "/orders/7", json, b"[[[[[]]]]]", 413, "too_many_args"),
        ("GET", "/orders/%ff", "", b"", 400, "bad_args"),
    ] {
        let reply = stage.ask(method, target, fields, body).await;
        assert_eq!((reply.status, reply.problem().as_str()), (status, code), "{method} {target}");
    }
    let reply = stage.ask("POST", "/orders/7", json, &vec![b' '; 70_000]).await;
    assert_eq!((reply.status, reply.problem().as_str()), (413, "too_large"));
    assert_eq!(stage.calls.load(Ordering::SeqCst), 0);
    let reply = stage.get("/orders/7", "accept: image/png\r\n").await;
    assert!(reply.text().contains("application/json, application/msgpack"), "{}", reply.text());
}

#[tokio::test]
async fn one_reply_goes_back_as_each_client_asks() {
    let stage = Stage::saying(&[], r#"{"a": 1, "b": ["x", null]}"#).await;
    for (accept, content_type, body) in [
        ("*/*", "application/json", &br#"{"a": 1, "b": ["x", null]}"#[..]),
        (
            "text/html, application/msgpack;q=0.5",
            "application/msgpack",
            b"\x82\xa1a\x01\xa1b\x92\xa1x\xc0",
        ),
        ("application/cbor, */*;q=0.1", "application/cbor", b"\xa2\x61a\x01\x61b\x82\x61x\xf6"),
        ("text/plain", "text/plain; charset=utf-8", br#"{"a":1,"b":["x",null]}"#),
        ("application/x-www-form-urlencoded", "application/x-www-form-urlencoded", b"a=1&b=x&b="),
    ] {
        let reply = stage.get("/orders/7", &format!("accept: {accept}\r\n")).await;
        assert_eq!((reply.status, &reply.body[..]), (200, body), "{accept}");
        assert_eq!(reply.header("content-type"), Some(content_type));
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
        assert_eq!(reply.header("vary"), Some("Accept"));
    }
    let script = stage.get("/orders/7?callback=f.g&callback=h", "accept: */*\r\n").await;
    assert_eq!(script.header("content-type"), Some("text/javascript; charset=utf-8"));
    assert_eq!(script.text(), r#"/**/f.g({"a":1,"b":["x",null]});"#);
    assert!(stage.last().get("callback").is_none());
    let plain = stage.get("/api/strict/?callback=f", "").await;
    assert_eq!(plain.header("content-type"), Some("application/json"), "not on this route");
    assert_eq!(stage.last()["callback"], "f");
    let head = stage.ask("HEAD", "/orders/7", "accept: application/msgpack\r\n", b"").await;
    assert_eq!((head.status, head.header("content-length")), (200, Some("10")));
}

#[tokio::test]
async fn a_backend_says_status_and_fields_in_the_value_or_by_nats_headers() {
    let said = r#"{"_reply":{"status":201,"headers":{"Location":"/orders/9","Set-Cookie":["a=1","b=2"]}},
        "body":{"id":9}}"#;
    let stage =
        Stage::saying(&[("Vary", "Origin"), ("Content-Type", "application/json")], said).await;
    let reply = stage.get("/orders/7", "accept: text/plain\r\n").await;
    assert_eq!((reply.status, reply.text().as_str()), (201, r#"{"id":9}"#));
    assert_eq!(reply.header("location"), Some("/orders/9"));
    let all = |name: &str| -> Vec<String> {
        let fields = reply.headers.iter().filter(|(have, _)| have == name);
        fields.map(|(_, value)| value.clone()).collect()
    };
    assert_eq!(all("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(all("vary"), ["Accept", "Origin"]);

    let stage = Stage::saying(&[("Natsway-Status", "202")], "7").await;
    let reply = stage.get("/orders/7", "").await;
    assert_eq!((reply.status, json_of(&reply)), (202, json!(7)));

    let error = [("Nats-Service-Error-Code", "409"), ("Nats-Service-Error", "taken")];
    let stage = Stage::saying(&error, "").await;
    let reply = stage.get("/orders/7", "").await;
    assert_eq!((reply.status, reply.problem().as_str()), (409, "service_error"));
    let stage = Stage::saying(&error, r#"{"by": "eve"}"#).await;
    let reply = stage.get("/orders/7", "accept: text/plain\r\n").await;
    assert_eq!((reply.status, reply.text().as_str()), (409, r#"{"by":"eve"}"#));

    let page = r#"{"_reply":{"headers":{"content-type":"text/html"}},"body":"<p>"}"#;
    let stage = Stage::saying(&[], page).await;
    let reply = stage.get("/orders/7?callback=f", "").await;
    assert_eq!((reply.header("content-type"), reply.text().as_str()), (Some("text/html"), "<p>"));
}

#[tokio::test]
async fn a_reply_that_is_no_value_goes_to_no_client() {
    for body in [
        "{",
        "plain",
        r#"{"_reply":{"status":700}}"#,
        r#"{"_reply":{"headers":{"transfer-encoding":"chunked"}},"body":1}"#,
        r#"{"_reply":{"headers":{"x":"a\r\nb: c"}},"body":1}"#,
    ] {
        let stage = Stage::saying(&[], body).await;
        let reply = stage.get("/orders/7", "").await;
        assert_eq!((reply.status, reply.problem().as_str()), (502, "bad_reply"), "{body}");
        assert!(reply.header("x").is_none() && reply.header("b").is_none());
    }
}

#[tokio::test]
async fn messagepack_is_what_a_route_speaks_that_says_nothing() {
    let stage = Stage::with(|request| {
        // The map as it came: a reply like any other.
        (HeaderMap::new(), request.payload.clone())
    })
    .await;
    let reply = stage.get("/packed?a=1", "x-request-id: r\r\n").await;
    let own = json!({ "method": "GET", "path": "/packed", "peer": "127.0.0.1", "id": "r" });
    assert_eq!(json_of(&reply), json!({ "_request": own, "a": "1" }));
}

//! WebSockets that end at the gateway: each message is a request to a plain NATS client.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::Message as Request;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, StatusCode};
use http_body_util::Empty;
use hyper::client::conn::http2::handshake;
use hyper::ext::Protocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use natsway_testkit::{TestBroker, eventually};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Role;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use crate::backend::settled;
use crate::fixture::{DEADLINE, Gateway};

const ROUTES: &str = r#"
    [[route]]
    name = "orders"
    path = "/orders/{id}"
    codec = "args"
    inline_body_bytes = 4096
    args = { format = "json", headers = ["cookie"], websocket = true, websocket_concurrency = 2, max_depth = 4 }
    target = [{ version = "v1", subject = "svc.orders.v1" }]

    [[route]]
    name = "brief"
    path = "/brief"
    codec = "args"
    stream_idle_timeout = "1s"
    args = { format = "json", websocket = true, websocket_origins = ["https://app.example"] }
    target = [{ version = "v1", subject = "svc.orders.v1" }]

    [[route]]
    name = "nobody"
    path = "/nobody"
    codec = "args"
    retries = 0
    args = { format = "json", websocket = true }
    target = [{ version = "v1", subject = "svc.nobody.v1" }]

    [[route]]
    name = "plain"
    path = "/plain"
    codec = "args"
    args = { format = "json" }
    target = [{ version = "v1", subject = "svc.orders.v1" }]
"#;

type Socket<S = TcpStream> = WebSocketStream<S>;

/// A broker, a gateway, and a backend that sends back what it got, or holds it back if asked to.
struct Stage {
    gateway: Gateway,
    client: async_nats::Client,
    seen: Arc<Mutex<Vec<Request>>>,
    _broker: TestBroker,
}

impl Stage {
    async fn new() -> Self {
        Self::with(&[]).await
    }

    async fn with(arguments: &[&str]) -> Self {
        let broker = TestBroker::start().await;
        let client = broker.connect().await;
        let mut requests = client.queue_subscribe("svc.orders.v1", "q".to_owned()).await.unwrap();
        settled(&client).await;
        let seen = Arc::<Mutex<Vec<Request>>>::default();
        let (kept, answers) = (Arc::clone(&seen), client.clone());
        tokio::spawn(async move {
            while let Some(request) = requests.next().await {
                let mut map: Value = serde_json::from_slice(&request.payload).unwrap();
                let answer = match map["answer"].take() {
                    Value::Null => {
                        map.as_object_mut()
                            .unwrap()
                            .retain(|key, _| key != "_request" && key != "answer");
                        map
                    }
                    answer => answer,
                };
                if answer != "held" {
                    let answer = answer.to_string().into();
                    answers.publish(request.reply.clone().unwrap(), answer).await.unwrap();
                }
                kept.lock().unwrap().push(request);
            }
        });
        let gateway = Gateway::start(&broker, ROUTES, arguments).await;
        Self { gateway, client, seen, _broker: broker }
    }

    async fn open(&self, path: &str) -> Socket {
        self.open_with(path, &[]).await.unwrap()
    }

    /// Opens one with further fields of its head.
    async fn open_with(
        &self,
        path: &str,
        fields: &[(&'static str, &str)],
    ) -> Result<Socket, Error> {
        let mut request =
            format!("ws://127.0.0.1:{}{path}", self.gateway.port).into_client_request()?;
        for (name, value) in fields {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        let stream = TcpStream::connect(("127.0.0.1", self.gateway.port)).await.unwrap();
        Ok(client_async(request, stream).await?.0)
    }

    /// The status and the problem by which one is not opened.
    async fn refused(&self, path: &str, fields: &[(&'static str, &str)]) -> (u16, String) {
        match self.open_with(path, fields).await {
            Err(Error::Http(response)) => {
                let problem: Value =
                    serde_json::from_slice(response.body().as_ref().unwrap()).unwrap();
                (response.status().as_u16(), problem["code"].as_str().unwrap().to_owned())
            }
            other => panic!("{path} {fields:?}: {other:?}"),
        }
    }

    fn count(&self) -> usize {
        self.seen.lock().unwrap().len()
    }

    async fn has_seen(&self, count: usize) {
        eventually(DEADLINE, async || (self.count() == count).then_some(()).ok_or(self.count()))
            .await;
    }

    /// Answers a request that was held back.
    async fn release(&self, number: usize, answer: Value) {
        let reply = self.seen.lock().unwrap()[number].reply.clone().unwrap();
        self.client.publish(reply, answer.to_string().into()).await.unwrap();
    }
}

async fn say<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut Socket<S>, message: Value) {
    socket.send(Message::text(message.to_string())).await.unwrap();
}

/// The next thing that is no ping.
async fn next<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut Socket<S>) -> Option<Message> {
    loop {
        match tokio::time::timeout(DEADLINE, socket.next()).await.expect("something comes") {
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(message)) => return Some(message),
            Some(Err(_)) | None => return None,
        }
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Unpin>(socket: &mut Socket<S>) -> Value {
    match next(socket).await {
        Some(Message::Text(text)) => serde_json::from_str(&text).unwrap(),
        other => panic!("{other:?}"),
    }
}

/// The code by which the gateway closes.
async fn close_code(socket: &mut Socket) -> Option<u16> {
    match next(socket).await {
        Some(Message::Close(frame)) => frame.map(|frame| frame.code.into()),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_message_is_answered_as_the_post_that_it_would_be() {
    let stage = Stage::new().await;
    let mut socket = stage.open_with("/orders/7?page=2", &[("cookie", "a=1")]).await.unwrap();
    say(&mut socket, json!({ "id": "x", "args": { "n": 1.5, "id": 9, "cookie": "forged" } })).await;
    let expected = json!({ "id": "7", "cookie": "a=1", "n": 1.5, "page": "2" });
    assert_eq!(answer(&mut socket).await, json!({ "id": "x", "status": 200, "body": expected }));

    let seen: Value = serde_json::from_slice(&stage.seen.lock().unwrap()[0].payload).unwrap();
    assert_eq!(seen["_request"]["method"], "POST");
    assert_eq!(seen["_request"]["path"], "/orders/7");
    assert_eq!(seen["_request"]["type"], "application/json");

    let reply =
        json!({ "_reply": { "status": 201, "headers": { "location": "/o/9" } }, "body": [1] });
    say(&mut socket, json!({ "id": 2, "args": { "answer": reply } })).await;
    let expected =
        json!({ "id": 2, "status": 201, "headers": { "location": "/o/9" }, "body": [1] });
    assert_eq!(answer(&mut socket).await, expected);

    say(&mut socket, json!({ "id": 3 })).await;
    assert_eq!(answer(&mut socket).await["body"]["id"], "7", "a message without arguments");
    let responses = "natsway_responses_total{route=\"orders\",version=\"v1\",code=\"2xx\"}";
    assert_eq!(stage.gateway.metric(responses).await, 3.0);
    socket.close(None).await.unwrap();
    assert_eq!(close_code(&mut socket).await, None);
    assert!(next(&mut socket).await.is_none());
}

#[tokio::test]
async fn answers_come_as_they_are_there_and_no_more_is_read_than_is_answered() {
    let stage = Stage::new().await;
    let mut socket = stage.open("/orders/7").await;
    for id in 0..5 {
        say(&mut socket, json!({ "id": id, "args": { "answer": "held" } })).await;
    }
    stage.has_seen(2).await;
    stage.release(1, json!("second")).await;
    assert_eq!(answer(&mut socket).await, json!({ "id": 1, "status": 200, "body": "second" }));
    stage.has_seen(3).await;
    stage.release(0, json!("first")).await;
    assert_eq!(answer(&mut socket).await["id"], 0);
    stage.has_seen(4).await;
    for (number, id) in [(3, 3), (2, 2)] {
        stage.release(number, json!(null)).await;
        assert_eq!(answer(&mut socket).await["id"], id);
    }
    stage.has_seen(5).await;
    stage.release(4, json!(null)).await;
    assert_eq!(answer(&mut socket).await, json!({ "id": 4, "status": 200, "body": null }));
}

#[tokio::test]
async fn messagepack_is_spoken_where_it_is_asked_for() {
    let stage = Stage::new().await;
    let offer = [("sec-websocket-protocol", "chat, natsway.args.msgpack")];
    let mut socket = stage.open_with("/orders/7", &offer).await.unwrap();
    let message = b"\x82\xa2id\x01\xa4args\x81\xa1n\xc4\x01\xff".to_vec();
    socket.send(Message::binary(message)).await.unwrap();
    let Some(Message::Binary(answer)) = next(&mut socket).await else { panic!("no answer") };
    let expected = b"\x83\xa2id\x01\xa6status\xcc\xc8\xa4body\x82\xa2id\xa17\xa1n\xc4\x01\xff";
    assert_eq!(answer[..], expected[..]);
    socket.send(Message::text("{}")).await.unwrap();
    assert_eq!(close_code(&mut socket).await, Some(1003));

    let offer = [("sec-websocket-protocol", "natsway.args.json")];
    let mut socket = stage.open_with("/orders/7", &offer).await.unwrap();
    socket.send(Message::binary(vec![0x80])).await.unwrap();
    assert_eq!(close_code(&mut socket).await, Some(1003));
}

#[tokio::test]
async fn what_is_wrong_with_a_message_is_said_under_its_id() {
    let stage = Stage::new().await;
    let mut socket = stage.open("/orders/7").await;
    for (message, id, status, code) in [
        ("{", json!(null), 400, "bad_message"),
        ("[]", json!(null), 400, "bad_message"),
        (r#"{"args":{}}"#, json!(null), 400, "bad_message"),
        (r#"{"id":1.5,"args":{}}"#, json!(null), 400, "bad_message"),
        (r#"{"id":{},"args":{}}"#, json!(null), 400, "bad_message"),
        (r#"{"id":1,"path":"/other"}"#, json!(null), 400, "bad_message"),
        (r#"{"id":2,"args":{"a":1,"a":2}}"#, json!(2), 400, "bad_args"),
        (r#"{"id":3,"args":[[[[[1]]]]]}"#, json!(3), 413, "too_many_args"),
    ] {
        socket.send(Message::text(message)).await.unwrap();
        let said = answer(&mut socket).await;
        let problem = (&said["id"], &said["status"], said["problem"]["code"].as_str());
        assert_eq!(problem, (&id, &json!(status), Some(code)), "{message}: {said}");
    }
    let large = json!({ "id": 4, "args": { "a": "x".repeat(4_100) } });
    say(&mut socket, large).await;
    let said = answer(&mut socket).await;
    assert_eq!((&said["id"], &said["problem"]["code"]), (&json!(4), &json!("too_large")));
    assert_eq!(stage.count(), 0, "nothing ran");
    say(&mut socket, json!({ "id": 5 })).await;
    assert_eq!(answer(&mut socket).await["status"], 200, "and it goes on");

    let mut lonely = stage.open("/nobody").await;
    say(&mut lonely, json!({ "id": 1 })).await;
    let said = answer(&mut lonely).await;
    assert_eq!((&said["status"], &said["problem"]["code"]), (&json!(503), &json!("no_responders")));
}

#[tokio::test]
async fn what_breaks_the_protocol_is_closed_with_its_code() {
    let stage = Stage::new().await;
    let mut socket = stage.open("/orders/7").await;
    socket.send(Message::text("x".repeat(6_000))).await.unwrap();
    assert_eq!(close_code(&mut socket).await, Some(1009));

    for (frame, code) in [
        (&b"\x81\x02{}"[..], 1002),                            // not masked
        (b"\x83\x80\0\0\0\0", 1002),                           // an opcode that there is not
        (b"\x89\xfe\x00\xff\0\0\0\0", 1002),                   // a ping of 255 bytes, see below
        (b"\x80\x80\0\0\0\0", 1002),                           // the end of no message
        (b"\xc1\x80\0\0\0\0", 1002),                           // compressed, which nobody asked for
        (b"\x81\x81\0\0\0\0\xff", 1007),                       // a text that is none
        (b"\x81\xff\0\0\0\x7f\xff\xff\xff\xff\0\0\0\0", 1009), // half a terabyte
    ] {
        let mut socket = stage.open("/orders/7").await;
        socket.get_mut().write_all(frame).await.unwrap();
        // What such a frame has for a payload, as far as one is read at all.
        let _unread = socket.get_mut().write_all(&[0; 255]).await;
        assert_eq!(close_code(&mut socket).await, Some(code), "{frame:?}");
    }
    // A message in pieces is bounded as a whole.
    let mut socket = stage.open("/orders/7").await;
    let piece = |first| [&[first, 0xfe, 0x0c, 0x00, 0, 0, 0, 0][..], &[b'x'; 3_072]].concat();
    socket.get_mut().write_all(&piece(0x01)).await.unwrap();
    socket.get_mut().write_all(&piece(0x80)).await.unwrap();
    assert_eq!(close_code(&mut socket).await, Some(1009));
}

#[tokio::test]
async fn what_may_not_be_opened_is_refused_before() {
    let stage = Stage::new().await;
    let port = stage.gateway.port;
    let own = format!("http://127.0.0.1:{port}");
    for (path, fields, expected) in [
        ("/plain", &[][..], (501, "not_implemented")),
        ("/orders/7", &[("sec-websocket-protocol", "chat")], (400, "bad_subprotocol")),
        ("/orders/7", &[("sec-websocket-version", "8")], (426, "bad_websocket")),
        ("/orders/7", &[("sec-websocket-key", "short")], (400, "bad_websocket")),
        ("/orders/7", &[("origin", "https://evil.example")], (403, "origin_not_allowed")),
        ("/orders/7", &[("origin", "null")], (403, "origin_not_allowed")),
        ("/brief", &[("origin", &*own)], (403, "origin_not_allowed")),
    ] {
        let (status, code) = stage.refused(path, fields).await;
        assert_eq!((status, code.as_str()), expected, "{path} {fields:?}");
    }
    let asked =
        "GET /orders/7 HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let reply = stage.gateway.client().await.exchange(asked).await.unwrap();
    assert_eq!(reply.header("sec-websocket-version"), Some("13"));
    stage.open_with("/orders/7", &[("origin", &own)]).await.unwrap();
    stage.open_with("/brief", &[("origin", "https://app.example")]).await.unwrap();
}

#[tokio::test]
async fn a_stream_of_http2_becomes_one_too() {
    let stage = Stage::new().await;
    let stream = TcpStream::connect(("127.0.0.1", stage.gateway.port)).await.unwrap();
    let (mut sender, connection) =
        handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("http://127.0.0.1:{}/orders/7", stage.gateway.port);
    // The settings that allow it have come with the first answer.
    let plain = http::Request::get(&uri).body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(sender.send_request(plain).await.unwrap().status(), 200);
    let request = http::Request::builder()
        .method(Method::CONNECT)
        .uri(&uri)
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .header("sec-websocket-protocol", "natsway.args.json")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let mut response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["sec-websocket-protocol"], "natsway.args.json");
    let stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    let mut socket = WebSocketStream::from_raw_socket(stream, Role::Client, None).await;
    say(&mut socket, json!({ "id": 1, "args": { "n": 1 } })).await;
    assert_eq!(answer(&mut socket).await["body"], json!({ "id": "7", "n": 1 }));
    socket.close(None).await.unwrap();
    assert!(matches!(next(&mut socket).await, Some(Message::Close(None))));
}

#[tokio::test]
async fn a_gateway_that_leaves_answers_what_is_in_hand_and_says_come_back() {
    let mut stage = Stage::with(&["--drain-grace", "200ms", "--drain-timeout", "9s"]).await;
    let mut socket = stage.open("/orders/7").await;
    say(&mut socket, json!({ "id": 1, "args": { "answer": "held" } })).await;
    stage.has_seen(1).await;
    stage.gateway.process.terminate();
    // By then it is asked to leave, at the latest: within half of the time that there is.
    tokio::time::sleep(Duration::from_millis(4_700)).await;
    stage.release(0, json!("done")).await;
    assert_eq!(answer(&mut socket).await["body"], "done");
    assert_eq!(close_code(&mut socket).await, Some(1012));
    assert!(stage.gateway.process.wait_exit(DEADLINE).await.success());
}

#[tokio::test]
async fn silence_ends_a_session_and_an_unanswered_request_does_not() {
    let stage = Stage::new().await;
    let mut socket = stage.open_with("/brief", &[]).await.unwrap();
    say(&mut socket, json!({ "id": 1, "args": { "answer": "held" } })).await;
    stage.has_seen(1).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    stage.release(0, json!("late")).await;
    assert_eq!(answer(&mut socket).await["body"], "late");
    assert_eq!(close_code(&mut socket).await, Some(1001));
}

#[tokio::test]
async fn a_client_that_vanishes_leaves_nothing_behind() {
    let stage = Stage::new().await;
    let held = async || stage.gateway.metric("natsway_held_bytes").await;
    let streams_and_bytes = held().await;
    let mut socket = stage.open("/orders/7").await;
    say(&mut socket, json!({ "id": 1, "args": { "answer": "held" } })).await;
    stage.has_seen(1).await;
    assert!(held().await > streams_and_bytes + 16_384.0, "it is counted");
    let in_flight = "natsway_in_flight{route=\"orders\",version=\"v1\"}";
    assert_eq!(stage.gateway.metric(in_flight).await, 1.0);
    drop(socket);
    eventually(DEADLINE, async || match stage.gateway.metric(in_flight).await {
        0.0 => Ok(()),
        other => Err(other),
    })
    .await;
    eventually(DEADLINE, async || match held().await {
        bytes if bytes <= streams_and_bytes => Ok(()),
        bytes => Err(bytes),
    })
    .await;
}

#[tokio::test]
async fn a_flood_to_a_slow_backend_is_not_read_and_holds_little() {
    let stage = Stage::new().await;
    let socket = stage.open("/orders/7").await;
    let (mut writer, mut reader) = socket.split();
    let message = json!({ "id": 1, "args": { "answer": "held", "pad": "x".repeat(3_000) } });
    let flood = tokio::spawn(async move {
        let mut sent = 0_usize;
        while sent < 20_000 && writer.send(Message::text(message.to_string())).await.is_ok() {
            sent += 1;
        }
        sent
    });
    stage.has_seen(2).await;
    // The sockets fill up, and nothing else does.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!flood.is_finished(), "60 MB went nowhere");
    assert_eq!(stage.count(), 2);
    let held = stage.gateway.metric("natsway_held_bytes").await;
    assert!(held < 3_000_000.0, "{held} bytes are held");
    stage.release(0, json!(1)).await;
    let first = tokio::time::timeout(DEADLINE, reader.next()).await.unwrap();
    assert!(matches!(first, Some(Ok(Message::Text(_)))), "{first:?}");
    flood.abort();
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_cut_off() {
    let stage = Stage::with(&["--send-timeout", "1s"]).await;
    let mut socket = stage.open("/orders/7").await;
    let large = json!("y".repeat(300_000));
    let closed = "natsway_client_closes_total{reason=\"slow\"}";
    // More than the sockets between them keep.
    for number in 0..60 {
        let asks = json!({ "id": number, "args": { "answer": "held" } });
        let sending = socket.send(Message::text(asks.to_string()));
        if !matches!(tokio::time::timeout(DEADLINE, sending).await, Ok(Ok(()))) {
            break;
        }
        let came = async {
            while stage.count() == number {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(3), came).await.is_err() {
            break;
        }
        stage.release(number, large.clone()).await;
    }
    eventually(DEADLINE, async || match stage.gateway.metric(closed).await {
        1.0 => Ok(()),
        other => Err(other),
    })
    .await;
}

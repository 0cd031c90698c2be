//! Clients that mean harm.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::Request;
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use natsway_testkit::{TestBroker, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::backend::{Backend, ok};
use crate::fixture::{DEADLINE, Gateway, ROUTES};

/// The status alone: what hyper answers when it cannot parse a request.
const BARE: &str = "";

/// Requests whose bytes are wrong, all of which get a 400, and the problem that it names.
const MALFORMED: &[(&str, &str, &str)] = &[
    ("no HTTP at all", "\x16\x03\x01 hello\r\n\r\n", BARE),
    ("a host without a name", "GET / HTTP/1.1\r\nhost: :80\r\n\r\n", "bad_host"),
    ("a port that is none", "GET / HTTP/1.1\r\nhost: a:http\r\n\r\n", "bad_host"),
    ("a port out of range", "GET / HTTP/1.1\r\nhost: a:65536\r\n\r\n", "bad_host"),
    ("absolute form without a host field", "GET http://a/ HTTP/1.1\r\n\r\n", "bad_host"),
    ("absolute form beside a bad host", "GET http://a/ HTTP/1.1\r\nhost: a/b\r\n\r\n", "bad_host"),
    ("absolute form with a user", "GET http://u@a/ HTTP/1.1\r\nhost: a\r\n\r\n", "bad_host"),
    ("no host", "GET / HTTP/1.1\r\n\r\n", "bad_host"),
    ("two hosts", "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", "bad_host"),
    ("a host with a path", "GET / HTTP/1.1\r\nhost: a/b\r\n\r\n", "bad_host"),
    ("a host with a user", "GET / HTTP/1.1\r\nhost: u@a\r\n\r\n", "bad_host"),
    ("bad percent-encoding", "GET /%zz HTTP/1.1\r\nhost: a\r\n\r\n", "bad_path"),
    ("cut percent-encoding", "GET /%2 HTTP/1.1\r\nhost: a\r\n\r\n", "bad_path"),
    ("raw UTF-8 in the path", "GET /caf\u{e9} HTTP/1.1\r\nhost: a\r\n\r\n", "bad_path"),
    ("a space in the path", "GET /a b HTTP/1.1\r\nhost: a\r\n\r\n", BARE),
    ("a control character in a value", "GET / HTTP/1.1\r\nhost: a\r\nx: a\x01b\r\n\r\n", BARE),
    ("a bare CR in a value", "GET / HTTP/1.1\r\nhost: a\r\nx: a\rb: c\r\n\r\n", BARE),
    ("a NUL in a value", "GET / HTTP/1.1\r\nhost: a\r\nx: a\0b\r\n\r\n", BARE),
    ("a space before the colon", "GET / HTTP/1.1\r\nhost: a\r\nx : b\r\n\r\n", BARE),
    ("a folded header", "GET / HTTP/1.1\r\nhost: a\r\nx: b\r\n c\r\n\r\n", BARE),
    (
        "two lengths that differ",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nxx",
        BARE,
    ),
    (
        "two lengths in one field",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1, 2\r\n\r\nxx",
        BARE,
    ),
    ("a negative length", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: -1\r\n\r\n", BARE),
    ("a length with a sign", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +1\r\n\r\nx", BARE),
    (
        "a huge length",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n",
        BARE,
    ),
    (
        "an unknown transfer coding",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n",
        BARE,
    ),
    (
        "chunked not last",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, gzip\r\n\r\n",
        BARE,
    ),
    (
        "chunks in HTTP/1.0",
        "POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        BARE,
    ),
    (
        "a chunk size that is none",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nx\r\n0\r\n\r\n",
        "broken_body",
    ),
    (
        "a chunk size that overflows",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\nx",
        "broken_body",
    ),
    ("an unknown version", "GET / HTTP/9.9\r\nhost: a\r\n\r\n", BARE),
];

#[tokio::test]
async fn malformed_requests_get_their_status_and_never_reach_a_worker() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "fine").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    for (name, bytes, problem) in MALFORMED {
        let reply = gateway.client().await.exchange(bytes).await.unwrap();
        assert_eq!(reply.status, 400, "{name}");
        match *problem {
            BARE => assert!(reply.is_bare(), "{name}: {reply:?}"),
            problem => assert_eq!(reply.problem(), problem, "{name}"),
        }
    }
    assert_eq!(backend.seen.count(), 0);
    assert_eq!(gateway.get("/").await.text(), "fine", "and it goes on");
}

#[tokio::test]
async fn a_request_with_a_length_beside_chunks_is_read_by_its_chunks_and_ends_its_connection() {
    // RFC 9112 section 6.3: whoever read it by its length would take the rest for a second request.
    let broker = TestBroker::start().await;
    let backend =
        Backend::start(&broker, |_, request| vec![ok(request.path_and_query.as_str())]).await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let (length, chunked) = ("content-length: 40\r\n", "transfer-encoding: chunked\r\n");
    for (first, second) in [(length, chunked), (chunked, length)] {
        let pair = format!(
            "POST /1 HTTP/1.1\r\nhost: a\r\n{first}{second}\r\n0\r\n\r\nGET /smuggled \
             HTTP/1.1\r\nhost: a\r\n\r\n"
        );
        let mut client = gateway.client().await;
        assert_eq!(client.exchange(&pair).await.unwrap().text(), "/1");
        assert!(client.is_closed().await);
        assert!(!backend.seen.last().headers.contains_key("content-length"));
    }
    assert_eq!(backend.seen.count(), 2, "nothing was smuggled");
}

#[tokio::test]
async fn what_is_odd_but_lawful_is_served() {
    let broker = TestBroker::start().await;
    let backend =
        Backend::start(&broker, |_, request| vec![ok(request.path_and_query.as_str())]).await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let mut client = gateway.client().await;
    // A subject's special characters mean nothing in a path.
    for path in
        ["/../x", "/a//b", "/%00", "/%ff", "/a.*.b", "/svc.other", "/$SYS.REQ", "/?a=%0d%0a"]
    {
        assert_eq!(client.get(path).await.unwrap().text(), path);
    }
    // Absolute form, with and without a path.
    for (target, path) in
        [("http://b/x?y=1", "/x?y=1"), ("http://b?y=1", "/?y=1"), ("http://b", "/")]
    {
        let reply =
            client.exchange(&format!("GET {target} HTTP/1.1\r\nhost: a\r\n\r\n")).await.unwrap();
        assert_eq!(reply.text(), path);
        assert_eq!(backend.seen.last().headers["host"], "b", "the target goes before the field");
    }
    // Two requests in one packet are two requests.
    client
        .send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(client.reply(false).await.unwrap().text(), "/1");
    assert_eq!(client.reply(false).await.unwrap().text(), "/2");
    // Headers that try to be NATS's stay header fields.
    let injected =
        "GET /3 HTTP/1.1\r\nhost: a\r\nnats-service-error-code: 500\r\nreply-to: x\r\n\r\n";
    assert_eq!(client.exchange(injected).await.unwrap().status, 200);
    assert_eq!(backend.seen.last().headers["reply-to"], "x");
}

#[tokio::test]
async fn slow_heads_and_bodies_are_cut_off() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "fine").await;
    let arguments = ["--head-timeout", "500ms", "--body-timeout", "500ms"];
    let gateway = Gateway::start(&broker, ROUTES, &arguments).await;
    for begun in ["", "P", "PRI * HT", "GET / HTTP/1.1\r\nhost: a\r\nx: "] {
        let mut client = gateway.client().await;
        client.send(begun).await.unwrap();
        let started = Instant::now();
        let reply = client.reply(false).await;
        assert!(reply.is_err(), "{begun:?}: there is no answer to half a head: {reply:?}");
        assert!(client.is_closed().await, "{begun:?}");
        assert!(started.elapsed() < Duration::from_secs(10), "{begun:?}");
    }
    let mut client = gateway.client().await;
    let reply = client
        .exchange("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf")
        .await
        .unwrap();
    assert_eq!((reply.status, reply.problem().as_str()), (408, "request_timeout"));
    assert_eq!(backend.seen.count(), 0);
    // As much time for each head, however long the connection has been there.
    for begun in ["", "GET / HTTP/1.1\r\nhost: a\r\nx: "] {
        let mut client = gateway.client().await;
        let connected = Instant::now();
        let mut asked = connected;
        while connected.elapsed() < Duration::from_secs(1) {
            asked = Instant::now();
            let reply = client.exchange("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
            assert_eq!(reply.unwrap().status, 200);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        client.send(begun).await.unwrap();
        assert!(client.reply(false).await.is_err() && client.is_closed().await, "{begun:?}");
        let passed = asked.elapsed();
        assert!(passed >= Duration::from_millis(500), "{begun:?}: cut off after {passed:?}");
        assert!(passed < Duration::from_secs(10), "{begun:?}");
    }
}

#[tokio::test]
async fn a_body_that_breaks_off_is_never_published() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "fine").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let mut cut = gateway.client().await;
    cut.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf").await.unwrap();
    drop(cut);
    assert_eq!(gateway.get("/").await.text(), "fine");
    assert_eq!(backend.seen.count(), 1);
}

#[tokio::test]
async fn a_half_closed_client_has_left_unless_the_operator_says_otherwise() {
    let broker = TestBroker::start().await;
    let _backend = Backend::saying(&broker, "fine").await;
    let half_closed = async |gateway: &Gateway| {
        let mut client = gateway.client().await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        client.stream.shutdown().await.unwrap();
        client.reply(false).await
    };
    let strict = Gateway::start(&broker, ROUTES, &[]).await;
    assert!(half_closed(&strict).await.is_err(), "closed, as no answer is owed");
    let lenient = Gateway::start(&broker, ROUTES, &["--allow-half-close"]).await;
    assert_eq!(half_closed(&lenient).await.unwrap().text(), "fine");
}

/// What an HTTP/2 client sends first.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// `:method GET, :scheme http, :path /` of HPACK's static table, and `:authority a`.
pub const GET: [u8; 6] = [0x82, 0x86, 0x84, 0x41, 0x01, b'a'];

/// An HTTP/2 frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The kind, the stream and the payload of the next frame.
pub async fn next_frame(stream: &mut TcpStream) -> (u8, u32, Vec<u8>) {
    let read = async {
        let mut head = [0; 9];
        stream.read_exact(&mut head).await.unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        stream.read_exact(&mut payload).await.unwrap();
        (head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]]), payload)
    };
    tokio::time::timeout(DEADLINE, read).await.expect("a frame in time")
}

#[tokio::test]
async fn a_flood_of_reset_http2_streams_ends_its_connection_and_nothing_else() {
    let broker = TestBroker::start().await;
    let _backend = Backend::start(&broker, |_, _| vec![]).await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let mut attacker = gateway.client().await;
    let mut flood = [PREFACE.to_vec(), frame(4, 0, 0, &[])].concat();
    for stream in (1..40_001).step_by(2) {
        flood.extend(frame(1, 0x05, stream, &GET));
        flood.extend(frame(3, 0, stream, &8_u32.to_be_bytes()));
    }
    // It may be cut off while it writes.
    attacker.stream.write_all(&flood).await.ok();
    assert!(attacker.is_closed().await);
    let in_flight = "natsway_in_flight{route=\"test\",version=\"blue\"}";
    eventually(DEADLINE, async || gateway.metric(in_flight).await == 0.0).await;
    assert_eq!(gateway.get("/none%zz").await.status, 400, "other clients are served");
}

#[tokio::test]
async fn a_head_that_goes_on_for_ever_ends_its_connection() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "fine").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let mut attacker = gateway.client().await;
    // CONTINUATION frames of small fields, none of which is the last: CVE-2024-27316.
    let fields = [0x00, 0x01, b'x', 0x01, b'y'].repeat(200);
    let mut flood = [PREFACE.to_vec(), frame(4, 0, 0, &[]), frame(1, 0x01, 1, &GET)].concat();
    flood.extend(frame(9, 0, 1, &fields).repeat(20_000));
    // It may be cut off while it writes.
    attacker.stream.write_all(&flood).await.ok();
    assert!(attacker.is_closed().await);
    let peak = gateway.process.memory().expect("it runs").peak;
    assert!(peak < 200 << 20, "{peak} bytes");
    assert_eq!(backend.seen.count(), 0);
    assert_eq!(gateway.get("/").await.text(), "fine", "other clients are served");
}

#[tokio::test]
async fn an_http2_body_of_another_length_than_it_says_is_never_published() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "fine").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    // POST instead of GET, and `content-length: 5`.
    let post = [&[0x83][..], &GET[1..], &[0x0f, 0x0d, 0x01, b'5']].concat();
    for body in ["hi", "more than five"] {
        let mut client = gateway.client().await;
        let request = [frame(1, 0x04, 1, &post), frame(0, 0x01, 1, body.as_bytes())].concat();
        let sent = [PREFACE.to_vec(), frame(4, 0, 0, &[]), request].concat();
        client.stream.write_all(&sent).await.unwrap();
        // A reset, or an answer that is not the worker's.
        while !matches!(next_frame(&mut client.stream).await, (1 | 3, 1, _)) {}
    }
    assert_eq!(backend.seen.count(), 0);
    assert_eq!(gateway.get("/").await.text(), "fine");
}

#[tokio::test]
async fn memory_stays_bounded_under_a_crowd_of_large_heads_and_bodies() {
    let broker = TestBroker::start().await;
    let _backend = Backend::saying(&broker, "fine").await;
    let gateway = Gateway::start(&broker, ROUTES, &["--max-connections", "200"]).await;
    let mut crowd = Vec::new();
    for number in 0..190 {
        let mut client = gateway.client().await;
        let begun = match number % 2 {
            0 => format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "y".repeat(30_000)),
            _ => format!(
                "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 65536\r\n\r\n{}",
                "y".repeat(60_000)
            ),
        };
        client.send(&begun).await.unwrap();
        crowd.push(client);
    }
    assert_eq!(gateway.get("/").await.text(), "fine");
    let peak = gateway.process.memory().expect("it runs").peak;
    assert!(peak < 200 << 20, "{peak} bytes");
    drop(crowd);
}

#[tokio::test]
async fn memory_stays_bounded_under_a_crowd_of_http2_streams() {
    const CONNECTIONS: usize = 8;
    const STREAMS: usize = 128;
    const HELD_BYTES: usize = 4 << 20;
    const BODY_BYTES: usize = 65_536;
    let broker = TestBroker::start().await;
    let _backend = Backend::saying(&broker, "fine").await;
    let arguments = ["--shards", "1", "--max-held-bytes", &HELD_BYTES.to_string()];
    let gateway = Gateway::start(&broker, ROUTES, &arguments).await;
    let refused = Arc::new(AtomicUsize::new(0));
    let mut crowd = tokio::task::JoinSet::new();
    let hold = |crowd: &mut tokio::task::JoinSet<()>, mut sender: SendRequest<_>, head: usize| {
        // All of a body but its end, which never comes.
        let most = Bytes::from(vec![b'y'; BODY_BYTES - 1]);
        let body = stream::iter([Ok::<_, Infallible>(Frame::data(most))]).chain(stream::pending());
        let request = Request::post("http://a/")
            .header("content-length", BODY_BYTES)
            .header("x", "y".repeat(head))
            .body(StreamBody::new(body))
            .unwrap();
        let refused = Arc::clone(&refused);
        crowd.spawn(async move {
            let response = sender.send_request(request).await.unwrap();
            assert_eq!(response.status(), 503);
            assert_eq!(response.headers()["retry-after"], "1");
            refused.fetch_add(1, Ordering::SeqCst);
        });
    };
    let mut senders = Vec::new();
    for _ in 0..CONNECTIONS {
        let io = TokioIo::new(gateway.client().await.stream);
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        crowd.spawn(async { connection.await.unwrap_or_default() });
        for _ in 0..STREAMS {
            hold(&mut crowd, sender.clone(), 20_000);
        }
        senders.push(sender);
    }
    // What fits is held; all others are told to come back.
    let fit = HELD_BYTES / (BODY_BYTES + 20_000);
    let expected = CONNECTIONS * STREAMS - fit;
    eventually(DEADLINE, async || match refused.load(Ordering::SeqCst) {
        refused if refused >= expected => Ok(()),
        refused => Err(format!("{refused} of {expected} refused")),
    })
    .await;
    let held = gateway.metric("natsway_held_bytes").await;
    assert!((1.0..=HELD_BYTES as f64).contains(&held), "{held}");
    let peak = gateway.process.memory().expect("it runs").peak;
    assert!(peak < 200 << 20, "{peak} bytes");
    // Some were refused for what others gave back a moment later: that is filled up.
    let mut last = gateway.post("/", &"x".repeat(BODY_BYTES)).await;
    for sender in senders.iter().cycle().take(10 * CONNECTIONS) {
        if last.status == 503 {
            break;
        }
        hold(&mut crowd, sender.clone(), 1);
        last = gateway.post("/", &"x".repeat(BODY_BYTES)).await;
    }
    assert_eq!((last.status, last.problem().as_str()), (503, "memory_full"));
    assert_eq!(gateway.get("/").await.text(), "fine", "a request without a body needs no room");
    crowd.shutdown().await;
    eventually(DEADLINE, async || gateway.metric("natsway_held_bytes").await == 0.0).await;
    assert_eq!(gateway.post("/", &"x".repeat(BODY_BYTES)).await.text(), "fine");
}

//! Backends that were not written for Natsway.

use std::time::Duration;

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::StreamExt;
use natsway_testkit::{TestBroker, eventually};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use crate::backend::{Backend, ok, settled};
use crate::fixture::{DEADLINE, Gateway};

const ROUTES: &str = r#"
    [[route]]
    name = "native"
    path = "/{*rest}"
    codec = "native"
    timeout = "2s"
    target = [{ version = "v1", subject = "greet" }]
"#;

async fn serving(
    broker: &TestBroker,
    headers: HeaderMap,
    body: &'static str,
) -> async_nats::Client {
    let client = broker.connect().await;
    let mut requests = client.queue_subscribe("greet", "q".to_owned()).await.unwrap();
    settled(&client).await;
    let publisher = client.clone();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let mut headers = headers.clone();
            let seen = request.headers.unwrap_or_default();
            for (name, values) in seen.iter() {
                let name: &str = name.as_ref();
                if name.to_ascii_lowercase().starts_with("nats") {
                    headers.append("All-Nats", format!("{name}={}", values[0]).as_str());
                }
            }
            for name in ["Natsway-Method", "Natsway-Path", "Content-Type", "X-Request-Id"] {
                if let Some(value) = seen.get(name) {
                    headers.insert(format!("Seen-{name}").as_str(), value.as_str());
                }
            }
            let body = if body.is_empty() {
                Bytes::new()
            } else {
                [body.as_bytes(), &request.payload].concat().into()
            };
            publisher.publish_with_headers(request.reply.unwrap(), headers, body).await.unwrap();
        }
    });
    client
}

#[tokio::test]
async fn a_plain_nats_client_is_a_backend() {
    let broker = TestBroker::start().await;
    let _client = serving(&broker, HeaderMap::new(), "hello ").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let request = "POST /who?x=1 HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\nx-request-id: \
                   r1\r\n\
                   content-length: 3\r\n\r\nyou";
    let reply = gateway.client().await.exchange(request).await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello you"));
    assert_eq!(reply.header("seen-natsway-method"), Some("POST"));
    assert_eq!(reply.header("seen-natsway-path"), Some("/who?x=1"));
    assert_eq!(
        reply.header("seen-content-type"),
        Some("text/plain"),
        "in the case that services look for"
    );
    assert_eq!(reply.header("seen-x-request-id"), Some("r1"));
}

#[tokio::test]
async fn a_client_cannot_use_the_brokers_headers() {
    let broker = TestBroker::start().await;
    let client = serving(&broker, HeaderMap::new(), "hello ").await;
    let mut traces = client.subscribe("elsewhere").await.unwrap();
    settled(&client).await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    // Each of these has the broker do something: report to a subject, swallow the message, store it
    // otherwise.
    let request = "GET / HTTP/1.1\r\nhost: a\r\nnats-trace-dest: elsewhere\r\nNATS-Trace-Only: \
                   true\r\n\
                   Nats-Rollup: all\r\nnats-msg-id: 1\r\nnatsway-deadline-ms: 9\r\nNatsway-Method: \
                   DELETE\r\n\
                   natsway-x: y\r\n\r\n";
    let reply = gateway.client().await.exchange(request).await.unwrap();
    assert_eq!((reply.status, reply.header("seen-natsway-method")), (200, Some("GET")));
    let nats: Vec<_> = reply.headers.iter().filter(|(name, _)| name == "all-nats").collect();
    assert_eq!(nats.len(), 3, "method, path and deadline: {nats:?}");
    settled(&client).await;
    let trace = tokio::time::timeout(Duration::from_millis(200), traces.next()).await;
    assert!(trace.is_err(), "the broker published {trace:?}");
}

#[tokio::test]
async fn the_brokers_trace_header_does_what_a_client_must_not() {
    // What the test above rests on: with this header, the broker publishes where it says.
    let broker = TestBroker::start().await;
    let client = serving(&broker, HeaderMap::new(), "hello ").await;
    let mut traces = client.subscribe("elsewhere").await.unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Trace-Dest", "elsewhere");
    client.publish_with_headers("greet", headers, Bytes::new()).await.unwrap();
    tokio::time::timeout(DEADLINE, traces.next()).await.expect("a trace").unwrap();
}

#[tokio::test]
async fn a_service_error_is_the_status_with_the_services_own_words() {
    let broker = TestBroker::start().await;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Service-Error-Code", "409");
    headers.insert("Nats-Service-Error", "taken");
    headers.insert("Retry-After", "7");
    headers.insert("Content-Type", "text/csv");
    headers.insert("Connection", "x-hop");
    headers.insert("X-Hop", "1");
    let _client = serving(&broker, headers, "").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let reply = gateway.get("/").await;
    assert_eq!((reply.status, reply.problem().as_str()), (409, "service_error"));
    assert!(reply.text().contains("taken"));
    assert_eq!(
        reply.header("retry-after"),
        Some("7"),
        "its headers cross as those of any response do"
    );
    assert_eq!(
        reply.header("content-type"),
        Some("application/problem+json"),
        "the body is the gateway's"
    );
    assert!(reply.header("x-hop").is_none() && reply.header("connection").is_none(), "{reply:?}");
}

#[tokio::test]
async fn a_service_errors_body_is_passed_on() {
    let broker = TestBroker::start().await;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Service-Error-Code", "422");
    headers.insert("Nats-Service-Error", "no");
    headers.insert("Content-Type", "text/plain");
    headers.append("WWW-Authenticate", "Basic");
    headers.append("WWW-Authenticate", "Bearer");
    headers.insert("Content-Length", "3");
    let _client = serving(&broker, headers, "why: ").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let reply = gateway.post("/", "body").await;
    assert_eq!((reply.status, reply.text().as_str()), (422, "why: body"));
    assert_eq!(reply.header("content-type"), Some("text/plain"));
    assert_eq!(
        reply.headers.iter().filter(|(name, _)| name == "www-authenticate").count(),
        2,
        "{reply:?}"
    );
}

#[tokio::test]
async fn headers_count_against_the_brokers_limit() {
    let broker = TestBroker::builder().max_payload(4_096).start().await;
    let _client = serving(&broker, HeaderMap::new(), "x").await;
    let gateway = Gateway::start(&broker, ROUTES, &["--shards", "1"]).await;
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(4_000));
    let refused = gateway.client().await.exchange(&request).await.unwrap();
    assert_eq!((refused.status, refused.problem().as_str()), (413, "too_large"));
    assert_eq!(gateway.get("/").await.status, 200);
    // One for native routes, and one for all others.
    assert_eq!(gateway.metric("natsway_broker_connects_total").await, 2.0);
}

/// Answers everything with these bytes for headers, whatever they are.
async fn answer_with_headers(
    broker: &TestBroker,
    headers: &'static [u8],
) -> tokio::task::JoinHandle<()> {
    let stream = TcpStream::connect(("127.0.0.1", broker.port())).await.unwrap();
    let mut stream = BufReader::new(stream);
    stream
        .write_all(b"CONNECT {\"headers\":true,\"verbose\":false}\r\nSUB greet q 1\r\nPING\r\n")
        .await
        .unwrap();
    let mut line = String::new();
    while line != "PONG\r\n" {
        line.clear();
        stream.read_line(&mut line).await.unwrap();
    }
    tokio::spawn(async move {
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap() == 0 {
                return;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["PING"] => stream.write_all(b"PONG\r\n").await.unwrap(),
                ["HMSG", _, _, reply, _, bytes] => {
                    let mut message = vec![0; bytes.parse::<usize>().unwrap() + 2];
                    stream.read_exact(&mut message).await.unwrap();
                    let verb = format!("HPUB {reply} {0} {0}\r\n", headers.len());
                    stream.write_all(&[verb.as_bytes(), headers, b"\r\n"].concat()).await.unwrap();
                }
                _ => {}
            }
        }
    })
}

#[tokio::test]
async fn headers_that_nobody_can_read_cost_no_other_service_a_request() {
    // The client library ends the connection on which such headers come.
    const UNREADABLE: [&[u8]; 3] = [
        b"NATS/1.0\r\nX-Place: Gen\xe8ve\r\n\r\n",
        b"NATS/1.0\r\nX Place: y\r\n\r\n",
        b"NATS/1.0\r\nno colon\r\n\r\n",
    ];
    let broker = TestBroker::start().await;
    let other = Backend::start(&broker, |_, _| vec![]).await;
    let native = ROUTES.replace("/{*rest}", "/native/{*rest}").replace("2s", "1m");
    let routes = native + crate::fixture::ROUTES.replace("5s", "1m").as_str();
    let gateway = Gateway::start(&broker, &routes, &["--shards", "1"]).await;
    for (number, headers) in UNREADABLE.into_iter().enumerate() {
        let backend = answer_with_headers(&broker, headers).await;
        let mut waiting = gateway.client().await;
        waiting.send("POST /other HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        eventually(DEADLINE, async || other.seen.count() == number + 1).await;
        let lost = gateway.get("/native/x").await;
        assert_eq!((lost.status, lost.problem().as_str()), (504, "connection_lost"));
        // It ends a few connections, and not as many as it has tries.
        let losses =
            gateway.metric("natsway_failed_attempts_total{reason=\"connection_lost\"}").await;
        assert_eq!(losses, 3.0 * (number + 1) as f64);
        other.answer(number, ok("whole")).await;
        assert_eq!(waiting.reply(false).await.unwrap().text(), "whole");
        backend.abort();
        let gone = async || gateway.get("/native/x").await.problem() == "no_responders";
        eventually(DEADLINE, gone).await;
    }
}

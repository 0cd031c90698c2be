//! Backends that were not written for Natsway.

use async_nats::HeaderMap;
use bytes::Bytes;
use futures_util::StreamExt;
use natsway_testkit::Broker;

use crate::backend::settled;
use crate::fixture::Gateway;

const ROUTES: &str = r#"
    [[route]]
    name = "native"
    path = "/{*rest}"
    codec = "native"
    timeout = "2s"
    target = [{ version = "v1", subject = "greet" }]
"#;

async fn serving(broker: &Broker, headers: HeaderMap, body: &'static str) -> async_nats::Client {
    let client = broker.connect().await;
    let mut requests = client.queue_subscribe("greet", "q".to_owned()).await.unwrap();
    settled(&client).await;
    let publisher = client.clone();
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let mut headers = headers.clone();
            let seen = request.headers.unwrap_or_default();
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
    let broker = Broker::start().await;
    let _client = serving(&broker, HeaderMap::new(), "hello ").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let request = "POST /who?x=1 HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\nx-request-id: r1\r\n\
                   content-length: 3\r\n\r\nyou";
    let reply = gateway.client().await.exchange(request).await.unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello you"));
    assert_eq!(reply.header("seen-natsway-method"), Some("POST"));
    assert_eq!(reply.header("seen-natsway-path"), Some("/who?x=1"));
    assert_eq!(reply.header("seen-content-type"), Some("text/plain"), "in the case that services look for");
    assert_eq!(reply.header("seen-x-request-id"), Some("r1"));
}

#[tokio::test]
async fn a_service_error_is_the_status_with_the_services_own_words() {
    let broker = Broker::start().await;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Service-Error-Code", "409");
    headers.insert("Nats-Service-Error", "taken");
    let _client = serving(&broker, headers, "").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let reply = gateway.get("/").await;
    assert_eq!((reply.status, reply.problem().as_str()), (409, "service_error"));
    assert!(reply.text().contains("taken"));
}

#[tokio::test]
async fn a_service_errors_body_is_passed_on() {
    let broker = Broker::start().await;
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Service-Error-Code", "422");
    headers.insert("Nats-Service-Error", "no");
    let _client = serving(&broker, headers, "why: ").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let reply = gateway.post("/", "body").await;
    assert_eq!((reply.status, reply.text().as_str()), (422, "why: body"));
}

#[tokio::test]
async fn headers_count_against_the_brokers_limit() {
    let broker = Broker::builder().max_payload(4_096).start().await;
    let _client = serving(&broker, HeaderMap::new(), "x").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(4_000));
    assert_eq!(gateway.client().await.exchange(&request).await.unwrap().status, 413);
    assert_eq!(gateway.get("/").await.status, 200);
    assert_eq!(gateway.metric("natsway_broker_connects_total").await, 2.0);
}

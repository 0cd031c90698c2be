//! What goes through, both ways.

use http::{HeaderMap, StatusCode};
use natsway_testkit::TestBroker;
use natsway_wire::envelope::encode_response;

use crate::backend::{Backend, ok, response};
use crate::fixture::{Gateway, ROUTES};

#[tokio::test]
async fn a_request_reaches_the_worker_as_the_client_sent_it() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "hello").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let reply = gateway
        .client()
        .await
        .exchange(
            "POST /a%20b/c?x=1&x=2 HTTP/1.1\r\nHost: shop.example:8080\r\nX-Twice: 1\r\nX-Twice: \
             2\r\n\
             Connection: keep-alive, x-hop\r\nX-Hop: no\r\nX-Request-Id: abc\r\ncontent-length: \
             4\r\n\r\nbody",
        )
        .await
        .unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "hello"));
    assert_eq!(reply.header("x-request-id"), Some("abc"));

    let request = backend.seen.last();
    assert_eq!(request.method, "POST");
    assert_eq!(request.path_and_query, "/a%20b/c?x=1&x=2");
    assert_eq!(&request.body[..], b"body");
    assert_eq!(request.headers["host"], "shop.example:8080");
    assert_eq!(request.headers.get_all("x-twice").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(request.headers["x-request-id"], "abc");
    assert_eq!(request.headers["x-forwarded-for"], "127.0.0.1");
    assert_eq!(request.headers["content-length"], "4");
    assert!(!request.headers.contains_key("x-hop") && !request.headers.contains_key("connection"));
    assert!((1..=5_000).contains(&request.deadline_ms), "{}", request.deadline_ms);
}

#[tokio::test]
async fn a_response_reaches_the_client_with_its_repeats() {
    let broker = TestBroker::start().await;
    let fields =
        [("set-cookie", "a=1"), ("set-cookie", "b=2"), ("connection", "x-hop"), ("x-hop", "1")];
    let _backend = Backend::start(&broker, move |_, _| vec![response(201, &fields, "made")]).await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let reply = gateway.get("/").await;
    assert_eq!((reply.status, reply.text().as_str()), (201, "made"));
    let cookies: Vec<_> = reply.headers.iter().filter(|(name, _)| name == "set-cookie").collect();
    assert_eq!(cookies.len(), 2, "{reply:?}");
    assert!(reply.header("x-hop").is_none() && reply.header("connection").is_none(), "{reply:?}");
    assert!(reply.header("x-request-id").is_some());
}

#[tokio::test]
async fn head_has_the_length_of_the_get_and_no_body() {
    let broker = TestBroker::start().await;
    let backend =
        Backend::start(&broker, |_, _| vec![response(200, &[("content-length", "1234")], "")])
            .await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let mut client = gateway.client().await;
    let reply = client.exchange("HEAD /x HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    assert_eq!((reply.status, reply.header("content-length")), (200, Some("1234")));
    assert_eq!(backend.seen.last().method, "HEAD");
    // The connection goes on behind it.
    assert_eq!(client.exchange("HEAD /y HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap().status, 200);
}

#[tokio::test]
async fn routes_answer_404_and_405_by_themselves() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "x").await;
    let routes = r#"
        [[route]]
        name = "read"
        path = "/api/{id}"
        strip_prefix = "/api"
        methods = ["GET", "PUT"]
        target = [{ version = "blue", subject = "svc.test.blue" }]
    "#;
    let gateway = Gateway::start(&broker, routes, &[]).await;
    let missing = gateway.get("/other").await;
    assert_eq!((missing.status, missing.problem().as_str()), (404, "no_route"));
    let refused = gateway.post("/api/7", "").await;
    assert_eq!((refused.status, refused.problem().as_str()), (405, "method_not_allowed"));
    assert_eq!(refused.header("allow"), Some("GET, HEAD, PUT"));
    assert_eq!(backend.seen.count(), 0);
    assert_eq!(gateway.get("/api/7?x=1").await.status, 200);
    assert_eq!(backend.seen.last().path_and_query, "/7?x=1");
}

#[tokio::test]
async fn trailers_reach_a_client_that_takes_them() {
    let broker = TestBroker::start().await;
    let _backend = Backend::start(&broker, |_, _| {
        let trailers = HeaderMap::from_iter([("x-sum".parse().unwrap(), "42".parse().unwrap())]);
        let headers =
            HeaderMap::from_iter([("trailer".parse().unwrap(), "x-sum".parse().unwrap())]);
        vec![encode_response(StatusCode::OK, &headers, &trailers, b"body").unwrap()]
    })
    .await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let plain = gateway.get("/").await;
    assert_eq!((plain.status, plain.text().as_str()), (200, "body"));
    let wanting = "GET / HTTP/1.1\r\nhost: a\r\nte: trailers\r\nconnection: te\r\n\r\n";
    let reply = gateway.client().await.exchange(wanting).await.unwrap();
    assert!(reply.text().starts_with("4\r\nbody\r\n0\r\n"), "{}", reply.text());
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_served() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "over http/2").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", gateway.port)).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io)
            .await
            .unwrap();
    tokio::spawn(connection);
    let request = http::Request::post("http://shop.example/path?x=1")
        .body(http_body_util::Full::new(bytes::Bytes::from_static(b"ping")))
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes();
    assert_eq!(&body[..], b"over http/2");
    let request = backend.seen.last();
    assert_eq!(
        (request.path_and_query.as_str(), &request.headers["host"]),
        ("/path?x=1", &"shop.example".parse().unwrap())
    );
    assert_eq!(&request.body[..], b"ping");
}

#[tokio::test]
async fn one_connection_carries_many_requests_and_each_gets_its_own_answer() {
    let broker = TestBroker::start().await;
    let _backend =
        Backend::start(&broker, |_, request| vec![ok(request.path_and_query.as_str())]).await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let tasks = (0..20).map(|task| {
        let client = gateway.client();
        async move {
            let mut client = client.await;
            for number in 0..50 {
                let path = format!("/{task}/{number}");
                assert_eq!(client.get(&path).await.unwrap().text(), path);
            }
        }
    });
    futures_util::future::join_all(tasks).await;
    assert_eq!(
        gateway
            .metric("natsway_responses_total{route=\"test\",version=\"blue\",code=\"2xx\"}")
            .await,
        1_000.0
    );
}

//! Which worker a call reaches, and what crosses.

use axum::Router;
use axum::extract::Request;
use axum::routing::any;
use http::{HeaderMap, StatusCode};
use http_body_util::BodyExt;
use natsway_worker::Body;
use tower::{Service, ServiceExt};

use super::{Stage, eventually_says, get, post, text};

const SPLIT: &str = r#""path":"/public/{*rest}","strip_prefix":"/public","methods":["DELETE"],
    "target":[{"version":"blue","subject":"svc.test.blue","weight":3},{"version":"green","subject":"svc.test.green","weight":1}],
    "rule":[{"header":"x-canary","value":"always","version":"green"}]"#;

#[tokio::test(flavor = "multi_thread")]
async fn weights_and_rules_are_respected_as_they_change() {
    let stage = Stage::new(&[("test", SPLIT)]).await;
    let _blue = stage.naming_worker("svc.test.blue").await;
    let _green = stage.naming_worker("svc.test.green").await;

    let mut green = 0;
    for _ in 0..1_000 {
        green += usize::from(
            text(stage.client.send(get("http://test/")).await.unwrap()) == "svc.test.green",
        );
    }
    // A quarter of them, give or take seven standard deviations.
    assert!((150..350).contains(&green), "{green} of 1,000");

    let mut canary = get("http://test/");
    canary.headers_mut().insert("x-canary", "always".parse().unwrap());
    assert_eq!(text(stage.client.send(canary).await.unwrap()), "svc.test.green");

    let all_blue = SPLIT.replace("\"weight\":1", "\"weight\":0");
    stage.change("test", &all_blue).await;
    let all_green = all_blue.replace("\"weight\":3", "\"weight\":0").replacen(
        "\"weight\":0}]",
        "\"weight\":1}]",
        1,
    );
    stage.change("test", &all_green).await;
    eventually_says(&stage.client, "http://test/", "svc.test.green").await;
    for _ in 0..200 {
        assert_eq!(text(stage.client.send(get("http://test/")).await.unwrap()), "svc.test.green");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_internal_route_is_reached() {
    let internal =
        r#""path":"/","internal":true,"target":[{"version":"blue","subject":"svc.hidden.blue"}]"#;
    let stage = Stage::new(&[("hidden", internal)]).await;
    let _worker = stage.naming_worker("svc.hidden.blue").await;
    assert_eq!(
        text(stage.client.send(get("http://hidden/any/path")).await.unwrap()),
        "svc.hidden.blue"
    );
}

/// Gives back the request line, some fields, and the body.
async fn echo(request: Request) -> String {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let field = |name| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("-");
    let fields = ["host", "x-a", "content-length", "connection"].map(field).join(" ");
    let id = head.headers["x-request-id"].len();
    format!("{} {} {fields} {id} {}", head.method, head.uri, String::from_utf8_lossy(&body))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_and_its_response_cross_whole_and_by_the_service_s_own_path() {
    let stage = Stage::new(&[("test", SPLIT)]).await;
    let trailers = async || {
        let mut fields = HeaderMap::new();
        fields.insert("x-checksum", "7".parse().unwrap());
        let body = axum::body::Body::new(Body::from("data").with_trailers(fields));
        (StatusCode::IM_A_TEAPOT, [("x-b", "2")], body)
    };
    let router = || Router::new().route("/trailers", any(trailers)).fallback(any(echo));
    let _blue = stage.worker("svc.test.blue", router()).await;
    let _green = stage.worker("svc.test.green", router()).await;

    // Neither the route's path and methods nor the prefix that it strips are a caller's.
    let mut request = post("http://test/public/x?q=%20", "body");
    for (name, value) in
        [("x-a", "1"), ("connection", "close"), ("host", "elsewhere"), ("content-length", "99")]
    {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let echoed = text(stage.client.send(request).await.unwrap());
    assert_eq!(echoed, "POST /public/x?q=%20 test 1 4 - 16 body");

    let response = stage.client.send(get("https://test/trailers")).await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["x-b"]),
        (418, &"2".parse().unwrap())
    );
    let collected = response.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-checksum"], "7");
    assert_eq!(collected.to_bytes(), "data");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_is_a_tower_service() {
    let stage = Stage::new(&[("test", SPLIT)]).await;
    let _blue = stage.naming_worker("svc.test.blue").await;
    let _green = stage.naming_worker("svc.test.green").await;
    let mut limited = tower::ServiceBuilder::new()
        .map_request(|uri: &str| get(uri))
        .service(stage.client.clone());
    let called =
        tokio::spawn(async move { limited.ready().await.unwrap().call("http://test/").await });
    assert_eq!(called.await.unwrap().unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_native_backend_is_called_too() {
    use futures_util::StreamExt;
    let native =
        r#""path":"/","codec":"native","target":[{"version":"v1","subject":"svc.native"}]"#;
    let stage = Stage::new(&[("native", native)]).await;
    let mut requests = stage.nats.queue_subscribe("svc.native", "q".into()).await.unwrap();
    stage.nats.flush().await.unwrap();
    let nats = stage.nats.clone();
    tokio::spawn(async move {
        while let Some(message) = requests.next().await {
            let headers = message.headers.unwrap();
            let mut fields = async_nats::HeaderMap::new();
            if headers.get("Natsway-Path").unwrap().as_str() == "/fail" {
                fields.insert("Nats-Service-Error-Code", "404");
                fields.insert("Nats-Service-Error", "no such thing");
            }
            let text = headers.get("Natsway-Method").unwrap().as_str().to_owned();
            let body = if fields.is_empty() { text.into() } else { bytes::Bytes::new() };
            nats.publish_with_headers(message.reply.unwrap(), fields, body).await.unwrap();
        }
    });
    assert_eq!(text(stage.client.send(post("http://native/", "x")).await.unwrap()), "POST");
    let failed = stage.client.send(get("http://native/fail")).await.unwrap();
    assert_eq!(failed.status(), 404);
    assert_eq!(failed.into_body().into_bytes().await.unwrap(), "no such thing");
}

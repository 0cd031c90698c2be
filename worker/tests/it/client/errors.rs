//! Calls that give no response, and clients that cannot be.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::any;
use http::Request;
use natsway_testkit::{TestBroker, eventually};
use natsway_worker::{Body, CallErrorKind, Client, ClientOptions, Error};
use tokio::sync::Notify;

use super::{DEADLINE, Stage, get, post};

const NOBODY: &str = r#""path":"/n","retry_window":"300ms","max_body_bytes":10,
    "target":[{"version":"blue","subject":"svc.nobody.blue"}]"#;
const CLOSED: &str =
    r#""path":"/c","target":[{"version":"blue","subject":"svc.closed.blue","weight":0}]"#;
const STUCK: &str = r#""path":"/s","timeout":"1s","try_timeout":"100ms","retries":2,
    "target":[{"version":"blue","subject":"svc.stuck.blue"}]"#;

#[tokio::test(flavor = "multi_thread")]
async fn each_failure_has_its_kind_and_says_whether_the_request_may_have_run() {
    use CallErrorKind::{NoRoute, NoVersion, Refused, TimedOut, Unavailable};
    let stage = Stage::new(&[("nobody", NOBODY), ("closed", CLOSED), ("stuck", STUCK)]).await;
    let stuck = Router::new().fallback(any(async || std::future::pending::<()>().await));
    let _stuck = stage.worker("svc.stuck.blue", stuck).await;

    let relative = Request::get("/x").body(Body::default()).unwrap();
    for (request, kind, may_have_run, status, says) in [
        (get("http://unknown/"), NoRoute, false, 500, "no route of that name"),
        (get("http://closed/"), NoVersion, false, 503, "no version"),
        (post("http://nobody/", "x"), Unavailable, false, 503, "no worker"),
        (get("http://stuck/"), TimedOut, true, 504, "no answer in time"),
        (post("http://stuck/", "x"), TimedOut, true, 504, "no answer in time"),
        (post("http://nobody/", "above ten bytes"), Refused, false, 500, "max_body_bytes, 10"),
        (relative, Refused, false, 500, "http://<route>/<path>"),
        (get("http://nobody:80/"), Refused, false, 500, "without a port"),
    ] {
        let uri = request.uri().clone();
        let error = stage.client.send(request).await.unwrap_err();
        assert_eq!((error.kind(), error.may_have_run()), (kind, may_have_run), "{uri}: {error}");
        assert_eq!(error.status(), status, "{uri}");
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_refused_its_work_is_not_a_success() {
    let stage = Stage::new(&[("stuck", STUCK)]).await;
    // Not an envelope: what answers is no worker of ours.
    let mut requests = stage.nats.queue_subscribe("svc.stuck.blue", "q".into()).await.unwrap();
    stage.nats.flush().await.unwrap();
    let call = tokio::spawn(stage.client.send(get("http://stuck/")));
    let request = futures_util::StreamExt::next(&mut requests).await.unwrap();
    stage.nats.publish(request.reply.unwrap(), "hello".into()).await.unwrap();
    let error = call.await.unwrap().unwrap_err();
    assert_eq!((error.kind(), error.status().as_u16()), (CallErrorKind::BadReply, 502), "{error}");
    assert!(error.to_string().contains("codec = \"native\""), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_broker_leaves_the_outcome_unknown_and_later_calls_unavailable_until_it_is_back() {
    let mut stage = Stage::new(&[("stuck", &STUCK.replace("1s", "60s"))]).await;
    let begun = Arc::new(Notify::new());
    let tell = Arc::clone(&begun);
    let never = async move || {
        tell.notify_one();
        std::future::pending::<()>().await;
    };
    let stuck = Router::new().route("/stuck", any(never)).fallback(any(async || "done"));
    let _worker = stage.worker("svc.stuck.blue", stuck).await;
    let call = tokio::spawn(stage.client.send(post("http://stuck/stuck", "x")));
    begun.notified().await;
    stage.broker.kill9();
    let error = call.await.unwrap().unwrap_err();
    assert_eq!(
        (error.kind(), error.may_have_run()),
        (CallErrorKind::OutcomeUnknown, true),
        "{error}"
    );
    let error = stage.client.send(post("http://stuck/", "x")).await.unwrap_err();
    assert_eq!(
        (error.kind(), error.may_have_run()),
        (CallErrorKind::Unavailable, false),
        "{error}"
    );
    stage.broker.start_again().await;
    super::eventually_says(&stage.client, "http://stuck/", "done").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_client_finishes_what_is_out_and_takes_nothing_more() {
    let stage = Stage::new(&[("stuck", &STUCK.replace("1s", "60s"))]).await;
    let begun = Arc::new(Notify::new());
    let goes_on = Arc::new(Notify::new());
    let (tell, wait) = (begun.clone(), goes_on.clone());
    let handler = async move || {
        tell.notify_one();
        wait.notified().await;
        "done"
    };
    let _worker = stage.worker("svc.stuck.blue", Router::new().fallback(any(handler))).await;
    let call = tokio::spawn(stage.client.send(post("http://stuck/", "x")));
    begun.notified().await;
    let closing = tokio::spawn({
        let client = stage.client.clone();
        async move { client.close().await }
    });
    eventually(DEADLINE, async || {
        let refused = stage.client.send(post("http://unknown/", "x")).await.unwrap_err();
        refused.kind() == CallErrorKind::Closed
    })
    .await;
    assert!(!closing.is_finished(), "a call is out");
    goes_on.notify_one();
    assert_eq!(call.await.unwrap().unwrap().status(), 200);
    tokio::time::timeout(DEADLINE, closing).await.expect("it closes").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_refuses_us_is_told_at_once_and_one_that_is_away_is_waited_for() {
    let broker =
        TestBroker::builder().config_lines("authorization { user: a, password: b }").start().await;
    let options = |url: &str| {
        ClientOptions::new("test").broker(natsway_worker::BrokerConfig::new(url).unwrap())
    };
    let error = Client::connect(options(&broker.url().replace("//", "//x:y@"))).await.unwrap_err();
    assert!(matches!(error, Error::Broker(_)), "{error}");

    let port = natsway_testkit::free_port();
    let url = format!("nats://127.0.0.1:{port}");
    let client = Client::connect(options(&url).patience(Duration::from_millis(100))).await.unwrap();
    let error = client.send(get("http://test/")).await.unwrap_err();
    assert_eq!(error.kind(), CallErrorKind::Unavailable, "{error}");
    let broker = TestBroker::builder().jetstream().port(port).start().await;
    let store = natsway_routes::store::RouteStore::open_or_create(
        broker.connect().await,
        natsway_routes::store::BUCKET,
        1,
    );
    store.await.unwrap();
    eventually(DEADLINE, async || {
        let error = client.send(get("http://test/")).await.unwrap_err();
        error.kind() == CallErrorKind::NoRoute
    })
    .await;
}

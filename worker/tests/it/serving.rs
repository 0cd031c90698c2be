//! What callers get.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Extension, Request};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use bytes::Bytes;
use http::StatusCode;
use http_body::Frame;
use http_body_util::StreamBody;
use natsway_testkit::TestBroker;
use natsway_wire::envelope::{NotRun, Response as Answered};
use natsway_wire::native;
use natsway_worker::Deadline;

use crate::caller::{Caller, Draft};
use crate::stage::{FORMS, Form, SUBJECT, Worker, options};

/// Gives back the request line, header values `x-a` and the body.
async fn echo(request: Request) -> String {
    let (head, body) = request.into_parts();
    let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let values: Vec<_> =
        head.headers.get_all("x-a").iter().map(|value| value.to_str().unwrap()).collect();
    format!("{} {} {values:?} {}", head.method, head.uri, String::from_utf8_lossy(&body))
}

async fn with_trailers() -> Response {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-checksum", "7".parse().unwrap());
    let frames: [Result<_, Infallible>; 3] = [
        Ok(Frame::data(Bytes::from_static(b"one "))),
        Ok(Frame::data(Bytes::from_static(b"two"))),
        Ok(Frame::trailers(trailers)),
    ];
    axum::body::Body::new(StreamBody::new(futures_util::stream::iter(frames))).into_response()
}

async fn slow() -> &'static str {
    tokio::time::sleep(Duration::from_millis(200)).await;
    "slow"
}

async fn panic() -> StatusCode {
    panic!("asked to panic")
}

/// A body that breaks off.
async fn broken() -> Response {
    let frames =
        [Ok(Bytes::from_static(b"half")), Err(std::io::Error::other("the database is away"))];
    axum::body::Body::from_stream(futures_util::stream::iter(frames)).into_response()
}

/// More fields than the envelope carries.
async fn many() -> http::HeaderMap {
    let field = || ("x-a".parse().unwrap(), "1".parse().unwrap());
    let mut fields = http::HeaderMap::new();
    for (name, value) in std::iter::repeat_with(field).take(600) {
        fields.append::<http::HeaderName>(name, value);
    }
    fields
}

async fn left(Extension(deadline): Extension<Deadline>) -> String {
    deadline.remaining().as_millis().to_string()
}

/// A problem of the worker's own has the members that the gateway's have.
fn assert_problem(response: &Answered, status: u16, code: &str, request_id: Option<&str>) {
    assert_eq!(response.status, status);
    assert_eq!(response.headers["content-type"], "application/problem+json");
    let document: serde_json::Value = serde_json::from_slice(&response.body).unwrap();
    assert_eq!((&document["status"], &document["code"]), (&status.into(), &code.into()));
    assert_eq!(document["request_id"].as_str(), request_id, "{document}");
    assert!(document["title"].is_string() && document["detail"].is_string(), "{document}");
}

fn router() -> Router {
    Router::new()
        .route("/echo", any(echo))
        .route("/trailers", get(with_trailers))
        .route("/slow", get(slow))
        .route("/panic", get(panic))
        .route("/broken", get(broken))
        .route("/many", get(many))
        .route("/left", get(left))
        .route("/big", get(async || "x".repeat(200_000)))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_and_its_response_cross_whole() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    for form in FORMS {
        let worker = Worker::start(&caller.client, form, options(&broker.url()), router()).await;
        let draft = Draft::post("/echo?q=%20", "body").header("x-a", "1").header("x-a", "2");
        let response = caller.call(SUBJECT, draft).await;
        assert_eq!(response.status, StatusCode::OK);
        assert_eq!(response.body, r#"POST /echo?q=%20 ["1", "2"] body"#, "{form:?}");
        assert_eq!(response.headers["content-type"], "text/plain; charset=utf-8");

        let response = caller.call(SUBJECT, Draft::get("/trailers")).await;
        assert_eq!(
            (&response.body[..], &response.trailers["x-checksum"]),
            (&b"one two"[..], &"7".parse().unwrap())
        );
        assert_eq!(caller.call(SUBJECT, Draft::get("/none")).await.status, StatusCode::NOT_FOUND);
        assert_eq!(worker.leave().await.requests, 3);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_a_500_and_the_worker_goes_on() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    for form in FORMS {
        let worker = Worker::start(&caller.client, form, options(&broker.url()), router()).await;
        let response =
            caller.call(SUBJECT, Draft::get("/panic").header("x-request-id", "r-7")).await;
        assert_problem(&response, 500, "handler_panicked", Some("r-7"));
        assert_eq!(caller.call(SUBJECT, Draft::get("/left")).await.status, StatusCode::OK);
        let summary = worker.leave().await;
        assert_eq!((summary.requests, summary.errors), (2, 1));
        assert_eq!(summary.last_error, "500: GET /panic: panic: asked to panic");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_above_max_payload_is_a_502_and_disturbs_no_other() {
    let broker = TestBroker::builder().max_payload(64 * 1024).start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let worker =
        Worker::start(&caller.client, Form::Spawned, options(&broker.url()), router()).await;
    caller.send(SUBJECT, Draft::get("/slow")).await;
    let response = caller.call(SUBJECT, Draft::get("/big")).await;
    assert_problem(&response, 502, "response_too_large", None);
    let detail = String::from_utf8_lossy(&response.body).into_owned();
    assert!(detail.contains("longer than the 65536 bytes"), "{detail}");
    assert_eq!(caller.response().await.body, "slow");
    worker.leave().await;
    assert!(!broker.log().contains("maximum payload"), "the broker was never sent too much");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_fails_and_a_response_that_cannot_cross_are_problems() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let worker =
        Worker::start(&caller.client, Form::Spawned, options(&broker.url()), router()).await;
    for (path, status, code) in
        [("/broken", 500, "service_failed"), ("/many", 502, "response_unsendable")]
    {
        let response = caller.call(SUBJECT, Draft::get(path).header("x-request-id", path)).await;
        assert_problem(&response, status, code, Some(path));
    }
    assert_eq!(worker.leave().await.errors, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_limit_of_its_own_is_kept() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let options = options(&broker.url()).max_response_bytes(1_000);
    let worker = Worker::start(&caller.client, Form::PerCore, options, router()).await;
    assert_eq!(caller.call(SUBJECT, Draft::get("/big")).await.status, StatusCode::BAD_GATEWAY);
    worker.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_know_what_is_left_of_their_time() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let worker =
        Worker::start(&caller.client, Form::Spawned, options(&broker.url()), router()).await;
    let response = caller.call(SUBJECT, Draft::get("/left").deadline_ms(15_000)).await;
    let left_ms: u64 = std::str::from_utf8(&response.body).unwrap().parse().unwrap();
    assert!((1..=15_000).contains(&left_ms), "{left_ms}");
    worker.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_speak_the_envelope_is_told_so_in_the_words_of_adr_32() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let worker =
        Worker::start(&caller.client, Form::Spawned, options(&broker.url()), router()).await;
    caller.send_raw(SUBJECT, Bytes::new()).await;
    let headers = caller.next_message().await.headers.unwrap();
    assert_eq!(headers.get(native::ERROR_CODE).unwrap().as_str(), "400");
    assert!(
        headers
            .get(native::ERROR)
            .unwrap()
            .as_str()
            .starts_with("not a request of natsway's http codec")
    );

    // An array of two, version 2: from a gateway of the future.
    caller.send_raw(SUBJECT, Bytes::from_static(&[0x92, 2, 0])).await;
    assert_eq!(caller.refusal().await, NotRun::Unsupported);

    caller.client.publish(SUBJECT, Bytes::from_static(b"who listens?")).await.unwrap();
    caller.hears_nothing().await;
    let summary = worker.leave().await;
    assert_eq!((summary.requests, summary.errors, summary.without_reply), (0, 2, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_queue_group_runs_a_request_once_and_two_groups_once_each() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let runs = Arc::new(AtomicUsize::new(0));
    let mut workers = Vec::new();
    for group in ["one", "one", "two", "two"] {
        let runs = Arc::clone(&runs);
        let count = async move || runs.fetch_add(1, Ordering::SeqCst).to_string();
        let options = options(&broker.url()).queue_group(group);
        workers.push(
            Worker::start(
                &caller.client,
                Form::Spawned,
                options,
                Router::new().route("/", any(count)),
            )
            .await,
        );
    }
    for _ in 0..100 {
        caller.send(SUBJECT, Draft::get("/")).await;
        for _ in 0..2 {
            assert_eq!(caller.response().await.status, StatusCode::OK);
        }
    }
    caller.hears_nothing().await;
    assert_eq!(runs.load(Ordering::SeqCst), 200);
    for worker in workers {
        let summary = worker.leave().await;
        assert!(summary.requests > 0, "the members of a group share its requests");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_worker_serves_several_subjects_and_leaves_all_of_them() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let options = options(&broker.url()).and_subject("svc.test.green").and_subject("other");
    let worker = Worker::start(&caller.client, Form::PerCore, options, router()).await;
    for subject in [SUBJECT, "svc.test.green", "other", "other"] {
        assert_eq!(
            caller.call(subject, Draft::get("/left")).await.status,
            StatusCode::OK,
            "{subject}"
        );
    }
    assert_eq!(worker.leave().await.requests, 4);
    for subject in [SUBJECT, "svc.test.green", "other"] {
        let error = caller.client.request(subject, Bytes::new()).await.unwrap_err();
        assert_eq!(error.kind(), async_nats::RequestErrorKind::NoResponders, "{subject}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_that_blocks_stalls_neither_reading_nor_shedding() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let (blocked, release) = std::sync::mpsc::channel::<()>();
    let release = Arc::new(std::sync::Mutex::new(release));
    let blocking = async move || release.lock().unwrap().recv().map_or("gone", |()| "released");
    let options = options(&broker.url()).max_in_flight(1).accepted_after(Duration::from_secs(60));
    let router = Router::new().route("/", any(blocking));
    let worker = Worker::start(&caller.client, Form::Spawned, options, router).await;
    caller.send(SUBJECT, Draft::get("/")).await;
    for _ in 0..3 {
        caller.send(SUBJECT, Draft::get("/")).await;
        assert_eq!(caller.refusal().await, NotRun::Overloaded);
    }
    blocked.send(()).unwrap();
    assert_eq!(caller.response().await.body, "released");
    worker.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn options_that_cannot_be_are_refused_before_anything_starts() {
    let options = natsway_worker::Options::new("svc.*").version("blue");
    let error = natsway_worker::serve(options, router(), std::future::pending()).await.unwrap_err();
    assert!(
        matches!(error, natsway_worker::Error::Options(ref errors) if errors.len() >= 2),
        "{error}"
    );
}

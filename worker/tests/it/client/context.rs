//! What a call takes from the request that is being handled: its deadline, its trace, its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::extract::{Extension, State};
use axum::routing::{any, get as on_get};
use axum::{Json, Router};
use http::request::Parts;
use http::{HeaderMap, StatusCode};
use natsway_testkit::eventually;
use natsway_worker::{CallErrorKind, Client, Deadline};

use super::{DEADLINE, Stage, get, text};

const OUTER: &str = r#""path":"/outer","target":[{"version":"blue","subject":"svc.outer.blue"}]"#;
const INNER: &str = r#""path":"/inner","target":[{"version":"blue","subject":"svc.inner.blue"}]"#;

/// How long the outer handler takes before it calls the inner one.
const BEFORE: Duration = Duration::from_millis(200);

/// The most that may be left of a budget at the inner one. Each message rounds up to a millisecond.
fn most_ms(budget: Duration) -> u128 {
    (budget - BEFORE).as_millis() + 2
}

async fn outer(State(client): State<Client>, parts: Parts) -> Result<String, StatusCode> {
    tokio::time::sleep(BEFORE).await;
    let path = parts.uri.path();
    let answer = client.within(&parts).send(get(&format!("http://inner{path}"))).await;
    answer.map(text).map_err(|error| error.status())
}

fn outer_router(stage: &Stage) -> Router {
    Router::new().fallback(any(outer)).with_state(stage.client.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_is_inherited_and_shrinks_on_the_way() {
    let stage = Stage::new(&[("outer", OUTER), ("inner", INNER)]).await;
    let left = async |Extension(deadline): Extension<Deadline>| {
        deadline.remaining().as_millis().to_string()
    };
    let inner = Router::new().route("/left", on_get(left));
    let _inner = stage.worker("svc.inner.blue", inner).await;
    let _outer = stage.worker("svc.outer.blue", outer_router(&stage)).await;

    let budget = Duration::from_secs(5);
    let mut request = get("http://outer/left");
    request.extensions_mut().insert(Deadline::after(budget));
    let left_ms: u128 = text(stage.client.send(request).await.unwrap()).parse().unwrap();
    assert!(left_ms > 0 && left_ms <= most_ms(budget), "{left_ms} ms were left of {budget:?}");
    // Without one, what a try of the outer route may take counts: 10 s.
    let left_ms: u128 =
        text(stage.client.send(get("http://outer/left")).await.unwrap()).parse().unwrap();
    assert!(
        left_ms > budget.as_millis() && left_ms <= most_ms(Duration::from_secs(10)),
        "{left_ms} ms"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_with_the_deadline_and_does_not_begin_after_it() {
    let stage = Stage::new(&[("inner", INNER)]).await;
    let stuck = Router::new().fallback(any(async || std::future::pending::<()>().await));
    let _inner = stage.worker("svc.inner.blue", stuck).await;
    for (budget, may_have_run) in [(Duration::from_millis(300), true), (Duration::ZERO, false)] {
        let mut request = get("http://inner/");
        request.extensions_mut().insert(Deadline::after(budget));
        let error = stage.client.send(request).await.unwrap_err();
        assert_eq!(
            (error.kind(), error.may_have_run()),
            (CallErrorKind::TimedOut, may_have_run),
            "{error}"
        );
        assert_eq!(error.status(), 504);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_trace_and_the_request_id_go_along_and_nothing_else_does() {
    let stage = Stage::new(&[("outer", OUTER), ("inner", INNER)]).await;
    let fields = async |headers: HeaderMap| {
        let pairs = headers
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_str().unwrap().to_owned()));
        Json(pairs.collect::<Vec<_>>())
    };
    let _inner = stage.worker("svc.inner.blue", Router::new().fallback(any(fields))).await;
    let _outer = stage.worker("svc.outer.blue", outer_router(&stage)).await;
    let mut request = get("http://outer/");
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    for (name, value) in [
        ("traceparent", trace),
        ("tracestate", "a=1"),
        ("x-request-id", "r-1"),
        ("authorization", "secret"),
    ] {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let echoed = text(stage.client.send(request).await.unwrap());
    let mut fields: Vec<(String, String)> = serde_json::from_str(&echoed).unwrap();
    fields.sort();
    let expected =
        [("host", "inner"), ("traceparent", trace), ("tracestate", "a=1"), ("x-request-id", "r-1")];
    assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

/// Counts itself among those at work while it lives.
struct AtWork(Arc<AtomicUsize>);

impl AtWork {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_nobody_waits_for_any_more_is_cancelled_all_the_way_down() {
    let stage = Stage::new(&[("outer", OUTER), ("inner", INNER)]).await;
    let working = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&working);
    let stuck = async move || {
        let _at_work = AtWork::new(&count);
        std::future::pending::<()>().await;
    };
    let _inner = stage.worker("svc.inner.blue", Router::new().fallback(any(stuck))).await;
    let _outer = stage.worker("svc.outer.blue", outer_router(&stage)).await;
    let is_working = async |expected| {
        eventually(DEADLINE, async || {
            let now = working.load(Ordering::SeqCst);
            if now == expected { Ok(()) } else { Err(now) }
        })
        .await;
    };
    for uri in ["http://inner/", "http://outer/"] {
        let call = tokio::spawn(stage.client.send(get(uri)));
        is_working(1).await;
        call.abort();
        // The route gives it 30 s, so that only a cancellation ends it sooner.
        let begun = std::time::Instant::now();
        is_working(0).await;
        assert!(begun.elapsed() < Duration::from_secs(15), "{uri}: ended by its time-out");
    }
}

//! Calls while workers come and go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use async_nats::Subscriber;
use axum::Router;
use axum::routing::any;
use futures_util::StreamExt;
use natsway_testkit::eventually;
use natsway_wire::envelope::{NotRun, Signal, encode_signal};
use natsway_worker::Client;
use tokio::task::JoinSet;

use super::{DEADLINE, Stage, goes_by, post, text};

const BLUE: &str = r#""path":"/t","target":[{"version":"blue","subject":"svc.test.blue"}]"#;
const GREEN: &str = r#""path":"/t","target":[{"version":"green","subject":"svc.test.green"}]"#;

/// Callers at once, each of which calls again as soon as it was answered.
const CALLERS: usize = 16;

/// Calls that have to go through between two upheavals.
const BETWEEN: u64 = 500;

/// Callers that go on until told to stop.
struct Load {
    answered: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    callers: JoinSet<()>,
}

impl Load {
    /// Calls of a method that may not run twice; the first that fails ends the test.
    fn start(client: &Client) -> Self {
        let (answered, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let mut callers = JoinSet::new();
        for _ in 0..CALLERS {
            let (client, answered, stop) =
                (client.clone(), Arc::clone(&answered), Arc::clone(&stop));
            callers.spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    text(client.send(post("http://test/", "x")).await.expect("no call fails"));
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        Self { answered, stop, callers }
    }

    /// Waits until so many more were answered.
    async fn goes_on(&mut self) {
        let goal = self.answered.load(Ordering::Relaxed) + BETWEEN;
        eventually(DEADLINE, async || {
            assert!(self.callers.try_join_next().is_none(), "a caller ended");
            let answered = self.answered.load(Ordering::Relaxed);
            if answered >= goal { Ok(()) } else { Err(answered) }
        })
        .await;
    }

    async fn end(mut self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended.unwrap();
        }
        self.answered.load(Ordering::Relaxed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_restarted_under_load_lose_no_call_and_run_none_twice() {
    let stage = Stage::new(&[("test", BLUE)]).await;
    let run = Arc::<AtomicU64>::default();
    let router = || {
        let run = Arc::clone(&run);
        let count = async move || {
            run.fetch_add(1, Ordering::Relaxed);
            "done"
        };
        Router::new().fallback(any(count))
    };
    let mut first = stage.worker("svc.test.blue", router()).await;
    let mut second = stage.worker("svc.test.blue", router()).await;
    let mut load = Load::start(&stage.client);
    for _ in 0..4 {
        load.goes_on().await;
        first.leave().await;
        load.goes_on().await;
        first = second;
        second = stage.worker("svc.test.blue", router()).await;
    }
    // The only worker of a version: callers wait for the next one.
    first.leave().await;
    load.goes_on().await;
    second.leave().await;
    let _third = stage.worker("svc.test.blue", router()).await;
    load.goes_on().await;
    assert_eq!(load.end().await, run.load(Ordering::Relaxed));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_is_switched_under_load_and_not_called_any_more() {
    let stage = Stage::new(&[("test", BLUE)]).await;
    let blue = stage.naming_worker("svc.test.blue").await;
    let _green = stage.naming_worker("svc.test.green").await;
    let mut load = Load::start(&stage.client);
    load.goes_on().await;
    stage.change("test", GREEN).await;
    super::eventually_says(&stage.client, "http://test/", "svc.test.green").await;
    blue.leave().await;
    // Nobody is there now who would tell, and no call goes there: it would wait for the retry
    // window, and fail.
    load.goes_on().await;
    load.end().await;
}

/// Stands in for the last worker of a version as a gateway does.
async fn tombstone(stage: &Stage) -> Subscriber {
    let requests = stage.nats.queue_subscribe("svc.test.blue", "q".into()).await.unwrap();
    stage.nats.flush().await.unwrap();
    requests
}

#[tokio::test(flavor = "multi_thread")]
async fn what_has_moved_is_resolved_anew_and_sent_there() {
    let patient = BLUE.replacen("\"target\"", "\"retry_window\":\"30s\",\"target\"", 1);
    let stage = Stage::new(&[("test", &patient)]).await;
    let _green = stage.naming_worker("svc.test.green").await;
    let mut requests = tombstone(&stage).await;
    let call = tokio::spawn(stage.client.send(post("http://test/", "x")));
    let request = requests.next().await.unwrap();
    // Not answered until the new routes are in force at the caller, who still waits for the old
    // version.
    let revision = stage.change("test", GREEN).await;
    goes_by(&stage, revision).await;
    let moved = encode_signal(&Signal::NotRun(NotRun::Moved));
    stage.nats.publish(request.reply.unwrap(), moved).await.unwrap();
    assert_eq!(text(call.await.unwrap().unwrap()), "svc.test.green");
}

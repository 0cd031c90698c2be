//! What a worker does not run, or does not run to its end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::routing::{any, get};
use http::StatusCode;
use natsway_testkit::{TcpLink, TestBroker, eventually};
use natsway_wire::control::{self, WorkerCommand};
use natsway_wire::envelope::NotRun;
use natsway_worker::OnCancel;
use tokio::sync::Semaphore;

use crate::caller::{Caller, Draft};
use crate::stage::{FORMS, Form, SUBJECT, Worker, options};

/// Counts handlers as they begin, are dropped and end; they wait until they are let go.
#[derive(Clone)]
struct Gate {
    begun: Arc<AtomicUsize>,
    dropped: Arc<AtomicUsize>,
    open: Arc<Semaphore>,
}

struct CountDrop(Arc<AtomicUsize>);

impl Drop for CountDrop {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

impl Gate {
    fn new() -> Self {
        Self { begun: Arc::default(), dropped: Arc::default(), open: Arc::new(Semaphore::new(0)) }
    }

    fn router(&self) -> Router {
        let Self { begun, dropped, open } = self.clone();
        let handler = async move || {
            begun.fetch_add(1, Ordering::SeqCst);
            let count_drop = CountDrop(dropped);
            drop(open.acquire().await.unwrap());
            std::mem::forget(count_drop);
            "through"
        };
        Router::new().route("/", any(handler)).route("/quick", get(async || "quick"))
    }

    async fn has_begun(&self, count: usize) {
        eventually(Duration::from_secs(30), async || self.begun.load(Ordering::SeqCst) == count)
            .await;
    }

    async fn has_dropped(&self, count: usize) {
        eventually(Duration::from_secs(30), async || self.dropped.load(Ordering::SeqCst) == count)
            .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_worker_sheds_at_once_and_takes_more_when_it_has_room() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    for form in FORMS {
        let gate = Gate::new();
        let readers = std::num::NonZeroUsize::MIN;
        let options = options(&broker.url())
            .readers(readers)
            .max_in_flight(2)
            .accepted_after(Duration::from_secs(60));
        let worker = Worker::start(&caller.client, form, options, gate.router()).await;
        for _ in 0..3 {
            caller.send(SUBJECT, Draft::get("/")).await;
        }
        assert_eq!(caller.refusal().await, NotRun::Overloaded, "{form:?}");
        gate.has_begun(2).await;
        gate.open.add_permits(2);
        for _ in 0..2 {
            assert_eq!(caller.response().await.body, "through");
        }
        assert_eq!(caller.call(SUBJECT, Draft::get("/quick")).await.body, "quick");
        let summary = worker.leave().await;
        assert_eq!((summary.requests, summary.shed), (3, 1));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_in_hand_are_bounded_too() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let gate = Gate::new();
    let options =
        options(&broker.url()).max_in_flight_bytes(10_000).accepted_after(Duration::from_secs(60));
    let worker = Worker::start(&caller.client, Form::Spawned, options, gate.router()).await;
    caller.send(SUBJECT, Draft::post("/", vec![0; 9_000])).await;
    caller.send(SUBJECT, Draft::post("/", vec![0; 2_000])).await;
    assert_eq!(caller.refusal().await, NotRun::Overloaded);
    gate.open.add_permits(1);
    assert_eq!(caller.response().await.status, StatusCode::OK);
    worker.leave().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_past_its_deadline_is_dropped_and_nothing_is_answered() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    for form in FORMS {
        let gate = Gate::new();
        let worker =
            Worker::start(&caller.client, form, options(&broker.url()), gate.router()).await;
        // One with a deadline before handlers are reported as accepted, one after.
        caller.send(SUBJECT, Draft::get("/").deadline_ms(40)).await;
        gate.has_dropped(1).await;
        caller.hears_nothing().await;
        caller.send(SUBJECT, Draft::get("/").deadline_ms(400)).await;
        caller.accepted().await;
        gate.has_dropped(2).await;
        gate.open.add_permits(2);
        caller.hears_nothing().await;
        assert_eq!(worker.leave().await.overran, 2, "{form:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_handler_is_reported_and_can_be_cancelled_where_it_runs() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    for form in FORMS {
        let gate = Gate::new();
        let worker =
            Worker::start(&caller.client, form, options(&broker.url()), gate.router()).await;
        let reply = caller.send(SUBJECT, Draft::get("/")).await;
        let (subject, instance) = caller.accepted().await;
        assert_eq!((&subject, &instance), (&reply, &worker.id));
        cancel(&caller, &instance, reply).await;
        gate.has_dropped(1).await;
        gate.open.add_permits(1);
        caller.hears_nothing().await;
        assert_eq!(worker.leave().await.cancelled, 1, "{form:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_may_finish_what_was_cancelled() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let gate = Gate::new();
    let options = options(&broker.url()).on_cancel(OnCancel::Finish);
    let worker = Worker::start(&caller.client, Form::Spawned, options, gate.router()).await;
    let reply = caller.send(SUBJECT, Draft::get("/")).await;
    let (_, instance) = caller.accepted().await;
    cancel(&caller, &instance, reply).await;
    gate.open.add_permits(1);
    assert_eq!(caller.response().await.body, "through");
    assert_eq!(worker.leave().await.cancelled, 0);
}

async fn cancel(caller: &Caller, instance: &str, reply: String) {
    let command = WorkerCommand::Cancel { reply };
    caller.client.publish(control::worker_subject(instance), command.encode()).await.unwrap();
    // Answered behind the cancellation, so that is done when this returns.
    let ping = WorkerCommand::Ping.encode();
    caller.client.request(control::worker_subject(instance), ping).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_came_too_late_does_not_run() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let gate = Gate::new();
    let worker =
        Worker::start(&caller.client, Form::Spawned, options(&broker.url()), gate.router()).await;
    assert_eq!(caller.call(SUBJECT, Draft::get("/quick")).await.status, StatusCode::OK);
    let two_seconds_ago = caller.now_ms() - 2_000;
    caller.send(SUBJECT, Draft::get("/").deadline_ms(1_500).sent_ms(two_seconds_ago)).await;
    assert_eq!(caller.refusal().await, NotRun::Expired);
    assert_eq!(gate.begun.load(Ordering::SeqCst), 0);
    assert_eq!(worker.leave().await.expired, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_held_up_on_the_way_do_not_run_when_they_are_let_go() {
    const HELD: usize = 200;
    let broker = TestBroker::start().await;
    let link = TcpLink::to_port(broker.port()).await;
    let mut caller = Caller::new(broker.connect().await).await;
    let gate = Gate::new();
    let worker =
        Worker::start(&caller.client, Form::Spawned, options(&link.url()), gate.router()).await;
    assert_eq!(caller.call(SUBJECT, Draft::get("/quick")).await.status, StatusCode::OK);
    link.pause();
    for _ in 0..HELD {
        caller.send(SUBJECT, Draft::post("/", "x").deadline_ms(300)).await;
    }
    // All of their clients have been answered by then.
    tokio::time::sleep(Duration::from_millis(600)).await;
    let mut link = link;
    link.resume().await;
    for _ in 0..HELD {
        assert_eq!(caller.refusal().await, NotRun::Expired);
    }
    assert_eq!(gate.begun.load(Ordering::SeqCst), 0);
    assert_eq!(worker.leave().await.expired, HELD as u64);
}

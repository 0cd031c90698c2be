//! What is tried again, what is not, and what the client hears.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt;
use natsway_caller::attempt::ACCEPTED_WITHIN;
use natsway_testkit::{TestBroker, eventually};
use natsway_wire::control::{WorkerCommand, worker_subject};
use natsway_wire::envelope::NotRun;

use crate::backend::{Backend, accepted, not_run, ok, response, settled};
use crate::fixture::{DEADLINE, Gateway, ROUTES};

#[tokio::test]
async fn nobody_there_is_a_503_after_the_retry_window() {
    let broker = TestBroker::start().await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let started = Instant::now();
    let reply = gateway.post("/", "x").await;
    assert_eq!((reply.status, reply.problem().as_str()), (503, "no_responders"));
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert!(started.elapsed() < Duration::from_secs(4), "far below the route's time-out");
    assert!(gateway.metric("natsway_retries_total").await >= 3.0);
}

#[tokio::test]
async fn a_worker_that_comes_within_the_window_answers_even_a_post() {
    let broker = TestBroker::start().await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let mut client = gateway.client().await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await.unwrap();
    eventually(DEADLINE, async || {
        gateway.metric("natsway_failed_attempts_total{reason=\"no_responders\"}").await >= 1.0
    })
    .await;
    let backend = Backend::saying(&broker, "here").await;
    assert_eq!(client.reply(false).await.unwrap().text(), "here");
    assert_eq!(backend.seen.count(), 1);
}

#[tokio::test]
async fn what_did_not_run_is_tried_again_whatever_its_method() {
    for reason in [NotRun::Overloaded, NotRun::Moved, NotRun::Expired] {
        let broker = TestBroker::start().await;
        let backend = Backend::start(&broker, move |number, _| match number {
            0 | 1 => vec![not_run(reason)],
            _ => vec![ok("third time lucky")],
        })
        .await;
        let gateway = Gateway::start(&broker, ROUTES, &[]).await;
        assert_eq!(gateway.post("/", "x").await.text(), "third time lucky", "{reason:?}");
        assert_eq!(backend.seen.count(), 3);
        assert_eq!(&backend.seen.last().body[..], b"x");
        let missed = format!("natsway_failed_attempts_total{{reason=\"{}\"}}", reason.as_str());
        assert_eq!(gateway.metric(&missed).await, 2.0);
    }
}

#[tokio::test]
async fn workers_that_stay_full_are_a_503() {
    let broker = TestBroker::start().await;
    let _full = Backend::start(&broker, |_, _| vec![not_run(NotRun::Overloaded)]).await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let reply = gateway.get("/").await;
    assert_eq!((reply.status, reply.problem().as_str()), (503, "overloaded"));
}

#[tokio::test]
async fn an_idempotent_request_is_tried_again_when_a_try_times_out_and_the_deadline_shrinks() {
    let broker = TestBroker::start().await;
    let backend =
        Backend::start(&broker, |number, _| if number == 0 { vec![] } else { vec![ok("second")] })
            .await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    assert_eq!(gateway.get("/").await.text(), "second");
    assert_eq!(backend.seen.count(), 2);
    let retry = backend.seen.last();
    assert!(retry.deadline_ms <= 301, "one try's time, not the route's: {}", retry.deadline_ms);
    assert_eq!(gateway.metric("natsway_failed_attempts_total{reason=\"timed_out\"}").await, 1.0);
}

#[tokio::test]
async fn what_is_neither_answered_nor_accepted_is_tried_again_long_before_its_time_is_over() {
    let broker = TestBroker::start().await;
    let backend =
        Backend::start(&broker, |number, _| if number == 0 { vec![] } else { vec![ok("second")] })
            .await;
    let routes = ROUTES.replace("\"5s\"", "\"10m\"").replace("\"300ms\"", "\"10m\"");
    let gateway = Gateway::start(&broker, &routes, &[]).await;
    let mut commands = backend.client.subscribe(worker_subject("first")).await.unwrap();
    settled(&backend.client).await;
    assert_eq!(gateway.get("/").await.text(), "second");
    assert_eq!(backend.seen.count(), 2);
    assert_eq!(gateway.metric("natsway_failed_attempts_total{reason=\"not_accepted\"}").await, 1.0);
    // Whoever has it after all need not go on.
    backend.answer(0, accepted("first")).await;
    let command = tokio::time::timeout(DEADLINE, commands.next()).await.unwrap().unwrap();
    assert!(matches!(
        WorkerCommand::decode(&command.payload).unwrap(),
        WorkerCommand::Cancel { .. }
    ));
}

#[tokio::test]
async fn what_is_accepted_is_waited_for() {
    let broker = TestBroker::start().await;
    let backend = Backend::start(&broker, |_, _| vec![accepted("slow")]).await;
    let mut pings = backend.client.subscribe(worker_subject("slow")).await.unwrap();
    settled(&backend.client).await;
    let routes = ROUTES.replace("\"5s\"", "\"10m\"").replace("\"300ms\"", "\"10m\"");
    let gateway = Gateway::start(&broker, &routes, &[]).await;
    let mut client = gateway.client().await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let began = Instant::now();
    while began.elapsed() < ACCEPTED_WITHIN * 3 / 2 {
        let ping =
            tokio::time::timeout(DEADLINE, pings.next()).await.expect("it is asked after").unwrap();
        backend.client.publish(ping.reply.unwrap(), "".into()).await.unwrap();
    }
    backend.answer(0, ok("at last")).await;
    assert_eq!(client.reply(false).await.unwrap().text(), "at last");
    assert_eq!(backend.seen.count(), 1);
}

#[tokio::test]
async fn a_post_that_may_have_run_is_never_sent_twice() {
    let broker = TestBroker::start().await;
    let backend = Backend::start(&broker, |_, _| vec![]).await;
    let routes = ROUTES.replace("timeout = \"5s\"", "timeout = \"700ms\"");
    let gateway = Gateway::start(&broker, &routes, &[]).await;
    let reply = gateway.post("/", "x").await;
    assert_eq!((reply.status, reply.problem().as_str()), (504, "timed_out"));
    assert_eq!(backend.seen.count(), 1);
    assert!(backend.seen.last().deadline_ms > 301, "it has the whole time");
}

#[tokio::test]
async fn two_queue_groups_each_run_it_once_and_the_first_reply_wins() {
    let broker = TestBroker::start().await;
    let one = Backend::start_in(&broker, "one", |_, _| vec![ok("some")]).await;
    let two = Backend::start_in(&broker, "two", |_, _| vec![ok("some")]).await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    for _ in 0..10 {
        assert_eq!(gateway.get("/").await.text(), "some");
    }
    eventually(DEADLINE, async || gateway.metric("natsway_late_replies_total").await == 10.0).await;
    assert_eq!((one.seen.count(), two.seen.count()), (10, 10));
}

#[tokio::test]
async fn one_queue_group_runs_each_request_at_one_member() {
    let broker = TestBroker::start().await;
    let members = [Backend::saying(&broker, "m").await, Backend::saying(&broker, "m").await];
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    for _ in 0..100 {
        assert_eq!(gateway.get("/").await.text(), "m");
    }
    let counts = members.each_ref().map(|member| member.seen.count());
    assert_eq!(counts.iter().sum::<usize>(), 100);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

#[tokio::test]
async fn replies_that_cannot_be_read_or_passed_on_are_502() {
    let cases: Vec<(&str, Bytes)> = vec![
        ("empty", Bytes::new()),
        ("garbage", Bytes::from_static(b"\xff\x00garbage")),
        ("plain text", Bytes::from_static(b"hello")),
        ("truncated", ok("a whole body").slice(..12)),
        ("later version", Bytes::from_static(&[0x93, 2, 0, 200])),
        ("unknown critical flag", Bytes::from_static(&[0x93, 1, 2, 200])),
        ("a stream", Bytes::from_static(&[0x96, 1, 0, 0xcc, 200, 0x90, 0x90, 0x80])),
        ("status 101", response(101, &[], "")),
        ("status 999", response(999, &[], "")),
        (
            "a bad header",
            Bytes::from_static(&[0x94, 1, 0, 0xcc, 200, 0x91, 0x92, 0xa1, b'\n', 0xa1, b'x']),
        ),
    ];
    let broker = TestBroker::start().await;
    let replies: Vec<Bytes> = cases.iter().map(|(_, reply)| reply.clone()).collect();
    let _backend = Backend::start(&broker, move |number, _| vec![replies[number].clone()]).await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    for (name, _) in &cases {
        let reply = gateway.post("/", "").await;
        assert_eq!((reply.status, reply.problem().as_str()), (502, "bad_reply"), "{name}");
    }
    assert_eq!(gateway.metric("natsway_bad_replies_total").await, cases.len() as f64);
    // The first at once, and no flood of them.
    let log = gateway.process.stderr();
    let said: Vec<&str> = log.lines().filter(|line| line.contains("reply not passed on")).collect();
    assert!(!said.is_empty() && said.len() < cases.len(), "{said:#?}");
    for part in ["WARN", "route=\"test\"", "version=\"blue\"", "reason="] {
        assert!(said[0].contains(part), "{part}: {}", said[0]);
    }
}

#[tokio::test]
async fn a_reply_after_the_time_out_is_counted_and_dropped() {
    let broker = TestBroker::start().await;
    let slow = Backend::start(&broker, |_, _| vec![]).await;
    let routes = ROUTES.replace("timeout = \"5s\"", "timeout = \"300ms\"\ncancel = false");
    let gateway = Gateway::start(&broker, &routes, &[]).await;
    assert_eq!(gateway.post("/", "").await.status, 504);
    slow.answer(0, accepted("slow")).await;
    slow.answer(0, ok("late")).await;
    eventually(DEADLINE, async || gateway.metric("natsway_late_replies_total").await == 2.0).await;
}

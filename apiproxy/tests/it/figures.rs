//! What gateways tell of their versions, and by which routes they say that they go.

use futures_util::StreamExt;
use natsway_routes::report::{Report, VersionFigures};
use natsway_routes::store::{BUCKET, RouteStore};
use natsway_testkit::{Broker, eventually};
use natsway_wire::control::{figures_subject, report_subject};

use crate::backend::{Backend, response};
use crate::fixture::{DEADLINE, Gateway, ROUTES};

/// The reports of all gateways, by asking.
async fn ask(client: &async_nats::Client, expected: usize) -> Vec<Report> {
    let inbox = client.new_inbox();
    let mut answers = client.subscribe(inbox.clone()).await.unwrap();
    client.publish_with_reply(report_subject(), inbox, "".into()).await.unwrap();
    let mut reports = Vec::new();
    while reports.len() < expected {
        let answer = tokio::time::timeout(DEADLINE, answers.next()).await.expect("gateways answer").unwrap();
        reports.extend(Report::read(&answer.payload));
    }
    reports
}

fn only(report: &Report) -> &VersionFigures {
    let [version] = &report.versions[..] else { panic!("one version: {report:?}") };
    version
}

#[tokio::test]
async fn every_gateway_tells_how_its_tries_ended_and_by_which_routes_it_goes() {
    let broker = Broker::builder().jetstream().start().await;
    let _backend = Backend::start(&broker, |number, _| {
        vec![response(if number % 4 == 3 { 500 } else { 200 }, &[], "x")]
    })
    .await;
    let gateways = [Gateway::launch_live(&broker, ROUTES), Gateway::launch_live(&broker, ROUTES)];
    for gateway in &gateways {
        gateway.ready().await;
        for _ in 0..10 {
            let status = gateway.get("/").await.status;
            assert!(status == 200 || status == 500, "{status}");
        }
    }
    let client = broker.connect().await;
    let reports = ask(&client, 2).await;
    let sum = |of: fn(&VersionFigures) -> u64| reports.iter().map(|report| of(only(report))).sum::<u64>();
    assert_eq!((sum(|of| of.figures.requests()), sum(|of| of.figures.errors)), (20, 5));
    assert_eq!(only(&reports[0]).figures.in_flight, 0);

    let store = RouteStore::open(broker.connect().await, BUCKET).await.unwrap();
    let stored = store.get("test").await.unwrap().unwrap();
    let document = natsway_routes::document::RouteDocument::from_json(&stored.bytes).unwrap();
    let revision = store.put(&document, Some(stored.revision)).await.unwrap();
    eventually(DEADLINE, async || {
        let revisions: Vec<u64> = ask(&client, 2).await.iter().map(|report| report.revision).collect();
        (revisions == [revision; 2]).then_some(()).ok_or(revisions)
    })
    .await;
}

#[tokio::test]
async fn a_gateway_that_leaves_says_so_after_its_last_request() {
    let broker = Broker::start().await;
    let mut told = broker.connect().await.subscribe(figures_subject("*")).await.unwrap();
    let mut gateway = Gateway::start(&broker, ROUTES, &["--drain-grace", "10ms"]).await;
    let first = Report::read(&told.next().await.unwrap().payload).unwrap();
    assert!(!first.leaving);
    gateway.process.terminate();
    eventually(DEADLINE, async || {
        let report = Report::read(&told.next().await.unwrap().payload).unwrap();
        assert_eq!(report.id, first.id);
        report.leaving
    })
    .await;
}

/// A worker as far as `$SRV.STATS` goes, until it is dropped.
async fn teller(
    client: &async_nats::Client,
    id: &str,
    requests: u64,
) -> tokio_util::task::AbortOnDropHandle<()> {
    let endpoint = serde_json::json!({
        "subject": "svc.test.blue", "num_requests": requests, "num_errors": 0, "processing_time": 0,
        "data": { "in_flight": 2, "shed": 1 },
    });
    let document =
        serde_json::json!({ "id": id, "metadata": { "natsway.wire": "1" }, "endpoints": [endpoint] });
    let answer = bytes::Bytes::from(document.to_string());
    let mut questions = client.subscribe("$SRV.STATS").await.unwrap();
    // The broker knows of the subscription when this returns.
    client.flush().await.unwrap();
    let client = client.clone();
    tokio_util::task::AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(question) = questions.next().await {
            client.publish(question.reply.unwrap(), answer.clone()).await.unwrap();
        }
    }))
}

#[tokio::test]
async fn every_gateway_tells_of_the_workers_that_answer_and_of_no_others() {
    let broker = Broker::start().await;
    let client = broker.connect().await;
    let gateways = [Gateway::start(&broker, ROUTES, &[]).await, Gateway::start(&broker, ROUTES, &[]).await];
    let (stays, goes) = (teller(&client, "stays", 5).await, teller(&client, "goes", 6).await);
    let shows = async |gateway: &Gateway, sample: &str, expected: f64| {
        eventually(DEADLINE, async || match gateway.metric(sample).await {
            value if value == expected => Ok(()),
            value => Err(value),
        })
        .await;
    };
    for gateway in &gateways {
        shows(gateway, "natsway_workers{subject=\"svc.test.blue\"}", 2.0).await;
        shows(gateway, "natsway_worker_requests_total{subject=\"svc.test.blue\",worker=\"goes\"}", 6.0).await;
        shows(gateway, "natsway_worker_in_flight{worker=\"stays\"}", 2.0).await;
    }
    drop(goes);
    for gateway in &gateways {
        shows(gateway, "natsway_workers{subject=\"svc.test.blue\"}", 1.0).await;
        assert!(!gateway.admin("/metrics").await.unwrap().text().contains("worker=\"goes\""));
    }
    drop(stays);
}

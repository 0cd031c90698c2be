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

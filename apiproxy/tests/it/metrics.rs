//! What gateways tell of their versions, and by which routes they say that they go.

use futures_util::{FutureExt, StreamExt};
use natsway_routes::peers::attributed;
use natsway_routes::report::{Report, VersionMetrics};
use natsway_routes::store::{BUCKET, RouteStore};
use natsway_testkit::{TestBroker, eventually};
use natsway_wire::control::{GATEWAY_SOURCE, metrics_subject, report_subject};

use crate::backend::{Backend, response};
use crate::fixture::{DEADLINE, Gateway, ROUTES};

/// The reports of all gateways, by asking.
async fn ask(client: &async_nats::Client, expected: usize) -> Vec<Report> {
    let mut answers = client.subscribe(metrics_subject("*", "*")).await.unwrap();
    client.publish(report_subject(), "".into()).await.unwrap();
    let mut reports: Vec<Report> = Vec::new();
    while reports.len() < expected {
        let answer =
            tokio::time::timeout(DEADLINE, answers.next()).await.expect("gateways answer").unwrap();
        let (source, report) = attributed(&answer.subject, &answer.payload).expect("a report");
        assert_eq!(source, GATEWAY_SOURCE);
        if report.whole && reports.iter().all(|known| known.id != report.id) {
            reports.push(report);
        }
    }
    reports
}

fn only(report: &Report) -> &VersionMetrics {
    let [version] = &report.versions[..] else { panic!("one version: {report:?}") };
    version
}

#[tokio::test]
async fn every_gateway_tells_how_its_tries_ended_and_by_which_routes_it_goes() {
    let broker = TestBroker::builder().jetstream().start().await;
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
    let sum =
        |of: fn(&VersionMetrics) -> u64| reports.iter().map(|report| of(only(report))).sum::<u64>();
    assert_eq!((sum(|of| of.metrics.requests()), sum(|of| of.metrics.errors)), (20, 5));
    assert_eq!(only(&reports[0]).metrics.in_flight, 0);

    let store = RouteStore::open(broker.connect().await, BUCKET).await.unwrap();
    let stored = store.get("test").await.unwrap().unwrap();
    let document = natsway_routes::document::RouteDocument::from_json(&stored.bytes).unwrap();
    let revision = store.put(&document, Some(stored.revision)).await.unwrap();
    eventually(DEADLINE, async || {
        let revisions: Vec<u64> =
            ask(&client, 2).await.iter().map(|report| report.revision).collect();
        (revisions == [revision; 2]).then_some(()).ok_or(revisions)
    })
    .await;
}

/// What anybody could do who may ask: today's gateway gave a whole report for each question.
#[tokio::test]
async fn questions_without_number_are_answered_a_few_times_and_never_at_a_subject_of_the_askers_choice()
 {
    let broker = TestBroker::builder().jetstream().start().await;
    let gateway = Gateway::launch_live(&broker, ROUTES);
    gateway.ready().await;
    let client = broker.connect().await;
    let mut told = client.subscribe(metrics_subject("*", "*")).await.unwrap();
    let mut ordered = client.subscribe("natsway.drain.>").await.unwrap();
    let mut asked = client.subscribe("_INBOX_asker.*").await.unwrap();
    let begun = std::time::Instant::now();
    for number in 0..2_000 {
        client
            .publish_with_reply(report_subject(), format!("_INBOX_asker.{number}"), "".into())
            .await
            .unwrap();
        client
            .publish_with_reply(report_subject(), "natsway.drain.svc.test.blue", "".into())
            .await
            .unwrap();
    }
    // Asked last, so that what comes for it comes after all of these were heard.
    let last = ask(&client, 1).await;
    assert_eq!(last.len(), 1);
    // Twenty at once, then in each gap one answer, to at most eight inboxes; and its own report
    // each second.
    let gaps = begun.elapsed().as_millis() / 250 + 23;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let count = |subscriber: &mut async_nats::Subscriber| {
        std::iter::from_fn(|| {
            tokio::task::unconstrained(subscriber.next()).now_or_never().flatten()
        })
        .count()
    };
    let (published, answered, obeyed) = (count(&mut told), count(&mut asked), count(&mut ordered));
    assert!(published as u128 <= 2 * gaps, "{published} reports in {gaps} gaps");
    assert!(answered as u128 <= 8 * gaps, "{answered} answers in {gaps} gaps");
    assert_eq!(obeyed, 0, "a gateway published what the asker wished");
}

#[tokio::test]
async fn a_gateway_that_leaves_says_so_after_its_last_request() {
    let broker = TestBroker::start().await;
    let mut told = broker.connect().await.subscribe(metrics_subject("*", "*")).await.unwrap();
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
    let document = serde_json::json!({ "id": id, "metadata": { "natsway.wire": "1" }, "endpoints": [endpoint] });
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
    let broker = TestBroker::start().await;
    let client = broker.connect().await;
    let gateways =
        [Gateway::start(&broker, ROUTES, &[]).await, Gateway::start(&broker, ROUTES, &[]).await];
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
        shows(
            gateway,
            "natsway_worker_requests_total{subject=\"svc.test.blue\",worker=\"goes\"}",
            6.0,
        )
        .await;
        shows(gateway, "natsway_worker_in_flight{worker=\"stays\"}", 2.0).await;
    }
    drop(goes);
    for gateway in &gateways {
        shows(gateway, "natsway_workers{subject=\"svc.test.blue\"}", 1.0).await;
        assert!(!gateway.admin("/metrics").await.unwrap().text().contains("worker=\"goes\""));
    }
    drop(stays);
}

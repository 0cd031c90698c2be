//! A worker is a NATS micro service (ADR-32).

use std::time::Duration;

use axum::Router;
use axum::routing::get;
use http::StatusCode;
use natsway_testkit::{TestBroker, eventually, nats_cli};
use serde_json::{Value, json};

use crate::caller::{Caller, Draft};
use crate::stage::{FORMS, Form, SUBJECT, Worker, options};

fn router() -> Router {
    Router::new()
        .route("/", get(async || "quick"))
        .route("/fails", get(async || StatusCode::SERVICE_UNAVAILABLE))
}

/// Asks until there is an answer: one reader speaks for all, and another may be there before it.
async fn ask(caller: &Caller, subject: &str) -> Value {
    let request = async || caller.client.request(subject.to_owned(), "".into()).await;
    let answer = eventually(Duration::from_secs(60), request).await;
    serde_json::from_slice(&answer.payload).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_found_by_anyone_and_tells_true_figures() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    for form in FORMS {
        let options =
            options(&broker.url()).version("1.2.3").metadata("team", "maths").max_in_flight(77);
        let worker = Worker::start(&caller.client, form, options, router()).await;
        for subject in ["$SRV.PING", "$SRV.PING.test", &format!("$SRV.PING.test.{}", worker.id)] {
            let ping = ask(&caller, subject).await;
            assert_eq!(
                (&ping["id"], &ping["version"]),
                (&json!(worker.id), &json!("1.2.3")),
                "{subject}"
            );
        }
        let info = ask(&caller, "$SRV.INFO.test").await;
        assert_eq!(
            info["metadata"],
            json!({ "team": "maths", "natsway.version": "blue", "natsway.wire": "2" })
        );
        assert_eq!(info["endpoints"][0]["subject"], SUBJECT);

        for path in ["/", "/fails", "/"] {
            caller.call(SUBJECT, Draft::get(path)).await;
        }
        let stats = ask(&caller, "$SRV.STATS").await;
        let endpoint = &stats["endpoints"][0];
        assert_eq!(
            (&endpoint["num_requests"], &endpoint["num_errors"]),
            (&json!(3), &json!(1)),
            "{form:?}"
        );
        assert_eq!(endpoint["last_error"], "503: GET /fails: Service Unavailable");
        let total_ns = endpoint["processing_time"].as_u64().unwrap();
        assert!(total_ns > 0);
        assert_eq!(endpoint["average_processing_time"].as_u64().unwrap(), total_ns / 3);
        assert_eq!(endpoint["data"]["max_in_flight"], 77);
        // A request counts until its reply was handed over, which its caller may have by then.
        eventually(Duration::from_secs(20), async || {
            let stats = ask(&caller, "$SRV.STATS").await;
            let in_flight = &stats["endpoints"][0]["data"]["in_flight"];
            if *in_flight == 0 { Ok(()) } else { Err(format!("{in_flight} in flight")) }
        })
        .await;
        worker.leave().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_official_command_line_lists_it_and_shows_its_figures() {
    let Some(program) = tokio::task::spawn_blocking(nats_cli).await.unwrap() else { return };
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let first =
        Worker::start(&caller.client, Form::Spawned, options(&broker.url()), router()).await;
    let second =
        Worker::start(&caller.client, Form::PerCore, options(&broker.url()), router()).await;
    for path in ["/", "/fails", "/", "/"] {
        caller.call(SUBJECT, Draft::get(path)).await;
    }
    let nats = async |arguments: &[&str]| {
        let mut command = tokio::process::Command::new(program);
        command.args(["--server", &broker.url(), "--no-context", "micro"]).args(arguments);
        let output = command.output().await.unwrap();
        let text = [output.stdout, output.stderr]
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .concat();
        assert!(output.status.success(), "nats micro {arguments:?}: {text}");
        text
    };
    let list = nats(&["ls"]).await;
    for id in [&first.id, &second.id] {
        assert!(list.contains("test") && list.contains(id.as_str()), "{list}");
    }
    let info = nats(&["info", "test", &first.id]).await;
    for part in [SUBJECT, "natsway.version", "blue", &first.id] {
        assert!(info.contains(part), "{part} in {info}");
    }
    let stats = nats(&["stats", "test", "--json"]).await;
    let stats: Vec<Value> =
        serde_json::from_str(&stats).unwrap_or_else(|error| panic!("{error}: {stats}"));
    let sum = |figure: &str| -> u64 {
        stats.iter().filter_map(|worker| worker["endpoints"][0][figure].as_u64()).sum()
    };
    assert_eq!((stats.len(), sum("num_requests"), sum("num_errors")), (2, 4, 1), "{stats:?}");
    let table = nats(&["stats", "test"]).await;
    assert!(table.contains("test Service Statistics"), "{table}");
    first.leave().await;
    second.leave().await;
}

//! A worker is a NATS micro service (ADR-32).

use axum::Router;
use axum::routing::get;
use http::StatusCode;
use natsway_testkit::Broker;
use serde_json::{Value, json};

use crate::caller::{Caller, Draft};
use crate::stage::{FORMS, SUBJECT, Worker, options};

fn router() -> Router {
    Router::new()
        .route("/", get(async || "quick"))
        .route("/fails", get(async || StatusCode::SERVICE_UNAVAILABLE))
}

async fn ask(caller: &Caller, subject: &str) -> Value {
    let answer = caller.client.request(subject.to_owned(), "".into()).await.unwrap();
    serde_json::from_slice(&answer.payload).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_found_by_anyone_and_tells_true_figures() {
    let broker = Broker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    for form in FORMS {
        let options = options(&broker.url()).version("1.2.3").metadata("team", "maths").max_in_flight(77);
        let worker = Worker::start(&caller.client, form, options, router()).await;
        for subject in ["$SRV.PING", "$SRV.PING.test", &format!("$SRV.PING.test.{}", worker.id)] {
            let ping = ask(&caller, subject).await;
            assert_eq!((&ping["id"], &ping["version"]), (&json!(worker.id), &json!("1.2.3")), "{subject}");
        }
        let info = ask(&caller, "$SRV.INFO.test").await;
        assert_eq!(
            info["metadata"],
            json!({ "team": "maths", "natsway.version": "blue", "natsway.wire": "1" })
        );
        assert_eq!(info["endpoints"][0]["subject"], SUBJECT);

        for path in ["/", "/fails", "/"] {
            caller.call(SUBJECT, Draft::get(path)).await;
        }
        let stats = ask(&caller, "$SRV.STATS").await;
        let endpoint = &stats["endpoints"][0];
        assert_eq!((&endpoint["num_requests"], &endpoint["num_errors"]), (&json!(3), &json!(1)), "{form:?}");
        assert_eq!(endpoint["last_error"], "503: GET /fails: Service Unavailable");
        let total_ns = endpoint["processing_time"].as_u64().unwrap();
        assert!(total_ns > 0);
        assert_eq!(endpoint["average_processing_time"].as_u64().unwrap(), total_ns / 3);
        assert_eq!(
            (&endpoint["data"]["in_flight"], &endpoint["data"]["max_in_flight"]),
            (&json!(0), &json!(77))
        );
        worker.leave().await;
    }
}

//! The directives backend with real workers.

use std::num::NonZeroUsize;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use natsway_provisioner::backend::directives::Directives;
use natsway_provisioner::backend::{Backend, fleet, set};
use natsway_testkit::{TestBroker, eventually};
use natsway_wire::control::{Directive, directive_subject};
use natsway_worker::{Options, serve_scaled};
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(30);
const SUBJECT: &str = "svc.directed.blue";

/// Sets, as a provisioner would at each poll, until there are so many and none is on its way.
async fn reach(backend: &mut Directives, wanted: u32) {
    eventually(DEADLINE, async || {
        set(backend, wanted).await.map_err(|error| error.to_string())?;
        let fleet = fleet(&backend.instances().await.map_err(|error| error.to_string())?);
        if (fleet.ready, fleet.starting) == (wanted, 0) {
            Ok(())
        } else {
            Err(format!("{fleet:?}"))
        }
    })
    .await;
}

#[tokio::test]
async fn sets_follow_directives_between_the_workers_bounds() {
    let broker = TestBroker::start().await;
    let stop = CancellationToken::new();
    let router = Router::new().route("/", get(async || "ok"));
    let workers: Vec<_> = (0..2)
        .map(|_| {
            let options = Options::new(SUBJECT)
                .broker(natsway_worker::BrokerConfig::new(&broker.url()).unwrap());
            let most = NonZeroUsize::new(3).unwrap();
            tokio::spawn(serve_scaled(
                options,
                most,
                router.clone(),
                stop.clone().cancelled_owned(),
            ))
        })
        .collect();
    let mut backend = Directives::new(broker.connect().await, SUBJECT.parse().unwrap());
    eventually(DEADLINE, async || fleet(&backend.instances().await.unwrap()).ready == 2).await;
    reach(&mut backend, 6).await;
    let error = eventually(DEADLINE, async || backend.start().await.err()).await.to_string();
    assert!(error.contains("raise their --max-sets"), "{error}");
    // What was ordered at the ceiling by chance does not count as starting for ever.
    reach(&mut backend, 6).await;
    reach(&mut backend, 2).await;
    let error = eventually(DEADLINE, async || backend.stop("").await.err()).await.to_string();
    assert!(error.contains("down to one set"), "{error}");
    assert!(
        backend.stop("").await.unwrap_err().is_floor(),
        "two workers with one set each are no trouble"
    );

    // A directive says what its subject says; what does not is refused, and counted.
    let client = broker.connect().await;
    let subject = directive_subject(Directive::ScaleOut, &SUBJECT.parse().unwrap());
    for message in ["rubbish", r#"{"directive":"scale-in"}"#] {
        let answer = client.request(subject.clone(), message.into()).await.unwrap();
        let answer: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
        assert!(answer["error"].as_str().unwrap().contains("expected"), "{answer}");
    }
    assert_eq!(fleet(&backend.instances().await.unwrap()).ready, 2, "nobody obeyed");
    stop.cancel();
    let mut refused = 0;
    for worker in workers {
        refused += worker.await.unwrap().unwrap().refused_directives;
    }
    assert_eq!(refused, 2);
}

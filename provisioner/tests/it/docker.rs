//! The Docker backend, by the engine's own protocol.

use std::time::Duration;

use natsway_provisioner::backend::docker::{Docker, DockerRules, OWNER};
use natsway_provisioner::backend::{Backend, fleet, set};
use natsway_provisioner::sample::Fleet;
use natsway_testkit::eventually;

use crate::engine::Engine;

const DEADLINE: Duration = Duration::from_secs(20);

fn rules(engine: &Engine) -> DockerRules {
    DockerRules {
        socket: engine.socket(),
        project: "shop".to_owned(),
        service: "worker".to_owned(),
        ready_after: Duration::ZERO,
        stop_deadline: Duration::from_secs(25),
    }
}

fn docker(engine: &Engine) -> Docker {
    Docker::new(rules(engine))
}

async fn counted(docker: &mut Docker) -> Fleet {
    fleet(&docker.instances().await.unwrap())
}

#[tokio::test]
async fn containers_are_cloned_for_compose_and_the_newest_leave_first() {
    let engine = Engine::start();
    let mut docker = docker(&engine);
    set(&mut docker, 4).await.unwrap();
    assert_eq!(engine.running(), 4);
    {
        let containers = engine.containers();
        let mut numbers: Vec<u32> = containers.iter().map(|container| container.number()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, [1, 2, 3, 4], "no number twice");
        let clones = containers.iter().filter(|container| container.label(OWNER).is_some());
        for clone in clones {
            assert_eq!(
                clone.label("com.docker.compose.config-hash"),
                Some("77"),
                "Compose takes it for its own"
            );
            assert_eq!(clone.name, format!("shop-worker-{}", clone.number()));
            assert!(clone.config["Hostname"].is_null(), "each has a host name of its own");
            let networks = clone.config["NetworkingConfig"]["EndpointsConfig"].as_object().unwrap();
            assert!(networks.keys().eq(["shop_back", "shop_default"]), "{networks:?}");
        }
    }
    set(&mut docker, 2).await.unwrap();
    assert_eq!(
        counted(&mut docker).await,
        Fleet { ready: 2, starting: 0, stopping: 2, ..Fleet::default() }
    );
    // Another provisioner sees that they leave, and does not stop two more.
    let mut other = self::docker(&engine);
    assert_eq!(
        counted(&mut other).await,
        Fleet { ready: 2, starting: 0, stopping: 2, ..Fleet::default() }
    );
    eventually(DEADLINE, async || {
        let counted = counted(&mut other).await;
        (counted == Fleet { ready: 2, starting: 0, stopping: 0, ..Fleet::default() })
            .then_some(())
            .ok_or(counted)
    })
    .await;
    let containers = engine.containers();
    let mut left: Vec<u32> = containers.iter().map(|container| container.number()).collect();
    left.sort_unstable();
    assert_eq!(left, [1, 2], "what was cloned is removed when it has ended");
}

#[tokio::test]
async fn compose_up_resets_the_scale_and_the_next_poll_sets_it_right() {
    let engine = Engine::start();
    let mut docker = docker(&engine);
    set(&mut docker, 5).await.unwrap();
    engine.compose_up(1);
    assert_eq!(counted(&mut docker).await.present(), 1);
    set(&mut docker, 5).await.unwrap();
    assert_eq!(engine.running(), 5);
}

#[tokio::test]
async fn what_compose_made_is_stopped_with_time_to_finish_and_not_removed() {
    let engine = Engine::start();
    let mut docker = docker(&engine);
    set(&mut docker, 0).await.unwrap();
    eventually(DEADLINE, async || engine.running() == 0).await;
    counted(&mut docker).await;
    let containers = engine.containers();
    assert_eq!((containers.len(), containers[0].stop_s), (1, Some(25)));
    assert_eq!(containers[0].name, "shop-worker-1", "Compose may start it again under its name");
}

#[tokio::test]
async fn what_another_began_to_stop_is_stopped() {
    let engine = Engine::start();
    let mut docker = docker(&engine);
    set(&mut docker, 2).await.unwrap();
    // It renamed the newest, and was killed before it told it.
    engine.containers()[1].name.push_str("-natsway-leaving");
    assert_eq!(
        counted(&mut docker).await,
        Fleet { ready: 1, starting: 0, stopping: 1, ..Fleet::default() }
    );
    eventually(DEADLINE, async || {
        counted(&mut docker).await;
        let containers = engine.containers();
        (containers.len() == 1).then_some(()).ok_or(containers.clone())
    })
    .await;
}

#[tokio::test]
async fn what_cannot_be_started_is_not_left_behind() {
    let engine = Engine::start();
    let mut docker = docker(&engine);
    engine.containers()[0].config["Labels"]["refuse"] = serde_json::json!("x");
    for _ in 0..5 {
        let error = set(&mut docker, 2).await.unwrap_err().to_string();
        assert!(error.contains("no such network"), "{error}");
    }
    assert_eq!(engine.containers().len(), 1);
    // Nor what was made by somebody who was killed before it was started.
    engine.containers()[0].config["Labels"].as_object_mut().unwrap().remove("refuse");
    set(&mut docker, 3).await.unwrap();
    for (age_s, container) in [50, 500].into_iter().zip(&mut engine.containers()[1..]) {
        (container.state, container.age_s) = ("created".to_owned(), age_s);
    }
    assert_eq!(counted(&mut docker).await.present(), 1);
    assert_eq!(engine.containers().len(), 2, "the other one may be started in a moment");
}

#[tokio::test]
async fn what_cannot_be_done_says_what_can() {
    let engine = Engine::start();
    engine.containers().clear();
    let error = set(&mut docker(&engine), 1).await.unwrap_err().to_string();
    assert!(error.contains("docker compose up"), "{error}");
    engine.compose_up(1);
    engine.containers()[0].config["Labels"]["denied"] = serde_json::json!("x");
    let error = set(&mut docker(&engine), 2).await.unwrap_err().to_string();
    assert!(
        error.contains("POST /containers/create: 403 Forbidden: the proxy before the engine"),
        "{error}"
    );
    let nowhere = DockerRules { socket: "/no/such.sock".into(), ..rules(&engine) };
    let error = Docker::new(nowhere).instances().await.unwrap_err().to_string();
    assert!(error.contains("is the engine running"), "{error}");
}

//! Rollouts from the command line to the workers, which are scripted here.

use std::process::Output;

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt;
use natsway_routes::document::RouteDocument;
use natsway_routes::rollout::Phase;
use natsway_routes::store::{BUCKET, RouteStore};
use natsway_testkit::{TestBroker, eventually};
use natsway_wire::control::drain_subject;

use crate::backend::{Backend, ok, response, settled};
use crate::fixture::{DEADLINE, Gateway};

const ROUTES: &str = r#"
    [[route]]
    name = "test"
    path = "/{*rest}"
    timeout = "5s"
    try_timeout = "300ms"
    target = [
        { version = "blue", subject = "svc.test.blue" },
        { version = "green", subject = "svc.test.green", weight = 0 },
    ]
"#;

/// Announces a worker of `svc.test.<version>` as ADR-32 has it, until it is asked to leave.
async fn announce(broker: &TestBroker, version: &'static str) {
    let client = broker.connect().await;
    let mut questions = client.subscribe("$SRV.INFO").await.unwrap();
    let service = format!("svc.test.{version}").parse().unwrap();
    let mut drains = client.subscribe(drain_subject(&service)).await.unwrap();
    settled(&client).await;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                Some(question) = questions.next() => {
                    let info = format!(r#"{{"endpoints":[{{"subject":"svc.test.{version}"}}]}}"#);
                    client.publish(question.reply.unwrap(), info.into()).await.unwrap();
                }
                _ = drains.next() => return,
            }
        }
    });
}

async fn cli(broker: &TestBroker, arguments: &[&str]) -> Output {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_apiproxy"));
    command.arg("rollout").args(arguments).args(["--nats-url", &broker.url()]);
    command.output().await.unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), output.stderr.as_slice()].concat())
        .into_owned()
}

async fn document(client: &Client) -> RouteDocument {
    let store = RouteStore::open(client.clone(), BUCKET).await.unwrap();
    RouteDocument::from_json(&store.get("test").await.unwrap().unwrap().bytes).unwrap()
}

fn weights(document: &RouteDocument) -> Vec<u32> {
    document.weights().map(|(_, weight)| weight).collect()
}

#[tokio::test]
async fn blue_green_switches_every_gateway_and_abort_switches_back() {
    let broker = TestBroker::builder().jetstream().start().await;
    let _blue = Backend::saying(&broker, "blue").await;
    let _green = Backend::start_at(&broker, "svc.test.green", |_, _| vec![ok("green")]).await;
    let gateways = [Gateway::launch_live(&broker, ROUTES), Gateway::launch_live(&broker, ROUTES)];
    for gateway in &gateways {
        gateway.ready().await;
    }
    // Nobody announces green yet: nothing changes.
    let start = ["start", "test", "--to", "green", "--strategy", "blue-green", "--follow"];
    let refused = cli(&broker, &start).await;
    assert_eq!(refused.status.code(), Some(5), "{}", text(&refused));
    assert!(text(&refused).contains("no worker announces svc.test.green"), "{}", text(&refused));
    let client = broker.connect().await;
    assert_eq!(weights(&document(&client).await), [100, 0]);

    announce(&broker, "blue").await;
    announce(&broker, "green").await;
    let done = cli(&broker, &start).await;
    assert_eq!(done.status.code(), Some(0), "{}", text(&done));
    assert!(text(&done).contains("it may be stopped"), "{}", text(&done));
    for gateway in &gateways {
        for _ in 0..20 {
            assert_eq!(gateway.get("/").await.text(), "green", "no gateway sends to blue any more");
        }
    }
    // Every gateway stands in for the version that was left.
    eventually(DEADLINE, async || {
        let standing = |gateway: &Gateway| {
            gateway.process.stderr().contains("standing in for a version that was left")
        };
        gateways.iter().all(standing)
    })
    .await;
    let status = cli(&broker, &["status", "test"]).await;
    for expected in ["blue -> green", "phase     promoted", "100", "127.0.0.1", "current"] {
        assert!(text(&status).contains(expected), "{expected}: {}", text(&status));
    }

    // One command back.
    let back = cli(&broker, &["abort", "test", "--follow"]).await;
    assert_eq!(back.status.code(), Some(0), "{}", text(&back));
    for gateway in &gateways {
        eventually(DEADLINE, async || gateway.get("/").await.text() == "blue").await;
    }
}

#[tokio::test]
async fn the_old_workers_are_asked_to_leave_when_that_was_wished() {
    let broker = TestBroker::builder().jetstream().start().await;
    let _blue = Backend::saying(&broker, "blue").await;
    let _green = Backend::start_at(&broker, "svc.test.green", |_, _| vec![ok("green")]).await;
    let gateway = Gateway::launch_live(&broker, ROUTES);
    gateway.ready().await;
    announce(&broker, "blue").await;
    announce(&broker, "green").await;
    let start =
        ["start", "test", "--to", "green", "--strategy", "blue-green", "--stop-old", "--follow"];
    let done = cli(&broker, &start).await;
    assert!(text(&done).contains("the workers of blue have left"), "{}", text(&done));
    assert_eq!(done.status.code(), Some(0));
}

#[tokio::test]
async fn workers_that_are_silent_are_not_said_to_have_left() {
    let broker = TestBroker::builder().jetstream().start().await;
    let _blue = Backend::saying(&broker, "blue").await;
    let _green = Backend::start_at(&broker, "svc.test.green", |_, _| vec![ok("green")]).await;
    let gateway = Gateway::launch_live(&broker, ROUTES);
    gateway.ready().await;
    announce(&broker, "green").await;
    // A worker of blue that is there, and neither announces itself nor answers: it may be frozen.
    let frozen = broker.connect().await;
    let asked = frozen.subscribe(drain_subject(&"svc.test.blue".parse().unwrap())).await.unwrap();
    settled(&frozen).await;
    let start = ["start", "test", "--to", "green", "--strategy", "blue-green", "--stop-old"];
    assert_eq!(cli(&broker, &start).await.status.code(), Some(0));
    // Asked again and again, for as long as it takes to know.
    asked.take(3).for_each(async |_| ()).await;
    let client = broker.connect().await;
    assert_eq!(document(&client).await.rollout.unwrap().phase, Phase::Stopping);
    drop(frozen);
    eventually(DEADLINE, async || {
        let rollout = document(&client).await.rollout.unwrap();
        (rollout.phase == Phase::Promoted).then_some(()).ok_or(rollout.phase)
    })
    .await;
    let rollout = document(&client).await.rollout.unwrap();
    assert_eq!(rollout.history.last().unwrap().what, "the workers of blue have left");
}

#[tokio::test]
async fn a_rollout_begins_where_the_old_version_has_all_of_the_traffic_or_is_told_to_take_over() {
    let broker = TestBroker::builder().jetstream().start().await;
    let _green = Backend::start_at(&broker, "svc.test.green", |_, _| vec![ok("green")]).await;
    let gateway = Gateway::launch_live(&broker, &ROUTES.replace("weight = 0", "weight = 100"));
    gateway.ready().await;
    announce(&broker, "green").await;
    let start = ["start", "test", "--to", "green", "--strategy", "blue-green", "--follow"];
    let refused = cli(&broker, &start).await;
    assert_eq!(refused.status.code(), Some(1), "{}", text(&refused));
    for told in ["green has traffic already", "weight 100 beside 100 of blue", "--take-over"] {
        assert!(text(&refused).contains(told), "{told}: {}", text(&refused));
    }
    let client = broker.connect().await;
    assert_eq!(weights(&document(&client).await), [100, 100], "it cut nothing");
    let done = cli(&broker, &[&start[..], &["--take-over"]].concat()).await;
    assert_eq!(done.status.code(), Some(0), "{}", text(&done));
    assert_eq!(weights(&document(&client).await), [0, 100]);
}

#[tokio::test]
async fn a_canary_that_fails_goes_back_by_itself_and_says_why() {
    let broker = TestBroker::builder().jetstream().start().await;
    let _blue = Backend::saying(&broker, "blue").await;
    // Sound when it is checked, bad for users.
    let _green = Backend::start_at(&broker, "svc.test.green", |_, request| {
        vec![if request.path_and_query == "/health" {
            ok("fine")
        } else {
            response(500, &[], "no")
        }]
    })
    .await;
    announce(&broker, "green").await;
    let gateway = Gateway::launch_live(&broker, ROUTES);
    gateway.ready().await;
    let start = [
        "start", "test", "--to", "green", "--steps", "50,100", "--hold", "1s", "--smoke", "/health",
    ];
    let started = cli(&broker, &start).await;
    assert_eq!(started.status.code(), Some(0), "{}", text(&started));
    let again = cli(&broker, &start).await;
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again).contains("abort it first"), "{}", text(&again));
    // Going back is a success where it was asked for.
    let aborted = cli(&broker, &["abort", "test", "--follow"]).await;
    assert_eq!(aborted.status.code(), Some(0), "{}", text(&aborted));
    assert_eq!(cli(&broker, &start).await.status.code(), Some(0));

    let client = broker.connect().await;
    let mut seen = 0;
    eventually(DEADLINE, async || {
        seen += usize::from(gateway.get("/").await.status == 500);
        let document = document(&client).await;
        let phase = document.rollout.as_ref().unwrap().phase;
        (phase == Phase::RolledBack).then_some(()).ok_or(phase)
    })
    .await;
    let document = document(&client).await;
    assert_eq!(weights(&document), [100, 0]);
    let reason = document.rollout.unwrap().reason.unwrap();
    assert!(reason.starts_with("worse: errors are "), "{reason}");
    let listed = cli(&broker, &["ls"]).await;
    assert!(
        text(&listed).contains("rolled-back") && text(&listed).contains(&reason),
        "{}",
        text(&listed)
    );
}

#[tokio::test]
async fn a_rollout_survives_the_gateway_that_drives_it() {
    let broker = TestBroker::builder().jetstream().start().await;
    let _blue = Backend::saying(&broker, "blue").await;
    let _green = Backend::start_at(&broker, "svc.test.green", |_, _| vec![ok("green")]).await;
    announce(&broker, "green").await;
    let mut gateways = vec![Gateway::launch_live(&broker, ROUTES)];
    gateways[0].ready().await;
    let start = [
        "start",
        "test",
        "--to",
        "green",
        "--steps",
        "30,60",
        "--hold",
        "1s",
        "--min-requests",
        "5",
    ];
    assert_eq!(cli(&broker, &start).await.status.code(), Some(0));
    let client = broker.connect().await;
    // At each step, and whenever a new one drives, it is killed.
    let mut killed = Vec::new();
    loop {
        let rollout = document(&client).await.rollout.unwrap();
        let at = (rollout.phase, rollout.step);
        if !rollout.phase.is_active() {
            break assert_eq!(rollout.phase, Phase::Promoted, "{:?}", rollout.history);
        }
        if !killed.contains(&at) {
            killed.push(at);
            gateways.pop().unwrap().process.kill9();
            let next = Gateway::launch_live(&broker, ROUTES);
            next.ready().await;
            gateways.push(next);
        }
        gateways[0].get("/").await;
    }
    assert!(killed.len() >= 3, "{killed:?}");
    assert_eq!(gateways[0].get("/").await.text(), "green");
}

#[tokio::test]
async fn operators_are_told_what_cannot_be_done() {
    let broker = TestBroker::builder().jetstream().start().await;
    let gateway = Gateway::launch_live(&broker, ROUTES);
    gateway.ready().await;
    for (arguments, code, told) in [
        (&["status", "nowhere"][..], 4, "there is no route \"nowhere\""),
        (&["start", "nowhere", "--to", "x"], 4, "there is no route"),
        (&["start", "test", "--to", "red"], 1, "it has blue, green"),
        (&["start", "test", "--to", "blue"], 1, "has all of the traffic already"),
        (
            &["start", "test", "--to", "green", "--steps", "50,5"],
            1,
            "each larger than the one before",
        ),
        (&["start", "test", "--to", "green", "--steps", "100"], 1, "nothing to compare with"),
        (&["pause", "test"], 1, "no rollout of this route is under way"),
        (&["abort", "test"], 1, "no rollout of this route is under way"),
        (&["start", "test"], 2, "--to"),
    ] {
        let output = cli(&broker, arguments).await;
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", text(&output));
        assert!(text(&output).contains(told), "{arguments:?}: {}", text(&output));
    }
    let none = Bytes::from(cli(&broker, &["ls", "--json"]).await.stdout);
    assert_eq!(none, "[]\n");
}

#[tokio::test]
async fn the_command_line_completes_in_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_apiproxy"));
        let output = command.args(["completions", shell]).output().await.unwrap();
        assert!(output.status.success() && text(&output).contains("rollout"), "{shell}");
    }
}

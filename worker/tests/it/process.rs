//! The `worker` program: signals, exit codes, logs.

use std::path::Path;
use std::time::Duration;

use http::StatusCode;
use natsway_testkit::{Process, ProcessBuilder, TestBroker, free_port};
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;

use crate::caller::{Caller, Draft};
use crate::flood::Flood;
use crate::stage::SUBJECT;

const PATIENCE: Duration = Duration::from_secs(60);

fn worker(url: &str) -> ProcessBuilder {
    let program = Path::new(env!("CARGO_BIN_EXE_worker"));
    Process::builder(program).args(["--nats-url", url, "--subject", SUBJECT])
}

async fn serving(url: &str) -> Process {
    let mut process = worker(url).start();
    process.wait_for_line("serving", PATIENCE).await;
    process
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signal_has_it_finish_and_leave_with_status_0() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut process = serving(&broker.url()).await;
        caller.send(SUBJECT, Draft::get("/slow?ms=500")).await;
        caller.accepted().await;
        process.signal(signal);
        assert_eq!(caller.response().await.body, r#"{"waited_ms":500}"#);
        assert!(process.wait_exit(PATIENCE).await.success());
        process.wait_for_line("left", PATIENCE).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let mut process = serving(&broker.url()).await;
    caller.send(SUBJECT, Draft::get("/slow?ms=60000").deadline_ms(120_000)).await;
    caller.accepted().await;
    process.terminate();
    process.wait_for_line("a second signal leaves at once", PATIENCE).await;
    process.terminate();
    assert_eq!(process.wait_exit(Duration::from_secs(5)).await.code(), Some(130));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_waited_for_and_said_so_once() {
    let port = free_port();
    let mut process = worker(&format!("nats://127.0.0.1:{port}")).start();
    process.wait_for_line("broker not reached, trying again", PATIENCE).await;
    // Time for some more tries.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let broker = TestBroker::builder().port(port).start().await;
    process.wait_for_line("broker reached", PATIENCE).await;
    process.wait_for_line("serving", PATIENCE).await;
    let mut caller = Caller::new(broker.connect().await).await;
    assert_eq!(caller.call(SUBJECT, Draft::get("/status/201")).await.status, StatusCode::CREATED);
    assert_eq!(process.stderr().matches("broker not reached").count(), 1, "{}", process.stderr());
    process.terminate();
    assert!(process.wait_exit(PATIENCE).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_can_be_stopped_while_the_broker_is_away() {
    let mut process = worker(&format!("nats://127.0.0.1:{}", free_port())).start();
    process.wait_for_line("broker not reached", PATIENCE).await;
    process.terminate();
    assert!(process.wait_exit(Duration::from_secs(5)).await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_too_old_is_refused_with_a_clear_word() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("nats://{}", listener.local_addr().unwrap());
    let old_broker = tokio::spawn(async move {
        let mut connections = Vec::new();
        loop {
            let mut socket = BufReader::new(listener.accept().await.unwrap().0);
            let info =
                r#"{"server_id":"OLD","version":"2.10.29","max_payload":1048576,"headers":true}"#;
            socket.get_mut().write_all(format!("INFO {info}\r\n").as_bytes()).await.unwrap();
            let mut line = String::new();
            while !line.starts_with("PING") {
                line.clear();
                socket.read_line(&mut line).await.unwrap();
            }
            socket.get_mut().write_all(b"PONG\r\n").await.unwrap();
            connections.push(socket);
        }
    });
    let mut process = worker(&url).start();
    assert_eq!(process.wait_exit(PATIENCE).await.code(), Some(1));
    let log = process.stderr();
    assert!(log.contains("is version 2.10.29: Natsway needs nats-server 2.11 or later"), "{log}");
    old_broker.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told_in_plain_sentences_and_end_it_with_status_2() {
    // In a directory that there is: what cannot be a path is not shown, for it may be the secret
    // itself.
    let directory = tempfile::tempdir().unwrap();
    let creds = directory.path().join("no-such.creds").display().to_string();
    for (arguments, told) in [
        (
            &["--queue-group", "a b", "--service-version", "x"][..],
            "worker: version \"x\": expected a SemVer",
        ),
        (&["--queue-group", "a b"], "worker: queue group \"a b\""),
        (&["--nats-creds", &creds], &format!("worker: credentials file {creds}: No such file")),
        (
            &["--nats-ca", "/dev/null"],
            "worker: file of certificate authorities /dev/null: it holds no certificate",
        ),
        (
            &["--run-log", "no/such/directory/log"],
            "worker: run log no/such/directory/log: No such file",
        ),
        (&["--log", "a=b=c"], "worker: log filter \"a=b=c\""),
        (&["--max-in-flight", "0"], "'0' for '--max-in-flight"),
        (&["--drain-timeout", "8"], "expected a time such as 500ms"),
    ] {
        let mut process = worker("nats://127.0.0.1:1").args(arguments).start();
        assert_eq!(process.wait_exit(PATIENCE).await.code(), Some(2), "{arguments:?}");
        let said = process.stderr();
        assert_eq!(said.matches(told).count(), 1, "{arguments:?}: {said}");
        assert!(said.matches("No such file").count() < 2 && !said.contains(" ERROR "), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn its_limits_have_variables_that_the_gateway_does_not_read() {
    let variables = [
        ("NATSWAY_MAX_IN_FLIGHT", "0"),
        ("NATSWAY_MAX_IN_FLIGHT_BYTES", "0"),
        ("NATSWAY_DRAIN_TIMEOUT", "0"),
    ];
    let broker = TestBroker::start().await;
    let builder = variables
        .iter()
        .fold(worker(&broker.url()), |builder, (name, value)| builder.env(name, value));
    builder.start().wait_for_line("serving", PATIENCE).await;
    let mut process = worker(&broker.url()).env("NATSWAY_WORKER_MAX_IN_FLIGHT", "0").start();
    assert_eq!(process.wait_exit(PATIENCE).await.code(), Some(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_logged_once_and_what_ran_is_on_record() {
    let broker = TestBroker::start().await;
    let mut caller = Caller::new(broker.connect().await).await;
    let directory = tempfile::tempdir().unwrap();
    let run_log = directory.path().join("ran");
    for per_core in ["false", "true"] {
        // A backtrace that was asked for is given besides.
        let program = worker(&broker.url()).env("RUST_BACKTRACE", "0");
        let program = program.env("NATSWAY_RUN_LOG", &run_log).env("NATSWAY_PER_CORE", per_core);
        let mut process = program.start();
        process.wait_for_line("serving", PATIENCE).await;
        let response = caller.call(SUBJECT, Draft::get("/panic").header("x-nonce", "one")).await;
        assert_eq!(response.status, StatusCode::INTERNAL_SERVER_ERROR);
        caller.call(SUBJECT, Draft::post("/", "").header("x-nonce", "two")).await;
        let said = process.stderr();
        assert_eq!(said.matches("handler panicked panic=\"asked to panic\"").count(), 1, "{said}");
        assert_eq!(said.matches("asked to panic").count(), 1, "by our line alone: {said}");
        assert!(said.contains("worker/src/bin/worker/demo.rs:"), "{said}");
        process.terminate();
        assert!(process.wait_exit(PATIENCE).await.success());
        assert_eq!(std::fs::read_to_string(&run_log).unwrap(), "one\ntwo\n");
        std::fs::remove_file(&run_log).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_replaced_one_after_the_other_under_load_cost_no_request() {
    let broker = TestBroker::start().await;
    let mut workers = vec![serving(&broker.url()).await, serving(&broker.url()).await];
    let flood = Flood::start(broker.port(), 500);
    flood.reaches(2_000).await;
    for _ in 0..4 {
        workers.push(serving(&broker.url()).await);
        let mut oldest = workers.remove(0);
        oldest.terminate();
        assert!(oldest.wait_exit(PATIENCE).await.success());
        flood.reaches(flood.sent() + 2_000).await;
    }
    let tally = flood.stop();
    assert_eq!((tally.unanswered, tally.twice), (0, 0), "{tally:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_may_not_hear_its_requests_says_which_and_ends() {
    let lines = "authorization { users: [{ user: w, password: p, permissions: { publish: \">\", \
                 subscribe: { allow: [\"_INBOX_worker.>\", \"natsway.>\", \"$SRV.>\", \
                 \"svc.other.blue q\"] } } }] }";
    let broker = TestBroker::builder().config_lines(lines).start().await;
    let url = format!("nats://w:p@127.0.0.1:{}", broker.port());
    let mut process = worker(&url).start();
    assert_eq!(process.wait_exit(PATIENCE).await.code(), Some(1));
    let told = process.stderr();
    assert!(told.contains("the broker does not permit this worker to subscribe to"), "{told}");
    assert!(told.contains(SUBJECT) && told.contains("docs/security.md"), "{told}");
    assert!(!told.contains("serving subject"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_broker_is_told_by_the_address_that_was_dialled() {
    let broker = TestBroker::start().await;
    let address = format!("localhost:{}", broker.port());
    let mut process = serving(&address).await;
    assert!(process.stderr().contains(&format!("broker={address}")), "{}", process.stderr());
    process.terminate();
    assert!(process.wait_exit(PATIENCE).await.success());
}

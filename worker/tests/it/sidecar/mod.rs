//! Apps that know nothing of us, behind sidecars, as real processes.

mod ending;
mod first_process;
mod stand;
mod starting;

use std::time::Duration;

use http::Request;
use natsway_testkit::{Process, eventually};
use nix::sys::signal::Signal;

use self::stand::{PATIENCE, Stand, get, lives, post, send};
use crate::stage::SUBJECT;

#[tokio::test(flavor = "multi_thread")]
async fn an_app_sees_what_its_client_sent_and_who_that_was() {
    let mut stand = Stand::start("strip_prefix = \"/api\"").await;
    let _sidecar = stand.serve_app(&[], &[]).await;
    let request = Request::put("/api/things?x=1")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .header("connection", "x-mine")
        .header("x-mine", "1")
        .header("x-forwarded-for", "203.0.113.9");
    let answer = send(stand.port, request.body("four".into()).unwrap()).await.unwrap();
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(
        (&answer.json["method"], &answer.json["path"]),
        (&"PUT".into(), &"/things?x=1".into())
    );
    assert_eq!(answer.json["body"], "four");
    assert_eq!(answer.json["variables"], serde_json::json!([]), "ours are not the app's");
    for (name, value) in [
        ("host", "shop.example:8443"),
        ("cookie", "a=1; b=2"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-host", "shop.example:8443"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-port", "8443"),
        ("x-forwarded-prefix", "/api"),
        ("forwarded", "for=127.0.0.1;host=\"shop.example:8443\";proto=http"),
    ] {
        assert_eq!(answer.seen(name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(answer.seen("x-mine"), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_a_streamed_response_reach_clients_of_http_1() {
    let mut stand = Stand::start("").await;
    let _sidecar = stand.serve_app(&[], &[]).await;
    // A small one goes by a message, a large one by a stream.
    for bytes in [100, 1_000_000] {
        let request = Request::get(format!("/trailers?bytes={bytes}")).header("te", "trailers");
        let answer = send(stand.port, request.body("".into()).unwrap()).await.unwrap();
        assert_eq!(answer.trailers.get("x-checksum").unwrap(), "right", "{bytes} bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_stop_it_finishes_before_its_app_is_told_and_ends_as_that_does() {
    let mut stand = Stand::start("").await;
    let mut sidecar = stand.serve_app(&[], &[]).await;
    let port = stand.port;
    let slow = tokio::spawn(async move { get(port, "/slow?ms=1000").await });
    sidecar.made("began").await;
    sidecar.process.terminate();
    assert_eq!(slow.await.unwrap().unwrap().status, 200);
    let status = sidecar.process.wait_exit(PATIENCE).await;
    assert_eq!(status.code(), Some(7), "the app's own");
    let log = sidecar.process.stderr();
    let left = log.find(" left ").expect("the worker left");
    assert!(log.find("app: told to end").expect("the app was told") > left, "{log}");
    assert!(sidecar.process.stdout().contains("app: listening"), "its output is passed on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_does_not_end_is_killed() {
    let mut stand = Stand::start("").await;
    let mut sidecar = stand.serve_app(&["stubborn"], &["--stop-grace", "300ms"]).await;
    let app = sidecar.app();
    sidecar.process.terminate();
    assert_eq!(sidecar.process.wait_exit(PATIENCE).await.code(), Some(137));
    assert!(!lives(app));
}

#[tokio::test(flavor = "multi_thread")]
async fn it_joins_no_sooner_than_its_app_is_healthy() {
    let mut stand = Stand::start("").await;
    let mut sidecar = stand.start_app(&["unhealthy"], &[]);
    sidecar.process.wait_for_line("app started", PATIENCE).await;
    let refused = stand.get("/").await;
    assert_eq!((refused.status.as_u16(), &refused.json["code"]), (503, &"no_responders".into()));
    assert!(!sidecar.process.stderr().contains("serving subject"));
    sidecar.unmake("unhealthy");
    sidecar.process.wait_for_line("serving subject", PATIENCE).await;
    assert_eq!(stand.get("/").await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_app_is_started_again_and_costs_what_it_held_and_no_get() {
    let mut stand = Stand::start("").await;
    let first = stand.serve_app(&[], &[]).await;
    let _second = stand.serve_app(&[], &[]).await;
    let port = stand.port;
    // Enough that both have some.
    let gets: Vec<_> = (0..8)
        .map(|_| tokio::spawn(async move { get(port, "/slow?ms=700").await.unwrap() }))
        .collect();
    let posts: Vec<_> = (0..8)
        .map(|_| tokio::spawn(async move { post(port, "/slow?ms=700", "").await.unwrap() }))
        .collect();
    first.made("began").await;
    let killed = first.app();
    first.signal_app(Signal::SIGKILL);
    for get in gets {
        assert_eq!(get.await.unwrap().status, 200);
    }
    let mut lost = 0;
    for post in posts {
        let answer = post.await.unwrap();
        match answer.status.as_u16() {
            200 => {}
            502 => {
                assert_eq!(answer.json["code"], "upstream_broken");
                lost += 1;
            }
            _ => panic!("{answer:?}"),
        }
    }
    assert!(lost < 8, "those of the other one are none of its business");
    first.said("serving subject", 2).await;
    assert_ne!(first.app(), killed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_app_is_left_its_gets_go_elsewhere_and_it_comes_back() {
    let mut stand = Stand::start("").await;
    let first = stand.serve_app(&[], &[]).await;
    let _second = stand.serve_app(&[], &[]).await;
    first.signal_app(Signal::SIGSTOP);
    let port = stand.port;
    let gets: Vec<_> =
        (0..16).map(|_| tokio::spawn(async move { get(port, "/").await.unwrap() })).collect();
    for get in gets {
        assert_eq!(get.await.unwrap().status, 200);
    }
    first.said("app is unhealthy", 1).await;
    // By now it has left, so that a POST is safe, too.
    first.said(" left ", 1).await;
    for _ in 0..8 {
        assert_eq!(post(port, "/", "").await.unwrap().status, 200);
    }
    first.signal_app(Signal::SIGCONT);
    first.said("serving subject", 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_sidecar_takes_its_app_along() {
    let mut stand = Stand::start("").await;
    let mut sidecar = stand.serve_app(&[], &[]).await;
    let app = sidecar.app();
    assert!(lives(app));
    sidecar.process.kill9();
    eventually(PATIENCE, async || if lives(app) { Err("it lives") } else { Ok(()) }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_without_another_instance_is_told_to_be_down() {
    let mut stand = Stand::start("").await;
    // Its check says that it is well, whatever happens.
    let other = natsway_testkit::free_port().to_string();
    let mut sidecar = Process::builder(env!("CARGO_BIN_EXE_worker"))
        .args(["--nats-url", &stand.broker.url(), "--subject", SUBJECT, "--health", "true"])
        .args(["--upstream", &format!("http://127.0.0.1:{other}")])
        .start();
    sidecar.wait_for_line("serving subject", PATIENCE).await;
    for answer in [stand.get("/").await, post(stand.port, "/", "").await.unwrap()] {
        let told = (answer.status.as_u16(), &answer.json["code"]);
        assert_eq!(told, (502, &"upstream_down".into()));
    }
    // There is one now, and it gets them.
    let _second = stand.serve_app(&[], &[]).await;
    for _ in 0..8 {
        assert_eq!(post(stand.port, "/", "").await.unwrap().status, 200);
    }
    let client = stand.broker.connect().await;
    let question = format!("$SRV.STATS.{}", "test");
    let stats = client.request(question, "".into()).await.unwrap();
    let stats: serde_json::Value = serde_json::from_slice(&stats.payload).unwrap();
    assert!(stats["endpoints"][0]["data"]["upstream"]["down"].is_u64(), "{stats}");
}

#[tokio::test(flavor = "multi_thread")]
async fn signals_are_passed_on() {
    let mut stand = Stand::start("").await;
    let mut sidecar = stand.serve_app(&[], &[]).await;
    sidecar.process.signal(Signal::SIGHUP);
    sidecar.made("hup").await;
    assert_eq!(stand.get("/").await.status, 200);
}

fn sidecar(command: &[&str]) -> Process {
    // No broker is needed for an app that never becomes healthy.
    Process::builder(env!("CARGO_BIN_EXE_worker"))
        .args(["--nats-url", "nats://127.0.0.1:1", "--port-env", "PORT", "--"])
        .args(command)
        .start()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_ends_again_and_again_is_given_up_with_its_last_words() {
    let mut process = sidecar(&["sh", "-c", "echo one; echo no database >&2; exit 3"]);
    assert_eq!(process.wait_exit(PATIENCE).await.code(), Some(3));
    let log = process.stderr();
    assert_eq!(log.matches("app started").count(), 5, "{log}");
    let (_, words) = log.split_once("its last lines").expect("it says so");
    assert!(words.contains("\n  no database\n") && words.contains("\n  one\n"), "{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_is_named() {
    let mut process = sidecar(&["/no/such/program"]);
    assert_eq!(process.wait_exit(PATIENCE).await.code(), Some(127));
    assert!(process.stderr().contains("worker: /no/such/program: No such file"));
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_told() {
    for (arguments, told) in [
        (&["--upstream", "3000"][..], "\"3000\": expected http://host:port"),
        (&["--", "app"], "worker: a command to start, and no --upstream"),
        (&["--upstream", "http://a", "--misbehave", "hangs"], "cannot be used with"),
        (
            &["--upstream", "https://a", "--upstream-ca", "/no/such"],
            "worker: upstream: file of certificate authorities /no/such",
        ),
    ] {
        let mut process = Process::builder(env!("CARGO_BIN_EXE_worker")).args(arguments).start();
        assert_eq!(
            process.wait_exit(Duration::from_secs(10)).await.code(),
            Some(2),
            "{arguments:?}"
        );
        assert!(process.stderr().contains(told), "{arguments:?}: {}", process.stderr());
    }
}

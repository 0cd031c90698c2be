//! The broker is away, comes back, is cut off, or shuts down.

use std::time::{Duration, Instant};

use natsway_testkit::{Cluster, TcpLink, TestBroker, eventually, free_port};

use crate::backend::{Backend, ok};
use crate::fixture::{DEADLINE, Gateway, ROUTES};

#[tokio::test]
async fn a_gateway_without_a_broker_says_so_and_is_ready_once_it_is_there() {
    let port = free_port();
    let gateway = Gateway::launch(&format!("nats://127.0.0.1:{port}"), ROUTES, &[]);
    let not_ready = eventually(DEADLINE, async || gateway.admin("/readyz").await).await;
    assert_eq!(
        (not_ready.status, not_ready.text().as_str()),
        (503, "not connected to the broker\n")
    );
    assert_eq!(gateway.admin("/livez").await.unwrap().status, 200);
    assert_eq!(health(&gateway), (Some(1), "not connected to the broker\n".to_owned()));
    let started = Instant::now();
    let refused = gateway.post("/", "x").await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "not_connected"));
    assert!(started.elapsed() < Duration::from_secs(2), "at once, not after a time-out");

    let broker = TestBroker::builder().port(port).start().await;
    let _backend = Backend::saying(&broker, "now").await;
    gateway.ready().await;
    assert_eq!(health(&gateway), (Some(0), "ready\n".to_owned()));
    assert_eq!(gateway.get("/").await.text(), "now");
}

/// What a container engine asks, and the status that it goes by.
fn health(gateway: &Gateway) -> (Option<i32>, String) {
    let address = format!("0.0.0.0:{}", gateway.admin_port);
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_apiproxy"));
    let told = command.args(["healthcheck", "--admin-listen", &address]).output().unwrap();
    (told.status.code(), String::from_utf8(told.stdout).unwrap())
}

#[tokio::test]
async fn what_was_refused_while_the_broker_was_away_never_runs() {
    let mut broker = TestBroker::start().await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    broker.stop().await;
    eventually(DEADLINE, async || gateway.metric("natsway_broker_connections").await == 0.0).await;
    for _ in 0..50 {
        assert_eq!(gateway.post("/", "x").await.problem(), "not_connected");
    }
    broker.start_again().await;
    let backend = Backend::saying(&broker, "new").await;
    gateway.ready().await;
    assert_eq!(gateway.post("/", "fresh").await.text(), "new");
    assert_eq!(backend.seen.count(), 1, "only the request of after the return");
    assert_eq!(&backend.seen.last().body[..], b"fresh");
}

#[tokio::test]
async fn requests_that_were_out_when_the_connection_broke_are_504_or_tried_again() {
    let mut broker = TestBroker::start().await;
    let silent = Backend::start(&broker, |_, _| vec![]).await;
    let routes = ROUTES
        .replace("try_timeout = \"300ms\"", "try_timeout = \"5s\"")
        .replace("\"5s\"", "\"15s\"");
    let gateway = Gateway::start(&broker, &routes, &[]).await;
    let (mut unsafe_one, mut safe_one) = (gateway.client().await, gateway.client().await);
    unsafe_one.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    safe_one.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    eventually(DEADLINE, async || silent.seen.count() == 2).await;
    drop(silent);
    broker.kill9();
    let unknown = unsafe_one.reply(false).await.unwrap();
    assert_eq!((unknown.status, unknown.problem().as_str()), (504, "connection_lost"));
    broker.start_again().await;
    let _backend = Backend::saying(&broker, "again").await;
    let retried = safe_one.reply(false).await.unwrap();
    assert!(retried.text() == "again" || retried.status == 504, "{retried:?}");
}

#[tokio::test]
async fn a_paused_network_is_noticed_and_left() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "there").await;
    let link = TcpLink::to_port(broker.port()).await;
    let gateway = Gateway::launch(&link.url(), ROUTES, &[]);
    gateway.ready().await;
    assert_eq!(gateway.get("/").await.status, 200);
    link.pause();
    assert_eq!(gateway.post("/", "x").await.status, 504);
    // Pings stay unanswered; the gateway says that it is not ready.
    eventually(DEADLINE, async || gateway.metric("natsway_broker_connections").await == 0.0).await;
    assert_eq!(gateway.admin("/readyz").await.unwrap().status, 503);
    drop((link, backend));
}

#[tokio::test]
async fn a_broker_that_shuts_down_in_lame_duck_mode_costs_no_request() {
    let mut cluster = Cluster::start(2).await;
    let gateway = Gateway::launch(&cluster.url(), ROUTES, &[]);
    gateway.ready().await;
    // The backend sits at the server that stays.
    let _backend =
        Backend::start(&cluster[1], |_, request| vec![ok(request.path_and_query.as_str())]).await;
    let warm = eventually(DEADLINE, async || {
        Some(gateway.get("/warm").await).filter(|reply| reply.status == 200)
    })
    .await;
    assert_eq!(warm.text(), "/warm");
    cluster[0].lame_duck();
    let until = Instant::now() + Duration::from_secs(4);
    let mut client = gateway.client().await;
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        let path = format!("/{number}");
        let reply = client.post(&path, "").await.unwrap();
        assert_eq!((reply.status, reply.text()), (200, path));
    }
    assert!(number > 100, "{number} requests");
}

#[tokio::test]
async fn a_gateway_that_may_not_hear_what_it_needs_is_not_ready_and_names_it() {
    for (missing, told) in
        [("natsway.tombstone.>", "natsway.tombstone.>"), ("_INBOX_apiproxy.>", "_INBOX_apiproxy.")]
    {
        let needed =
            ["_INBOX_apiproxy.>", "natsway.metrics.*.*", "natsway.report", "natsway.tombstone.>"];
        let allowed: Vec<_> = needed.into_iter().filter(|subject| *subject != missing).collect();
        let lines = format!(
            "authorization {{ users: [{{ user: g, password: p, permissions: {{ publish: \">\", \
             subscribe: {{ allow: {allowed:?} }} }} }}] }}"
        );
        let broker = TestBroker::builder().config_lines(&lines).start().await;
        let gateway =
            Gateway::launch(&format!("nats://g:p@127.0.0.1:{}", broker.port()), ROUTES, &[]);
        let reason = eventually(DEADLINE, async || {
            gateway.admin("/readyz").await.filter(|reply| reply.text().contains("does not permit"))
        })
        .await;
        assert_eq!(reason.status, 503);
        assert!(reason.text().contains(told), "{reason:?}");
        let log = gateway.process.stderr();
        assert!(log.contains("the broker does not permit it") && log.contains(told), "{log}");
    }
}

//! SIGTERM: not ready, still accepting for the grace period, everything in hand finished.

use natsway_testkit::{TestBroker, eventually};

use crate::backend::{Backend, ok};
use crate::client::Client;
use crate::fixture::{DEADLINE, Gateway, ROUTES};

#[tokio::test]
async fn requests_in_hand_and_new_ones_are_answered_before_it_leaves() {
    let broker = TestBroker::start().await;
    let backend = Backend::start(&broker, |_, request| match request.path_and_query.as_str() {
        "/slow" => vec![],
        path => vec![ok(path)],
    })
    .await;
    let routes = ROUTES
        .replace("try_timeout = \"300ms\"", "try_timeout = \"5s\"")
        .replace("\"5s\"", "\"20s\"");
    let mut gateway =
        Gateway::start(&broker, &routes, &["--drain-grace", "1s", "--drain-timeout", "20s"]).await;
    let (mut slow, mut idle) = (gateway.client().await, gateway.client().await);
    assert_eq!(idle.get("/before").await.unwrap().header("connection"), None);
    slow.send("POST /slow HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    eventually(DEADLINE, async || {
        gateway.metric("natsway_in_flight{route=\"test\",version=\"blue\"}").await == 1.0
    })
    .await;

    gateway.process.terminate();
    let draining = eventually(DEADLINE, async || {
        gateway.admin("/readyz").await.filter(|reply| reply.status == 503)
    })
    .await;
    assert_eq!(draining.text(), "shutting down\n");
    // A connection that was open, and a new one, are served and asked to close.
    let (old, new) = (idle.get("/old").await.unwrap(), gateway.get("/new").await);
    assert_eq!((old.text().as_str(), old.header("connection")), ("/old", Some("close")));
    assert_eq!((new.text().as_str(), new.header("connection")), ("/new", Some("close")));
    // What is in hand is waited for beyond the grace period.
    eventually(DEADLINE, async || Client::connect(gateway.port).await.is_err()).await;
    backend.answer(1, ok("slow, but there")).await;
    assert_eq!(slow.reply(false).await.unwrap().text(), "slow, but there");
    assert!(gateway.process.wait_exit(DEADLINE).await.success());
    assert_eq!(backend.seen.count(), 4);
}

#[tokio::test]
async fn an_http2_connection_is_told_to_go_away_and_its_streams_are_finished() {
    let broker = TestBroker::start().await;
    let backend = Backend::start(&broker, |_, _| vec![]).await;
    let routes = ROUTES
        .replace("try_timeout = \"300ms\"", "try_timeout = \"5s\"")
        .replace("\"5s\"", "\"20s\"");
    let mut gateway =
        Gateway::start(&broker, &routes, &["--drain-grace", "200ms", "--drain-timeout", "20s"])
            .await;
    let stream = tokio::net::TcpStream::connect(("127.0.0.1", gateway.port)).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(hyper_util::rt::TokioExecutor::new(), io)
            .await
            .unwrap();
    let connection = tokio::spawn(connection);
    let request =
        http::Request::get("http://a/").body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
    let pending = tokio::spawn(sender.send_request(request));
    eventually(DEADLINE, async || {
        gateway.metric("natsway_in_flight{route=\"test\",version=\"blue\"}").await == 1.0
    })
    .await;
    gateway.process.terminate();
    eventually(DEADLINE, async || Client::connect(gateway.port).await.is_err()).await;
    backend.answer(0, ok("finished")).await;
    assert_eq!(pending.await.unwrap().unwrap().status(), 200);
    connection.await.unwrap().unwrap();
    assert!(gateway.process.wait_exit(DEADLINE).await.success());
}

#[tokio::test]
async fn connections_without_a_request_do_not_hold_it_up() {
    let broker = TestBroker::start().await;
    let mut gateway =
        Gateway::start(&broker, ROUTES, &["--drain-grace", "200ms", "--drain-timeout", "10m"])
            .await;
    let (silent, mut half_head) = (gateway.client().await, gateway.client().await);
    half_head.send("GET / HTTP/1.1\r\nho").await.unwrap();
    eventually(DEADLINE, async || gateway.metric("natsway_client_connections").await == 2.0).await;
    gateway.process.terminate();
    assert!(gateway.process.wait_exit(DEADLINE).await.success());
    drop((silent, half_head));
}

#[tokio::test]
async fn a_request_that_never_ends_does_not_keep_it_beyond_the_drain_timeout() {
    let broker = TestBroker::start().await;
    let backend = Backend::start(&broker, |_, _| vec![]).await;
    let routes = ROUTES.replace("timeout = \"5s\"", "timeout = \"10m\"");
    let mut gateway =
        Gateway::start(&broker, &routes, &["--drain-grace", "100ms", "--drain-timeout", "500ms"])
            .await;
    let mut stuck = gateway.client().await;
    stuck.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    eventually(DEADLINE, async || backend.seen.count() == 1).await;
    gateway.process.terminate();
    assert!(gateway.process.wait_exit(DEADLINE).await.success());
    assert!(gateway.process.stderr().contains("still in hand at the drain timeout"));
}

#[tokio::test]
async fn a_port_in_use_is_said_and_nothing_is_served() {
    let broker = TestBroker::start().await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let port = gateway.port.to_string();
    let mut second =
        Gateway::launch(&broker.url(), ROUTES, &["--listen", &format!("127.0.0.1:{port}")]);
    assert_eq!(second.process.wait_exit(DEADLINE).await.code(), Some(1));
    let said = second.process.stderr();
    assert!(said.contains(&format!("cannot listen on 127.0.0.1:{port}")), "{said}");
    assert!(said.contains("is another process using it?"), "{said}");
    assert_eq!(said.matches("Address already in use").count(), 1, "{said}");
}

#[tokio::test]
async fn what_has_to_be_changed_first_is_said_once_with_exit_code_2() {
    let listen = format!("127.0.0.1:{}", natsway_testkit::free_port());
    // In a directory that there is: what cannot be a path is not shown, for it may be the secret
    // itself.
    let directory = tempfile::tempdir().unwrap();
    let [creds, nkey, pem] = ["no-such.creds", "no-such.nkey", "no-such.pem"]
        .map(|name| directory.path().join(name).display().to_string());
    for (arguments, told) in [
        (["--nats-creds", &creds], format!("credentials file {creds}: No such file").as_str()),
        (["--nats-nkey", &nkey], format!("nkey file {nkey}: No such file").as_str()),
        (["--nats-ca", &pem], format!("certificate authorities {pem}: No such file").as_str()),
        (["--nats-ca", "/dev/null"], "authorities /dev/null: it holds no certificate in PEM"),
        (["--max-in-flight", "0"], "'0' for '--max-in-flight"),
    ] {
        let mut gateway = Gateway::launch("nats://127.0.0.1:1", ROUTES, &arguments);
        assert_eq!(gateway.process.wait_exit(DEADLINE).await.code(), Some(2), "{arguments:?}");
        let said = gateway.process.stderr();
        assert_eq!(
            (said.matches(told).count(), said.matches("No such file").count() < 2),
            (1, true),
            "{said}"
        );
    }
    let both = ["--listen", &listen, "--admin-listen", &listen];
    let mut gateway = Gateway::launch("nats://127.0.0.1:1", ROUTES, &both);
    assert_eq!(gateway.process.wait_exit(DEADLINE).await.code(), Some(2));
    let said = gateway.process.stderr();
    assert!(said.contains("give each an address of its own") && !said.contains("in use"), "{said}");
}

#[tokio::test]
async fn a_bad_route_file_is_refused_with_every_reason() {
    let broken = "[[route]]\nname = \"a b\"\npath = \"x\"\ntarget = [{ version = \"v\", subject = \
                  \"svc.>\" }]";
    let mut gateway = Gateway::launch("nats://127.0.0.1:1", broken, &[]);
    assert_eq!(gateway.process.wait_exit(DEADLINE).await.code(), Some(2));
    let said = gateway.process.stderr();
    for reason in ["name=\"a b\"", "path=\"x\"", "subject=\"svc.>\""] {
        assert!(said.contains(reason), "{reason} is not in {said}");
    }
}

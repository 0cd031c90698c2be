//! Each bound has its status, and nothing above it is published.

use natsway_testkit::{TestBroker, eventually};

use crate::backend::Backend;
use crate::fixture::{DEADLINE, Gateway, ROUTES};

#[tokio::test]
async fn a_body_above_the_limit_is_a_413_before_anything_is_published() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "x").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let said = gateway.post("/", &"x".repeat(65_537)).await;
    assert_eq!((said.status, said.problem().as_str()), (413, "too_large"));

    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
    let chunked = format!(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \
         chunked\r\n\r\n{chunk}{chunk}{chunk}0\r\n\r\n"
    );
    let unsaid = gateway.client().await.exchange(&chunked).await.unwrap();
    assert_eq!((unsaid.status, unsaid.problem().as_str()), (413, "too_large"));
    assert_eq!(backend.seen.count(), 0);

    assert_eq!(gateway.post("/", &"x".repeat(65_536)).await.status, 200);
    assert_eq!(backend.seen.last().body.len(), 65_536);
}

#[tokio::test]
async fn without_tunnels_what_is_longer_than_a_message_is_a_413() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "x").await;
    let routes = ROUTES.replace("max_body_bytes = 65536", "");
    let gateway = Gateway::start(&broker, &routes, &["--tunnel-listen", "off"]).await;
    let said = gateway.post("/", &"x".repeat(65_537)).await;
    assert_eq!((said.status, said.problem().as_str()), (413, "too_large"));
    assert_eq!(backend.seen.count(), 0);
}

#[tokio::test]
async fn the_brokers_limit_counts_headers_too() {
    let broker = TestBroker::builder().max_payload(8_192).start().await;
    let backend = Backend::saying(&broker, "x").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let body = "x".repeat(7_000);
    assert_eq!(gateway.post("/", &body).await.status, 200);
    let request = format!(
        "POST / HTTP/1.1\r\nhost: a\r\nx-big: {}\r\ncontent-length: 7000\r\n\r\n{body}",
        "y".repeat(2_000)
    );
    let reply = gateway.client().await.exchange(&request).await.unwrap();
    assert_eq!((reply.status, reply.problem().as_str()), (413, "too_large"));
    // The broker would have closed the connection; it is still the one of the start.
    assert_eq!(gateway.metric("natsway_broker_connects_total").await, 2.0);
    assert_eq!(backend.seen.count(), 1);
}

#[tokio::test]
async fn long_paths_and_large_heads_are_refused() {
    let broker = TestBroker::start().await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let long = gateway.get(&format!("/{}", "x".repeat(8_192))).await;
    assert_eq!((long.status, long.problem().as_str()), (414, "path_too_long"));
    let large = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(33_000));
    let large = gateway.client().await.exchange(&large).await.unwrap();
    assert_eq!((large.status, large.problem().as_str()), (431, "head_too_large"));
}

#[tokio::test]
async fn heads_that_cannot_be_read_get_a_status_alone() {
    let broker = TestBroker::start().await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    // More fields than are parsed, and more bytes than are kept, whichever part of the head they
    // are in.
    let fields = format!("GET / HTTP/1.1\r\nhost: a\r\n{}\r\n", "x: y\r\n".repeat(100));
    let value = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(60_000));
    let path = format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(50_000));
    for head in [fields, value, path] {
        let reply = gateway.client().await.exchange(&head).await.unwrap();
        assert!(reply.status == 431 && reply.is_bare(), "{reply:?}");
    }
}

#[tokio::test]
async fn bytes_of_requests_are_bounded_over_all_of_them() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "x").await;
    let gateway =
        Gateway::start(&broker, ROUTES, &["--shards", "1", "--max-held-bytes", "200000"]).await;
    // A body counts as it comes, whether it says how long it is or not.
    let chunk = format!("8000\r\n{}\r\n", "x".repeat(0x8000));
    let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let unsaid =
        gateway.client().await.exchange(&format!("{head}{chunk}{chunk}0\r\n\r\n")).await.unwrap();
    assert_eq!((unsaid.status, unsaid.problem().as_str()), (503, "memory_full"));
    assert_eq!(unsaid.header("retry-after"), Some("1"));
    let said = gateway.post("/", &"x".repeat(60_000)).await;
    assert_eq!((said.status, said.problem().as_str()), (503, "memory_full"));
    assert_eq!(backend.seen.count(), 0);
    // What is answered is given back.
    for _ in 0..10 {
        assert_eq!(gateway.post("/", &"x".repeat(20_000)).await.status, 200);
    }
    eventually(DEADLINE, async || gateway.metric("natsway_held_bytes").await == 0.0).await;
}

#[tokio::test]
async fn the_limit_on_open_files_is_raised_and_kept() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "x").await;
    // Soft and hard limit: what a shell would have given, and what the gateway may take.
    let raised = Gateway::start_with_open_files(&broker, ROUTES, 100, 4_096).await;
    let _crowd = crowd(&raised, 250).await;
    eventually(DEADLINE, async || raised.metric("natsway_client_connections").await >= 250.0).await;

    let capped = Gateway::start_with_open_files(&broker, ROUTES, 100, 200).await;
    let held = crowd(&capped, 250).await;
    eventually(DEADLINE, async || capped.metric("natsway_client_connections").await >= 50.0).await;
    // Connections beyond the bound wait in the backlog, and there are descriptors for everything
    // else.
    for _ in 0..20 {
        let open = capped.metric("natsway_client_connections").await;
        assert!(open < 200.0, "{open}");
    }
    drop(held);
    assert_eq!(capped.get("/").await.status, 200);
    let said = capped.process.stderr();
    assert_eq!(said.matches("limit on open files leaves room for fewer").count(), 1, "{said}");
    assert!(!said.contains("connection not accepted"), "{said}");
    assert_eq!(backend.seen.count(), 1);
}

/// Connections that are open and idle.
async fn crowd(gateway: &Gateway, connections: usize) -> Vec<crate::client::Client> {
    futures_util::future::join_all((0..connections).map(|_| gateway.client())).await
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it_only_when_its_body_is_wanted() {
    let broker = TestBroker::start().await;
    let _backend = Backend::saying(&broker, "thanks").await;
    // With tunnels a worker is asked first, and this one is none.
    let gateway = Gateway::start(&broker, ROUTES, &["--tunnel-listen", "off"]).await;
    let head = |length: usize| {
        format!(
            "POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut wanted = gateway.client().await;
    assert_eq!(wanted.exchange(&head(4)).await.unwrap().status, 100);
    assert_eq!(wanted.exchange("body").await.unwrap().text(), "thanks");
    let unwanted = gateway.client().await.exchange(&head(100_000)).await.unwrap();
    assert_eq!((unwanted.status, unwanted.problem().as_str()), (413, "too_large"));
}

#[tokio::test]
async fn connects_transfer_codings_and_without_tunnels_upgrades_are_not_implemented() {
    let broker = TestBroker::start().await;
    let gateway = Gateway::start(&broker, ROUTES, &["--tunnel-listen", "off"]).await;
    let websocket =
        "GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let tunnel = "CONNECT a:1 HTTP/1.1\r\nhost: a:1\r\n\r\n";
    // A body that somebody must unpack first, and one that nobody may send.
    let coded = ["gzip, chunked", "chunked, chunked", "chunked\r\ntransfer-encoding: chunked"].map(
        |codings| {
            format!(
                "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \
                     {codings}\r\n\r\n1\r\nx\r\n0\r\n\r\n"
            )
        },
    );
    for request in coded.iter().map(String::as_str).chain([websocket, tunnel]) {
        let reply = gateway.client().await.exchange(request).await.unwrap();
        assert_eq!((reply.status, reply.problem().as_str()), (501, "not_implemented"), "{request}");
    }
}

#[tokio::test]
async fn more_requests_than_may_be_out_are_refused_with_retry_after() {
    let broker = TestBroker::start().await;
    let _silent = Backend::start(&broker, |_, _| vec![]).await;
    let gateway = Gateway::start(&broker, ROUTES, &["--shards", "1", "--max-in-flight", "2"]).await;
    let (mut first, mut second) = (gateway.client().await, gateway.client().await);
    for client in [&mut first, &mut second] {
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    }
    eventually(DEADLINE, async || {
        gateway.metric("natsway_in_flight{route=\"test\",version=\"blue\"}").await == 2.0
    })
    .await;
    let refused = gateway.get("/").await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "overloaded"));
    assert_eq!(refused.header("retry-after"), Some("1"));
}

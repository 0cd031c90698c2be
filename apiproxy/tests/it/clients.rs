//! HTTP as real clients have it: early answers, cookies, trailers, bodies where none may be,
//! proxies in front.

use std::net::IpAddr;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, HeaderName, Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http2::{SendRequest, handshake};
use hyper_util::rt::{TokioExecutor, TokioIo};
use natsway_testkit::{TestBroker, eventually};
use natsway_wire::envelope::encode_response;
use tokio::io::AsyncWriteExt;

use crate::backend::{Backend, ok, response, settled};
use crate::client::Client;
use crate::fixture::{DEADLINE, Gateway, ROUTES};

async fn http2(gateway: &Gateway) -> SendRequest<Empty<Bytes>> {
    let io = TokioIo::new(gateway.client().await.stream);
    let (sender, connection) = handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    fields
        .iter()
        .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
        .collect()
}

#[tokio::test]
async fn a_client_that_is_still_sending_gets_its_early_answer() {
    const BODY_BYTES: usize = 5_000_000;
    let broker = TestBroker::start().await;
    let _backend = Backend::saying(&broker, "x").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let body = "x".repeat(BODY_BYTES);
    let said = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY_BYTES}\r\n\r\n{body}");
    let unsaid = format!(
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \
         chunked\r\n\r\n{BODY_BYTES:x}\r\n{body}\r\n0\r\n\r\n"
    );
    let no_route = said.replace("host: a", "host: a/b");
    let refusals =
        [(said, 413, "too_large"), (unsaid, 413, "too_large"), (no_route, 400, "bad_host")];
    const ROUNDS: usize = 5;
    for (request, status, code) in refusals.iter().cycle().take(ROUNDS * refusals.len()) {
        let mut client = gateway.client().await;
        client.send(request).await.expect("nothing breaks while it is sent");
        let reply = client.reply(false).await.expect("it is answered");
        assert_eq!((reply.status, reply.problem().as_str()), (*status, *code));
        assert_eq!(reply.header("connection"), Some("close"));
        assert!(client.is_closed().await);
    }
    // A head that is too long is refused as early.
    let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", "y".repeat(1_000_000));
    let mut client = gateway.client().await;
    client.send(&head).await.expect("nothing breaks while it is sent");
    assert_eq!(client.reply(false).await.unwrap().status, 431);
    drop(client);
    let lingered = "natsway_lingering_closes_total{end=\"client\"}";
    let expected = (ROUNDS * refusals.len() + 1) as f64;
    eventually(DEADLINE, async || match gateway.metric(lingered).await {
        count if count == expected => Ok(()),
        count => Err(count),
    })
    .await;
}

#[tokio::test]
async fn a_client_that_never_stops_sending_is_cut_off() {
    let broker = TestBroker::start().await;
    let gateway = Gateway::start(
        &broker,
        ROUTES,
        &["--linger-time", "200ms", "--max-linger-bytes", "1000000"],
    )
    .await;
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100000000000\r\n\r\n";
    // By its bytes, and by the time.
    let mut flood = gateway.client().await;
    flood.send(head).await.unwrap();
    let piece = vec![b'x'; 1_000_000];
    let sending = async { while flood.stream.write_all(&piece).await.is_ok() {} };
    tokio::time::timeout(DEADLINE, sending).await.expect("it is cut off");
    let mut silent = gateway.client().await;
    assert_eq!(silent.exchange(head).await.unwrap().status, 413);
    let cut = "natsway_lingering_closes_total{end=\"limit\"}";
    eventually(DEADLINE, async || match gateway.metric(cut).await {
        2.0 => Ok(()),
        count => Err(count),
    })
    .await;
    eventually(DEADLINE, async || gateway.metric("natsway_client_connections").await == 0.0).await;
}

#[tokio::test]
async fn cookies_that_http2_parts_are_one_field() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "x").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let mut sender = http2(&gateway).await;
    let request =
        Request::get("http://a/").header("cookie", "a=1").header("cookie", "b=2").header("x", "1");
    let request = request.header("cookie", "c=3").body(Empty::new()).unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 200);
    let seen = backend.seen.last().headers;
    assert_eq!(seen.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2; c=3"]);
}

#[tokio::test]
async fn a_native_backend_sees_each_field_once() {
    let broker = TestBroker::start().await;
    let client = broker.connect().await;
    let mut requests = client.queue_subscribe("greet", "q".to_owned()).await.unwrap();
    settled(&client).await;
    let routes = ROUTES
        .replace("svc.test.blue", "greet")
        .replace("path =", "codec = \"native\"\n    path =");
    let gateway = Gateway::start(&broker, &routes, &[]).await;
    let mut http = gateway.client().await;
    http.send(
        "GET / HTTP/1.1\r\nhost: a\r\ncookie: a=1\r\naccept: text/html\r\ncookie: b=2\r\naccept: \
         */*\r\n\
         set-cookie: x\r\nset-cookie: y\r\nstatus: 503\r\nDescription: No Responders\r\nx-status: \
         1\r\n\r\n",
    )
    .await
    .unwrap();
    let request = requests.next().await.unwrap();
    let seen = request.headers.unwrap();
    let values =
        |name: &str| seen.get_all(name).map(|value| value.as_str().to_owned()).collect::<Vec<_>>();
    assert_eq!(values("Cookie"), ["a=1; b=2"]);
    assert_eq!(values("Accept"), ["text/html, */*"]);
    // The only one that HTTP does not let anybody join.
    assert_eq!(values("Set-Cookie"), ["x", "y"]);
    // What the broker's own messages say by these, clients of NATS believe.
    assert_eq!((values("Status").len(), values("Description").len()), (0, 0), "{seen:?}");
    assert_eq!(values("X-Status"), ["1"]);
    client.publish(request.reply.unwrap(), Bytes::new()).await.unwrap();
    assert_eq!(http.reply(false).await.unwrap().status, 200);
}

#[tokio::test]
async fn trailers_reach_whoever_takes_them_and_others_are_counted() {
    let broker = TestBroker::start().await;
    let trailers = map(&[("x-sum", "42"), ("content-length", "7"), ("x-more", "b")]);
    let _backend = Backend::start(&broker, move |_, request| {
        let body: &[u8] = if request.path_and_query == "/empty" { b"" } else { b"body" };
        vec![
            encode_response(StatusCode::OK, &map(&[("trailer", "x-lie")]), &trailers, body)
                .unwrap(),
        ]
    })
    .await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let dropped = async || gateway.metric("natsway_trailers_dropped_total").await;
    let get = |path: &str, te: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: a\r\n{te}connection: te\r\n\r\n")
    };

    let reply = gateway.client().await.exchange(&get("/", "te: gzip, trailers\r\n")).await.unwrap();
    assert_eq!(reply.text(), "4\r\nbody\r\n0\r\nx-sum: 42\r\nx-more: b\r\n\r\n");
    assert_eq!(reply.header("trailer"), Some("x-sum, x-more"));
    let mut client = gateway.client().await;
    let empty = client.exchange(&get("/empty", "te: trailers\r\n")).await.unwrap();
    assert_eq!(empty.text(), "0\r\nx-sum: 42\r\nx-more: b\r\n\r\n");
    assert_eq!(dropped().await, 2.0, "a length in a trailer would be read twice");

    // Whoever does not say that it takes them, or cannot get them, and the connection goes on.
    let plain = client.exchange(&get("/", "")).await.unwrap();
    assert_eq!((plain.text().as_str(), plain.header("trailer")), ("body", None));
    assert_eq!(dropped().await, 5.0);
    let head = client.exchange("HEAD / HTTP/1.1\r\nhost: a\r\nte: trailers\r\n\r\n").await.unwrap();
    assert_eq!((head.status, head.header("trailer")), (200, None));
    assert_eq!(dropped().await, 8.0);
    let old =
        gateway.client().await.exchange("GET / HTTP/1.0\r\nte: trailers\r\n\r\n").await.unwrap();
    assert_eq!(old.text(), "body");
    assert_eq!(dropped().await, 11.0);

    let request = Request::get("http://a/").body(Empty::new()).unwrap();
    let response = http2(&gateway).await.send_request(request).await.unwrap();
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers(), Some(&map(&[("x-sum", "42"), ("x-more", "b")])));
    assert_eq!(dropped().await, 12.0);

    // Those of a request reach nobody, and are counted apart.
    let of_requests = async || gateway.metric("natsway_request_trailers_dropped_total").await;
    assert_eq!(of_requests().await, 0.0);
    let chunked = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: \
                   chunked\r\n\r\n1\r\nx\r\n0\r\nx-sum: 1\r\nx-b: 2\r\n\r\n";
    assert_eq!(client.exchange(chunked).await.unwrap().status, 200);
    assert_eq!(of_requests().await, 2.0);
}

#[tokio::test]
async fn a_body_where_none_may_be_is_left_out_and_counted() {
    let broker = TestBroker::start().await;
    let _backend = Backend::start(&broker, |_, request| {
        let status = request.path_and_query.as_str()[1..].parse().unwrap();
        vec![response(status, &[("x-kept", "1"), ("content-length", "4")], "what")]
    })
    .await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let mut client = gateway.client().await;
    for (status, length) in [(204, None), (205, Some("0")), (304, None)] {
        let reply = client.get(&format!("/{status}")).await.unwrap();
        assert_eq!((reply.status, reply.text().as_str()), (status, ""));
        assert_eq!(
            (reply.header("x-kept"), reply.header("content-length")),
            (Some("1"), length),
            "{status}"
        );
        let reply = http2(&gateway).await;
        let request = Request::get(format!("http://a/{status}")).body(Empty::new()).unwrap();
        let reply = { reply }.send_request(request).await.unwrap();
        assert_eq!(reply.status(), status);
        assert_eq!(reply.into_body().collect().await.unwrap().to_bytes(), "");
    }
    assert_eq!(client.get("/200").await.unwrap().text(), "what", "and the connection goes on");
    assert_eq!(gateway.metric("natsway_bodies_dropped_total").await, 6.0);
    assert_eq!(gateway.metric("natsway_bad_replies_total").await, 0.0);
}

#[tokio::test]
async fn queries_are_strict_where_that_is_wanted() {
    let broker = TestBroker::start().await;
    let _backend =
        Backend::start(&broker, |_, request| vec![ok(request.path_and_query.as_str())]).await;
    let gateway = Gateway::start(&broker, ROUTES, &["--strict-queries"]).await;
    let mut client = gateway.client().await;
    for query in ["/?q=100%", "/?q=%u00e9", "/?q=caf\u{e9}"] {
        let refused = client.get(query).await.unwrap();
        assert_eq!((refused.status, refused.problem().as_str()), (400, "bad_path"), "{query}");
    }
    assert_eq!(client.get("/?q=100%25").await.unwrap().text(), "/?q=100%25");
}

/// Two versions to which clients stick, each with a backend that says its name.
const STICKY: &str = r#"
    [[route]]
    name = "test"
    path = "/{*rest}"
    sticky = { client = true }
    target = [
        { version = "blue", subject = "svc.test.blue", weight = 1 },
        { version = "green", subject = "svc.test.green", weight = 1 },
    ]
"#;

#[tokio::test]
async fn behind_a_proxy_a_version_sticks_to_the_client_and_not_to_the_proxy() {
    let broker = TestBroker::start().await;
    let _blue = Backend::saying(&broker, "blue").await;
    let _green = Backend::start_at(&broker, "svc.test.green", |_, _| vec![ok("green")]).await;
    let behind = ["--trusted-proxies", "127.0.0.0/8,10.0.0.0/8", "--access-log"];
    let gateway = Gateway::start(&broker, STICKY, &behind).await;
    let version = async |client: &mut Client, forwarded: &str| {
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {forwarded}\r\n\r\n");
        client.exchange(&request).await.unwrap().text()
    };
    let mut proxy = gateway.client().await;
    let mut versions = std::collections::HashMap::new();
    for number in 1..=20_u8 {
        let client = IpAddr::from([198, 51, 100, number]);
        let first = version(&mut proxy, &client.to_string()).await;
        // What it says of itself, and by which proxies it comes, changes nothing.
        assert_eq!(version(&mut proxy, &format!("203.0.113.9, {client}, 10.0.0.3")).await, first);
        *versions.entry(first).or_insert(0) += 1;
    }
    assert_eq!(versions.len(), 2, "all clients of a proxy are not one: {versions:?}");
    let log = gateway.process.stderr();
    assert!(log.contains("client=198.51.100.7 peer=127.0.0.1:"), "{log}");

    // A stranger's word is nobody's.
    let open = Gateway::start(&broker, STICKY, &[]).await;
    let mut stranger = open.client().await;
    let first = version(&mut stranger, "198.51.100.1").await;
    for number in 2..=20 {
        assert_eq!(version(&mut stranger, &format!("198.51.100.{number}")).await, first);
    }
}

#[tokio::test]
async fn workers_are_told_by_which_scheme_a_client_came() {
    let broker = TestBroker::start().await;
    let backend = Backend::saying(&broker, "x").await;
    let trusted = ["--trusted-proxies", "127.0.0.1/32"];
    let gateway = Gateway::start(&broker, ROUTES, &trusted).await;
    let seen = async |gateway: &Gateway, fields: &str| {
        let request = format!("GET / HTTP/1.1\r\nhost: inner:80\r\n{fields}\r\n");
        assert_eq!(gateway.client().await.exchange(&request).await.unwrap().status, 200);
        let headers = backend.seen.last().headers;
        let one = |name: &str| {
            let values: Vec<_> =
                headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
            values.join("|")
        };
        ["forwarded", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-real-ip"]
            .map(one)
    };
    let told = "x-forwarded-for: 198.51.100.1\r\nx-forwarded-proto: https\r\nx-forwarded-host: \
                shop.example\r\n\
                x-real-ip: 198.51.100.1\r\nforwarded: for=203.0.113.9\r\n";
    assert_eq!(
        seen(&gateway, told).await,
        [
            "for=198.51.100.1, for=127.0.0.1;host=\"shop.example\";proto=https",
            "198.51.100.1, 127.0.0.1",
            "https",
            "shop.example",
            "198.51.100.1",
        ]
    );
    // A proxy that writes the other field.
    let by_rfc = [&trusted[..], &["--proxy-field", "forwarded"]].concat();
    let gateway = Gateway::start(&broker, ROUTES, &by_rfc).await;
    let told = "x-forwarded-for: 203.0.113.9\r\nforwarded: \
                for=\"[2001:db8::1]:99\";proto=https;host=shop.example\r\n";
    assert_eq!(
        seen(&gateway, told).await,
        [
            "for=\"[2001:db8::1]\", for=127.0.0.1;host=\"shop.example\";proto=https",
            "2001:db8::1, 127.0.0.1",
            "https",
            "shop.example",
            "",
        ]
    );
}

#[tokio::test]
async fn a_request_id_that_could_be_more_than_an_id_is_replaced() {
    let broker = TestBroker::start().await;
    let _backend = Backend::saying(&broker, "x").await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let id = async |fields: &str| {
        let request = format!("GET / HTTP/1.1\r\nhost: a\r\n{fields}\r\n");
        let reply = gateway.client().await.exchange(&request).await.unwrap();
        reply.header("x-request-id").unwrap().to_owned()
    };
    for sound in [
        "7b9c3a6e-1d2f-4e5a-8b7c-9d0e1f2a3b4c",
        "Root=1-67891233-abcdef012345678912345678",
        "a:b/c+d==",
    ] {
        assert_eq!(id(&format!("x-request-id: {sound}\r\n")).await, sound);
    }
    for odd in ["a\"b", "<script>", "a,b", "${jndi}", "a'b", "a;b", "a\\b"] {
        assert_ne!(id(&format!("x-request-id: {odd}\r\n")).await, odd);
    }
    assert_ne!(id("x-request-id: a\r\nx-request-id: b\r\n").await, "a");
}

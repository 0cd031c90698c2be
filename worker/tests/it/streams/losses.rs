//! Streams whose worker, gateway or right is lost: visible aborts, and no frame that is none.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use http::StatusCode;
use hyper_util::rt::TokioIo;
use natsway_testkit::{Process, TcpLink, TestBroker, eventually, free_port};
use natsway_wire::envelope::{self, encode_signal};
use natsway_wire::offer::{StreamToken, TunnelSecret};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use super::client::{Client, RawClient, Version, get as ask, read, whole};
use super::{DEADLINE, Stage};
use crate::stage::SUBJECT;

/// The frames that a WebSocket's handler sends, and whether the last of them is whole.
const WHOLE: &[u8] = b"\x82\x05whole";
const HALF: &[u8] = b"\x82\x05ha";

/// A WebSocket's handler that sends these bytes, and then nothing.
async fn sends(mut request: Request, bytes: &'static [u8]) -> Response {
    let connection = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut connection = TokioIo::new(connection.await.unwrap());
        connection.write_all(bytes).await.unwrap();
        connection.flush().await.unwrap();
        connection.read_to_end(&mut Vec::new()).await.ok();
    });
    let fields = [("connection", "upgrade"), ("upgrade", "websocket")];
    (StatusCode::SWITCHING_PROTOCOLS, fields).into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_is_put_behind_a_whole_frame_and_into_none() {
    let router = Router::new()
        .route("/whole", get(async |request: Request| sends(request, WHOLE).await))
        .route("/half", get(async |request: Request| sends(request, HALF).await));
    let drain = ["--drain-timeout", "4s", "--drain-grace", "0s"];
    let mut stage = Stage::with(&drain, |options| options, router).await;
    let mut clients = Vec::new();
    for (path, bytes) in [("/whole", WHOLE), ("/half", HALF)] {
        let mut client = RawClient::connect(stage.port).await;
        let head = client.ask_for_web_socket(path).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let mut sent = vec![0; bytes.len()];
        client.read_exactly(&mut sent).await;
        assert_eq!(sent, bytes);
        clients.push(client);
    }
    let [whole, half] = &mut clients[..] else { unreachable!("there are two") };
    stage.gateway.terminate();
    let (whole, half) = tokio::join!(whole.rest(), half.rest());
    assert_eq!(whole.unwrap(), [0x88, 2, 0x03, 0xf4], "Close 1012");
    assert_eq!(half.unwrap_or_default(), b"", "no frame within another one");
}

/// Nothing within such a connection says where it ends, as a Close does.
#[tokio::test(flavor = "multi_thread")]
async fn another_protocol_that_is_cut_off_does_not_look_ended() {
    let router = Router::new().route("/talk", get(async |request: Request| talks(request).await));
    let drain = ["--drain-timeout", "3s", "--drain-grace", "0s"];
    let mut stage = Stage::with(&drain, |options| options, router).await;
    let mut client = RawClient::connect(stage.port).await;
    client
        .say(
            "GET /talk HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
             upgrade: talk\r\n\r\n",
        )
        .await;
    let head = client.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    client.until("hello").await;
    stage.gateway.terminate();
    let rest = client.rest().await;
    assert!(rest.is_err(), "a clean end: {rest:?}");
}

/// The handler of a protocol of its own, that says something and waits for more.
async fn talks(mut request: Request) -> Response {
    let connection = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut connection = TokioIo::new(connection.await.unwrap());
        connection.write_all(b"hello").await.unwrap();
        connection.read_to_end(&mut Vec::new()).await.ok();
    });
    let fields = [("connection", "upgrade"), ("upgrade", "talk")];
    (StatusCode::SWITCHING_PROTOCOLS, fields).into_response()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_sees_that_a_body_broke_off() {
    let short = async || {
        let pieces = stream::iter([Ok(Bytes::from(vec![b'x'; 100_000])), Err("the disk is gone")]);
        Body::from_stream(pieces)
    };
    let whole = async || {
        let pieces = stream::iter([Ok::<_, Infallible>(Bytes::from(vec![b'x'; 100_000]))]);
        Body::from_stream(pieces)
    };
    let router = Router::new().route("/short", get(short)).route("/whole", get(whole));
    let stage = Stage::new(router).await;
    for (path, is_whole) in [("/whole", true), ("/short", false)] {
        let mut client = RawClient::connect(stage.port).await;
        client.say(&format!("GET {path} HTTP/1.0\r\nhost: localhost\r\n\r\n")).await;
        let head = client.head().await;
        assert!(head.starts_with("HTTP/1.0 200 ") || head.starts_with("HTTP/1.1 200 "), "{head}");
        assert!(!head.contains("content-length"), "its end is that of the connection: {head}");
        // A clean end would be that of a whole body.
        let rest = client.rest().await;
        assert_eq!(rest.is_ok(), is_whole, "{path}: {:?}", rest.map(|bytes| bytes.len()));
    }
    stage.all_let_go().await;
}

/// Events without an end.
fn events() -> Router {
    let events = async || {
        let events = stream::repeat(Bytes::from_static(b"data: tick\n\n")).then(async |event| {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok::<_, Infallible>(event)
        });
        ([("content-type", "text/event-stream")], Body::from_stream(events)).into_response()
    };
    Router::new().route("/events", get(events))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_whose_right_was_taken_away_has_no_stream_5_s_later() {
    let users = |permissions: &str| {
        let user = format!("{{ user: anyone, password: secret{permissions} }}");
        format!("no_auth_user: anyone\nauthorization {{ users: [{user}] }}")
    };
    let broker = TestBroker::builder().config_lines(&users("")).start().await;
    let lines = "timeout = \"15s\"\n";
    let mut stage = Stage::at_broker(broker, lines, &[], |options| options, events()).await;
    let mut client = RawClient::connect(stage.port).await;
    client.say("GET /events HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    client.until("data: tick").await;
    let revoked = Instant::now();
    // All are one user here; who hears the subject is the worker alone.
    let denied = format!(", permissions: {{ subscribe: {{ deny: [\"{SUBJECT}\"] }} }}");
    stage.broker.reload(&users(&denied)).await;
    // Its end is not a clean one: that would be the last chunk of its body.
    let rest = client.rest().await.unwrap_or_default();
    assert!(revoked.elapsed() < Duration::from_secs(5), "{:?}", revoked.elapsed());
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it broke off");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_is_frozen_breaks_its_streams_off_by_their_idle_time() {
    let lines = "timeout = \"15s\"\nstream_idle_timeout = \"2s\"\n";
    let broker = TestBroker::start().await;
    let ((port, admin_port), _gateway) = Stage::gateway_at(&broker, lines, &[]).await;
    let mut worker = Process::builder(env!("CARGO_BIN_EXE_worker"))
        .args(["--nats-url", &broker.url(), "--subject", SUBJECT])
        .start();
    worker.wait_for_line("serving", DEADLINE).await;
    eventually(DEADLINE, async || match ask(admin_port, "/readyz").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    let mut client = RawClient::connect(port).await;
    client.say("GET /events?ms=50 HTTP/1.1\r\nhost: localhost\r\n\r\n").await;
    client.until("\"event\":3").await;
    worker.signal(Signal::SIGSTOP);
    let frozen = Instant::now();
    let rest = client.rest().await.unwrap_or_default();
    worker.signal(Signal::SIGCONT);
    assert!(frozen.elapsed() < Duration::from_secs(8), "{:?}", frozen.elapsed());
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it broke off");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_tunnel_is_lost_is_told_that_it_ran() {
    let (began, mut begins) = mpsc::unbounded_channel();
    let takes_its_time = async move |request: Request| {
        let mut pieces = request.into_body().into_data_stream();
        while let Some(Ok(_)) = pieces.next().await {}
        began.send(()).unwrap();
        std::future::pending::<()>().await;
    };
    // Where workers dial.
    let port = free_port();
    let mut link = TcpLink::to_port(port).await;
    let (listen, address) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", link.port()));
    let arguments = ["--shards", "1", "--tunnel-listen", &listen, "--tunnel-address", &address];
    let router = Router::new().route("/slow", post(takes_its_time));
    let stage = Stage::with(&arguments, |options| options, router).await;
    let mut client = Client::connect(stage.port, Version::Http1).await;
    let request = http::Request::post("/slow").body(whole(vec![b'x'; 1 << 20])).unwrap();
    let answered = tokio::spawn(async move { read(client.send(request).await.unwrap()).await });
    tokio::time::timeout(DEADLINE, begins.recv()).await.expect("it arrives").unwrap();
    link.cut().await;
    let answer = answered.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "stream_lost"));
    stage.all_let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_says_it_is_ready_and_never_dials_costs_an_upload_seconds_and_no_more() {
    let measure = async |request: Request| {
        let pieces = request.into_body().into_data_stream();
        pieces.fold(0, async |sum, piece| sum + piece.unwrap().len()).await.to_string()
    };
    let router = Router::new().route("/measure", post(measure));
    let stage = Stage::with(&["--shards", "1"], |options| options, router).await;
    let nats = stage.broker.connect().await;
    let mut requests = nats.queue_subscribe(SUBJECT, "q".to_owned()).await.unwrap();
    // It hears one, and the broker gives all others to the worker.
    requests.unsubscribe_after(1).await.unwrap();
    nats.flush().await.unwrap();
    let liar = tokio::spawn(async move {
        let asked = requests.next().await.expect("it is one of two");
        let ready = encode_signal(&envelope::Signal::Ready {
            instance: "liar".to_owned(),
            token: StreamToken([7; 16]),
            secret: TunnelSecret([7; 16]),
        });
        nats.publish(asked.reply.unwrap(), ready).await.unwrap();
        nats.flush().await.unwrap();
    });
    // Which of the two is asked is the broker's choice.
    while !liar.is_finished() {
        let uploads = join_all((0..4).map(|_| upload(stage.port))).await;
        for (status, text, took) in uploads {
            assert_eq!((status, text.as_str()), (200, "200000"), "nothing of it was sent before");
            assert!(took < Duration::from_secs(25), "{took:?}");
        }
    }
    liar.await.expect("it was asked");
    stage.all_let_go().await;
}

/// The status and the text of the answer to an upload, and how long it took.
async fn upload(port: u16) -> (u16, String, Duration) {
    let asked = Instant::now();
    let mut client = Client::connect(port, Version::Http1).await;
    let request = http::Request::post("/measure").body(whole(vec![b'x'; 200_000])).unwrap();
    let answer = read(client.send(request).await.unwrap()).await;
    (answer.status.as_u16(), answer.text().to_owned(), asked.elapsed())
}

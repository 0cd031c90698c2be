//! A large file as browsers and download managers ask for it: parts of it, its head, and whether it
//! has changed. By a handler of the library, and by an app behind the sidecar.

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use axum::http::header::{
    ACCEPT_RANGES, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_NONE_MATCH, IF_RANGE, RANGE,
};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode};
use axum::routing::get;
use bytes::Bytes;
use futures_util::stream;
use http::Method;
use natsway_testkit::{Process, TestBroker, eventually};
use tokio::net::TcpListener;

use super::client::{Client, Read, VERSIONS, Version, get as ask_for, read, whole};
use super::{DEADLINE, Stage, metric};
use crate::stage::SUBJECT;

const BYTES: usize = 300_000;
const TAG: &str = "\"v1\"";

/// The byte of the file that stands there.
fn byte(at: usize) -> u8 {
    (at % 251) as u8
}

/// The app: one file, in pieces.
fn app() -> Router {
    Router::new().route("/file", get(file))
}

async fn file(headers: HeaderMap) -> Response<Body> {
    let response = Response::builder().header(ETAG, TAG).header(ACCEPT_RANGES, "bytes");
    let is = |name, value: &str| headers.get(name).is_some_and(|said| said == value);
    if is(IF_NONE_MATCH, TAG) {
        let unchanged = response.status(StatusCode::NOT_MODIFIED).header(CONTENT_LENGTH, BYTES);
        return unchanged.body(Body::empty()).unwrap();
    }
    let asked = headers.get(RANGE).filter(|_| !headers.contains_key(IF_RANGE) || is(IF_RANGE, TAG));
    let asked = asked.map(|range| parse(range).unwrap_or((BYTES, BYTES)));
    let (first, last) = asked.unwrap_or((0, BYTES - 1));
    if first >= BYTES {
        let beyond = response.status(StatusCode::RANGE_NOT_SATISFIABLE);
        let beyond = beyond.header(CONTENT_RANGE, format!("bytes */{BYTES}"));
        return beyond.body(Body::empty()).unwrap();
    }
    let pieces: Vec<_> = (first..=last)
        .step_by(10_000)
        .map(|start| (start..=last.min(start + 9_999)).map(byte).collect::<Bytes>())
        .map(Ok::<_, Infallible>)
        .collect();
    let response = response.header(CONTENT_LENGTH, last + 1 - first);
    let response = match asked {
        Some(_) => response
            .status(StatusCode::PARTIAL_CONTENT)
            .header(CONTENT_RANGE, format!("bytes {first}-{last}/{BYTES}")),
        None => response,
    };
    response.body(Body::from_stream(stream::iter(pieces))).unwrap()
}

/// The first and the last byte that are asked for.
fn parse(range: &HeaderValue) -> Option<(usize, usize)> {
    let (first, last) = range.to_str().ok()?.strip_prefix("bytes=")?.split_once('-')?;
    let last = if last.is_empty() { BYTES - 1 } else { last.parse().ok()? };
    Some((first.parse().ok()?, last))
}

async fn ask(client: &mut Client, method: Method, fields: &[(&str, &str)]) -> Read {
    let mut request = http::Request::builder().method(method).uri("/file");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    read(client.send(request.body(whole("")).unwrap()).await.unwrap()).await
}

fn field<'r>(read: &'r Read, name: &str) -> Option<&'r str> {
    read.headers.get(name).map(|value| value.to_str().unwrap())
}

/// Whether an answer is that part of the file, and says so.
fn is_part(answer: &Read, first: usize, last: usize) {
    assert_eq!(answer.status, StatusCode::PARTIAL_CONTENT);
    let (range, length) = (field(answer, "content-range"), field(answer, "content-length"));
    assert_eq!(range, Some(&*format!("bytes {first}-{last}/{BYTES}")));
    assert_eq!(length, Some(&*(last + 1 - first).to_string()));
    assert!(answer.body.iter().copied().eq((first..=last).map(byte)), "other bytes");
}

/// All that clients ask for on one connection; as many of the answers as are large go by streams.
async fn is_served(port: u16, admin_port: u16, version: Version) {
    let opened = metric(admin_port, "natsway_streams_total ").await.unwrap();
    let client = &mut Client::connect(port, version).await;
    let all = ask(client, Method::GET, &[]).await;
    assert_eq!((all.status.as_u16(), field(&all, "etag")), (200, Some(TAG)));
    assert!(all.body.iter().copied().eq((0..BYTES).map(byte)));
    is_part(&ask(client, Method::GET, &[("range", "bytes=70000-269999")]).await, 70_000, 269_999);
    let fields = [("range", "bytes=100000-"), ("if-range", TAG)];
    is_part(&ask(client, Method::GET, &fields).await, 100_000, BYTES - 1);
    // It has changed meanwhile: all of it.
    let fields = [("range", "bytes=100000-"), ("if-range", "\"v0\"")];
    let all = ask(client, Method::GET, &fields).await;
    assert_eq!((all.status.as_u16(), all.body.len()), (200, BYTES));

    is_part(&ask(client, Method::GET, &[("range", "bytes=0-99")]).await, 0, 99);
    let beyond = ask(client, Method::GET, &[("range", "bytes=300000-")]).await;
    assert_eq!((beyond.status.as_u16(), beyond.body.len()), (416, 0));
    assert_eq!(field(&beyond, "content-range"), Some("bytes */300000"));
    let unchanged = ask(client, Method::GET, &[("if-none-match", TAG)]).await;
    assert_eq!((unchanged.status.as_u16(), unchanged.body.len()), (304, 0));
    assert_eq!(field(&unchanged, "etag"), Some(TAG));
    let head = ask(client, Method::HEAD, &[]).await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));
    assert_eq!(field(&head, "content-length"), Some("300000"), "that of the file");
    // What has no body left the connection as it was.
    assert_eq!(ask(client, Method::GET, &[("range", "bytes=5-5")]).await.body.len(), 1);
    let by_streams = metric(admin_port, "natsway_streams_total ").await.unwrap() - opened;
    // On a busy machine a small one may, too.
    assert!(by_streams >= 4, "{version:?}: {by_streams}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_of_a_handler_is_served_in_parts_and_by_its_tag() {
    let stage = Stage::new(app()).await;
    for version in VERSIONS {
        is_served(stage.port, stage.admin_port, version).await;
    }
    stage.all_let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_large_file_of_an_app_behind_the_sidecar_is_served_in_parts_and_by_its_tag() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let app_url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app()).await.unwrap() });
    let broker = TestBroker::start().await;
    let lines = "timeout = \"15s\"\n";
    let ((port, admin_port), _gateway) = Stage::gateway_at(&broker, lines, &[]).await;
    let mut sidecar = Process::builder(env!("CARGO_BIN_EXE_worker"))
        .args(["--nats-url", &broker.url(), "--subject", SUBJECT, "--upstream", &app_url])
        .start();
    sidecar.wait_for_line("serving", DEADLINE).await;
    eventually(DEADLINE, async || match ask_for(admin_port, "/readyz").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    for version in VERSIONS {
        is_served(port, admin_port, version).await;
    }
}

//! Calls whose bodies fit in no message: they go by tunnels to the client itself.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Router;
use axum::extract::Query;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use natsway_testkit::{TcpLink, eventually, free_port};
use natsway_worker::{Body, CallErrorKind, Client, ClientOptions, TunnelMode};
use serde::Deserialize;
use tokio::sync::{Notify, mpsc};

use super::{DEADLINE, Stage, get as call, text};

const MIB: usize = 1 << 20;
const PIECE_BYTES: usize = 48 * 1024;

const ROUTE: &str = r#""path":"/bulk","timeout":"10s",
    "target":[{"version":"blue","subject":"svc.bulk.blue"}]"#;

#[derive(Deserialize)]
struct Size {
    bytes: usize,
}

/// The byte at a place of every long body here.
fn byte_at(place: usize) -> u8 {
    (place % 251) as u8
}

/// A long body in pieces.
fn pieces(bytes: usize) -> impl http_body::Body<Data = Bytes, Error = Infallible> + Send {
    let starts = (0..bytes).step_by(PIECE_BYTES);
    let pieces = starts.map(move |start| {
        let end = (start + PIECE_BYTES).min(bytes);
        Ok(Frame::data(Bytes::from_iter((start..end).map(byte_at))))
    });
    StreamBody::new(stream::iter(pieces))
}

/// Reads a long body, and returns its length; it is as it should be up to there.
async fn measure<B>(body: B) -> Result<usize, B::Error>
where
    B: http_body::Body<Data = Bytes>,
{
    let (mut body, mut read) = (std::pin::pin!(body), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        assert!((read..).zip(&data).all(|(place, byte)| *byte == byte_at(place)), "at {read}");
        read += data.len();
    }
    Ok(read)
}

fn router() -> Router {
    let download = async |Query(Size { bytes }): Query<Size>| axum::body::Body::new(pieces(bytes));
    let sized = async |Query(Size { bytes }): Query<Size>| {
        ([(CONTENT_LENGTH, bytes.to_string())], axum::body::Body::new(pieces(bytes)))
    };
    let upload = async |body: axum::body::Body| match measure(body).await {
        Ok(bytes) => (StatusCode::OK, bytes.to_string()),
        Err(error) => (StatusCode::BAD_REQUEST, error.to_string()),
    };
    let echo = async |body: axum::body::Body| body;
    Router::new()
        .route("/download", get(download))
        .route("/sized", get(sized))
        .route("/upload", post(upload))
        .route("/echo", post(echo))
}

fn listening(options: ClientOptions) -> ClientOptions {
    options.tunnel_listen("127.0.0.1:0".parse().unwrap())
}

fn upload(path: &str, body: Body) -> Request<Body> {
    Request::post(format!("http://bulk{path}")).body(body).unwrap()
}

async fn read(response: Response<Body>) -> usize {
    assert_eq!(response.status(), 200);
    tokio::time::timeout(DEADLINE, measure(response.into_body())).await.unwrap().unwrap()
}

async fn said(response: Response<Body>) -> String {
    String::from_utf8(response.into_body().into_bytes().await.unwrap().to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_of_any_size_go_both_ways() {
    const BYTES: usize = 20 * MIB;
    let stage = Stage::with(&[("bulk", ROUTE)], listening).await;
    let _worker = stage.worker("svc.bulk.blue", router()).await;
    for path in ["download", "sized"] {
        let answer = stage.client.send(call(&format!("http://bulk/{path}?bytes={BYTES}"))).await;
        assert_eq!(read(answer.unwrap()).await, BYTES, "{path}");
    }
    let answer = stage.client.send(upload("/upload", Body::wrap(pieces(BYTES)))).await.unwrap();
    assert_eq!(said(answer).await, BYTES.to_string());
    // One that is in memory already.
    let whole = pieces(2 * MIB).collect().await.unwrap().to_bytes();
    let answer = stage.client.send(upload("/upload", Body::new(whole))).await.unwrap();
    assert_eq!(said(answer).await, (2 * MIB).to_string());
    // Both ways at once: the answer begins before the body has ended.
    let answer = stage.client.send(upload("/echo", Body::wrap(pieces(BYTES)))).await.unwrap();
    assert_eq!(read(answer).await, BYTES);
    // What fits in a message goes by the broker as ever.
    let answer = stage.client.send(upload("/echo", "small".into())).await.unwrap();
    assert_eq!(text(answer), "small");
    tokio::time::timeout(DEADLINE, stage.client.close()).await.expect("nothing is open any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_come_as_they_are_sent_and_their_handler_ends_with_their_reader() {
    let (left, mut has_left) = mpsc::unbounded_channel();
    let next = Arc::new(Notify::new());
    let handler = {
        let next = Arc::clone(&next);
        async move || {
            let guard = SaysWhenDropped(left.clone());
            let events = stream::unfold((next, guard, 0), |(next, guard, number)| async move {
                next.notified().await;
                let event = Bytes::from(format!("data: {number}\n\n"));
                Some((Ok::<_, Infallible>(event), (next, guard, number + 1)))
            });
            ([(CONTENT_TYPE, "text/event-stream")], axum::body::Body::from_stream(events))
                .into_response()
        }
    };
    let stage = Stage::with(&[("bulk", ROUTE)], listening).await;
    let _worker = stage.worker("svc.bulk.blue", Router::new().route("/events", get(handler))).await;
    let mut events = stage.client.send(call("http://bulk/events")).await.unwrap().into_body();
    for number in 0..3 {
        next.notify_one();
        let event = tokio::time::timeout(DEADLINE, events.frame()).await.unwrap();
        let event = event.unwrap().unwrap().into_data().unwrap();
        assert_eq!(event, format!("data: {number}\n\n"));
    }
    assert!(has_left.try_recv().is_err(), "it is at work");
    drop(events);
    tokio::time::timeout(DEADLINE, has_left.recv()).await.expect("its reader left").unwrap();
}

struct SaysWhenDropped(mpsc::UnboundedSender<()>);

impl Drop for SaysWhenDropped {
    fn drop(&mut self) {
        self.0.send(()).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_go_by_pipes_where_nothing_can_be_dialled() {
    const BYTES: usize = 2 * MIB;
    let unreached: fn(ClientOptions) -> ClientOptions =
        |options| listening(options).tunnel_address("127.0.0.1:1").tunnel_pipes(2);
    for by_pipes in [|options: ClientOptions| options.tunnel_pipes(1), unreached] {
        let stage = Stage::with(&[("bulk", ROUTE)], by_pipes).await;
        let _worker = stage.worker("svc.bulk.blue", router()).await;
        let uri = format!("http://bulk/download?bytes={BYTES}");
        assert_eq!(read(stage.client.send(call(&uri)).await.unwrap()).await, BYTES);
        let body = Body::wrap(pieces(BYTES));
        let answer = stage.client.send(upload("/upload", body)).await.unwrap();
        assert_eq!(said(answer).await, BYTES.to_string());
        tokio::time::timeout(DEADLINE, stage.client.close()).await.expect("nothing is open");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_is_cut_is_never_taken_for_whole() {
    let port = free_port();
    let mut link = TcpLink::to_port(port).await;
    let address = format!("127.0.0.1:{}", link.port());
    let by_link = |options: ClientOptions| {
        options.tunnel_listen(format!("127.0.0.1:{port}").parse().unwrap()).tunnel_address(address)
    };
    let stage = Stage::with(&[("bulk", ROUTE)], by_link).await;
    let short = async || {
        let pieces = stream::iter([Ok(Bytes::from(vec![0; 100_000])), Err("the disk is gone")]);
        axum::body::Body::from_stream(pieces)
    };
    let router = router().route("/short", get(short));
    let _worker = stage.worker("svc.bulk.blue", router).await;

    // Its handler breaks it off: before its stream was there, or behind that.
    if let Ok(answer) = stage.client.send(call("http://bulk/short")).await {
        assert!(answer.into_body().into_bytes().await.is_err());
    }

    for path in ["download", "sized"] {
        let uri = format!("http://bulk/{path}?bytes={}", 200 * MIB);
        let mut answer = stage.client.send(call(&uri)).await.unwrap().into_body();
        assert!(answer.frame().await.unwrap().is_ok());
        link.cut().await;
        let rest = tokio::time::timeout(DEADLINE, measure_any(answer)).await.unwrap();
        assert!(rest.is_err(), "{path}: {rest:?}");
        link.resume().await;
    }

    // The same upwards: who sends learns that it may have run.
    let goes_up = Arc::new(Notify::new());
    let endless = stream::unfold((Arc::clone(&goes_up), 0), |(goes_up, count)| async move {
        if count == 100 {
            goes_up.notify_one();
        }
        let piece = Bytes::from_iter((count * 4_096..(count + 1) * 4_096).map(byte_at));
        Some((Ok::<_, Infallible>(Frame::data(piece)), (goes_up, count + 1)))
    });
    let sending =
        tokio::spawn(stage.client.send(upload("/upload", Body::wrap(StreamBody::new(endless)))));
    tokio::time::timeout(DEADLINE, goes_up.notified()).await.expect("it goes up");
    link.cut().await;
    let error = tokio::time::timeout(DEADLINE, sending).await.unwrap().unwrap().unwrap_err();
    let expected = (CallErrorKind::OutcomeUnknown, true);
    assert_eq!((error.kind(), error.may_have_run()), expected, "{error}");
}

async fn measure_any<B: http_body::Body<Data = Bytes>>(body: B) -> Result<usize, B::Error> {
    body.collect().await.map(|whole| whole.to_bytes().len())
}

/// What is refused, and the call's word whether it may have run.
async fn refused(client: &Client, body: Body) -> (CallErrorKind, bool, String) {
    let error = client.send(upload("/upload", body)).await.unwrap_err();
    (error.kind(), error.may_have_run(), error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_without_tunnels_says_what_it_cannot_send_and_takes_what_fits_in_a_message() {
    let stage = Stage::new(&[("bulk", ROUTE)]).await;
    let _worker = stage.worker("svc.bulk.blue", router()).await;
    for body in [Body::wrap(pieces(65_537)), Body::from(vec![0; 65_537])] {
        let (kind, may_have_run, text) = refused(&stage.client, body).await;
        assert_eq!((kind, may_have_run), (CallErrorKind::Refused, false), "{text}");
        assert!(text.contains("tunnel_listen"), "{text}");
    }
    let answer = stage.client.send(upload("/upload", Body::wrap(pieces(65_536)))).await.unwrap();
    assert_eq!(said(answer).await, "65536");
    let answer = stage.client.send(call("http://bulk/download?bytes=900000")).await.unwrap();
    assert!(answer.body().is_whole());
    assert_eq!(read(answer).await, 900_000);
    let answer = stage.client.send(call("http://bulk/download?bytes=2000000")).await.unwrap();
    assert_eq!(answer.status(), 502, "above the broker's max_payload");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_without_tunnels_takes_what_fits_in_a_message() {
    let stage = Stage::with(&[("bulk", ROUTE)], listening).await;
    let off = |options: natsway_worker::Options| options.tunnels(TunnelMode::Off);
    let _worker = stage.worker_with("svc.bulk.blue", router(), off).await;
    let (kind, may_have_run, text) = refused(&stage.client, Body::wrap(pieces(65_537))).await;
    assert_eq!((kind, may_have_run), (CallErrorKind::Unavailable, false), "{text}");
    let answer = stage.client.send(upload("/upload", Body::wrap(pieces(65_536)))).await.unwrap();
    assert_eq!(said(answer).await, "65536");
    let answer = stage.client.send(call("http://bulk/download?bytes=900000")).await.unwrap();
    assert_eq!(read(answer).await, 900_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_bounds_and_what_breaks_one_off_is_said() {
    let route = ROUTE.replace(
        r#""timeout":"10s""#,
        r#""timeout":"10s","max_body_bytes":200000,"stream_idle_timeout":"1s""#,
    );
    let stage = Stage::with(&[("bulk", &route)], |options| listening(options).max_streams(1)).await;
    let _worker = stage.worker("svc.bulk.blue", router()).await;
    let start = Bytes::from_iter((0..100_000).map(byte_at));
    let broken = stream::iter([Ok(Frame::data(start.clone())), Err("gone")]);
    let stalled = stream::iter([Ok::<_, Infallible>(Frame::data(start))]);
    let stalled = Body::wrap(StreamBody::new(stalled.chain(stream::pending())));
    for (body, kind, says) in [
        (Body::wrap(pieces(200_001)), CallErrorKind::Refused, "max_body_bytes, 200000"),
        (Body::wrap(StreamBody::new(broken)), CallErrorKind::Refused, "broke off"),
        (stalled, CallErrorKind::TimedOut, "stood still"),
    ] {
        let refused = refused(&stage.client, body).await;
        assert_eq!((refused.0, refused.1), (kind, true), "{}", refused.2);
        assert!(refused.2.contains(says), "{}", refused.2);
    }

    // The one place is taken until its body is read.
    let uri = "http://bulk/download?bytes=100000";
    let open = stage.client.send(call(uri)).await.unwrap();
    let error = stage.client.send(call(uri)).await.unwrap_err();
    assert_eq!((error.kind(), error.may_have_run()), (CallErrorKind::OutcomeUnknown, true));
    let (kind, may_have_run, _) = refused(&stage.client, Body::wrap(pieces(100_000))).await;
    assert_eq!((kind, may_have_run), (CallErrorKind::Unavailable, false));
    let closing = tokio::spawn({
        let client = stage.client.clone();
        async move { client.close().await }
    });
    eventually(DEADLINE, async || match stage.client.send(call(uri)).await {
        Err(error) if error.kind() == CallErrorKind::Closed => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert!(!closing.is_finished(), "a body is open");
    assert_eq!(read(open).await, 100_000);
    tokio::time::timeout(DEADLINE, closing).await.expect("it ends with the last").unwrap();
}

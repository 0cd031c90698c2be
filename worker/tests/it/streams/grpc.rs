//! gRPC by tonic at both ends.

use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::routing::post;
use bytes::{Buf, BufMut, Bytes};
use futures_util::{StreamExt, TryStreamExt, stream};
use http::uri::PathAndQuery;
use http_body_util::{BodyExt, Full};
use natsway_testkit::{Process, TestBroker, eventually};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tonic::client;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataValue;
use tonic::server;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tower::service_fn;

use super::client::{Client, Version, get, read, whole};
use super::{DEADLINE, Guard, Stage, guards};
use crate::stage::SUBJECT;

/// Messages as they are.
#[derive(Clone, Copy, Debug, Default)]
struct Plain;

impl Codec for Plain {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Plain {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

type Messages = stream::BoxStream<'static, Result<Bytes, Status>>;

fn answer<T>(message: T) -> Result<tonic::Response<T>, Status> {
    Ok(tonic::Response::new(message))
}

fn server() -> server::Grpc<Plain> {
    server::Grpc::new(Plain)
}

/// A unary method that sends its message back.
async fn echo(request: Request) -> http::Response<tonic::body::Body> {
    let method = |request: tonic::Request<Bytes>| async move {
        let mut response = tonic::Response::new(request.get_ref().clone());
        if let Some(name) = request.metadata().get("x-name") {
            response.metadata_mut().insert("x-name", name.clone());
        }
        Ok(response)
    };
    server().unary(service_fn(method), request).await
}

/// A unary method that refuses.
async fn refuse(request: Request) -> http::Response<tonic::body::Body> {
    let method = |_: tonic::Request<Bytes>| async {
        let mut status = Status::not_found("no such thing");
        status.metadata_mut().insert("x-thing", MetadataValue::from_static("17"));
        Err::<tonic::Response<Bytes>, _>(status)
    };
    server().unary(service_fn(method), request).await
}

/// As many messages as the first byte says, and then an error if there is a second one.
async fn count(request: Request) -> http::Response<tonic::body::Body> {
    let method = |request: tonic::Request<Bytes>| async move {
        let message = request.into_inner();
        let numbers =
            stream::iter(0..message[0]).map(|number| Ok(Bytes::from(vec![number; 1_000])));
        let end = stream::iter((message.len() > 1).then(|| Err(Status::data_loss("lost it"))));
        answer(numbers.chain(end).boxed())
    };
    server().server_streaming(service_fn(method), request).await
}

/// Says how many bytes there were in all messages.
async fn measure(request: Request) -> http::Response<tonic::body::Body> {
    let method = |request: tonic::Request<Streaming<Bytes>>| async move {
        let sizes = request.into_inner().map_ok(|message| message.len());
        let bytes = sizes.try_fold(0, |sum, size| async move { Ok(sum + size) }).await?;
        answer(Bytes::from(bytes.to_string()))
    };
    server().client_streaming(service_fn(method), request).await
}

/// Answers each message before it reads the next one.
async fn converse(request: Request) -> http::Response<tonic::body::Body> {
    let method = |request: tonic::Request<Streaming<Bytes>>| async move {
        let answers =
            request.into_inner().map_ok(|message| Bytes::from(message.to_ascii_uppercase()));
        answer(answers.boxed())
    };
    server().streaming(service_fn(method), request).await
}

fn router() -> Router {
    Router::new()
        .route("/test.Test/Echo", post(echo))
        .route("/test.Test/Refuse", post(refuse))
        .route("/test.Test/Count", post(count))
        .route("/test.Test/Measure", post(measure))
        .route("/test.Test/Converse", post(converse))
}

/// Methods that go on until they are dropped.
fn waiting(guard: impl Fn() -> Guard + Clone + Send + Sync + 'static) -> Router {
    let unary = {
        let guard = guard.clone();
        async move |request: Request| {
            let guard = guard.clone();
            let method = move |_: tonic::Request<Bytes>| {
                let guard = guard();
                async move {
                    let _guard = guard;
                    std::future::pending::<Result<tonic::Response<Bytes>, Status>>().await
                }
            };
            server().unary(service_fn(method), request).await
        }
    };
    let streaming = async move |request: Request| {
        let guard = guard.clone();
        let method = move |request: tonic::Request<Streaming<Bytes>>| {
            let guard = guard();
            async move {
                let first = stream::once(async { Ok(Bytes::from_static(b"first")) });
                let messages = first.chain(request.into_inner()).chain(stream::pending());
                answer(
                    messages
                        .map(move |message| {
                            let _guard = &guard;
                            message
                        })
                        .boxed(),
                )
            }
        };
        server().streaming(service_fn(method), request).await
    };
    Router::new()
        .route("/test.Test/Unary", post(unary))
        .route("/test.Test/Streaming", post(streaming))
}

async fn connect(stage: &Stage) -> client::Grpc<Channel> {
    connect_to(stage.port).await
}

async fn connect_to(port: u16) -> client::Grpc<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    client::Grpc::new(endpoint.connect().await.unwrap())
}

/// The client, once its connection takes a call.
async fn ready(grpc: &mut client::Grpc<Channel>) -> &mut client::Grpc<Channel> {
    grpc.ready().await.unwrap();
    grpc
}

fn path(method: &str) -> PathAndQuery {
    format!("/test.Test/{method}").parse().unwrap()
}

async fn unary(
    grpc: &mut client::Grpc<Channel>,
    method: &str,
    message: impl Into<Bytes>,
) -> Result<tonic::Response<Bytes>, Status> {
    let mut request = tonic::Request::new(message.into());
    request.metadata_mut().insert("x-name", MetadataValue::from_static("a name"));
    ready(grpc).await.unary(request, path(method), Plain).await
}

/// A whole answer whose length is known, with its status behind it.
async fn known() -> http::Response<axum::body::Body> {
    let mut trailers = http::HeaderMap::new();
    trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
    let message = Full::new(Bytes::from_static(b"\0\0\0\0\x03yes"));
    let body = message.with_trailers(std::future::ready(Some(Ok(trailers))));
    let response = http::Response::builder().header("content-type", "application/grpc");
    response.body(axum::body::Body::new(body)).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_status_behind_a_body_of_known_length_is_kept() {
    let stage = Stage::new(Router::new().route("/test.Test/Known", post(known))).await;
    let mut grpc = connect(&stage).await;
    let answer = unary(&mut grpc, "Known", "ask").await.unwrap();
    assert_eq!(answer.into_inner(), "yes");
}

#[tokio::test(flavor = "multi_thread")]
async fn all_four_forms_pass() {
    let stage = Stage::new(router()).await;
    call_in_all_four_forms(stage.port).await;
    stage.all_let_go().await;
}

/// A server that knows nothing of us, and the sidecar before it.
#[tokio::test(flavor = "multi_thread")]
async fn all_four_forms_pass_to_a_server_behind_the_sidecar() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = TcpIncoming::from(listener);
    let routes = tonic::service::Routes::from(router());
    let server = tonic::transport::Server::builder().add_routes(routes);
    tokio::spawn(server.serve_with_incoming(incoming));
    let broker = TestBroker::start().await;
    let lines = "timeout = \"15s\"\n";
    let ((port, admin_port), _gateway) = Stage::gateway_at(&broker, lines, &[]).await;
    let mut sidecar = Process::builder(env!("CARGO_BIN_EXE_worker"))
        .args(["--nats-url", &broker.url(), "--subject", SUBJECT])
        .args(["--upstream", &format!("h2c://{address}")])
        .start();
    sidecar.wait_for_line("serving subject", DEADLINE).await;
    eventually(DEADLINE, async || match get(admin_port, "/readyz").await {
        Ok((200, _)) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    call_in_all_four_forms(port).await;
    let mut grpc = connect_to(port).await;
    let refused = unary(&mut grpc, "Refuse", "").await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "no such thing"));
}

async fn call_in_all_four_forms(port: u16) {
    let mut grpc = connect_to(port).await;
    for bytes in [0, 1, 65_536, 1 << 20] {
        let message = Bytes::from(vec![b'm'; bytes]);
        let response = unary(&mut grpc, "Echo", message.clone()).await.unwrap();
        assert_eq!(response.metadata().get("x-name").unwrap(), "a name");
        assert_eq!(response.into_inner(), message, "{bytes}");
    }

    let request = tonic::Request::new(Bytes::from_static(&[200]));
    let counted =
        ready(&mut grpc).await.server_streaming(request, path("Count"), Plain).await.unwrap();
    let messages: Vec<Bytes> = counted.into_inner().try_collect().await.unwrap();
    assert_eq!(messages.len(), 200);
    assert!(messages.iter().zip(0..).all(|(message, number)| *message == vec![number; 1_000]));

    let pieces = stream::iter(vec![Bytes::from(vec![b'm'; 30_000]); 100]);
    let request = tonic::Request::new(pieces);
    let measured =
        ready(&mut grpc).await.client_streaming(request, path("Measure"), Plain).await.unwrap();
    assert_eq!(measured.into_inner(), "3000000");

    let (sender, receiver) = mpsc::channel(1);
    let said = stream::unfold(receiver, async |mut receiver| {
        receiver.recv().await.map(|message| (message, receiver))
    });
    let request = tonic::Request::new(said.boxed());
    let mut answers: Messages = ready(&mut grpc)
        .await
        .streaming(request, path("Converse"), Plain)
        .await
        .unwrap()
        .into_inner()
        .boxed();
    for word in ["one", "two", "three"] {
        sender.send(Bytes::from(word)).await.unwrap();
        let answer = tokio::time::timeout(DEADLINE, answers.next()).await.unwrap();
        assert_eq!(answer.unwrap().unwrap(), word.to_ascii_uppercase());
    }
    drop(sender);
    assert!(answers.next().await.is_none());
    // The connection as well, at the end of this: while it is open, its buffer may be larger than
    // the least.
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_keeps_its_status_and_metadata() {
    let stage = Stage::new(router()).await;
    let mut grpc = connect(&stage).await;
    let refused = unary(&mut grpc, "Refuse", "").await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::NotFound, "no such thing"));
    assert_eq!(refused.metadata().get("x-thing").unwrap(), "17");

    let request = tonic::Request::new(Bytes::from_static(&[3, 0]));
    let counted =
        ready(&mut grpc).await.server_streaming(request, path("Count"), Plain).await.unwrap();
    let messages: Vec<_> = counted.into_inner().collect().await;
    let codes: Vec<_> =
        messages.iter().map(|message| message.as_ref().err().map(Status::code)).collect();
    assert_eq!(codes, [None, None, None, Some(Code::DataLoss)]);

    let missing = unary(&mut grpc, "Missing", "").await.unwrap_err();
    assert_eq!(missing.code(), Code::Unimplemented, "{missing:?}");
}

/// A call as it looks on the wire.
async fn call(
    stage: &Stage,
    method: &str,
    fields: &[(&str, &str)],
) -> http::Response<hyper::body::Incoming> {
    let mut client = Client::connect(stage.port, Version::Http2).await;
    let mut request = http::Request::post(format!("/test.Test/{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    // No compression, and a message of one byte.
    client.send(request.body(whole(&b"\0\0\0\0\x01m"[..])).unwrap()).await.unwrap()
}

/// Go's client takes a status out of the first head only where that ends the stream.
#[tokio::test(flavor = "multi_thread")]
async fn an_error_without_a_message_is_one_head_that_ends_the_stream() {
    let stage = Stage::new(router()).await;
    let response = call(&stage, "Refuse", &[]).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"]),
        (200, &"5".parse().unwrap())
    );
    assert!(http_body::Body::is_end_stream(response.body()), "{response:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_ends_when_its_own_timeout_is_over() {
    let (guard, mut dropped) = guards();
    let stage = Stage::new(waiting(guard)).await;
    let begun = Instant::now();
    let response = read(call(&stage, "Unary", &[("grpc-timeout", "700m")]).await).await;
    let took = begun.elapsed();
    assert!(took >= Duration::from_millis(600) && took < Duration::from_secs(5), "{took:?}");
    // As gRPC says it, for its clients try a 504 again.
    assert_eq!(response.status, 200, "{response:?}");
    assert_eq!(response.headers["grpc-status"], "4", "{response:?}");
    dropped.soon().await;

    let mut grpc = connect(&stage).await;
    let mut request = tonic::Request::new(Bytes::new());
    request.set_timeout(Duration::from_millis(300));
    let late = ready(&mut grpc)
        .await
        .unary::<_, Bytes, _>(request, path("Unary"), Plain)
        .await
        .unwrap_err();
    assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late:?}");
    dropped.soon().await;
    stage.all_let_go().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_is_cancelled_in_its_handler() {
    let (guard, mut dropped) = guards();
    let stage = Stage::new(waiting(guard)).await;
    let mut grpc = connect(&stage).await;

    let waits = Duration::from_millis(500);
    let called = tokio::time::timeout(waits, unary(&mut grpc, "Unary", "")).await;
    assert!(called.is_err(), "it waits: {called:?}");
    dropped.soon().await;

    for reads_first in [true, false] {
        // What the client still says keeps its call open, so it ends that first.
        let (saying, said) = oneshot::channel::<()>();
        let said = stream::pending::<Bytes>().take_until(said);
        let request = tonic::Request::new(said.boxed());
        let streaming = ready(&mut grpc).await.streaming(request, path("Streaming"), Plain).await;
        let mut answers = streaming.unwrap().into_inner();
        if reads_first {
            assert_eq!(answers.message().await.unwrap().unwrap(), "first");
        }
        dropped.not_yet();
        drop((saying, answers));
        dropped.soon().await;
    }
    drop(grpc);
    stage.all_let_go().await;
}

//! `grpc.testing.TestService`, as gRPC's interoperability tests describe it.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body::Frame;
use http_body_util::BodyExt;
use tonic::server::Grpc;
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::messages::{
    EchoStatus, Empty, Payload, ResponseParameters, SimpleRequest, SimpleResponse,
    StreamingInputCallRequest, StreamingInputCallResponse, StreamingOutputCallRequest,
    StreamingOutputCallResponse,
};

const ECHO_INITIAL: &str = "x-grpc-test-echo-initial";
const ECHO_TRAILING: &str = "x-grpc-test-echo-trailing-bin";

/// The methods that there are.
pub(crate) fn router() -> Router {
    let path = |method: &str| format!("/grpc.testing.TestService/{method}");
    Router::new()
        .route(&path("EmptyCall"), post(empty_call))
        .route(&path("UnaryCall"), post(unary_call))
        .route(&path("StreamingOutputCall"), post(streaming_output_call))
        .route(&path("StreamingInputCall"), post(streaming_input_call))
        .route(&path("FullDuplexCall"), post(full_duplex_call))
        .route(&path("HalfDuplexCall"), post(half_duplex_call))
}

/// What is no method: by gRPC's own status where gRPC is spoken.
pub(crate) async fn unknown(headers: HeaderMap) -> Response {
    let is_grpc = |kind: &HeaderValue| kind.as_bytes().starts_with(b"application/grpc");
    match headers.get("content-type") {
        Some(kind) if is_grpc(kind) => Status::unimplemented("").into_http::<Body>(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

type Answers = BoxStream<'static, Result<StreamingOutputCallResponse, Status>>;

fn answer<T>(message: T) -> Result<tonic::Response<T>, Status> {
    Ok(tonic::Response::new(message))
}

fn payload(bytes: i32) -> Option<Payload> {
    let bytes = usize::try_from(bytes).unwrap_or_default();
    Some(Payload { kind: 0, body: vec![0; bytes] })
}

fn size(payload: Option<&Payload>) -> i32 {
    payload.map_or(0, |payload| i32::try_from(payload.body.len()).unwrap_or(i32::MAX))
}

/// Refuses as the request asks for.
fn asked_status(status: Option<EchoStatus>) -> Result<(), Status> {
    match status {
        Some(EchoStatus { code, message }) if code != 0 => {
            Err(Status::new(Code::from_i32(code), message))
        }
        _ => Ok(()),
    }
}

/// Gives back what the client would have back, in the head and behind the body.
fn with_echoes(
    asked: (Option<HeaderValue>, Option<HeaderValue>),
    response: axum::http::Response<tonic::body::Body>,
) -> Response {
    let (mut head, body) = response.into_parts();
    let (initial, trailing) = asked;
    if let Some(initial) = initial {
        head.headers.insert(ECHO_INITIAL, initial);
    }
    let Some(trailing) = trailing else { return Response::from_parts(head, Body::new(body)) };
    let body = body.map_frame(move |frame| match frame.into_trailers() {
        Ok(mut trailers) => {
            trailers.insert(ECHO_TRAILING, trailing.clone());
            Frame::trailers(trailers)
        }
        Err(frame) => frame,
    });
    Response::from_parts(head, Body::new(body))
}

fn asked_echoes(request: &Request) -> (Option<HeaderValue>, Option<HeaderValue>) {
    let headers = request.headers();
    (headers.get(ECHO_INITIAL).cloned(), headers.get(ECHO_TRAILING).cloned())
}

async fn empty_call(request: Request) -> Response {
    let method = |_: tonic::Request<Empty>| async { answer(Empty {}) };
    let mut grpc = Grpc::new(ProstCodec::<Empty, Empty>::default());
    grpc.unary(service_fn(method), request).await.map(Body::new)
}

async fn unary_call(request: Request) -> Response {
    let method = |request: tonic::Request<SimpleRequest>| async move {
        let request = request.into_inner();
        asked_status(request.response_status)?;
        answer(SimpleResponse { payload: payload(request.response_size) })
    };
    let echoes = asked_echoes(&request);
    let mut grpc = Grpc::new(ProstCodec::<SimpleResponse, SimpleRequest>::default());
    with_echoes(echoes, grpc.unary(service_fn(method), request).await)
}

/// The answers that one message asks for.
fn answers(parameters: Vec<ResponseParameters>) -> Answers {
    stream::iter(parameters)
        .then(|ResponseParameters { size, interval_us }| async move {
            let pause = Duration::from_micros(u64::try_from(interval_us).unwrap_or_default());
            tokio::time::sleep(pause).await;
            Ok(StreamingOutputCallResponse { payload: payload(size) })
        })
        .boxed()
}

async fn streaming_output_call(request: Request) -> Response {
    let method = |request: tonic::Request<StreamingOutputCallRequest>| async move {
        answer(answers(request.into_inner().response_parameters))
    };
    let codec = ProstCodec::<StreamingOutputCallResponse, StreamingOutputCallRequest>::default();
    Grpc::new(codec).server_streaming(service_fn(method), request).await.map(Body::new)
}

async fn streaming_input_call(request: Request) -> Response {
    let method = |request: tonic::Request<Streaming<StreamingInputCallRequest>>| async move {
        let sizes = request.into_inner().map_ok(|message| size(message.payload.as_ref()));
        let aggregated_payload_size =
            sizes.try_fold(0, |sum: i32, size| async move { Ok(sum.saturating_add(size)) }).await?;
        answer(StreamingInputCallResponse { aggregated_payload_size })
    };
    let codec = ProstCodec::<StreamingInputCallResponse, StreamingInputCallRequest>::default();
    Grpc::new(codec).client_streaming(service_fn(method), request).await.map(Body::new)
}

async fn full_duplex_call(request: Request) -> Response {
    let method = |request: tonic::Request<Streaming<StreamingOutputCallRequest>>| async move {
        let all = request.into_inner().map(|message| {
            let message = message?;
            asked_status(message.response_status)?;
            Ok::<Answers, Status>(answers(message.response_parameters))
        });
        answer(all.try_flatten().boxed())
    };
    let echoes = asked_echoes(&request);
    let codec = ProstCodec::<StreamingOutputCallResponse, StreamingOutputCallRequest>::default();
    with_echoes(echoes, Grpc::new(codec).streaming(service_fn(method), request).await)
}

/// Answers when all has come.
async fn half_duplex_call(request: Request) -> Response {
    let method = |request: tonic::Request<Streaming<StreamingOutputCallRequest>>| async move {
        let all: Vec<_> = request.into_inner().try_collect().await?;
        let parameters = all.into_iter().flat_map(|message| message.response_parameters);
        answer(answers(parameters.collect()))
    };
    let codec = ProstCodec::<StreamingOutputCallResponse, StreamingOutputCallRequest>::default();
    Grpc::new(codec).streaming(service_fn(method), request).await.map(Body::new)
}

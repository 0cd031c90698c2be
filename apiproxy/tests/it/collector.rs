//! A collector of traces that a test can look into: OTLP over HTTP and over gRPC.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

/// A span as it arrived, with its process's name.
#[derive(Clone, Debug)]
pub struct Collected {
    pub service: String,
    /// The version of what made it, and the conventions by which it did.
    pub scope_version: String,
    pub schema_url: String,
    pub span: Span,
}

#[derive(Clone, Debug, Default)]
pub struct Collector(Arc<Mutex<Vec<Collected>>>);

impl Collector {
    /// Collects on a free port, and gives its address.
    pub async fn over_http() -> (Self, String) {
        let collector = Self::default();
        let keep = collector.clone();
        let router = Router::new().route(
            "/v1/traces",
            post(async move |body: Bytes| match ExportTraceServiceRequest::decode(body) {
                Ok(request) => {
                    keep.keep(request);
                    (StatusCode::OK, ExportTraceServiceResponse::default().encode_to_vec())
                }
                Err(error) => (StatusCode::BAD_REQUEST, error.to_string().into_bytes()),
            }),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await });
        (collector, address)
    }

    /// The same, by gRPC.
    pub async fn over_grpc() -> (Self, String) {
        let collector = Self::default();
        let service = TraceServiceServer::new(collector.clone());
        let incoming =
            tonic::transport::server::TcpIncoming::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = format!("http://{}", incoming.local_addr().unwrap());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        (collector, address)
    }

    /// Everything that has arrived.
    pub fn all(&self) -> Vec<Collected> {
        self.0.lock().unwrap().clone()
    }

    /// The only span of a name.
    pub fn the(&self, name: &str) -> Collected {
        let named: Vec<_> = self.all().into_iter().filter(|span| span.span.name == name).collect();
        assert_eq!(named.len(), 1, "spans named {name:?} among {:#?}", self.all());
        named.into_iter().next().unwrap()
    }

    fn keep(&self, request: ExportTraceServiceRequest) {
        let mut kept = self.0.lock().unwrap();
        for resource in request.resource_spans {
            let attributes =
                resource.resource.map(|resource| resource.attributes).unwrap_or_default();
            let service = text(&attributes, "service.name").unwrap_or_default();
            for scope in resource.scope_spans {
                let scope_version = scope.scope.map(|scope| scope.version).unwrap_or_default();
                let collected = |span| Collected {
                    service: service.clone(),
                    scope_version: scope_version.clone(),
                    schema_url: scope.schema_url.clone(),
                    span,
                };
                kept.extend(scope.spans.into_iter().map(collected));
            }
        }
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.keep(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collected {
    /// An attribute as text, numbers too.
    pub fn attribute(&self, key: &str) -> Option<String> {
        text(&self.span.attributes, key)
    }

    pub fn trace(&self) -> String {
        hex(&self.span.trace_id)
    }

    pub fn id(&self) -> String {
        hex(&self.span.span_id)
    }

    pub fn parent(&self) -> String {
        hex(&self.span.parent_span_id)
    }
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let value = &attributes.iter().find(|attribute| attribute.key == key)?.value;
    match value {
        Some(AnyValue { value: Some(any_value::Value::StringValue(text)) }) => Some(text.clone()),
        Some(AnyValue { value: Some(any_value::Value::IntValue(number)) }) => {
            Some(number.to_string())
        }
        other => panic!("{key}={other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

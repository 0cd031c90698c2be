//! One trace from the client's request to the spans of the handler, told to a collector.

use natsway_testkit::{Broker, Process, workspace_binary};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use crate::collector::Collector;
use crate::fixture::{DEADLINE, Gateway, ROUTES};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A gateway and a worker that are told the same about traces.
struct Stand {
    gateway: Gateway,
    worker: Process,
    _broker: Broker,
}

impl Stand {
    /// Behind a proxy that is believed, which is where traces are continued.
    async fn start(arguments: &[&str]) -> Stand {
        Stand::start_with(arguments, &["--trusted-proxies", "127.0.0.0/8"]).await
    }

    async fn start_with(arguments: &[&str], of_the_gateway: &[&str]) -> Stand {
        let program = workspace_binary("worker");
        let broker = Broker::start().await;
        let mut worker = Process::builder(program)
            .args(["--nats-url", &broker.url(), "--subject", "svc.test.blue"])
            .args(arguments)
            .start();
        worker.wait_for_line("serving", DEADLINE).await;
        let gateway =
            Gateway::start(&broker, ROUTES, &[&["--access-log"], of_the_gateway, arguments].concat()).await;
        Stand { gateway, worker, _broker: broker }
    }

    async fn get(&self, path: &str, fields: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\n{fields}\r\n");
        let reply = self.gateway.client().await.exchange(&request).await.unwrap();
        assert_eq!(reply.status, 200, "{reply:?}");
        reply.text()
    }

    /// Both leave in order, and with them go their last spans.
    async fn stop(&mut self) {
        self.gateway.process.terminate();
        assert!(self.gateway.process.wait_exit(DEADLINE).await.success());
        self.worker.terminate();
        assert!(self.worker.wait_exit(DEADLINE).await.success());
    }
}

fn sampled(sampled: bool) -> String {
    format!("traceparent: 00-{TRACE}-{PARENT}-{:02}\r\ntracestate: shop=1\r\n", u8::from(sampled))
}

#[tokio::test]
async fn a_clients_trace_goes_on_to_the_spans_of_the_handler() {
    let (collector, url) = Collector::over_http().await;
    let mut stand = Stand::start(&["--otlp-endpoint", &url]).await;
    stand.get("/slow?ms=1&secret=1", &sampled(true)).await;
    stand.stop().await;

    let request = collector.the("GET /{*rest}");
    assert_eq!((request.service.as_str(), request.trace().as_str()), ("apiproxy", TRACE));
    assert_eq!(request.parent(), PARENT);
    assert_eq!(request.span.kind(), SpanKind::Server);
    for (key, expected) in [
        ("http.request.method", "GET"),
        ("http.route", "/{*rest}"),
        ("http.response.status_code", "200"),
        ("url.path", "/slow"),
        ("url.scheme", "http"),
        ("server.address", "test"),
        ("network.peer.address", "127.0.0.1"),
        ("client.address", "127.0.0.1"),
        ("network.protocol.version", "1.1"),
        ("natsway.route", "test"),
    ] {
        assert_eq!(request.attribute(key).as_deref(), Some(expected), "{key}");
    }
    let hop = collector.the("send svc.test.blue");
    assert_eq!((hop.service.as_str(), hop.parent()), ("apiproxy", request.id()));
    assert_eq!(hop.span.kind(), SpanKind::Producer);
    let process = collector.the("process svc.test.blue");
    assert_eq!((process.service.as_str(), process.parent()), ("worker", hop.id()));
    assert_eq!(process.span.kind(), SpanKind::Consumer);
    for span in [&hop, &process] {
        assert_eq!(span.attribute("messaging.system").as_deref(), Some("nats"));
        assert_eq!(span.attribute("messaging.destination.name").as_deref(), Some("svc.test.blue"));
        assert_eq!(span.attribute("http.response.status_code").as_deref(), Some("200"));
    }
    assert_eq!(process.attribute("messaging.consumer.group.name").as_deref(), Some("q"));
    let handler = collector.the("slow");
    assert_eq!((handler.service.as_str(), handler.parent()), ("worker", process.id()));
    assert!(collector.all().iter().all(|span| span.trace() == TRACE && span.span.trace_state == "shop=1"));
    assert!(!format!("{:?}", collector.all()).contains("secret"), "queries are nobody's business");
    let log = stand.gateway.process.stderr();
    assert!(log.contains(&format!("trace_id=\"{TRACE}\"")), "{log}");
}

#[tokio::test]
async fn a_request_without_a_trace_begins_one_and_it_goes_by_grpc_as_well() {
    let (collector, url) = Collector::over_grpc().await;
    let mut stand =
        Stand::start(&["--otlp-endpoint", &url, "--otlp-protocol", "grpc", "--service-name", "shop"]).await;
    stand.get("/slow?ms=1", "").await;
    stand.stop().await;
    let (request, handler) = (collector.the("GET /{*rest}"), collector.the("slow"));
    assert_eq!(request.parent(), "");
    assert_eq!(request.trace(), handler.trace());
    assert_eq!((request.service.as_str(), handler.service.as_str()), ("shop", "shop"));
    assert_eq!(collector.all().len(), 4, "{:#?}", collector.all());
}

#[tokio::test]
async fn what_is_not_sampled_is_not_exported_and_the_worker_is_told_so() {
    let (collector, url) = Collector::over_http().await;
    let share_of_none = ["--traces-sampler", "parentbased_traceidratio", "--traces-sampler-arg", "0"];
    let mut stand = Stand::start(&[&["--otlp-endpoint", &url], &share_of_none[..]].concat()).await;
    stand.get("/slow?ms=1", "").await;
    stand.get("/slow?ms=1", &sampled(false)).await;
    // Its own parent of the worker's span, not sampled either, so that the worker does not decide anew.
    let echoed = stand.get("/echo", "").await;
    let parent = echoed.split("\"traceparent\",\"00-").nth(1).expect("the worker gets a parent");
    assert_eq!(parent.split('"').next().unwrap().rsplit('-').next(), Some("00"), "{echoed}");
    stand.get("/version", &sampled(true)).await;
    stand.stop().await;
    let exported: Vec<_> = collector.all().into_iter().map(|span| (span.trace(), span.span.name)).collect();
    assert_eq!(exported.len(), 3, "only the last request's, which the client traces: {exported:?}");
    assert!(exported.iter().all(|(trace, _)| trace == TRACE));
}

#[tokio::test]
async fn a_stranger_has_nothing_traced_and_joins_no_trace() {
    let (collector, url) = Collector::over_http().await;
    let share_of_none = ["--traces-sampler", "parentbased_traceidratio", "--traces-sampler-arg", "0"];
    let arguments = [&["--otlp-endpoint", &url], &share_of_none[..]].concat();
    let mut stand = Stand::start_with(&arguments, &[]).await;
    // An id that every sampler by ratio takes, as its number is the smallest.
    let lowest = format!("traceparent: 00-{:032x}-{PARENT}-01\r\n", 1);
    for fields in [sampled(true), lowest] {
        let echoed = stand.get("/echo", &fields).await;
        assert!(!echoed.contains(TRACE) && !echoed.contains("shop=1"), "{echoed}");
        let parent = echoed.split("\"traceparent\",\"00-").nth(1).expect("the worker gets a parent of ours");
        assert_eq!(parent.split('"').next().unwrap().rsplit('-').next(), Some("00"), "{echoed}");
    }
    stand.stop().await;
    assert_eq!(collector.all().len(), 0, "{:#?}", collector.all());
    assert!(!stand.gateway.process.stderr().contains(TRACE));
}

#[tokio::test]
async fn a_strangers_trace_is_linked_to_where_its_request_is_sampled() {
    let (collector, url) = Collector::over_http().await;
    let mut stand = Stand::start_with(&["--otlp-endpoint", &url], &[]).await;
    stand.get("/version", &sampled(true)).await;
    stand.stop().await;
    let request = collector.the("GET /{*rest}");
    assert_ne!(request.trace(), TRACE);
    assert_eq!(request.parent(), "");
    let [link] = &request.span.links[..] else { panic!("{:#?}", request.span.links) };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!((hex(&link.trace_id).as_str(), hex(&link.span_id).as_str()), (TRACE, PARENT));
    assert!(collector.all().iter().all(|span| span.trace() == request.trace()));
}

#[tokio::test]
async fn every_try_has_a_span_of_its_own() {
    let (collector, url) = Collector::over_http().await;
    let broker = Broker::start().await;
    let mut gateway = Gateway::start(&broker, ROUTES, &["--otlp-endpoint", &url]).await;
    assert_eq!(gateway.get("/").await.status, 503);
    gateway.process.terminate();
    assert!(gateway.process.wait_exit(DEADLINE).await.success());
    let request = collector.the("GET /{*rest}");
    assert_eq!(request.attribute("error.type").as_deref(), Some("no_responders"));
    assert_eq!(request.span.status.as_ref().unwrap().code(), StatusCode::Error);
    let tries: Vec<_> =
        collector.all().into_iter().filter(|span| span.span.name.starts_with("send ")).collect();
    assert!(tries.len() > 1, "{tries:#?}");
    for (number, one) in tries.iter().enumerate() {
        assert_eq!(one.parent(), request.id());
        assert_eq!(one.attribute("error.type").as_deref(), Some("no_responders"));
        let resends = (number > 0).then(|| number.to_string());
        assert_eq!(one.attribute("http.request.resend_count"), resends);
    }
}

#[tokio::test]
async fn without_an_exporter_a_trace_is_forwarded_as_it_came() {
    let mut stand = Stand::start(&[]).await;
    let echoed = stand.get("/echo", &sampled(true)).await;
    assert!(echoed.contains(&format!("[\"traceparent\",\"00-{TRACE}-{PARENT}-01\"]")), "{echoed}");
    assert!(echoed.contains("[\"tracestate\",\"shop=1\"]"), "{echoed}");
    assert!(!stand.get("/echo", "").await.contains("traceparent"));
    stand.stop().await;
}

#[tokio::test]
async fn a_collector_that_is_away_costs_no_request_and_no_exit() {
    let nobody = format!("http://127.0.0.1:{}", natsway_testkit::free_port());
    let mut stand = Stand::start(&["--otlp-endpoint", &nobody]).await;
    stand.get("/slow?ms=1", "").await;
    stand.stop().await;
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused_at_the_start() {
    let secure = ["--otlp-endpoint", "https://collector:4318"];
    let mut gateway = Gateway::launch("nats://127.0.0.1:1", ROUTES, &secure);
    assert_eq!(gateway.process.wait_exit(DEADLINE).await.code(), Some(2));
    let said = gateway.process.stderr();
    assert!(said.contains("https needs protocol grpc"), "{said}");
}

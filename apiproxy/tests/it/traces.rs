//! One trace from the client's request to the spans of the handler, told to a collector.

use natsway_testkit::{Process, TestBroker, workspace_binary};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;

use crate::collector::{Collected, Collector};
use crate::fixture::{DEADLINE, Gateway, ROUTES};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A gateway and a worker that are told the same about traces.
struct Stand {
    gateway: Gateway,
    worker: Process,
    _broker: TestBroker,
}

impl Stand {
    /// Behind a proxy that is believed, which is where traces are continued.
    async fn start(arguments: &[&str]) -> Self {
        Self::start_with(arguments, &["--trusted-proxies", "127.0.0.0/8"]).await
    }

    async fn start_with(arguments: &[&str], of_the_gateway: &[&str]) -> Self {
        let program = workspace_binary("worker");
        let broker = TestBroker::start().await;
        let mut worker = Process::builder(program)
            .args(["--nats-url", &broker.url(), "--subject", "svc.test.blue"])
            .args(arguments)
            .start();
        worker.wait_for_line("serving", DEADLINE).await;
        let gateway = Gateway::start(
            &broker,
            ROUTES,
            &[&["--access-log"], of_the_gateway, arguments].concat(),
        )
        .await;
        Self { gateway, worker, _broker: broker }
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
    assert!(
        collector
            .all()
            .iter()
            .all(|span| span.trace() == TRACE && span.span.trace_state == "shop=1")
    );
    assert!(!format!("{:?}", collector.all()).contains("secret"), "queries are nobody's business");
    let log = stand.gateway.process.stderr();
    assert!(log.contains(&format!("trace_id=\"{TRACE}\"")), "{log}");
}

#[tokio::test]
async fn a_request_without_a_trace_begins_one_and_it_goes_by_grpc_as_well() {
    let (collector, url) = Collector::over_grpc().await;
    let mut stand = Stand::start(&[
        "--otlp-endpoint",
        &url,
        "--otlp-protocol",
        "grpc",
        "--service-name",
        "shop",
    ])
    .await;
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
    let share_of_none =
        ["--traces-sampler", "parentbased_traceidratio", "--traces-sampler-arg", "0"];
    let mut stand = Stand::start(&[&["--otlp-endpoint", &url], &share_of_none[..]].concat()).await;
    stand.get("/slow?ms=1", "").await;
    stand.get("/slow?ms=1", &sampled(false)).await;
    // Its own parent of the worker's span, not sampled either, so that the worker does not decide
    // anew.
    let echoed = stand.get("/echo", "").await;
    let parent = echoed.split("\"traceparent\",\"00-").nth(1).expect("the worker gets a parent");
    assert_eq!(parent.split('"').next().unwrap().rsplit('-').next(), Some("00"), "{echoed}");
    stand.get("/version", &sampled(true)).await;
    stand.stop().await;
    let exported: Vec<_> =
        collector.all().into_iter().map(|span| (span.trace(), span.span.name)).collect();
    assert_eq!(exported.len(), 3, "only the last request's, which the client traces: {exported:?}");
    assert!(exported.iter().all(|(trace, _)| trace == TRACE));
}

#[tokio::test]
async fn a_stranger_has_nothing_traced_and_joins_no_trace() {
    let (collector, url) = Collector::over_http().await;
    let share_of_none =
        ["--traces-sampler", "parentbased_traceidratio", "--traces-sampler-arg", "0"];
    let arguments = [&["--otlp-endpoint", &url], &share_of_none[..]].concat();
    let mut stand = Stand::start_with(&arguments, &[]).await;
    // An id that every sampler by ratio takes, as its number is the smallest.
    let lowest = format!("traceparent: 00-{:032x}-{PARENT}-01\r\n", 1);
    for fields in [sampled(true), lowest] {
        let echoed = stand.get("/echo", &fields).await;
        assert!(!echoed.contains(TRACE) && !echoed.contains("shop=1"), "{echoed}");
        let parent =
            echoed.split("\"traceparent\",\"00-").nth(1).expect("the worker gets a parent of ours");
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
async fn tries_that_find_no_worker_are_one_span_with_an_event_for_each() {
    let (collector, url) = Collector::over_http().await;
    let broker = TestBroker::start().await;
    let mut gateway = Gateway::start(&broker, ROUTES, &["--otlp-endpoint", &url]).await;
    assert_eq!(gateway.get("/").await.status, 503);
    gateway.process.terminate();
    assert!(gateway.process.wait_exit(DEADLINE).await.success());
    let request = collector.the("GET /{*rest}");
    assert_eq!(request.attribute("error.type").as_deref(), Some("no_responders"));
    assert_eq!(request.span.status.as_ref().unwrap().code(), StatusCode::Error);
    let tries = collector.the("send svc.test.blue");
    assert_eq!(tries.parent(), request.id());
    assert_eq!(tries.attribute("error.type").as_deref(), Some("no_responders"));
    assert_eq!(tries.span.status.as_ref().unwrap().code(), StatusCode::Error);
    assert!(tries.span.events.len() > 1, "{tries:#?}");
    assert_eq!(tries.attribute("natsway.attempts"), Some(tries.span.events.len().to_string()));
    assert!(tries.span.end_time_unix_nano <= request.span.end_time_unix_nano);
}

#[tokio::test]
async fn a_try_that_may_have_run_has_a_span_of_its_own() {
    use crate::backend::{Backend, ok};
    let (collector, url) = Collector::over_http().await;
    let broker = TestBroker::start().await;
    // It does not answer the first time.
    let _backend =
        Backend::start(&broker, |number, _| if number == 0 { Vec::new() } else { vec![ok("x")] })
            .await;
    let mut gateway = Gateway::start(&broker, ROUTES, &["--otlp-endpoint", &url]).await;
    assert_eq!(gateway.get("/").await.status, 200);
    gateway.process.terminate();
    assert!(gateway.process.wait_exit(DEADLINE).await.success());
    let mut tries: Vec<_> =
        collector.all().into_iter().filter(|span| span.span.name == "send svc.test.blue").collect();
    tries.sort_by_key(|one| one.span.start_time_unix_nano);
    let [first, second] = &tries[..] else { panic!("{tries:#?}") };
    assert!(first.attribute("error.type").is_some());
    assert_eq!(first.attribute("http.request.resend_count"), None);
    assert_eq!(second.attribute("http.request.resend_count").as_deref(), Some("1"));
    assert_eq!(second.attribute("http.response.status_code").as_deref(), Some("200"));
}

#[tokio::test]
async fn spans_say_what_the_conventions_ask_for() {
    let (collector, url) = Collector::over_http().await;
    let mut stand = Stand::start(&["--otlp-endpoint", &url]).await;
    stand.get("/version", "").await;
    // A method that nobody knows, and a try that is answered with an error.
    let odd = "BREW /echo HTTP/1.1\r\nhost: test\r\n\r\n";
    stand.gateway.client().await.exchange(odd).await.unwrap();
    assert_eq!(stand.gateway.get("/status/500").await.status, 500);
    stand.stop().await;

    let all = collector.all();
    assert!(all.iter().all(|span| !span.schema_url.is_empty()), "{all:#?}");
    assert!(all.iter().all(|span| span.scope_version == env!("CARGO_PKG_VERSION")), "{all:#?}");
    let named = |name: &'static str| all.iter().filter(move |span| span.span.name == name);
    let port = stand._broker.url().rsplit_once(':').unwrap().1.to_owned();
    for (name, operation) in [("send svc.test.blue", "send"), ("process svc.test.blue", "process")]
    {
        assert_eq!(named(name).count(), 3);
        for span in named(name) {
            assert_eq!(span.attribute("messaging.operation.name").as_deref(), Some(operation));
            assert_eq!(span.attribute("server.address").as_deref(), Some("127.0.0.1"));
            assert_eq!(span.attribute("server.port").as_deref(), Some(port.as_str()));
        }
    }
    assert_eq!(named("HTTP /{*rest}").count(), 1, "{all:#?}");
    let is_odd =
        |span: &&Collected| span.attribute("http.request.method").as_deref() == Some("_OTHER");
    let odd: Vec<_> = all.iter().filter(is_odd).collect();
    assert_eq!(odd.len(), 2, "the gateway's and the worker's: {all:#?}");
    assert!(
        odd.iter()
            .all(|span| span.attribute("http.request.method_original").as_deref() == Some("BREW"))
    );
    let failed: Vec<_> =
        named("send svc.test.blue").filter(|span| span.attribute("error.type").is_some()).collect();
    let [failed] = &failed[..] else { panic!("{failed:#?}") };
    assert_eq!(failed.attribute("error.type").as_deref(), Some("500"));
    assert_eq!(failed.span.status.as_ref().unwrap().code(), StatusCode::Error);
}

#[tokio::test]
async fn a_workers_call_has_a_span_and_so_have_its_tries() {
    use natsway_routes::document::RouteDocument;
    use natsway_routes::store::{BUCKET, RouteStore};
    let (collector, url) = Collector::over_http().await;
    let broker = TestBroker::builder().jetstream().start().await;
    let store = RouteStore::open_or_create(broker.connect().await, BUCKET, 1).await.unwrap();
    let inner =
        r#"{"name":"inner","path":"/inner","target":[{"version":"v1","subject":"svc.inner.v1"}]}"#;
    store.put(&RouteDocument::from_json(inner.as_bytes()).unwrap(), None).await.unwrap();
    let worker = |arguments: &[&str]| {
        Process::builder(workspace_binary("worker"))
            .args(["--nats-url", &broker.url(), "--otlp-endpoint", &url])
            .args(arguments)
            .start()
    };
    let mut workers = [
        worker(&["--subject", "svc.test.blue", "--call-route", "inner"]),
        worker(&["--subject", "svc.inner.v1"]),
    ];
    for worker in &mut workers {
        worker.wait_for_line("serving", DEADLINE).await;
    }
    let mut gateway = Gateway::start(&broker, ROUTES, &["--otlp-endpoint", &url]).await;
    assert_eq!(gateway.get("/version").await.status, 200);
    for process in std::iter::once(&mut gateway.process).chain(&mut workers) {
        process.terminate();
        assert!(process.wait_exit(DEADLINE).await.success());
    }
    let call = collector.the("GET inner");
    assert_eq!(call.span.kind(), SpanKind::Client);
    assert_eq!(call.parent(), collector.the("process svc.test.blue").id());
    for (key, expected) in [
        ("http.request.method", "GET"),
        ("http.response.status_code", "200"),
        ("natsway.route", "inner"),
        ("server.address", "inner"),
        ("url.full", "http://inner/version"),
    ] {
        assert_eq!(call.attribute(key).as_deref(), Some(expected), "{key}");
    }
    let hop = collector.the("send svc.inner.v1");
    assert_eq!((hop.parent(), hop.span.kind()), (call.id(), SpanKind::Producer));
    assert_eq!(hop.attribute("server.address").as_deref(), Some("127.0.0.1"));
    assert_eq!(collector.the("process svc.inner.v1").parent(), hop.id());
    let trace = call.trace();
    assert!(collector.all().iter().all(|span| span.trace() == trace));
}

#[tokio::test]
async fn the_address_for_traces_is_taken_as_it_is_and_the_sdk_can_be_off() {
    let (collector, url) = Collector::over_http().await;
    let nobody = format!("http://127.0.0.1:{}", natsway_testkit::free_port());
    let own = format!("{url}/v1/traces");
    let mut stand =
        Stand::start(&["--otlp-endpoint", &nobody, "--otlp-traces-endpoint", &own]).await;
    stand.get("/version", "").await;
    stand.stop().await;
    assert_eq!(collector.all().len(), 3, "{:#?}", collector.all());

    let mut stand = Stand::start(&["--otlp-endpoint", &url, "--otel-sdk-disabled", "TRUE"]).await;
    let echoed = stand.get("/echo", &sampled(true)).await;
    assert!(echoed.contains(&format!("00-{TRACE}-{PARENT}-01")), "{echoed}");
    stand.stop().await;
    assert_eq!(collector.all().len(), 3, "{:#?}", collector.all());
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
    let said = stand.gateway.process.stderr();
    assert!(
        said.contains(&format!("collector {nobody}/v1/traces")),
        "it says whom it does not reach: {said}"
    );
}

#[tokio::test]
async fn settings_that_cannot_be_are_refused_at_the_start() {
    let secure = ["--otlp-endpoint", "https://collector:4318"];
    let mut gateway = Gateway::launch("nats://127.0.0.1:1", ROUTES, &secure);
    assert_eq!(gateway.process.wait_exit(DEADLINE).await.code(), Some(2));
    let said = gateway.process.stderr();
    assert!(said.contains("https needs protocol grpc"), "{said}");
}

//! Traces of requests, exported by OTLP, for programs that are told where to.
//!
//! Off unless a collector is named. The settings are OpenTelemetry's own, so that an environment
//! that exists already fits; what is not an argument here (`OTEL_RESOURCE_ATTRIBUTES`,
//! `OTEL_EXPORTER_OTLP_HEADERS`, `OTEL_BSP_*`, ...) is read by the SDK itself.

use std::fmt;
use std::future::poll_fn;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use opentelemetry::global;
use opentelemetry::trace::{SpanId, TraceId, TracerProvider};
use opentelemetry_otlp::tonic_types::transport::{Certificate, ClientTlsConfig};
use opentelemetry_otlp::{
    Protocol as Wire, SpanExporter as Otlp, WithExportConfig, WithTonicConfig,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    IdGenerator, RandomIdGenerator, Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter,
};
use tokio::runtime::{Builder, Runtime};
use tracing::warn;

use crate::trace::conventions::scope;
use crate::trace::{HeadSampler, begun_trace};

/// Where a collector listens unless another address is given, by protocol.
const LOCAL_GRPC: &str = "http://127.0.0.1:4317";
const LOCAL_HTTP: &str = "http://127.0.0.1:4318";

/// The path of traces at a collector that speaks HTTP.
const HTTP_PATH: &str = "v1/traces";

/// How long the last spans may take at exit. A collector that is away must not hold up a deploy.
const LAST_EXPORT: Duration = Duration::from_secs(2);

/// Whether and how to export traces; `#[command(flatten)]` it into a binary's arguments.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Traces")]
pub struct TraceArgs {
    /// Whether to export traces [default: otlp when an endpoint is set, else none]
    #[arg(long, env = "OTEL_TRACES_EXPORTER", value_name = "EXPORTER", value_enum)]
    traces_exporter: Option<Exporter>,

    /// Address of the collector, such as http://collector:4318 [default: this machine]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    otlp_endpoint: Option<String>,

    /// Address of the collector for traces alone, taken as it is: over HTTP with its path
    #[arg(long, env = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", value_name = "URL")]
    otlp_traces_endpoint: Option<String>,

    /// Whether OpenTelemetry is off altogether: `true`, or anything else for no
    #[arg(
        long,
        env = "OTEL_SDK_DISABLED",
        value_name = "BOOL",
        default_value = "false",
        value_parser = is_true,
        action = clap::ArgAction::Set
    )]
    otel_sdk_disabled: bool,

    /// Certificate authority of a collector behind TLS (gRPC), PEM [default: the system's]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_CERTIFICATE", value_name = "FILE")]
    otlp_ca: Option<PathBuf>,

    /// What the collector speaks: 4317 is gRPC's usual port, 4318 that of HTTP
    #[arg(
        long,
        env = "OTEL_EXPORTER_OTLP_PROTOCOL",
        value_name = "PROTOCOL",
        value_enum,
        default_value_t = Protocol::Http
    )]
    otlp_protocol: Protocol,

    /// Which requests to trace; parentbased: as the client's own trace says, if it sends one
    #[arg(
        long,
        env = "OTEL_TRACES_SAMPLER",
        value_name = "SAMPLER",
        value_enum,
        default_value_t = Sampling::ParentbasedAlwaysOn
    )]
    traces_sampler: Sampling,

    /// The share of requests for the samplers by ratio, 0 to 1
    #[arg(
        long, env = "OTEL_TRACES_SAMPLER_ARG", value_name = "RATIO", default_value_t = 1.0,
        value_parser = ratio
    )]
    traces_sampler_arg: f64,

    /// Name of this service in traces [default: the program's]
    #[arg(long, env = "OTEL_SERVICE_NAME", value_name = "NAME")]
    service_name: Option<String>,

    /// Which spans of handlers to export: a level, or a filter such as `info,my_service=debug`
    #[arg(long, env = "NATSWAY_TRACES", value_name = "FILTER", default_value = "info")]
    traces: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Exporter {
    /// To a collector
    Otlp,
    /// Nowhere: the traces of others are passed on as they are
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Protocol {
    /// gRPC
    Grpc,
    /// Protobuf over HTTP
    #[value(name = "http/protobuf")]
    Http,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
enum Sampling {
    /// Every one
    AlwaysOn,
    /// None
    AlwaysOff,
    /// A share
    Traceidratio,
    /// Every one that the client does not except
    ParentbasedAlwaysOn,
    /// Those that the client traces
    ParentbasedAlwaysOff,
    /// Those that the client traces, and a share of those of which it says nothing
    ParentbasedTraceidratio,
}

/// Exports the process's spans until dropped or [finished](Traces::finish).
#[derive(Default)]
pub struct Traces(Option<Exporting>);

struct Exporting {
    provider: SdkTracerProvider,
    // Exports run here, since the runtimes of a program end before its last span.
    runtime: Runtime,
    collector: String,
}

impl TraceArgs {
    /// Whether traces are exported.
    pub fn is_on(&self) -> bool {
        let named =
            is_set(&self.otlp_endpoint).is_some() || is_set(&self.otlp_traces_endpoint).is_some();
        !self.otel_sdk_disabled
            && self.traces_exporter.map_or(named, |exporter| exporter == Exporter::Otlp)
    }

    /// How requests are sampled, if traces are exported.
    pub fn head_sampler(&self) -> Option<HeadSampler> {
        self.is_on().then(|| match self.traces_sampler {
            Sampling::AlwaysOn => HeadSampler::share(1.0),
            Sampling::AlwaysOff => HeadSampler::share(0.0),
            Sampling::Traceidratio => HeadSampler::share(self.traces_sampler_arg),
            Sampling::ParentbasedAlwaysOn => HeadSampler::share(1.0).heeding_parent(),
            Sampling::ParentbasedAlwaysOff => HeadSampler::share(0.0).heeding_parent(),
            Sampling::ParentbasedTraceidratio => {
                HeadSampler::share(self.traces_sampler_arg).heeding_parent()
            }
        })
    }

    /// The filter of the spans of handlers. What the exporter itself does is never traced: it would
    /// not end.
    pub(crate) fn filter(&self) -> String {
        let mut filter = self.traces.clone();
        for own in
            ["h2", "hyper", "hyper_util", "opentelemetry", "opentelemetry_otlp", "tonic", "tower"]
        {
            filter.push_str(&format!(",{own}=off"));
        }
        filter
    }

    /// Starts exporting, when told to.
    ///
    /// # Errors
    /// A sentence that says which setting is wrong. A collector that is away is no error.
    pub(crate) fn start(
        &self,
        program: &'static str,
    ) -> Result<(Traces, Option<SdkTracer>), String> {
        if !self.is_on() {
            return Ok((Traces::default(), None));
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("traces")
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| format!("thread that exports traces: {error}"))?;
        let exporter = {
            let _entered = runtime.enter();
            self.exporter()?
        };
        let name = self.service_name.clone().unwrap_or_else(|| program.to_owned());
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(OnRuntime {
                exporter,
                runtime: runtime.handle().clone(),
                collector: shown(&self.collector()),
            })
            .with_sampler(self.sampler())
            .with_id_generator(Ids::default())
            .with_resource(Resource::builder().with_service_name(name).build())
            .build();
        global::set_tracer_provider(provider.clone());
        let tracer = provider.tracer_with_scope(scope(program));
        let collector = shown(&self.collector());
        Ok((Traces(Some(Exporting { provider, runtime, collector })), Some(tracer)))
    }

    /// Where spans go: the address for traces as it is, else the collector's with the path of
    /// traces.
    fn collector(&self) -> String {
        let general = |local: &str| {
            is_set(&self.otlp_endpoint).unwrap_or(local).trim_end_matches('/').to_owned()
        };
        match (is_set(&self.otlp_traces_endpoint), self.otlp_protocol) {
            (Some(url), _) => url.to_owned(),
            (None, Protocol::Grpc) => general(LOCAL_GRPC),
            (None, Protocol::Http) => format!("{}/{HTTP_PATH}", general(LOCAL_HTTP)),
        }
    }

    fn exporter(&self) -> Result<Otlp, String> {
        let url = self.collector();
        let built = match self.otlp_protocol {
            Protocol::Grpc => {
                let exporter = Otlp::builder().with_tonic().with_endpoint(&url);
                match url.starts_with("https:") {
                    true => exporter.with_tls_config(self.tls()?).build(),
                    false => exporter.build(),
                }
            }
            Protocol::Http => {
                if !url.starts_with("http:") {
                    return Err(format!(
                        "collector {}: expected http://host:port; https needs protocol grpc",
                        shown(&url)
                    ));
                }
                Otlp::builder()
                    .with_http()
                    .with_protocol(Wire::HttpBinary)
                    .with_endpoint(&url)
                    .build()
            }
        };
        built.map_err(|error| format!("collector {}: {error}", shown(&url)))
    }

    fn tls(&self) -> Result<ClientTlsConfig, String> {
        let Some(path) = &self.otlp_ca else {
            return Ok(ClientTlsConfig::new().with_native_roots());
        };
        let pem = std::fs::read(path)
            .map_err(|error| format!("collector's CA {}: {error}", path.display()))?;
        Ok(ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)))
    }

    fn sampler(&self) -> Sampler {
        let share = || Sampler::TraceIdRatioBased(self.traces_sampler_arg);
        match self.traces_sampler {
            Sampling::AlwaysOn => Sampler::AlwaysOn,
            Sampling::AlwaysOff => Sampler::AlwaysOff,
            Sampling::Traceidratio => share(),
            Sampling::ParentbasedAlwaysOn => Sampler::ParentBased(Box::new(Sampler::AlwaysOn)),
            Sampling::ParentbasedAlwaysOff => Sampler::ParentBased(Box::new(Sampler::AlwaysOff)),
            Sampling::ParentbasedTraceidratio => Sampler::ParentBased(Box::new(share())),
        }
    }
}

impl Traces {
    /// Exports what is left, for 2 s at the most. Blocks, so not on a runtime.
    pub fn finish(self) {
        let Some(Exporting { provider, runtime, collector }) = self.0 else { return };
        if let Err(error) = provider.shutdown_with_timeout(LAST_EXPORT) {
            warn!(collector, %error, "last spans not exported");
        }
        runtime.shutdown_background();
    }
}

impl fmt::Debug for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traces").field("on", &self.0.is_some()).finish()
    }
}

/// Random ids, except of a trace that was sampled by its id before its first span.
#[derive(Debug, Default)]
struct Ids(RandomIdGenerator);

impl IdGenerator for Ids {
    fn new_trace_id(&self) -> TraceId {
        begun_trace().unwrap_or_else(|| self.0.new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        self.0.new_span_id()
    }
}

/// An exporter whose calls find a runtime: the SDK makes them from a thread that has none.
#[derive(Debug)]
struct OnRuntime {
    exporter: Otlp,
    runtime: tokio::runtime::Handle,
    collector: String,
}

impl SpanExporter for OnRuntime {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let mut exporting = Box::pin(self.exporter.export(batch));
        poll_fn(|context| {
            let _entered = self.runtime.enter();
            exporting.as_mut().poll(context)
        })
        .await
        // The SDK tells it in the log, and does not know whom it was to tell.
        .map_err(|error| {
            OTelSdkError::InternalFailure(format!("collector {}: {error}", self.collector))
        })
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        let _entered = self.runtime.enter();
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

/// What OpenTelemetry's specification takes for true: that word, in any case.
fn is_true(text: &str) -> Result<bool, std::convert::Infallible> {
    Ok(text.eq_ignore_ascii_case("true"))
}

/// An endpoint that is given: to OpenTelemetry's specification an empty variable is none.
fn is_set(endpoint: &Option<String>) -> Option<&str> {
    endpoint.as_deref().filter(|url| !url.is_empty())
}

/// An address without a user or a password, for logs.
fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let end = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    // A path may hold a key; that of OpenTelemetry does not.
    format!("{scheme}://{host}{}", if path.ends_with(HTTP_PATH) { path } else { "" })
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "expected 0 to 1".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use http::{HeaderMap, HeaderValue};
    use opentelemetry::trace::{Span, Tracer};

    use super::*;
    use crate::trace::{Head, TRACEPARENT, extract};

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        traces: TraceArgs,
    }

    #[test]
    fn what_is_decided_before_a_span_is_what_the_sdk_decides() {
        let says = |flags: &str| {
            let random = u128::from(fastrand::u64(..)) << 64 | u128::from(fastrand::u64(1..));
            HeaderMap::from_iter([(
                TRACEPARENT,
                HeaderValue::try_from(format!("00-{random:032x}-00f067aa0ba902b7-{flags}"))
                    .unwrap(),
            )])
        };
        for sampler in ["always_on", "always_off", "traceidratio"] {
            for sampler in [sampler.to_owned(), format!("parentbased_{sampler}")] {
                let settings = ["", "--traces-exporter=otlp", "--traces-sampler", &sampler];
                let traces =
                    Program::parse_from([&settings[..], &["--traces-sampler-arg=0.3"]].concat())
                        .traces;
                let provider = SdkTracerProvider::builder().with_sampler(traces.sampler());
                let tracer = provider.with_id_generator(Ids::default()).build().tracer("test");
                let head = traces.head_sampler().unwrap();
                for number in 0..600 {
                    let headers = match number % 3 {
                        0 => HeaderMap::new(),
                        1 => says("00"),
                        _ => says("01"),
                    };
                    let parent = extract(&headers);
                    let (decided, span) = match head.judge(&headers) {
                        Head::Sampled(sampled) => {
                            (true, sampled.span(&tracer, tracer.span_builder("test"), &parent))
                        }
                        // Of a trace that begins here the SDK would draw another id.
                        Head::Unsampled(_) if headers.is_empty() => continue,
                        Head::Unsampled(_) => {
                            (false, tracer.build_with_context(tracer.span_builder("test"), &parent))
                        }
                    };
                    assert_eq!(span.is_recording(), decided, "{sampler} {headers:?}");
                }
            }
        }
    }
}

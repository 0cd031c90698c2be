//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use clap::{Parser, ValueEnum};
use ipnet::IpNet;
use natsway_boot::logs::LogArgs;
use natsway_boot::traces::TraceArgs;
use natsway_boot::{BrokerArgs, duration};
use natsway_worker::{OnCancel, Options, TunnelMode};

use crate::call_route::CalledRoute;
use crate::demo::{self, Whoami};
use crate::form::Form;
use crate::misbehave::Misbehaviour;
use crate::run_log::RunLog;
use crate::sidecar::{MAX_IN_FLIGHT, Sidecar, SidecarArgs};
use crate::work::WorkArgs;

const EXAMPLE: &str = "\
An app in any language, behind the broker:
  worker --subject svc.shop.blue --upstream http://127.0.0.1:3000
  worker --subject svc.shop.blue --port-env PORT --health 'GET /health' -- node server.js

Without --upstream it answers by itself. Try it:
  worker --subject svc.demo.blue
  curl 'http://127.0.0.1:8080/sum?n=1&n=2'      (with a gateway that routes to svc.demo.blue)
  nats micro stats demo                         (with NATS's own command line)

Endpoints:
  /             a short fixed answer
  /echo         gives back method, path, query, headers and body
  /sum          adds the numbers `n` of the query, a form, JSON {\"n\":[1,2]} or MessagePack
  /slow?ms=500  answers after a while, 60,000 ms at the most
  /status/418   answers with that status, 200 to 599
  /big?bytes=N  answers with a body of N bytes, 64 MiB at the most
  /version      which worker answers
  /panic        panics, which is answered with 500
  /events       server-sent events, ?count=N of them every ?ms=1000
  /download     ?bytes=N made as they are read, ?chunked=true without a length, ?pattern=K to check
  /upload       reads a body of any length and says how long it was
  /ws           a WebSocket that sends back every message

SIGTERM or SIGINT has it leave without losing a request; a second one ends it at once.";

/// Serves over NATS, as one member of a queue group: an app that listens somewhere, or
/// demonstration endpoints.
#[derive(Parser)]
#[command(version, after_help = EXAMPLE)]
pub(crate) struct Args {
    #[command(flatten)]
    service: ServiceArgs,

    #[command(flatten)]
    sidecar: SidecarArgs,

    #[command(flatten)]
    threading: ThreadArgs,

    #[command(flatten)]
    limits: LimitArgs,

    #[command(flatten)]
    tunnels: TunnelArgs,

    #[command(flatten)]
    work: WorkArgs,

    #[command(flatten)]
    broker: BrokerArgs,

    #[command(flatten)]
    pub(crate) logs: LogArgs,

    #[command(flatten)]
    pub(crate) traces: TraceArgs,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Service")]
struct ServiceArgs {
    /// Subjects to serve, several with commas between
    #[arg(
        long,
        env = "NATSWAY_SUBJECT",
        value_name = "SUBJECT",
        default_value = "svc.demo.blue",
        value_delimiter = ','
    )]
    subject: Vec<String>,

    /// Queue group whose members share the requests
    #[arg(long, env = "NATSWAY_QUEUE_GROUP", value_name = "NAME", default_value = "q")]
    queue_group: String,

    /// Name that `nats micro` shows; by default the last token but one of the subject
    #[arg(long, env = "NATSWAY_NAME", value_name = "NAME")]
    name: Option<String>,

    /// Namespace of this instance, one token: commands come to
    /// natsway.worker.<namespace>.<instance>, so that the broker can keep them from other teams'
    /// workers
    #[arg(long, env = "NATSWAY_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,

    /// Version that `nats micro` shows, a SemVer; by default that of this program
    #[arg(long, env = "NATSWAY_VERSION", value_name = "SEMVER")]
    service_version: Option<String>,

    /// Subscription sets that directives of an autoscaler may open, the first one included
    #[arg(
        long,
        env = "NATSWAY_MAX_SETS",
        value_name = "COUNT",
        default_value = "1",
        conflicts_with = "per_core"
    )]
    max_sets: NonZeroUsize,

    /// What becomes of a handler whose client went away
    #[arg(long, env = "NATSWAY_ON_CANCEL", value_enum, default_value_t = Cancelled::Drop)]
    on_cancel: Cancelled,

    /// Call the service of this route with every request, by its name and without a gateway, in
    /// place of answering it
    #[arg(
        long,
        env = "NATSWAY_CALL_ROUTE",
        value_name = "ROUTE",
        alias = "forward-to",
        conflicts_with_all = ["misbehave", "run_log"]
    )]
    call_route: Option<String>,

    /// Misbehave on purpose, but for /version: fails=<percent>, delays=<ms>, panics, hangs
    #[arg(long, env = "NATSWAY_MISBEHAVE", value_name = "HOW")]
    misbehave: Option<Misbehaviour>,

    /// Append the `x-nonce` header of each request that runs to this file, one a line
    #[arg(long, env = "NATSWAY_RUN_LOG", value_name = "FILE")]
    run_log: Option<PathBuf>,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Threads")]
struct ThreadArgs {
    /// Run handlers on the threads that read requests, one per core; they must never block
    #[arg(long, env = "NATSWAY_PER_CORE")]
    per_core: bool,

    /// Threads that run handlers (without --per-core); one per core by default, and with --upstream
    /// none but those that read
    #[arg(long, env = "NATSWAY_THREADS", value_name = "COUNT")]
    threads: Option<NonZeroUsize>,

    /// Threads that read requests, each with a broker connection; 1 by default, one per core with
    /// --per-core
    #[arg(long, env = "NATSWAY_READERS", value_name = "COUNT")]
    readers: Option<NonZeroUsize>,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Requests held at once; more are left to other workers [default: 1024, and 128 with
    /// --upstream]
    #[arg(long, env = "NATSWAY_WORKER_MAX_IN_FLIGHT", value_name = "COUNT")]
    max_in_flight: Option<NonZeroUsize>,

    /// Bytes of requests held at once
    #[arg(
        long,
        env = "NATSWAY_WORKER_MAX_IN_FLIGHT_BYTES",
        value_name = "BYTES",
        default_value = "67108864"
    )]
    max_in_flight_bytes: NonZeroUsize,

    /// Longest response body; by default what the broker takes as one message
    #[arg(long, env = "NATSWAY_WORKER_MAX_RESPONSE_BYTES", value_name = "BYTES")]
    max_response_bytes: Option<NonZeroUsize>,

    /// How long leaving may take before handlers in flight are dropped
    #[arg(
        long, env = "NATSWAY_WORKER_DRAIN_TIMEOUT", value_name = "TIME", default_value = "8s",
        value_parser = duration
    )]
    drain_timeout: Duration,
}

#[derive(clap::Args)]
#[command(next_help_heading = "Tunnels")]
struct TunnelArgs {
    /// How bodies travel that are no message: by tunnels that are dialled to gateways (direct), by
    /// pipes on the broker, by the one where possible and else by the other (auto), or not at all
    /// (off)
    #[arg(long, env = "NATSWAY_TUNNEL", value_enum, default_value_t = Tunnel::Auto)]
    tunnel: Tunnel,

    /// Networks in which gateways may be that are dialled [default: this machine and private
    /// networks]
    #[arg(long, env = "NATSWAY_TUNNEL_TO", value_name = "NETWORKS", value_delimiter = ',')]
    tunnel_to: Vec<IpNet>,

    /// Take tunnels without TLS to gateways on other machines
    #[arg(long, env = "NATSWAY_TUNNEL_ALLOW_CLEARTEXT")]
    tunnel_allow_cleartext: bool,

    /// Bytes that a gateway may send of one body before the handler has taken them. The rate of an
    /// upload is at most this by round trip: 262144 at 10 ms are 25 MiB/s
    #[arg(
        long, env = "NATSWAY_WORKER_TUNNEL_WINDOW", value_name = "BYTES", default_value = "262144",
        value_parser = clap::value_parser!(u32).range(65_536..=4_194_304)
    )]
    tunnel_window: u32,

    /// Streams at a time; more are left to other workers
    #[arg(long, env = "NATSWAY_WORKER_MAX_STREAMS", value_name = "COUNT", default_value = "1000")]
    max_streams: NonZeroUsize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Tunnel {
    /// By tunnels to gateways that can be reached, else by pipes on the broker
    Auto,
    /// By tunnels to gateways that can be reached
    Direct,
    /// By pipes on the broker
    Broker,
    /// Not at all
    Off,
}

impl TunnelArgs {
    fn apply(self, options: Options) -> Options {
        let options = options
            .tunnels(match self.tunnel {
                Tunnel::Auto => TunnelMode::Auto,
                Tunnel::Direct => TunnelMode::Direct,
                Tunnel::Broker => TunnelMode::Broker,
                Tunnel::Off => TunnelMode::Off,
            })
            .max_streams(self.max_streams.get())
            .tunnel_window(self.tunnel_window)
            .tunnels_in_cleartext(self.tunnel_allow_cleartext);
        match self.tunnel_to.is_empty() {
            true => options,
            false => options.tunnels_to(self.tunnel_to),
        }
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Cancelled {
    /// It is dropped
    Drop,
    /// It runs to its end
    Finish,
}

/// What is served.
pub(crate) enum Served {
    /// The demonstration.
    Demo(Router),
    /// The service of another route.
    Route(Box<CalledRoute>),
    /// An app that listens somewhere.
    App(Box<Sidecar>),
}

/// Requests at a time of the demonstration, unless somebody says otherwise.
const DEMO_MAX_IN_FLIGHT: usize = 1_024;

impl Args {
    /// How requests are served.
    pub(crate) fn form(&self) -> Form {
        match self.service.max_sets {
            _ if self.threading.per_core || self.passes_on_where_it_reads() => Form::PerCore,
            NonZeroUsize::MIN => Form::Plain,
            most => Form::Scaled(most),
        }
    }

    /// Whether what is read is passed on to an app by the same thread: that never blocks, and to go
    /// to another thread and back would cost more than it does.
    fn passes_on_where_it_reads(&self) -> bool {
        let ThreadArgs { per_core, threads, .. } = self.threading;
        let is_one_set = self.service.max_sets == NonZeroUsize::MIN;
        self.sidecar.is_wanted() && is_one_set && threads.is_none() && !per_core
    }

    /// How many threads run handlers, when the user says so.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        self.threading.threads
    }

    /// Makes the worker's options of the arguments, and what it serves.
    ///
    /// # Errors
    /// What has to be changed before a start.
    pub(crate) fn into_options(self) -> anyhow::Result<(Options, Served)> {
        // One thread passes on more than most apps answer.
        let one = self.passes_on_where_it_reads().then_some(NonZeroUsize::MIN);
        let readers = self.threading.readers.or(one);
        let ServiceArgs {
            subject,
            queue_group,
            name,
            service_version,
            on_cancel,
            run_log,
            misbehave,
            call_route,
            ..
        } = self.service;
        let LimitArgs { max_in_flight, max_in_flight_bytes, max_response_bytes, drain_timeout } =
            self.limits;
        let mut subjects = subject.into_iter();
        let first = subjects.next().unwrap_or_default();
        let instance = natsway_boot::random_id();
        let whoami = Whoami::new(&first, &instance);
        let broker = self.broker.into_config()?;
        let traced = self.traces.head_sampler();
        let sidecar = self.sidecar.into_sidecar()?;
        let default_in_flight = if sidecar.is_some() { MAX_IN_FLIGHT } else { DEMO_MAX_IN_FLIGHT };
        let called = call_route.map(|route| CalledRoute {
            broker: broker.clone(),
            name: first.clone(),
            route,
            traced,
        });
        let mut options = Options::new(first)
            .broker(broker)
            .instance(instance)
            .queue_group(queue_group)
            .description(match &sidecar {
                Some(_) => "An app behind Natsway's sidecar",
                None => "Natsway's demonstration worker",
            })
            .max_in_flight(max_in_flight.map_or(default_in_flight, NonZeroUsize::get))
            .max_in_flight_bytes(max_in_flight_bytes.get())
            .max_response_bytes(max_response_bytes.map_or(usize::MAX, NonZeroUsize::get))
            .drain_timeout(drain_timeout)
            .on_cancel(match on_cancel {
                Cancelled::Drop => OnCancel::Drop,
                Cancelled::Finish => OnCancel::Finish,
            });
        if let Some(sampler) = traced {
            options = options.sampled(sampler);
        }
        options = self.tunnels.apply(subjects.fold(options, Options::and_subject));
        options = self.work.apply(options);
        if let Some(name) = name {
            options = options.name(name);
        }
        if let Some(namespace) = self.service.namespace {
            options = options.namespace(namespace);
        }
        if let Some(version) = service_version {
            options = options.version(version);
        }
        if let Some(readers) = readers {
            options = options.readers(readers);
        }
        if let Some(sidecar) = sidecar {
            return Ok((options, Served::App(Box::new(sidecar))));
        }
        if let Some(called) = called {
            return Ok((options, Served::Route(Box::new(called))));
        }
        let mut service = demo::router(whoami);
        if let Some(how) = misbehave {
            service = how.around(service);
        }
        if let Some(path) = run_log {
            let log = RunLog::open(&path).with_context(|| format!("run log {}", path.display()))?;
            service = log.around(service);
        }
        Ok((options, Served::Demo(service)))
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}

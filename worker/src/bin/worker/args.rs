//! The command line.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use clap::{Parser, ValueEnum};
use natsway_boot::logs::LogArgs;
use natsway_boot::traces::TraceArgs;
use natsway_boot::{BrokerArgs, duration};
use natsway_worker::{OnCancel, Options};

use crate::demo::{self, Whoami};
use crate::forward::Forward;
use crate::misbehave::Misbehaviour;
use crate::run_log::RunLog;

const EXAMPLE: &str = "\
Try it:
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

SIGTERM or SIGINT has it leave without losing a request; a second one ends it at once.";

/// Serves demonstration endpoints over NATS, as one member of a queue group.
#[derive(Parser)]
#[command(version, after_help = EXAMPLE)]
pub(crate) struct Args {
    #[command(flatten)]
    service: ServiceArgs,

    #[command(flatten)]
    threading: ThreadArgs,

    #[command(flatten)]
    limits: LimitArgs,

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

    /// Pass every request on to the service of this route, without a gateway, in place of answering
    /// it
    #[arg(
        long,
        env = "NATSWAY_FORWARD_TO",
        value_name = "ROUTE",
        conflicts_with_all = ["misbehave", "run_log"]
    )]
    forward_to: Option<String>,

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

    /// Threads that run handlers (without --per-core); one per core by default
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
    /// Requests held at once; more are left to other workers
    #[arg(
        long,
        env = "NATSWAY_WORKER_MAX_IN_FLIGHT",
        value_name = "COUNT",
        default_value = "1024"
    )]
    max_in_flight: NonZeroUsize,

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

#[derive(Clone, Copy, ValueEnum)]
enum Cancelled {
    /// It is dropped
    Drop,
    /// It runs to its end
    Finish,
}

/// The forms of serving.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    /// Handlers run on the runtime.
    Plain,
    /// Handlers run on the threads that read requests.
    PerCore,
    /// As plain, with so many subscription sets that directives may open.
    Scaled(NonZeroUsize),
}

impl Args {
    /// How requests are served.
    pub(crate) fn form(&self) -> Form {
        match self.service.max_sets {
            _ if self.threading.per_core => Form::PerCore,
            NonZeroUsize::MIN => Form::Plain,
            most => Form::Scaled(most),
        }
    }

    /// How many threads run handlers, when the user says so.
    pub(crate) fn threads(&self) -> Option<NonZeroUsize> {
        self.threading.threads
    }

    /// Makes the worker's options and the demonstration service of the arguments, and what takes
    /// that service's place when others are to do its work.
    ///
    /// # Errors
    /// What has to be changed before a start.
    pub(crate) fn into_options(self) -> anyhow::Result<(Options, Router, Option<Forward>)> {
        let ServiceArgs {
            subject,
            queue_group,
            name,
            service_version,
            on_cancel,
            run_log,
            misbehave,
            forward_to,
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
        let forward = forward_to.map(|route| Forward {
            broker: broker.clone(),
            name: first.clone(),
            route,
            traced,
        });
        let mut options = Options::new(first)
            .broker(broker)
            .instance(instance)
            .queue_group(queue_group)
            .description("Natsway's demonstration worker")
            .max_in_flight(max_in_flight.get())
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
        options = subjects.fold(options, Options::and_subject);
        if let Some(name) = name {
            options = options.name(name);
        }
        if let Some(namespace) = self.service.namespace.clone() {
            options = options.namespace(namespace);
        }
        if let Some(version) = service_version {
            options = options.version(version);
        }
        if let Some(readers) = self.threading.readers {
            options = options.readers(readers);
        }
        let mut service = demo::router(whoami);
        if let Some(how) = misbehave {
            service = how.around(service);
        }
        if let Some(path) = run_log {
            let log = RunLog::open(&path).with_context(|| format!("run log {}", path.display()))?;
            service = log.around(service);
        }
        Ok((options, service, forward))
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

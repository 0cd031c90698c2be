//! The command line of the sidecar.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use natsway_boot::duration;
use natsway_worker::upstream::{HostHeader, Upstream, UpstreamAddress, UpstreamOptions};

use super::{AppCommand, HealthCheck, Sidecar};

/// Requests at a time of an app, unless somebody says otherwise.
pub(crate) const MAX_IN_FLIGHT: usize = 128;

#[derive(clap::Args)]
#[command(next_help_heading = "App behind this worker (sidecar)")]
pub(crate) struct SidecarArgs {
    /// Pass requests on to the app that listens there, in place of answering them:
    /// http://host:port, https://host:port, h2c://host:port (HTTP/2 without TLS) or
    /// unix:/path/of/socket
    #[arg(
        long,
        env = "NATSWAY_UPSTREAM",
        value_name = "ADDRESS",
        conflicts_with_all = ["misbehave", "run_log", "call_route"]
    )]
    upstream: Option<UpstreamAddress>,

    /// Pick a free port for the app at each of its starts, and tell it by this variable; it takes
    /// the place of that of --upstream, which is http://127.0.0.1 by default then
    #[arg(long, env = "NATSWAY_PORT_ENV", value_name = "NAME", requires = "command")]
    port_env: Option<String>,

    /// Whose `Host` the app sees: that which the client sent, or the app's own
    #[arg(long, env = "NATSWAY_UPSTREAM_HOST", value_enum, default_value_t = Host::Client)]
    upstream_host: Host,

    /// File of the certificate authorities that sign the app's certificate; the system's by default
    #[arg(long, env = "NATSWAY_UPSTREAM_CA", value_name = "FILE")]
    upstream_ca: Option<PathBuf>,

    /// How long connecting to the app may take
    #[arg(
        long, env = "NATSWAY_UPSTREAM_CONNECT_TIMEOUT", value_name = "TIME", default_value = "2s",
        value_parser = duration
    )]
    upstream_connect_timeout: Duration,

    /// How long the app may take to begin its response; by default what the client still waits
    #[arg(
        long, env = "NATSWAY_UPSTREAM_TIMEOUT", value_name = "TIME", value_parser = duration
    )]
    upstream_timeout: Option<Duration>,

    /// How long a connection to the app waits for another request; keep it below what the app gives
    /// it (gunicorn 2 s, uvicorn and node 5 s)
    #[arg(
        long, env = "NATSWAY_UPSTREAM_IDLE_TIMEOUT", value_name = "TIME",
        default_value = "1500ms", value_parser = duration
    )]
    upstream_idle_timeout: Duration,

    /// How to see whether the app is well: `tcp` (it takes a connection), `GET /path` (it answers
    /// with 2xx or 3xx), or a command of the shell (it ends with 0), which has the app's variables
    #[arg(long, env = "NATSWAY_HEALTH", value_name = "CHECK", default_value = "tcp")]
    health: HealthCheck,

    /// Between two checks
    #[arg(
        long, env = "NATSWAY_HEALTH_INTERVAL", value_name = "TIME", default_value = "1s",
        value_parser = duration
    )]
    health_interval: Duration,

    /// How long a check may take
    #[arg(
        long, env = "NATSWAY_HEALTH_TIMEOUT", value_name = "TIME", default_value = "1s",
        value_parser = duration
    )]
    health_timeout: Duration,

    /// Failed checks in a row after which this worker leaves its queue group, until one succeeds
    #[arg(long, env = "NATSWAY_HEALTH_FAILURES", value_name = "COUNT", default_value = "3")]
    health_failures: NonZeroU32,

    /// How long the app may take after its start to become healthy, before it is started again
    #[arg(
        long, env = "NATSWAY_START_TIMEOUT", value_name = "TIME", default_value = "5m",
        value_parser = duration
    )]
    start_timeout: Duration,

    /// How long the app, and what it started, may take to end after SIGTERM, before SIGKILL
    #[arg(
        long, env = "NATSWAY_STOP_GRACE", value_name = "TIME", default_value = "5s",
        value_parser = duration
    )]
    stop_grace: Duration,

    /// The app to start, behind `--`, and its arguments: it is started, watched, started again when
    /// it ends, and stopped with this worker
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Host {
    /// That which the client sent
    Client,
    /// The app's own
    Upstream,
}

impl SidecarArgs {
    /// Whether there is an app behind this worker.
    pub(crate) fn is_wanted(&self) -> bool {
        self.upstream.is_some() || self.port_env.is_some()
    }

    /// The app, if there is one behind this worker.
    ///
    /// # Errors
    /// What has to be changed before a start.
    pub(crate) fn into_sidecar(self) -> anyhow::Result<Option<Sidecar>> {
        let mut command = self.command.into_iter();
        let program = command.next();
        let address = match (self.upstream, &self.port_env) {
            (Some(address), _) => address,
            (None, Some(_)) => "http://127.0.0.1".parse().context("--upstream")?,
            (None, None) => {
                ensure!(
                    program.is_none(),
                    "a command to start, and no --upstream to say where it listens, or --port-env \
                     to tell it"
                );
                return Ok(None);
            }
        };
        let mut options = UpstreamOptions::new(address)
            .host_header(match self.upstream_host {
                Host::Client => HostHeader::Client,
                Host::Upstream => HostHeader::Upstream,
            })
            .connect_timeout(self.upstream_connect_timeout)
            .idle_timeout(self.upstream_idle_timeout);
        if let Some(limit) = self.upstream_timeout {
            options = options.response_timeout(limit);
        }
        if let Some(file) = self.upstream_ca {
            options = options.certificate_authorities(file);
        }
        let arguments = command.collect();
        Ok(Some(Sidecar {
            upstream: Upstream::new(options)?,
            command: program.map(|program| AppCommand {
                program,
                arguments,
                port_env: self.port_env,
            }),
            health: self.health,
            health_interval: self.health_interval,
            health_timeout: self.health_timeout,
            health_failures: self.health_failures.get(),
            start_timeout: self.start_timeout,
            grace: self.stop_grace,
        }))
    }
}

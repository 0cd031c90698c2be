//! The command line, and how it becomes settings.

mod bucket;
mod columns;
mod durable;
mod groups;
pub mod health;
pub mod rollout;
pub mod routes;
pub mod serve;
pub mod setup;
pub mod stand_in;
mod status;
mod tunnels;

use std::net::SocketAddr;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Parser};
use ipnet::IpNet;
use natsway_boot::logs::LogArgs;
use natsway_boot::traces::TraceArgs;
use natsway_boot::{BrokerArgs, address, duration};
use natsway_caller::connection::ConnectionLimits;
use natsway_routes::peers::PeerLimits;
use natsway_routes::store::BUCKET;
use natsway_tunnel::pipe::PipeSettings;

use self::tunnels::TunnelArgs;
use crate::client_address::{ProxyField, TrustedProxies};
use crate::linger::LingerLimits;
use crate::memory::container;
use crate::memory::plan::{MemoryPlan, MemoryRequest};
use crate::settings::{ClientLimits, Drain, Settings};
use crate::stall::SendRate;

/// The gateway: takes HTTP requests and has workers on NATS answer them
///
/// Each request is matched against the routes, sent to the chosen version's subject, and answered
/// by one worker of its queue group. Workers need no address: they connect to the same broker. The
/// routes live in a bucket of the broker (JetStream), which every gateway follows; a route file
/// fills that bucket while it is empty.
#[derive(Parser)]
#[command(
    name = "apiproxy",
    version,
    after_help = EXAMPLES,
    args_override_self = true,
    args_conflicts_with_subcommands = true
)]
pub struct Cli {
    /// Something else than running a gateway.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// The gateway's own arguments.
    #[command(flatten)]
    pub run: RunArgs,
}

/// What the binary does besides running a gateway.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Look at the routes in the broker and change them; every gateway follows at once
    Routes(routes::RoutesArgs),
    /// Change the version that serves: all at once or bit by bit, and back by itself when the new
    /// one is worse
    Rollout(rollout::RolloutArgs),
    /// Make the buckets and streams that programs need, as an administrator; on a broker where they
    /// may not themselves
    Setup(setup::SetupArgs),
    /// Stand in for the last worker of a subject in an account of its own, as gateways do in theirs
    StandIn(stand_in::StandInArgs),
    /// Say whether the gateway of this machine is ready; exits with 0 if it is
    Healthcheck(health::HealthArgs),
    /// Print a script that completes this command line in a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

/// Prints the script that completes the command line.
pub fn print_completions(shell: clap_complete::Shell) {
    use clap::CommandFactory;
    clap_complete::generate(shell, &mut Cli::command(), "apiproxy", &mut std::io::stdout());
}

/// Arguments of a gateway.
#[derive(Args)]
pub struct RunArgs {
    /// Where clients connect
    #[arg(
        long, env = "NATSWAY_LISTEN", value_name = "ADDRESS", default_value = "127.0.0.1:8080",
        value_parser = address
    )]
    listen: SocketAddr,

    /// Where operators and probes connect: /livez, /readyz, /metrics
    #[arg(
        long, env = "NATSWAY_ADMIN_LISTEN", value_name = "ADDRESS",
        default_value = "127.0.0.1:8081", value_parser = address
    )]
    admin_listen: SocketAddr,

    /// Route file, TOML: fills a routes bucket that nobody has written to
    #[arg(long, env = "NATSWAY_ROUTES", value_name = "FILE")]
    pub routes: Option<PathBuf>,

    /// Serve the route file as it is, and no bucket: no JetStream needed, no change without a
    /// restart
    #[arg(long, env = "NATSWAY_STATIC_ROUTES", requires = "routes")]
    pub static_routes: bool,

    /// Bucket that holds the routes
    #[arg(long, env = "NATSWAY_ROUTES_BUCKET", value_name = "NAME", default_value = BUCKET)]
    pub routes_bucket: String,

    /// Copies of the bucket in a cluster, when it has to be made
    #[arg(long, env = "NATSWAY_ROUTES_REPLICAS", value_name = "COUNT", default_value = "1")]
    pub routes_replicas: NonZeroUsize,

    /// Read the route file, say whether it is sound, and leave
    #[arg(long, requires = "routes")]
    pub check: bool,

    /// Threads that serve requests [default: one for each processor]
    #[arg(long, env = "NATSWAY_SHARDS", value_name = "COUNT")]
    shards: Option<NonZeroUsize>,

    /// Broker connections of each thread; more than one costs more than it gives
    #[arg(long, env = "NATSWAY_CONNECTIONS_PER_SHARD", value_name = "COUNT", default_value = "1")]
    connections_per_shard: NonZeroUsize,

    /// Services live in other accounts of the broker (deploy/nats/accounts.conf): requests say
    /// where they are answered, and who stands in for the last worker of a subject is an
    /// `apiproxy stand-in` in its account
    #[arg(long, env = "NATSWAY_ACROSS_ACCOUNTS")]
    across_accounts: bool,

    /// One log line for each request
    #[arg(long, env = "NATSWAY_ACCESS_LOG")]
    access_log: bool,

    #[command(flatten)]
    limits: LimitArgs,

    #[command(flatten)]
    tunnels: TunnelArgs,

    #[command(flatten)]
    drain: DrainArgs,

    /// The broker.
    #[command(flatten)]
    pub broker: BrokerArgs,

    /// The logs.
    #[command(flatten)]
    pub logs: LogArgs,

    /// The traces.
    #[command(flatten)]
    pub traces: TraceArgs,
}

const EXAMPLES: &str = "Examples:
  apiproxy --routes routes.toml
  apiproxy --routes routes.toml --check
  apiproxy routes ls
  apiproxy routes test GET http://shop.example/cart
  apiproxy rollout start demo --to green --follow
  NATS_URL=nats://broker:4222 apiproxy --routes routes.toml --listen 0.0.0.0:8080

A route file:
  [[route]]
  name = \"demo\"
  path = \"/{*rest}\"
  [[route.target]]
  version = \"blue\"
  subject = \"svc.demo.blue\"";

#[derive(Args)]
#[command(next_help_heading = "Limits")]
struct LimitArgs {
    /// Memory that the process may use [default: the container's limit, if there is one]
    #[arg(long, env = "NATSWAY_MEMORY_LIMIT", value_name = "BYTES")]
    memory_limit: Option<NonZeroUsize>,

    /// Open client connections; above it, new ones wait [default: 16384, fewer where the memory is
    /// too little]
    #[arg(long, env = "NATSWAY_MAX_CONNECTIONS", value_name = "COUNT")]
    max_connections: Option<NonZeroUsize>,

    /// Bytes of a path with its query: 414 above it
    #[arg(long, env = "NATSWAY_MAX_PATH_BYTES", value_name = "BYTES", default_value = "8192")]
    max_path_bytes: NonZeroUsize,

    /// Bytes of all request headers: 431 above it
    #[arg(long, env = "NATSWAY_MAX_HEADER_BYTES", value_name = "BYTES", default_value = "32768")]
    max_header_bytes: NonZeroUsize,

    /// Request header fields: 431 above it
    #[arg(long, env = "NATSWAY_MAX_HEADER_FIELDS", value_name = "COUNT", default_value = "100")]
    max_header_fields: NonZeroUsize,

    /// Time for a request's head to arrive, and for an idle connection to stay open
    #[arg(
        long, env = "NATSWAY_HEAD_TIMEOUT", value_name = "TIME", default_value = "30s",
        value_parser = duration
    )]
    head_timeout: Duration,

    /// Time for a request's body to arrive: 408 after it
    #[arg(
        long, env = "NATSWAY_BODY_TIMEOUT", value_name = "TIME", default_value = "30s",
        value_parser = duration
    )]
    body_timeout: Duration,

    /// Time over which it is judged whether a client takes what it is sent: its connection is
    /// closed if it does not
    #[arg(
        long, env = "NATSWAY_SEND_TIMEOUT", value_name = "TIME", default_value = "30s",
        value_parser = duration
    )]
    send_timeout: Duration,

    /// Bytes a second that a client must take, for each MiB of answers that waits for it; 0 for a
    /// byte now and then
    #[arg(long, env = "NATSWAY_MIN_SEND_RATE", value_name = "BYTES", default_value = "2048")]
    min_send_rate: u32,

    /// Time in which a client that was refused may go on sending its request, so that it reads why;
    /// 0s for none
    #[arg(
        long, env = "NATSWAY_LINGER_TIME", value_name = "TIME", default_value = "5s",
        value_parser = duration
    )]
    linger_time: Duration,

    /// Bytes that it may send meanwhile
    #[arg(
        long,
        env = "NATSWAY_MAX_LINGER_BYTES",
        value_name = "BYTES",
        default_value = "67108864"
    )]
    max_linger_bytes: NonZeroU64,

    /// Answer HTTP/1 clients that end their side of the connection before the answer; otherwise
    /// they have left, and their work is cancelled
    #[arg(long, env = "NATSWAY_ALLOW_HALF_CLOSE")]
    allow_half_close: bool,

    /// Requests at a time on one HTTP/2 connection
    #[arg(long, env = "NATSWAY_HTTP2_STREAMS", value_name = "COUNT", default_value = "128")]
    http2_streams: NonZeroU32,

    /// Time after which an HTTP/2 connection without a request is closed
    #[arg(
        long, env = "NATSWAY_HTTP2_IDLE_TIMEOUT", value_name = "TIME", default_value = "60s",
        value_parser = duration
    )]
    http2_idle_timeout: Duration,

    /// Bytes that each thread holds for clients, requests and answers: 503 above it [default:
    /// 67108864, fewer where the memory is too little]
    #[arg(long, env = "NATSWAY_MAX_HELD_BYTES", value_name = "BYTES")]
    max_held_bytes: Option<NonZeroUsize>,

    /// Streams at a time: large or endless bodies, WebSockets, calls by gRPC; 503 above it
    /// [default: 1024, fewer where the memory is small]
    #[arg(long, env = "NATSWAY_MAX_STREAMS", value_name = "COUNT")]
    max_streams: Option<NonZeroUsize>,

    /// Streams at a time of one client: an address, or a network of 64 bits of IPv6; 429 above it
    /// [default: half of --max-streams]
    #[arg(long, env = "NATSWAY_MAX_STREAMS_PER_CLIENT", value_name = "COUNT")]
    max_streams_per_client: Option<NonZeroUsize>,

    /// Bytes of answers that each thread expects from the broker at a time; requests wait above it.
    /// The broker drops a client for which 64 MiB are pending
    #[arg(long, env = "NATSWAY_MAX_REPLY_BYTES", value_name = "BYTES", default_value = "33554432")]
    max_reply_bytes: NonZeroUsize,

    /// Requests out on one broker connection: 503 above it
    #[arg(long, env = "NATSWAY_MAX_IN_FLIGHT", value_name = "COUNT", default_value = "8192")]
    max_in_flight: NonZeroUsize,

    /// Bytes of the requests out on one broker connection: 503 above it
    #[arg(
        long,
        env = "NATSWAY_MAX_IN_FLIGHT_BYTES",
        value_name = "BYTES",
        default_value = "33554432"
    )]
    max_in_flight_bytes: NonZeroUsize,

    /// Senders of requests that are followed, of each source (gateways, callers, a team's account);
    /// rollouts name the rest
    #[arg(long, env = "NATSWAY_MAX_SENDERS", value_name = "COUNT", default_value = "256")]
    max_senders: NonZeroUsize,

    /// Versions that the senders of a source may tell of, summed over them: each takes about 3 KiB
    #[arg(long, env = "NATSWAY_MAX_SENDER_VERSIONS", value_name = "COUNT", default_value = "8192")]
    max_sender_versions: NonZeroUsize,

    /// Refuse queries that are not percent-encoded as RFC 3986 has it; otherwise ?q=100% and raw
    /// UTF-8 pass
    #[arg(long, env = "NATSWAY_STRICT_QUERIES")]
    strict_queries: bool,

    /// Proxies that are believed who the client is and how it came, and whose traces are continued,
    /// several with commas between
    #[arg(long, env = "NATSWAY_TRUSTED_PROXIES", value_name = "NETWORKS", value_delimiter = ',')]
    trusted_proxies: Vec<IpNet>,

    /// The field by which these proxies say for whom they ask; the other one is not read
    #[arg(long, env = "NATSWAY_PROXY_FIELD", value_name = "FIELD", value_enum, default_value_t)]
    proxy_field: ProxyField,
}

#[derive(Args)]
#[command(next_help_heading = "Leaving")]
struct DrainArgs {
    /// How long to go on accepting after SIGTERM, not ready any more
    #[arg(
        long, env = "NATSWAY_DRAIN_GRACE", value_name = "TIME", default_value = "2s",
        value_parser = duration
    )]
    drain_grace: Duration,

    /// How long leaving may take in all
    #[arg(
        long, env = "NATSWAY_DRAIN_TIMEOUT", value_name = "TIME", default_value = "9s",
        value_parser = duration
    )]
    drain_timeout: Duration,
}

impl RunArgs {
    /// The settings that the arguments make.
    ///
    /// # Errors
    /// A sentence with what has to be changed.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        let one = NonZeroUsize::MIN;
        let limits = &self.limits;
        if overlap(self.listen, self.admin_listen) {
            bail!(
                "--listen {} and --admin-listen {} cannot both be had: give each an address of its \
                 own",
                self.listen,
                self.admin_listen
            );
        }
        let shards =
            self.shards.unwrap_or_else(|| std::thread::available_parallelism().unwrap_or(one));
        let mut tunnels = self.tunnels.settings()?;
        let pipes = tunnels.as_ref().and_then(|tunnels| tunnels.pipes);
        let stream_bytes = tunnels.as_ref().map_or(0, |tunnels| tunnels.http2.stream_bytes());
        let memory = MemoryPlan::new(MemoryRequest {
            stream_bytes,
            streams: limits.max_streams.map(NonZeroUsize::get),
            tunnels: match &tunnels {
                Some(_) => self.tunnels.tunnels().map(NonZeroUsize::get),
                None => Some(0),
            },
            pipes: pipes.map_or(Some(0), |_| self.tunnels.pipes()),
            pipe_bytes: pipes.map_or(0, |pipes| PipeSettings::pipe_bytes(pipes.window_bytes)),
            shards,
            connections: limits.max_connections.map(NonZeroUsize::get),
            held_bytes: limits.max_held_bytes.map(NonZeroUsize::get),
            limit_bytes: limits
                .memory_limit
                .map(NonZeroUsize::get)
                .or_else(container::memory_limit),
        });
        let client_streams = limits.max_streams_per_client.map(NonZeroUsize::get);
        let client_streams = client_streams.unwrap_or_else(|| memory.streams.div_ceil(2));
        if let Some(tunnels) = &mut tunnels {
            tunnels.most = NonZeroUsize::new(memory.tunnels).unwrap_or(tunnels.most);
            if let Some(pipes) = &mut tunnels.pipes {
                pipes.most = memory.pipes;
            }
        }
        Ok(Settings {
            client_streams,
            listen: self.listen,
            admin_listen: self.admin_listen,
            shards,
            connections_per_shard: self.connections_per_shard,
            trusted_proxies: TrustedProxies {
                networks: limits.trusted_proxies.clone(),
                field: limits.proxy_field,
            },
            access_log: self.access_log,
            traced: self.traces.head_sampler(),
            client: ClientLimits {
                path_bytes: limits.max_path_bytes.get(),
                header_bytes: limits.max_header_bytes.get(),
                header_fields: limits.max_header_fields.get(),
                head_timeout: limits.head_timeout,
                body_timeout: limits.body_timeout,
                send: SendRate {
                    span: limits.send_timeout,
                    bytes_per_second: limits.min_send_rate,
                },
                http2_idle_timeout: limits.http2_idle_timeout,
                half_close: limits.allow_half_close,
                linger: LingerLimits {
                    time: limits.linger_time,
                    bytes: limits.max_linger_bytes.get(),
                },
                strict_queries: limits.strict_queries,
                http2_streams: limits.http2_streams.get(),
            },
            memory,
            coming_bytes: limits.max_reply_bytes.get(),
            broker_connection: ConnectionLimits {
                in_flight: limits.max_in_flight.get(),
                in_flight_bytes: limits.max_in_flight_bytes.get(),
            },
            across_accounts: self.across_accounts,
            peers: PeerLimits {
                senders: limits.max_senders.get(),
                versions: limits.max_sender_versions.get(),
            },
            tunnels,
            drain: Drain { grace: self.drain.drain_grace, timeout: self.drain.drain_timeout },
        })
    }
}

/// Whether one address takes the other's place: the same port, and the same IP address or all of
/// them.
fn overlap(first: SocketAddr, second: SocketAddr) -> bool {
    let same_ip =
        first.ip() == second.ip() || first.ip().is_unspecified() || second.ip().is_unspecified();
    same_ip && first.port() == second.port() && first.port() != 0
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn zeros_are_refused() {
        for flag in [
            "max-in-flight",
            "max-in-flight-bytes",
            "http2-streams",
            "max-held-bytes",
            "max-connections",
        ]
        .into_iter()
        .chain([
            "memory-limit",
            "max-reply-bytes",
            "max-path-bytes",
            "max-header-bytes",
            "max-header-fields",
            "shards",
            "routes-replicas",
        ]) {
            let parsed = Cli::try_parse_from(["apiproxy", &format!("--{flag}"), "0"]);
            let error = parsed.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(flag) && error.contains("non-zero"), "{flag}: {error}");
        }
    }

    #[test]
    fn the_two_listeners_need_two_addresses() {
        let settings = |listen: &str, admin: &str| {
            Cli::try_parse_from(["apiproxy", "--listen", listen, "--admin-listen", admin])
                .unwrap()
                .run
                .settings()
        };
        for admin in ["127.0.0.1:80", "0.0.0.0:80"] {
            let error = settings("127.0.0.1:80", admin).unwrap_err().to_string();
            assert!(error.contains("give each an address of its own"), "{error}");
        }
        for (listen, admin) in [
            ("127.0.0.1:80", "127.0.0.2:80"),
            ("0.0.0.0:80", "0.0.0.0:81"),
            ("127.0.0.1:0", "127.0.0.1:0"),
        ] {
            assert!(settings(listen, admin).is_ok(), "{listen} {admin}");
        }
    }
}

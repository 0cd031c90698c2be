//! What the user says to a producer, and what it means.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use natsway_boot::{BrokerArgs, BrokerConfig};
use regex::bytes::Regex;

use crate::args::{Compression, ModeChoice, StreamArgs, prefix};
use crate::error::whole;
use crate::framing::{Framer, LongLines};
use crate::name::Prefix;
use crate::stream::StreamPlan;
use crate::tail::{Follow, From};
use crate::units::ByteSize;

/// What the user typed.
#[derive(Args, Clone)]
pub struct ProducerArgs {
    /// Files to ship, with commas between; globs, and - for standard input
    #[arg(long, env = "SHIPPER_FILE", value_name = "FILES", value_delimiter = ',')]
    file: Vec<String>,

    /// What all subjects begin with: lines go to `<subject>.p<partition>.<host>`
    #[arg(long, global = true, env = "SHIPPER_SUBJECT", value_name = "SUBJECT")]
    subject: Option<String>,

    /// Number of partitions; 0 for one
    #[arg(
        long,
        env = "SHIPPER_PARTITIONS",
        value_name = "N",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    partitions: u32,

    /// Name of this host [default: the system's]
    #[arg(long, global = true, env = "HOSTNAME", value_name = "NAME")]
    hostname: Option<String>,

    /// How to ship
    #[arg(long, env = "SHIPPER_MODE", value_enum, default_value_t)]
    mode: ModeChoice,

    /// Where to begin with a file that is shipped for the first time
    #[arg(long, env = "SHIPPER_FROM", value_enum, default_value = "beginning")]
    from: From,

    /// Directory of the checkpoints [default: natsway-shipper in $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, global = true, env = "SHIPPER_STATE", value_name = "DIRECTORY")]
    state: Option<PathBuf>,

    /// Most bytes of one message
    #[arg(long, env = "SHIPPER_BATCH", value_name = "SIZE", default_value = "512KiB")]
    batch: ByteSize,

    /// How long a line waits for its message to fill
    #[arg(long, env = "SHIPPER_LINGER", value_name = "TIME", default_value = "50ms")]
    linger: humantime::Duration,

    /// Most memory for lines that are not stored yet, all files together
    #[arg(long, env = "SHIPPER_WINDOW", value_name = "SIZE", default_value = "32MiB")]
    window: ByteSize,

    /// Pack messages
    #[arg(long, env = "SHIPPER_COMPRESS", value_enum, default_value_t)]
    compress: Compression,

    /// Regular expression for the first line of an event of several lines
    #[arg(long, env = "SHIPPER_MULTILINE", value_name = "REGEX")]
    multiline: Option<String>,

    /// How long an event of several lines waits for its next line
    #[arg(long, env = "SHIPPER_MULTILINE_TIMEOUT", value_name = "TIME", default_value = "1s")]
    multiline_timeout: humantime::Duration,

    /// Most bytes of one line
    #[arg(long, env = "SHIPPER_LINE_LIMIT", value_name = "SIZE", default_value = "256KiB")]
    line_limit: ByteSize,

    /// What to do with longer lines
    #[arg(long, env = "SHIPPER_LONG_LINES", value_enum, default_value = "split")]
    long_lines: LongLines,

    /// How long a file that was renamed away stays followed after its last byte
    #[arg(long, env = "SHIPPER_ROTATE_WAIT", value_name = "TIME", default_value = "1s")]
    rotate_wait: humantime::Duration,

    /// How often files are polled when there is nothing new
    #[arg(long, env = "SHIPPER_POLL", value_name = "TIME", default_value = "100ms")]
    poll: humantime::Duration,

    /// Address of a page of metrics for Prometheus, say 127.0.0.1:9100
    #[arg(
        long, env = "SHIPPER_METRICS", value_name = "ADDRESS", value_parser = natsway_boot::address
    )]
    metrics: Option<std::net::SocketAddr>,

    /// How long a stop may take to have everything acknowledged that was sent
    #[arg(long, env = "SHIPPER_DRAIN_TIMEOUT", value_name = "TIME", default_value = "10s")]
    drain_timeout: humantime::Duration,

    #[command(flatten)]
    stream: StreamArgs,

    #[command(flatten)]
    broker: BrokerArgs,
}

/// A producer, valid by construction.
#[derive(Clone, Debug)]
pub struct Config {
    /// Paths, globs, or `-`.
    pub files: Vec<String>,
    /// What all subjects begin with.
    pub prefix: Prefix,
    /// Number of partitions; 0 for one.
    pub partitions: u32,
    /// This host.
    pub host: String,
    /// How to ship.
    pub mode: ModeChoice,
    /// How to follow.
    pub follow: Follow,
    /// Directory of the checkpoints of this prefix.
    pub state: PathBuf,
    /// Most bytes in memory that are not stored.
    pub window_bytes: u64,
    /// How to pack.
    pub compression: Compression,
    /// Pause between looks at a file without news.
    pub poll: Duration,
    /// Where to serve metrics.
    pub metrics: Option<std::net::SocketAddr>,
    /// Time for a stop.
    pub drain_timeout: Duration,
    /// The stream.
    pub stream: StreamPlan,
    /// The broker.
    pub broker: BrokerConfig,
}

impl ProducerArgs {
    /// Where the checkpoints are, for a status.
    ///
    /// # Errors
    /// A sentence for each fault.
    pub fn state_directory(&self) -> Result<PathBuf, Vec<String>> {
        let prefix = prefix(self.subject.as_deref()).map_err(|fault| vec![fault])?;
        self.state_of(&prefix).map_err(|fault| vec![fault])
    }

    fn state_of(&self, prefix: &Prefix) -> Result<PathBuf, String> {
        let base = self.state.clone().or_else(|| {
            let set = |name: &str| {
                std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
            };
            let home = || set("HOME").map(|home| home.join(".local/state"));
            Some(set("XDG_STATE_HOME").or_else(home)?.join("natsway-shipper"))
        });
        let base = base.ok_or(
            "SHIPPER_STATE is not set, and there is no HOME: expected a directory for checkpoints",
        )?;
        Ok(base.join(prefix.to_string().replace('/', "_")))
    }

    /// Checks everything.
    ///
    /// # Errors
    /// A sentence for each fault, all at once.
    pub fn into_config(self) -> Result<Config, Vec<String>> {
        let mut faults = Vec::new();
        let prefix = prefix(self.subject.as_deref()).map_err(|fault| faults.push(fault)).ok();
        let state = prefix
            .as_ref()
            .and_then(|prefix| self.state_of(prefix).map_err(|f| faults.push(f)).ok());
        if self.file.iter().all(String::is_empty) {
            faults.push(
                "SHIPPER_FILE is not set: expected files, globs, or - for standard input".into(),
            );
        }
        let host = self.hostname.clone().filter(|name| !name.is_empty()).or_else(system_host);
        let host = host
            .ok_or_else(|| "HOSTNAME is not set, and the system has none".to_owned())
            .and_then(|host| {
                crate::name::Source::new(&host, None)
                    .map_err(|error| error.to_string())
                    .map(|_| host)
            });
        let host = host.map_err(|fault| faults.push(fault)).ok();
        let broker =
            self.broker.clone().into_config().map_err(|error| faults.push(whole(&error))).ok();
        let framer = self.framer().map_err(|framer_faults| faults.extend(framer_faults)).ok();
        if self.window.0 < self.batch.0 {
            faults.push(format!("SHIPPER_WINDOW={}: expected at least SHIPPER_BATCH", self.window));
        }
        let (Some(prefix), Some(state), Some(host), Some(broker), Some(framer), true) =
            (prefix, state, host, broker, framer, faults.is_empty())
        else {
            return Err(faults);
        };
        let follow = Follow {
            framer,
            from: self.from,
            linger: *self.linger,
            event_timeout: *self.multiline_timeout,
            rotate_wait: *self.rotate_wait,
        };
        Ok(Config {
            files: self.file.into_iter().filter(|file| !file.is_empty()).collect(),
            stream: self.stream.plan(&prefix),
            prefix,
            partitions: self.partitions,
            host,
            mode: self.mode,
            follow,
            state,
            window_bytes: self.window.0,
            compression: self.compress,
            poll: *self.poll,
            metrics: self.metrics,
            drain_timeout: *self.drain_timeout,
            broker,
        })
    }

    fn framer(&self) -> Result<Framer, Vec<String>> {
        let mut faults = Vec::new();
        let bytes = |name: &str, size: ByteSize, faults: &mut Vec<String>| {
            let bytes = usize::try_from(size.0)
                .ok()
                .and_then(NonZeroUsize::new)
                .filter(|b| b.get() <= 64 << 20);
            bytes.or_else(|| {
                faults.push(format!("{name}={size}: expected 1 B to 64 MiB"));
                None
            })
        };
        let batch_bytes = bytes("SHIPPER_BATCH", self.batch, &mut faults);
        let line_bytes = bytes("SHIPPER_LINE_LIMIT", self.line_limit, &mut faults);
        if self.line_limit >= self.batch {
            faults.push(format!(
                "SHIPPER_LINE_LIMIT={}: expected less than SHIPPER_BATCH={}",
                self.line_limit, self.batch
            ));
        }
        let event_start = self.multiline.as_deref().map(Regex::new).transpose();
        let event_start =
            event_start.map_err(|error| faults.push(format!("SHIPPER_MULTILINE: {error}"))).ok();
        match (batch_bytes, line_bytes, event_start, faults.is_empty()) {
            (Some(batch_bytes), Some(line_bytes), Some(event_start), true) => Ok(Framer {
                batch_bytes,
                line_bytes,
                long_lines: self.long_lines,
                event_start,
                one_event: false,
            }),
            _ => Err(faults),
        }
    }
}

fn system_host() -> Option<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .or_else(|_| std::fs::read_to_string("/etc/hostname"));
    name.ok().map(|name| name.trim().to_owned()).filter(|name| !name.is_empty())
}

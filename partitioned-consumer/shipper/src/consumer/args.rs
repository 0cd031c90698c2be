//! What the user says to a consumer, and what it means.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use natsway_boot::{BrokerArgs, BrokerConfig};

use crate::args::{Compression, ModeChoice, StreamArgs, prefix};
use crate::error::whole;
use crate::name::Prefix;
use crate::pattern::{OutputPattern, Period};
use crate::retain::Retention;
use crate::stream::StreamPlan;
use crate::units::ByteSize;

/// When lines are made to reach the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Fsync {
    /// Before they are committed and acknowledged
    #[default]
    Always,
    /// When the system likes; a power cut then loses lines that were acknowledged
    Never,
}

/// Which partitions a consumer reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Partitions {
    /// These.
    List(Vec<u32>),
    /// Those that a group gives to it: consumers come and go, and share what there is.
    Shared,
}

impl std::str::FromStr for Partitions {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "auto" {
            return Ok(Self::Shared);
        }
        let numbers: Result<Vec<u32>, _> =
            text.split(',').map(|number| number.trim().parse()).collect();
        let mut numbers = numbers
            .map_err(|_| format!("{text:?}: expected numbers with commas between, or auto"))?;
        numbers.sort_unstable();
        numbers.dedup();
        Ok(Self::List(numbers))
    }
}

/// What the user typed.
#[derive(Args, Clone)]
pub struct ConsumerArgs {
    /// What all subjects begin with
    #[arg(long, global = true, env = "SHIPPER_SUBJECT", value_name = "SUBJECT")]
    subject: Option<String>,

    /// Directory to write to: lines go to DIRECTORY/HOST/OUTPUT
    #[arg(long, global = true, env = "SHIPPER_DIRECTORY", value_name = "DIRECTORY")]
    directory: Option<PathBuf>,

    /// Name of the files: a strftime pattern, in which {file} and {host} stand for the source
    #[arg(long, global = true, env = "SHIPPER_OUTPUT", value_name = "PATTERN")]
    output: Option<String>,

    /// Partitions to read, with commas between, or auto to share them with the other consumers of
    /// the cluster
    #[arg(
        long,
        global = true,
        env = "SHIPPER_READ_PARTITIONS",
        value_name = "LIST",
        default_value = "0"
    )]
    read_partitions: Partitions,

    /// Cluster of consumers; each cluster receives everything
    #[arg(
        long,
        global = true,
        env = "SHIPPER_CLUSTER",
        value_name = "NAME",
        default_value = "default"
    )]
    cluster: String,

    /// Partitions that a cluster with SHIPPER_READ_PARTITIONS=auto is made with
    #[arg(long, env = "SHIPPER_GROUP_PARTITIONS", value_name = "N", default_value_t = 32)]
    group_partitions: u32,

    /// How long a consumer with SHIPPER_READ_PARTITIONS=auto may be silent before others take its
    /// partitions
    #[arg(long, env = "SHIPPER_MEMBER_TIMEOUT", value_name = "TIME", default_value = "15s")]
    member_timeout: humantime::Duration,

    /// Subject that a push consumer delivers to: messages are taken from TARGET.pPARTITION
    #[arg(long, env = "SHIPPER_STREAM_TARGET", value_name = "SUBJECT")]
    stream_target: Option<String>,

    /// How to receive
    #[arg(long, env = "SHIPPER_MODE", value_enum, default_value_t)]
    mode: ModeChoice,

    /// When to begin a new file: daily, hourly, never, or minutes such as 15m
    #[arg(long, env = "SHIPPER_ROTATE", value_name = "PERIOD", default_value = "daily")]
    rotate: Period,

    /// Size at which to begin a new file [default: no limit]
    #[arg(long, env = "SHIPPER_ROTATE_SIZE", value_name = "SIZE")]
    rotate_size: Option<ByteSize>,

    /// How long to keep files after their last line; 0s for ever
    #[arg(long, env = "SHIPPER_KEEP", value_name = "TIME", default_value = "7d")]
    keep: humantime::Duration,

    /// Most bytes of all files together [default: no limit]
    #[arg(long, env = "SHIPPER_KEEP_SIZE", value_name = "SIZE")]
    keep_size: Option<ByteSize>,

    /// Pack files that are finished
    #[arg(long, env = "SHIPPER_COMPRESS_ROTATED", value_enum, default_value_t)]
    compress_rotated: Compression,

    /// Most files open at once
    #[arg(long, env = "SHIPPER_HANDLES", value_name = "N", default_value_t = 256)]
    handles: usize,

    /// Most sources (hosts, or files of hosts) that the directory takes; lines of further ones are
    /// refused
    #[arg(long, env = "SHIPPER_SOURCES", value_name = "N", default_value_t = 100_000)]
    sources: usize,

    /// Most bytes of one packed message when it is unpacked; never less than the broker takes as
    /// one message
    #[arg(long, env = "SHIPPER_UNPACKED_LIMIT", value_name = "SIZE", default_value = "8MiB")]
    unpacked_limit: ByteSize,

    /// When lines are made to reach the disk
    #[arg(long, env = "SHIPPER_FSYNC", value_enum, default_value_t)]
    fsync: Fsync,

    /// Most memory for messages that are not written yet
    #[arg(long, env = "SHIPPER_WINDOW", value_name = "SIZE", default_value = "64MiB")]
    window: ByteSize,

    /// Address of a page of metrics for Prometheus, say 127.0.0.1:9101
    #[arg(
        long, env = "SHIPPER_METRICS", value_name = "ADDRESS", value_parser = natsway_boot::address
    )]
    metrics: Option<std::net::SocketAddr>,

    /// How long a stop may take to have everything written that was received
    #[arg(long, env = "SHIPPER_DRAIN_TIMEOUT", value_name = "TIME", default_value = "10s")]
    drain_timeout: humantime::Duration,

    #[command(flatten)]
    stream: StreamArgs,

    #[command(flatten)]
    broker: BrokerArgs,
}

/// A consumer, valid by construction.
#[derive(Clone, Debug)]
pub struct Config {
    /// What all subjects begin with.
    pub prefix: Prefix,
    /// Where to write.
    pub directory: PathBuf,
    /// Names of the files.
    pub output: OutputPattern,
    /// What to read.
    pub partitions: Partitions,
    /// Whose commits they are.
    pub cluster: String,
    /// Partitions of a new group.
    pub group_partitions: u32,
    /// Silence after which a member is dropped.
    pub member_timeout: Duration,
    /// Where a push consumer delivers to.
    pub stream_target: Option<String>,
    /// How to receive.
    pub mode: ModeChoice,
    /// When to begin a new file.
    pub period: Period,
    /// At which size to begin a new file.
    pub rotate_bytes: Option<u64>,
    /// What to keep.
    pub retention: Retention,
    /// Whether to pack finished files.
    pub compression: Compression,
    /// Most files open at once.
    pub handles: usize,
    /// Most sources of the directory.
    pub sources: usize,
    /// Most bytes of a message when it is unpacked.
    pub unpacked_bytes: u64,
    /// When to sync.
    pub fsync: Fsync,
    /// Most bytes in memory.
    pub window_bytes: u64,
    /// Where to serve metrics.
    pub metrics: Option<std::net::SocketAddr>,
    /// Time for a stop.
    pub drain_timeout: Duration,
    /// The stream.
    pub stream: StreamPlan,
    /// The broker.
    pub broker: BrokerConfig,
}

impl ConsumerArgs {
    /// The same, for a status: how files are named does not matter, nor does a directory where none
    /// is given.
    #[must_use]
    pub fn for_status(mut self) -> Self {
        self.output.get_or_insert_with(|| "log".to_owned());
        self.directory.get_or_insert_with(|| PathBuf::from("."));
        self
    }

    /// Checks everything.
    ///
    /// # Errors
    /// A sentence for each fault, all at once.
    pub fn into_config(self) -> Result<Config, Vec<String>> {
        let mut faults = Vec::new();
        let prefix = prefix(self.subject.as_deref()).map_err(|fault| faults.push(fault)).ok();
        let directory = self
            .directory
            .ok_or("SHIPPER_DIRECTORY is not set: expected a directory to write to".to_owned());
        let directory = directory.map_err(|fault| faults.push(fault)).ok();
        let output = self
            .output
            .as_deref()
            .ok_or("SHIPPER_OUTPUT is not set: expected a file name such as syslog".into());
        let parse =
            if self.rotate == Period::Never { OutputPattern::fixed } else { OutputPattern::parse };
        let output =
            output.and_then(|text| parse(text).map_err(|error| format!("SHIPPER_OUTPUT: {error}")));
        let output = output.map_err(|fault| faults.push(fault)).ok();
        let broker = self.broker.into_config().map_err(|error| faults.push(whole(&error))).ok();
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if self.cluster.is_empty() || !self.cluster.chars().all(plain) {
            faults.push(format!(
                "SHIPPER_CLUSTER={:?}: expected letters, digits, '-' and '_'",
                self.cluster
            ));
        }
        if self.handles == 0 {
            faults.push("SHIPPER_HANDLES=0: expected at least 1".into());
        }
        if self.sources == 0 {
            faults.push("SHIPPER_SOURCES=0: expected at least 1".into());
        }
        if self.rotate == Period::Never && output.as_ref().is_some_and(OutputPattern::is_dated) {
            faults.push(
                "SHIPPER_ROTATE=never with a date in SHIPPER_OUTPUT: expected a name \
                         without one, since no other file follows"
                    .into(),
            );
        }
        let shared = self.read_partitions == Partitions::Shared;
        if self.stream_target.is_some() && shared {
            faults.push(
                "SHIPPER_STREAM_TARGET needs a list in SHIPPER_READ_PARTITIONS, not auto".into(),
            );
        }
        if shared && self.mode == ModeChoice::Core {
            faults
                .push("SHIPPER_READ_PARTITIONS=auto needs JetStream, not SHIPPER_MODE=core".into());
        }
        let (Some(prefix), Some(directory), Some(output), Some(broker), true) =
            (prefix, directory, output, broker, faults.is_empty())
        else {
            return Err(faults);
        };
        Ok(Config {
            stream: self.stream.plan(&prefix),
            prefix,
            directory,
            output,
            partitions: self.read_partitions,
            cluster: self.cluster,
            group_partitions: self.group_partitions,
            member_timeout: *self.member_timeout,
            stream_target: self.stream_target,
            mode: self.mode,
            period: self.rotate,
            rotate_bytes: self.rotate_size.map(|size| size.0),
            retention: Retention {
                age: Some(*self.keep).filter(|age| !age.is_zero()),
                total_bytes: self.keep_size.map(|size| size.0),
            },
            compression: self.compress_rotated,
            handles: self.handles,
            sources: self.sources,
            unpacked_bytes: self.unpacked_limit.0,
            fsync: self.fsync,
            window_bytes: self.window.0,
            metrics: self.metrics,
            drain_timeout: *self.drain_timeout,
            broker,
        })
    }
}

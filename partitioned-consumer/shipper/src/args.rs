//! What the users of both programs say: the subjects, the stream, how to ship and to pack.

use clap::{Args, ValueEnum};

use crate::name::Prefix;
use crate::stream::StreamPlan;
use crate::tail::checkpoint::Mode;
use crate::units::ByteSize;

/// How to ship.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ModeChoice {
    /// Through a stream where the broker has JetStream; fixed by the first checkpoint
    #[default]
    Auto,
    /// Plain publish and subscribe, a line a message: what nobody listens to is lost
    Core,
    /// Through a stream, acknowledged: every line once
    Jetstream,
}

impl ModeChoice {
    /// The mode that is asked for, unless it is to be found out.
    pub fn fixed(self) -> Option<Mode> {
        match self {
            Self::Auto => None,
            Self::Core => Some(Mode::Core),
            Self::Jetstream => Some(Mode::JetStream),
        }
    }
}

/// How messages are packed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// As they are
    #[default]
    None,
    /// Each message on its own
    Zstd,
}

/// The stream that both sides use; `#[command(flatten)]` it.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Stream")]
pub struct StreamArgs {
    /// Stream to use, made when it does not exist [default: the subject in capitals]
    #[arg(long, env = "SHIPPER_STREAM", value_name = "NAME")]
    stream: Option<String>,

    /// Size at which a stream that is made here is full: producers then wait [default: the broker's
    /// limit]
    #[arg(long, env = "SHIPPER_STREAM_MAX_BYTES", value_name = "SIZE")]
    stream_max_bytes: Option<ByteSize>,

    /// How long a stream that is made here keeps messages
    #[arg(long, env = "SHIPPER_STREAM_MAX_AGE", value_name = "TIME", default_value = "7d")]
    stream_max_age: humantime::Duration,

    /// Copies that a stream made here has in a cluster of brokers
    #[arg(long, env = "SHIPPER_STREAM_REPLICAS", value_name = "N", default_value_t = 1)]
    stream_replicas: usize,
}

impl StreamArgs {
    /// The stream for the subjects below `prefix`.
    pub fn plan(&self, prefix: &Prefix) -> StreamPlan {
        StreamPlan {
            name: self.stream.clone().unwrap_or_else(|| prefix.default_stream()),
            prefix: prefix.clone(),
            max_bytes: self.stream_max_bytes.map(|size| size.0),
            max_age: Some(*self.stream_max_age).filter(|age| !age.is_zero()),
            replicas: self.stream_replicas,
        }
    }
}

/// What all subjects begin with, or what is wrong with what was given for it.
pub(crate) fn prefix(subject: Option<&str>) -> Result<Prefix, String> {
    let subject =
        subject.ok_or("SHIPPER_SUBJECT is not set: expected a subject such as shipper")?;
    Prefix::parse(subject).map_err(|error| format!("SHIPPER_SUBJECT: {error}"))
}

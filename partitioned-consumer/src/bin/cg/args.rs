//! What the user typed.

use std::time::{Duration, SystemTime};

use clap::{Args, Parser, Subcommand};
use natsway_boot::BrokerArgs;

/// Manage and try partitioned consumer groups
#[derive(Parser)]
#[command(name = "cg", version, arg_required_else_help = true)]
// The name that the nats command line has for it, so that its plug-in gets it handed on.
#[command(mut_arg("nats_url", |arg| arg.visible_alias("server")))]
pub(crate) struct Cli {
    /// Print JSON, one document, for scripts
    #[arg(long, global = true)]
    pub(crate) json: bool,

    #[command(flatten)]
    pub(crate) broker: BrokerArgs,

    /// Context of the nats command line to connect by; an address given here or in NATS_URL goes
    /// before the selected one
    #[arg(long, global = true, value_name = "NAME", env = "NATS_CONTEXT")]
    pub(crate) context: Option<String>,

    #[command(subcommand)]
    pub(crate) command: Mode,
}

#[derive(Subcommand)]
pub(crate) enum Mode {
    /// Groups whose membership is fixed, on a stream that carries partitions
    Static {
        #[command(flatten)]
        work: Work,
        #[command(subcommand)]
        command: StaticCommand,
    },
    /// Groups whose members come and go, on any stream
    Elastic {
        #[command(flatten)]
        work: Work,
        #[command(subcommand)]
        command: ElasticCommand,
    },
    /// Publish numbered messages to SUBJECT.KEY, for trying groups
    Traffic(Traffic),
    /// Print what a shell needs to complete commands
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Args, Clone)]
pub(crate) struct Work {
    /// How long `consume` works on each message
    #[arg(
        long, global = true, default_value = "20ms", value_parser = duration,
        value_name = "DURATION"
    )]
    pub(crate) sleep: Duration,
}

#[derive(Args)]
pub(crate) struct Traffic {
    /// Beginning of the subject, say foo
    pub(crate) subject: String,
    /// Pause between messages
    #[arg(long, default_value = "10ms", value_parser = duration)]
    pub(crate) every: Duration,
    /// How many keys to use in turn
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) keys: u64,
    /// Stop after this many messages; without, publish until interrupted
    #[arg(long)]
    pub(crate) count: Option<u64>,
}

#[derive(Args, Clone)]
pub(crate) struct Group {
    /// The stream
    pub(crate) stream: String,
    /// The group
    pub(crate) group: String,
}

#[derive(Args, Clone)]
pub(crate) struct Member {
    #[command(flatten)]
    pub(crate) group: Group,
    /// The member
    pub(crate) member: String,
}

#[derive(Args, Clone)]
pub(crate) struct Members {
    #[command(flatten)]
    pub(crate) group: Group,
    /// The members
    #[arg(required = true)]
    pub(crate) members: Vec<String>,
}

#[derive(Args, Clone)]
pub(crate) struct Mappings {
    #[command(flatten)]
    pub(crate) group: Group,
    /// Partitions of a member, as member:0,1,2
    #[arg(required = true)]
    pub(crate) mappings: Vec<String>,
}

#[derive(Args, Clone)]
pub(crate) struct Delete {
    #[command(flatten)]
    pub(crate) group: Group,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
}

#[derive(Args, Clone)]
pub(crate) struct Consume {
    #[command(flatten)]
    pub(crate) member: Member,
    /// Messages that may be unacknowledged at once
    #[arg(long, default_value_t = 1)]
    pub(crate) max_ack_pending: i64,
    /// How long the broker waits for an acknowledgement
    #[arg(long, default_value = "2s", value_parser = positive)]
    pub(crate) ack_wait: Duration,
    /// Partitions handled at once
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) concurrency: u32,
}

#[derive(Args, Clone)]
pub(crate) struct DeadLetter {
    #[command(flatten)]
    pub(crate) group: Group,
    /// Where poison messages go; needs a stream
    #[arg(required_unless_present = "off")]
    pub(crate) subject: Option<String>,
    /// Deliveries that a message gets before
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) after: u64,
    /// Deliver for ever again
    #[arg(long, conflicts_with = "subject")]
    pub(crate) off: bool,
}

/// Where a group goes on.
#[derive(Args, Clone)]
#[group(required = true, multiple = false)]
pub(crate) struct ResetPosition {
    /// Go on with this sequence of the stream
    #[arg(long, value_name = "SEQUENCE", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) to_seq: Option<u64>,
    /// Go on with what was stored at a time or later: 2026-01-31T08:00:00Z, or 90m for so long ago
    #[arg(long, value_name = "TIME", value_parser = time)]
    pub(crate) to_time: Option<SystemTime>,
    /// Go on with what is stored from now on
    #[arg(long)]
    pub(crate) to_new: bool,
}

#[derive(Args, Clone)]
pub(crate) struct Reset {
    #[command(flatten)]
    pub(crate) group: Group,
    #[command(flatten)]
    pub(crate) place: ResetPosition,
    /// Only say what would be handled again, or passed over
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Args, Clone)]
pub(crate) struct Setup {
    /// The stream to create; it takes the subjects that begin with its name and have one token more
    pub(crate) stream: String,
    /// Partitions that a static group needs
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) partitions: u32,
}

#[derive(Subcommand, Clone)]
pub(crate) enum Common {
    /// List the groups of a stream, or of all streams
    #[command(visible_alias = "list")]
    Ls {
        /// The stream; all without
        stream: Option<String>,
    },
    /// Show a group, with lag and activity per member and per partition
    Info(Group),
    /// Look for what is wrong with a group; exit 1 when something is
    Doctor(Group),
    /// Delete a group
    #[command(visible_alias = "rm")]
    Delete(Delete),
    /// Show whether a name is a member, and active
    #[command(visible_aliases = ["memberinfo", "minfo"])]
    MemberInfo(Member),
    /// Make the pinned instance of a member step down
    #[command(visible_aliases = ["stepdown", "sd"])]
    StepDown(Member),
    /// Take part as a member and print what comes
    #[command(visible_alias = "join")]
    Consume(Consume),
    /// Handle nothing new until resume (members of this implementation)
    Pause(Group),
    /// Go on after pause
    Resume(Group),
    /// Move messages that keep failing to a subject
    DeadLetter(DeadLetter),
    /// Go on elsewhere in the stream: handle messages again, or pass over them
    Reset(Reset),
    /// Create a stream to try groups with
    Setup(Setup),
    /// Ask for commands one by one
    Prompt,
}

#[derive(Subcommand, Clone)]
pub(crate) enum StaticCommand {
    #[command(flatten)]
    Common(Common),
    /// Create a group
    Create {
        #[command(subcommand)]
        command: CreateStatic,
    },
}

#[derive(Args, Clone)]
pub(crate) struct NewStatic {
    #[command(flatten)]
    pub(crate) group: Group,
    /// Partitions, at most as many members can work
    pub(crate) max_members: u32,
    /// Members; an argument with a wildcard is a filter
    pub(crate) members: Vec<String>,
    /// Take only subjects that match, given without the partition
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
}

#[derive(Subcommand, Clone)]
pub(crate) enum CreateStatic {
    /// Spread the partitions evenly over members
    Balanced(NewStatic),
    /// Give partitions to members, as member:0,1,2
    Mapped(NewStatic),
}

#[derive(Args, Clone)]
pub(crate) struct NewElastic {
    #[command(flatten)]
    pub(crate) group: Group,
    /// Partitions, at most as many members can work
    pub(crate) max_members: u32,
    /// Take only subjects that match
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// Wildcards of the filter before that make up the key, as 1,2; empty for the whole subject
    #[arg(long = "wildcards", value_name = "INDEXES")]
    pub(crate) wildcards: Vec<String>,
    /// Messages that the work queue may hold; 0 for no limit
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) max_buffered_msgs: i64,
    /// Bytes that the work queue may hold; 0 for no limit
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    pub(crate) max_buffered_bytes: i64,
}

#[derive(Subcommand, Clone)]
pub(crate) enum ElasticCommand {
    #[command(flatten)]
    Common(Common),
    /// Create a group; filters and wildcards that are not given are asked for
    Create(NewElastic),
    /// Add members
    Add(Members),
    /// Drop members
    Drop(Members),
    /// Spread the partitions evenly over these members, moving as few as possible
    Rebalance(Members),
    /// Give partitions to members by hand
    #[command(visible_aliases = ["cm", "createmapping"])]
    CreateMapping(Mappings),
    /// Remove the mappings
    #[command(visible_aliases = ["dm", "deletemapping"])]
    DeleteMapping(Group),
    /// Change the number of partitions, keeping the order of every key
    Repartition {
        #[command(flatten)]
        group: Group,
        /// Partitions from then on
        partitions: u32,
        /// Partitions of a member from then on, as member:0,1,2; a group that uses mappings needs
        /// new ones
        mappings: Vec<String>,
        /// How long the members may take for what was copied already
        #[arg(long, default_value = "10m", value_parser = duration)]
        limit: Duration,
    },
}

/// A duration above zero.
fn positive(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err(format!("{text:?}: expected a duration above zero")),
        duration => Ok(duration),
    }
}

/// A point in time, or how long ago it was.
fn time(text: &str) -> Result<SystemTime, String> {
    if let Ok(ago) = duration(text) {
        return SystemTime::now().checked_sub(ago).ok_or_else(|| format!("{text:?}: too long ago"));
    }
    let time = async_nats::datetime::parse_rfc3339(text);
    time.map(SystemTime::from).map_err(|_| {
        format!(
            "{text:?}: expected a time such as 2026-01-31T08:00:00Z, or a duration such as 90m \
                 for so long ago"
        )
    })
}

/// `20ms`, `1.5s`, `2m`, `1h`; several in a row add up, as in `1m30s`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let expected = || format!("{text:?}: expected a duration such as 20ms, 1.5s or 2m");
    let (mut rest, mut total) = (text.trim(), Duration::ZERO);
    if rest.is_empty() {
        return Err(expected());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(expected)?;
        let number: f64 = rest[..digits].parse().map_err(|_| expected())?;
        let unit_end = rest[digits..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |end| digits + end);
        let seconds = match &rest[digits..unit_end] {
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err(expected()),
        };
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| expected())?;
        rest = &rest[unit_end..];
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_read_as_elsewhere() {
        assert_eq!(duration("25ms"), Ok(Duration::from_millis(25)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        for bad in ["", "5", "ms", "-1s", "3x"] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
        assert!(positive("0s").is_err() && positive("1ms").is_ok());
    }

    #[test]
    fn times_are_points_or_as_long_ago() {
        assert_eq!(
            time("1970-01-01T00:00:02Z"),
            Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(2))
        );
        let before = SystemTime::now();
        let ago = before.duration_since(time("90m").unwrap()).unwrap();
        assert!((5_300..5_401).contains(&ago.as_secs()), "{ago:?}");
        for bad in ["", "yesterday", "2026-01-31"] {
            assert!(time(bad).is_err(), "{bad:?}");
        }
    }
}

//! `apiproxy setup`: makes the buckets and streams that programs need, so that no program needs to
//! be able to.

use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::bail;
use async_nats::jetstream::stream::Config;
use async_nats::jetstream::{self, Context};
use clap::Args;
use natsway_boot::{BrokerArgs, BrokerConfig, Dial, DialErrorKind, Dialer, Session, duration};
use natsway_stores::setup::{Step, apply};
use natsway_stores::{StoreError, StoreErrorKind, definitions};

use super::columns::columns;

/// The inbox prefix of administrators.
const INBOX_PREFIX: &str = "_INBOX_admin";

/// How long the broker may take for one request: a stream with copies is made by several brokers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks for a broker that is away.
const PAUSE: Duration = Duration::from_millis(500);

/// Exit code of `--dry-run`: nothing is to be done, and something is there with other settings.
const DIFFERS: u8 = 3;

/// Exit code of `--dry-run`: something is to be done.
const TO_DO: u8 = 4;

/// Arguments of `setup`.
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct SetupArgs {
    /// Say what would be done, and do nothing
    #[arg(long)]
    dry_run: bool,

    /// Make what consumer groups need, too
    #[arg(long)]
    groups: bool,

    /// Make what the log shipper needs, too: its stream, its commits, who takes part
    #[arg(long)]
    shipper: bool,

    /// Make the bucket of the results, too, for routes of the mode `enqueue`
    #[arg(long)]
    results: bool,

    /// How long a result is kept; longer than the duplicate windows of the streams
    #[arg(
        long, env = "NATSWAY_RESULTS_TTL", value_name = "TIME", default_value = "1h",
        value_parser = duration
    )]
    results_ttl: Duration,

    /// Bytes at which the bucket of the results is full: requests are then refused [default: the
    /// broker's limit]
    #[arg(long, value_name = "BYTES")]
    results_max_bytes: Option<u64>,

    /// How long to wait for a broker that is away, or a cluster that has no leader yet
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = duration)]
    wait: Duration,

    /// Copies in a cluster, of what is made and of what is there [default: 1 for what is made]
    #[arg(long, env = "NATSWAY_ROUTES_REPLICAS", value_name = "COUNT")]
    replicas: Option<NonZeroUsize>,

    /// Bucket that holds the routes
    #[arg(
        long, env = "NATSWAY_ROUTES_BUCKET", value_name = "NAME",
        default_value = definitions::ROUTES
    )]
    routes_bucket: String,

    /// Bucket of the lease by which one of several provisioners leads
    #[arg(
        long, env = "NATSWAY_LEASE_BUCKET", value_name = "NAME",
        default_value = definitions::PROVISIONER_LEASES
    )]
    lease_bucket: String,

    #[command(flatten)]
    lines: LineArgs,

    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Args)]
#[command(next_help_heading = "With --shipper")]
struct LineArgs {
    /// What the subjects of lines begin with
    #[arg(long, env = "SHIPPER_SUBJECT", value_name = "SUBJECT", default_value = "logs")]
    subject: natsway_wire::Subject,

    /// The shipper's stream [default: the subject in capitals]
    #[arg(long, env = "SHIPPER_STREAM", value_name = "NAME")]
    stream: Option<String>,

    /// Bytes at which the stream is full: producers then wait [default: the broker's limit]
    #[arg(long, value_name = "BYTES")]
    stream_max_bytes: Option<u64>,

    /// How long the stream keeps lines; 0s for ever
    #[arg(
        long, env = "SHIPPER_STREAM_MAX_AGE", value_name = "TIME", default_value = "7d",
        value_parser = duration
    )]
    stream_max_age: Duration,

    /// How long a consumer that shares the stream may be silent before others take its partitions
    #[arg(
        long, env = "SHIPPER_MEMBER_TIMEOUT", value_name = "TIME", default_value = "15s",
        value_parser = duration
    )]
    member_timeout: Duration,
}

const EXAMPLES: &str = "Examples:
  apiproxy setup --dry-run
  apiproxy setup --groups --shipper --replicas 3

What is there stays as it is, but for its copies where --replicas is given, direct gets of buckets,
and leases in memory. Exit codes: 0 when all is there, 1 when something could not be done; of
--dry-run also 4 when there is something to do, 3 when there is not and something has other
settings than a program would give it.";

impl SetupArgs {
    /// Does it, and says so line by line.
    ///
    /// # Errors
    /// The broker is not reached. What fails for one store does not keep the others from being
    /// made.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let stores = self.stores();
        let until = Instant::now() + self.wait;
        let session = connect(self.broker.clone().into_config()?, until).await?;
        let mut context = jetstream::new(session.client().clone());
        context.set_timeout(PATIENCE);
        let (mut rows, mut steps, mut failed) = (Vec::new(), Vec::new(), false);
        for wanted in &stores {
            let told = match self.apply(&context, wanted, until).await {
                Ok(step) => {
                    let told = say(&step, self.dry_run);
                    steps.push(step);
                    told
                }
                Err(error) => {
                    failed = true;
                    format!("failed: {error}")
                }
            };
            rows.push([wanted.name.clone(), told]);
        }
        print!("{}", columns(["STREAM", "IS"], &rows));
        if failed {
            bail!(
                "not everything was made: is JetStream on, and may this user make streams \
                 (docs/security.md)"
            );
        }
        Ok(ExitCode::from(code(&steps, self.dry_run)))
    }

    /// Does what is to be done about one store. A broker that does not answer yet is asked again
    /// until it is time.
    async fn apply(
        &self,
        context: &Context,
        wanted: &Config,
        until: Instant,
    ) -> Result<Step, StoreError> {
        loop {
            let applied = apply(context, wanted, self.replicas.is_some(), self.dry_run).await;
            match &applied {
                Err(error)
                    if error.kind() == StoreErrorKind::Unavailable && Instant::now() < until => {}
                _ => return applied,
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What there has to be.
    fn stores(&self) -> Vec<Config> {
        let replicas = self.replicas.map_or(1, NonZeroUsize::get);
        let mut stores = vec![
            definitions::routes(&self.routes_bucket, replicas),
            definitions::rollout_lease(replicas),
            definitions::provisioner_leases(&self.lease_bucket, replicas),
        ];
        if self.results {
            stores.push(definitions::results(self.results_ttl, self.results_max_bytes, replicas));
        }
        if self.groups || self.shipper {
            // Consumers of the shipper that share a stream are members of an elastic group.
            stores.extend([
                definitions::elastic_groups(replicas),
                definitions::static_groups(replicas),
                definitions::group_settings(replicas),
                definitions::consumer_locks(replicas),
            ]);
        }
        if self.shipper {
            let LineArgs { subject, stream, stream_max_bytes, stream_max_age, member_timeout } =
                &self.lines;
            let stream =
                stream.clone().unwrap_or_else(|| definitions::default_stream(subject.as_str()));
            let max_age = Some(*stream_max_age).filter(|age| !age.is_zero());
            stores.extend([
                definitions::lines(&stream, subject.as_str(), *stream_max_bytes, max_age, replicas),
                definitions::shipper_commits(replicas),
                definitions::shipper_members(*member_timeout, replicas),
            ]);
        }
        stores
    }
}

/// Connects, to a broker that is away as soon as it is there.
async fn connect(broker: BrokerConfig, until: Instant) -> anyhow::Result<Session> {
    let dial = Dial {
        name: "apiproxy setup".to_owned(),
        inbox_prefix: INBOX_PREFIX.to_owned(),
        subscription_messages: 256,
        publish_messages: 256,
    };
    let mut dialer = Dialer::new(broker, dial);
    loop {
        match dialer.dial_once(None).await {
            Ok(session) => return Ok(session),
            Err(error) if error.kind() == DialErrorKind::Unavailable && Instant::now() < until => {}
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The exit code when nothing failed.
fn code(steps: &[Step], dry_run: bool) -> u8 {
    let is_to_do = |step: &Step| !matches!(step, Step::Nothing | Step::Leave { .. });
    match () {
        () if !dry_run => 0,
        () if steps.iter().any(is_to_do) => TO_DO,
        () if steps.iter().any(|step| matches!(step, Step::Leave { .. })) => DIFFERS,
        () => 0,
    }
}

/// What was done, or would be.
fn say(step: &Step, dry_run: bool) -> String {
    match (step, dry_run) {
        (Step::Make, false) => "made".to_owned(),
        (Step::MakeAnew, false) => "made anew, in a file".to_owned(),
        (Step::Change(_), false) => step.to_string().replacen("change", "changed", 1),
        (Step::Make | Step::MakeAnew | Step::Change(_), true) => format!("to do: {step}"),
        (Step::Nothing | Step::Leave { .. }, _) => step.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::{Cli, Command};

    fn stores(arguments: &[&str]) -> Vec<Config> {
        let cli = Cli::try_parse_from([&["apiproxy", "setup"], arguments].concat()).unwrap();
        let Some(Command::Setup(setup)) = cli.command else { panic!("it is setup") };
        setup.stores()
    }

    fn names(arguments: &[&str]) -> Vec<String> {
        stores(arguments).into_iter().map(|store| store.name).collect()
    }

    #[test]
    fn only_a_dry_run_says_by_its_code_what_there_is_to_do() {
        let left = Step::Leave { differences: vec!["max_age is 1s, not 2s".to_owned()] };
        let steps = [Step::Nothing, left, Step::Make];
        assert_eq!([code(&steps, false), code(&steps, true)], [0, TO_DO]);
        assert_eq!([code(&steps[..2], true), code(&steps[..1], true)], [DIFFERS, 0]);
    }

    #[test]
    fn only_what_is_asked_for_is_made() {
        assert_eq!(names(&[]), ["KV_natsway-routes", "KV_natsway-lease", "KV_natsway-leases"]);
        assert!(names(&["--results"]).contains(&"KV_natsway-results".to_owned()));
        assert!(names(&["--groups"]).contains(&"KV_elastic-consumer-groups".to_owned()));
        let all = names(&["--shipper", "--subject", "app.logs"]);
        assert!(all.contains(&"APP_LOGS".to_owned()), "{all:?}");
        assert!(
            stores(&["--shipper", "--replicas", "3"]).iter().all(|store| store.num_replicas == 3)
        );
    }
}

//! A producer from its start to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, block_in_place};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::args::Config;
use super::generation::{self, History};
use super::input::Input;
use super::journal::Journal;
use super::plain::Plain;
use super::problems::ProblemLog;
use super::progress::Progress;
use super::shipping::{PERMIT_BYTES, Setup, Shipping};
use super::sources::{Found, Problem, ProblemKind, Sources};
use super::status::{Metrics, forget_problems};
use crate::args::Compression;
use crate::error::{Error, ErrorKind, whole};
use crate::head::Generation;
use crate::name::{Source, partition_of_host};
use crate::tail::checkpoint::{Checkpoint, Mode};
use crate::tail::{Follow, From};
use crate::{connect, metrics};

/// How often globs are expanded.
const GLOB_EVERY: Duration = Duration::from_secs(2);
/// How many sources read from the disk, or save, at once.
const AT_THE_DISK: usize = 8;
/// What a message needs beside its payload.
const HEAD_ROOM: usize = 4 * 1024;
/// How long an acknowledgement may take.
const ACK_WITHIN: Duration = Duration::from_secs(10);

struct Producer {
    config: Config,
    client: Client,
    context: jetstream::Context,
    sources: Sources,
    memory: Arc<Semaphore>,
    disk: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    /// What is shipped, and from where.
    started: BTreeMap<Source, PathBuf>,
    problems: ProblemLog,
    /// Something could not be started.
    has_to_start: bool,
    /// There were checkpoints at the start.
    was_here_before: bool,
    tasks: JoinSet<()>,
    stop: CancellationToken,
}

/// Ships until `stop`, or until standard input ends where nothing else is shipped.
///
/// # Errors
/// What cannot mend itself: files that cannot be told apart, a state directory that cannot be used,
/// a stream of others.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), Error> {
    let (asked_to_stop, ended_by_itself) = (stop.clone(), stop.child_token());
    match Box::pin(begin(config, ended_by_itself)).await {
        Err(error) if asked_to_stop.is_cancelled() => {
            warn!("stopped while waiting: {}", whole(&error));
            Ok(())
        }
        ended => ended,
    }
}

async fn begin(config: Config, stop: CancellationToken) -> Result<(), Error> {
    let sources = Sources::new(&config.host, &config.files)?;
    // Before anything is waited for.
    sources.check()?;
    let client = connect::client(&config.broker, "producer", "shipper-producer", &stop).await?;
    let mut context = jetstream::new(client.clone());
    context.set_timeout(ACK_WITHIN);
    let metrics = Arc::new(Metrics::default());
    let shown = Arc::clone(&metrics);
    metrics::serve(config.metrics, move || shown.page(), stop.clone()).await?;
    let memory = Arc::new(Semaphore::new((config.window_bytes as usize).div_ceil(PERMIT_BYTES)));
    let disk = Arc::new(Semaphore::new(AT_THE_DISK));
    let tasks = JoinSet::new();
    let reports = super::status::read(&config.state);
    let reports =
        reports.map_err(|error| Error::disk(config.state.display().to_string(), error))?;
    let was_here_before = reports.iter().any(|report| report.mode.is_some());
    // What an earlier process reported is not so any more.
    forget_problems(&config.state);
    let mut producer = Producer {
        config,
        client,
        context,
        sources,
        memory,
        disk,
        metrics,
        started: BTreeMap::new(),
        problems: ProblemLog::default(),
        has_to_start: false,
        was_here_before,
        tasks,
        stop,
    };
    producer.start_stdin().await?;
    producer.start_files(true).await?;
    producer.work().await
}

impl Producer {
    async fn work(&mut self) -> Result<(), Error> {
        let mut poll = tokio::time::interval(GLOB_EVERY);
        let mut progress = Progress::new();
        let globs = self.sources.has_globs();
        loop {
            let idle = self.tasks.is_empty();
            tokio::select! {
                ended = self.tasks.join_next(), if !idle => {
                    if let Some(Err(panicked)) = ended {
                        return Err(ErrorKind::Defect.caused("a source ended early", panicked));
                    }
                }
                () = self.stop.cancelled(), if idle => break,
                _ = poll.tick(), if !self.stop.is_cancelled() => {
                    self.start_files(false).await?;
                    progress.report(&self.metrics);
                }
            }
            let more_may_come = globs || self.has_to_start;
            if self.tasks.is_empty() && (!more_may_come || self.stop.is_cancelled()) {
                break;
            }
        }
        match tokio::time::timeout(self.config.drain_timeout, self.client.flush()).await {
            Ok(flushed) => flushed.map_err(|error| {
                ErrorKind::Broker.caused("the last lines may not have left", error)
            }),
            Err(_) => Ok(()),
        }
    }

    async fn start_stdin(&mut self) -> Result<(), Error> {
        let Some(source) = self.sources.stdin()? else { return Ok(()) };
        let mode = self.mode(None).await?;
        let follow = self.follow(mode);
        self.start(source, "-".into(), mode, None, Input::stdin(follow), None).await
    }

    /// Starts what is not shipped yet. At the `first` time a file that cannot be shipped is an
    /// error, but for a disk that is full; later ones are left for the next time.
    async fn start_files(&mut self, first: bool) -> Result<(), Error> {
        let Found { by_source, problems } = block_in_place(|| self.sources.files());
        let is_shipped = |path: &Path| self.started.values().any(|started| started == path);
        let mut problems: BTreeSet<Problem> = self.problems.without_rotations(problems, is_shipped);
        self.has_to_start = false;
        for (source, paths) in by_source {
            let chosen = match self.started.get(&source) {
                Some(path) => path.clone(),
                None => self.choose(&source, &paths),
            };
            for path in paths.into_iter().filter(|path| *path != chosen) {
                let reason = format!(
                    "its name is as good as that of {}: ship one of them with a producer of \
                     another SHIPPER_SUBJECT",
                    chosen.display()
                );
                problems.insert(Problem { path, kind: ProblemKind::Refused(reason) });
            }
            if self.started.contains_key(&source) {
                continue;
            }
            match self.start_file(&source, chosen.clone(), first).await {
                Err(error) if first && error.kind() != ErrorKind::DiskFull => return Err(error),
                Err(error) => {
                    self.has_to_start = true;
                    let kind = ProblemKind::Refused(format!("{}; trying again", whole(&error)));
                    problems.insert(Problem { path: chosen, kind });
                }
                Ok(()) => {}
            }
        }
        self.problems.report(problems, &self.config.state, &self.metrics);
        self.problems.report_gone(self.started.values(), &self.metrics);
        Ok(())
    }

    /// Of files that would be the same source, that which was before, else the first.
    fn choose(&self, source: &Source, paths: &[PathBuf]) -> PathBuf {
        let before = match paths {
            [_] => None,
            _ => Checkpoint::read(&self.config.state.join(format!("{source}.json"))).ok().flatten(),
        };
        let before = before.map(|checkpoint| checkpoint.path).filter(|path| paths.contains(path));
        before.unwrap_or_else(|| paths[0].clone())
    }

    async fn start_file(
        &mut self,
        source: &Source,
        path: PathBuf,
        first: bool,
    ) -> Result<(), Error> {
        let (journal, checkpoint) = Journal::open(&self.config.state, &source.to_string())?;
        let mode = self.mode(checkpoint.as_ref().map(|c| c.mode)).await?;
        let (tail, begun) = match checkpoint {
            Some(checkpoint) => {
                let generation = checkpoint.generation.parse::<Generation>();
                let generation = generation.map_err(|error| {
                    ErrorKind::Mismatch.caused(format!("checkpoint of {source}"), error)
                })?;
                let begun =
                    Begun { generation, subject: checkpoint.subject, since: checkpoint.since };
                (Some(checkpoint.tail), Some((begun, mode)))
            }
            None => (None, None),
        };
        let floor = tail.as_ref().map_or(0, |tail| tail.offset);
        let mut follow = self.follow(mode);
        if !first || self.sources.has_globs() && self.was_here_before {
            // A file that turned up while others were shipped: all of it is new.
            follow.from = From::Beginning;
        }
        let input = Input::file(&path, follow, tail);
        let input = input.map_err(|error| Error::disk(path.display().to_string(), error))?;
        let begun = begun.map(|(begun, _)| (begun, floor));
        self.start(source.clone(), path, mode, begun, input, Some(journal)).await
    }

    /// The mode of a source: that of its checkpoint for good, else what was asked for, else what
    /// the broker has.
    async fn mode(&self, saved: Option<Mode>) -> Result<Mode, Error> {
        let asked = self.config.mode.fixed();
        match (saved, asked) {
            (Some(saved), Some(asked)) if saved != asked => Err(ErrorKind::Mismatch.with(format!(
                "the checkpoint says {saved:?}, SHIPPER_MODE says {asked:?}: remove the checkpoint \
                 in {} to change the mode",
                self.config.state.display()
            ))),
            (Some(mode), _) | (None, Some(mode)) => Ok(mode),
            (None, None) => {
                Ok(if connect::has_jetstream(&self.client) { Mode::JetStream } else { Mode::Core })
            }
        }
    }

    fn follow(&self, mode: Mode) -> Follow {
        let mut follow = self.config.follow.clone();
        follow.framer.one_event = mode == Mode::Core && follow.framer.event_start.is_some();
        let most = self.client.server_info().max_payload.saturating_sub(HEAD_ROOM).max(HEAD_ROOM);
        let fits = follow.framer.batch_bytes.get().min(most);
        follow.framer.batch_bytes = fits.try_into().expect("above 0");
        let line = follow.framer.line_bytes.get().min(fits - 1);
        follow.framer.line_bytes = line.try_into().expect("above 0");
        follow
    }

    async fn start(
        &mut self,
        source: Source,
        path: PathBuf,
        mode: Mode,
        begun: Option<(Begun, u64)>,
        input: Input,
        journal: Option<Journal>,
    ) -> Result<(), Error> {
        let partition = partition_of_host(source.host(), self.config.partitions);
        let subject = self.config.prefix.subject(partition, &source);
        let (generation, since, floor) = match begun {
            Some((begun, floor)) => (
                begun.generation,
                if begun.subject == subject { begun.since } else { floor },
                floor,
            ),
            None => (self.new_generation(mode, &source).await?, 0, 0),
        };
        info!("Publishing {} to {subject}", path.display());
        let events = self.config.follow.framer.event_start.is_some();
        let setup = Setup {
            context: self.context.clone(),
            client: self.client.clone(),
            subject,
            path: path.clone(),
            generation,
            since,
            floor,
            batch_bytes: self.follow(mode).framer.batch_bytes.get(),
            compress: self.config.compression == Compression::Zstd,
            poll: self.config.poll,
            drain_timeout: self.config.drain_timeout,
            memory: Arc::clone(&self.memory),
            disk: Arc::clone(&self.disk),
            metrics: Arc::clone(&self.metrics),
        };
        let stop = self.stop.clone();
        self.started.insert(source, path);
        match mode {
            Mode::JetStream => {
                let shipping = Shipping::new(setup, input, journal);
                self.tasks.spawn(async move { Box::pin(shipping.run(stop)).await });
            }
            Mode::Core => {
                let plain = Plain { setup, input, journal, events };
                self.tasks.spawn(async move { Box::pin(plain.run(stop)).await });
            }
        }
        Ok(())
    }

    /// The generation of a source that begins.
    async fn new_generation(&self, mode: Mode, source: &Source) -> Result<Generation, Error> {
        match mode {
            Mode::Core => Ok(generation::unkept()),
            Mode::JetStream => {
                let Config { stream: plan, prefix, .. } = &self.config;
                let history = History { context: &self.context, plan, prefix, stop: &self.stop };
                history.next_generation(source).await
            }
        }
    }
}

struct Begun {
    generation: Generation,
    subject: String,
    since: u64,
}

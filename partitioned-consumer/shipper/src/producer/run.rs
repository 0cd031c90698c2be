//! A producer from its start to its end.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use async_nats::Client;
use async_nats::jetstream;
use tokio::sync::Semaphore;
use tokio::task::{JoinSet, block_in_place};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::args::{Compression, Config};
use super::input::Input;
use super::journal::Journal;
use super::plain::Plain;
use super::shipping::{PERMIT_BYTES, Setup, Shipping};
use super::sources::{Found, Problem, ProblemKind, Sources};
use super::status::{Metrics, forget_problems, save_problems};
use crate::head::{Generation, HEADER, Head};
use crate::name::{Source, partition_of_host};
use crate::stream::last_message;
use crate::tail::From;
use crate::tail::checkpoint::{Checkpoint, Mode};
use crate::units::ByteSize;
use crate::{connect, metrics};

/// How often globs are polled.
const GLOB_EVERY: Duration = Duration::from_secs(2);
/// How often a long catch-up says how far it is, and from how many bytes on it is long.
const PROGRESS: (Duration, u64) = (Duration::from_secs(5), 64 << 20);
/// How many sources read from the disk, or save, at once.
const AT_THE_DISK: usize = 8;
/// What a message needs beside its payload.
const HEAD_ROOM: usize = 4 * 1024;
/// How far ahead of the broker's clock a generation may be that is taken for one: as far as a
/// consumer takes it.
const MOST_SKEW_MS: u64 = 86_400_000;
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
    /// What is not shipped, as it was told last.
    problems: BTreeSet<Problem>,
    /// Paths of started files that were not there at the last poll.
    gone: BTreeSet<PathBuf>,
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
pub async fn run(config: Config, stop: CancellationToken) -> Result<()> {
    let (asked_to_stop, ended_by_itself) = (stop.clone(), stop.child_token());
    match Box::pin(begin(config, ended_by_itself)).await {
        Err(error) if asked_to_stop.is_cancelled() => {
            warn!("stopped while waiting: {error:#}");
            Ok(())
        }
        ended => ended,
    }
}

async fn begin(config: Config, stop: CancellationToken) -> Result<()> {
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
    let was_here_before =
        super::status::read(&config.state)?.iter().any(|report| report.mode.is_some());
    // What an earlier process told is not so any more.
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
        problems: BTreeSet::new(),
        gone: BTreeSet::new(),
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
    async fn work(&mut self) -> Result<()> {
        let mut poll = tokio::time::interval(GLOB_EVERY);
        let mut progress = Progress::new();
        let globs = self.sources.has_globs();
        loop {
            let idle = self.tasks.is_empty();
            tokio::select! {
                ended = self.tasks.join_next(), if !idle => {
                    if let Some(Err(panicked)) = ended {
                        bail!("a source ended early: {panicked}");
                    }
                }
                () = self.stop.cancelled(), if idle => break,
                _ = poll.tick(), if !self.stop.is_cancelled() => {
                    self.start_files(false).await?;
                    progress.tell(&self.metrics);
                }
            }
            let more_may_come = globs || self.has_to_start;
            if self.tasks.is_empty() && (!more_may_come || self.stop.is_cancelled()) {
                break;
            }
        }
        tokio::time::timeout(self.config.drain_timeout, self.client.flush())
            .await
            .map_or(Ok(()), |flushed| flushed)?;
        Ok(())
    }

    async fn start_stdin(&mut self) -> Result<()> {
        let Some(source) = self.sources.stdin()? else { return Ok(()) };
        let mode = self.mode(None).await?;
        let follow = self.follow(mode);
        self.start(source, "-".into(), mode, None, Input::stdin(follow), None).await
    }

    /// Starts what is not shipped yet. At the `first` time a file that cannot be shipped is an
    /// error, but for a disk that is full; later ones are left for the next poll.
    async fn start_files(&mut self, first: bool) -> Result<()> {
        let Found { by_source, problems } = block_in_place(|| self.sources.files());
        let mut problems: BTreeSet<Problem> = problems.into_iter().collect();
        self.has_to_start = false;
        // While a file is rotated nothing is at its path for a moment: that of a started one is
        // polled twice.
        let is_rotated =
            |problem: &Problem| self.started.values().any(|path| *path == problem.path);
        problems.retain(|it| {
            it.kind != ProblemKind::Missing || !is_rotated(it) || self.problems.contains(it)
        });
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
                Err(error) if first && !is_full_disk(&error) => return Err(error),
                Err(error) => {
                    self.has_to_start = true;
                    let kind = ProblemKind::Refused(format!("{error:#}; trying again"));
                    problems.insert(Problem { path: chosen, kind });
                }
                Ok(()) => {}
            }
        }
        self.log_problems(problems);
        self.log_gone();
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

    /// Says what is not shipped, once, and again when it is.
    fn log_problems(&mut self, problems: BTreeSet<Problem>) {
        for problem in problems.difference(&self.problems) {
            match problem.kind {
                ProblemKind::Refused(_) => error!("{problem}"),
                ProblemKind::Missing | ProblemKind::NoMatch => warn!("{problem}"),
            }
        }
        for problem in self.problems.difference(&problems) {
            info!(path = %problem.path.display(), "no longer missing or refused");
        }
        let refused =
            problems.iter().filter(|it| matches!(it.kind, ProblemKind::Refused(_))).count();
        self.metrics.refused_files.set(refused as u64);
        self.metrics.missing_files.set((problems.len() - refused) as u64);
        let is_news = problems != self.problems;
        self.problems = problems;
        if is_news {
            let rows =
                self.problems.iter().map(|problem| (problem.path.clone(), problem.to_string()));
            if let Err(error) = block_in_place(|| save_problems(&self.config.state, rows.collect()))
            {
                warn!(%error, "the status cannot be written");
            }
        }
    }

    /// Says which of the shipped files are gone from their path. While one is rotated that is so
    /// for a moment.
    fn log_gone(&mut self) {
        let named = |path: &Path| self.problems.iter().any(|problem| problem.path == path);
        let gone = self.started.values().filter(|path| !path.exists() && !named(path));
        let gone: BTreeSet<PathBuf> =
            gone.filter(|path| path.as_os_str() != "-").cloned().collect();
        let (twice, once): (Vec<_>, Vec<_>) =
            gone.into_iter().partition(|path| self.gone.contains(path));
        for path in twice.iter().filter(|path| !self.metrics.is_gone(path)) {
            warn!(path = %path.display(), "the file is gone; what follows at its path is shipped");
        }
        self.metrics.set_gone(&twice);
        self.gone = twice.into_iter().chain(once).collect();
    }

    async fn start_file(&mut self, source: &Source, path: PathBuf, first: bool) -> Result<()> {
        let (journal, checkpoint) = Journal::open(&self.config.state, &source.to_string())?;
        let mode = self.mode(checkpoint.as_ref().map(|c| c.mode)).await?;
        let (tail, begun) = match checkpoint {
            Some(checkpoint) => {
                let generation: Generation = checkpoint.generation.parse()?;
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
        let input = Input::file(&path, follow, tail).with_context(|| path.display().to_string())?;
        let begun = begun.map(|(begun, _)| (begun, floor));
        self.start(source.clone(), path, mode, begun, input, Some(journal)).await
    }

    /// The mode of a source: that of its checkpoint for good, else what was asked for, else what
    /// the broker has.
    async fn mode(&self, saved: Option<Mode>) -> Result<Mode> {
        let asked = self.config.mode.fixed();
        match (saved, asked) {
            (Some(saved), Some(asked)) if saved != asked => bail!(
                "the checkpoint says {saved:?}, SHIPPER_MODE says {asked:?}: remove the checkpoint \
                 in {} to change the mode",
                self.config.state.display()
            ),
            (Some(mode), _) | (None, Some(mode)) => Ok(mode),
            (None, None) => {
                Ok(if connect::has_jetstream(&self.client) { Mode::JetStream } else { Mode::Core })
            }
        }
    }

    fn follow(&self, mode: Mode) -> crate::tail::Follow {
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
    ) -> Result<()> {
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

    /// A generation that is later than any that the stream has of the source, by the broker's
    /// clock: one of ours that is wrong would make all that is shipped later look older.
    async fn new_generation(&self, mode: Mode, source: &Source) -> Result<Generation> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let (older, now_ms) = match mode {
            Mode::Core => (None, now_ms),
            Mode::JetStream => self.last_generation(source).await?,
        };
        // What nobody can have made yet is none of ours, and consumers refuse it.
        let latest_ms = now_ms.saturating_add(MOST_SKEW_MS);
        let older = older.filter(|older| older.born_unix_ms() <= latest_ms);
        Ok(Generation::after(older, now_ms, fastrand::u32(..)))
    }

    /// The generation of the newest message, and the broker's time in milliseconds since 1970.
    async fn last_generation(&self, source: &Source) -> Result<(Option<Generation>, u64)> {
        let stream =
            connect::patiently("the stream", &self.stop, || self.config.stream.open(&self.context))
                .await?;
        let ask = || broker_time_ms(&self.client, &self.config.stream.name);
        let now_ms = connect::patiently("the broker's time", &self.stop, ask).await?;
        let subject = self.config.prefix.of_source(source);
        // Not to know it is not enough: a history that looks older than the last one would be
        // dropped.
        let read = || last_message(&stream, &subject);
        let last = connect::patiently("the stream", &self.stop, read).await?;
        let head = last.and_then(|it| it.headers.get(HEADER)?.as_str().parse::<Head>().ok());
        Ok((head.map(|head| head.generation), now_ms))
    }
}

/// The broker's clock: an answer about a stream has it.
async fn broker_time_ms(client: &Client, stream: &str) -> Result<u64> {
    #[derive(serde::Deserialize)]
    struct Answer {
        ts: String,
    }
    let answer =
        client.request(format!("$JS.API.STREAM.INFO.{stream}"), Default::default()).await?;
    let Answer { ts } =
        serde_json::from_slice(&answer.payload).context("an answer without the time")?;
    let now: jiff::Timestamp = ts.parse()?;
    Ok(u64::try_from(now.as_millisecond()).unwrap_or(0))
}

/// Whether a disk has no room, which passes.
fn is_full_disk(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>());
    causes.any(|cause| cause.kind() == std::io::ErrorKind::StorageFull)
}

struct Begun {
    generation: Generation,
    subject: String,
    since: u64,
}

/// Says how a long catch-up goes.
struct Progress {
    told: Instant,
    bytes: u64,
}

impl Progress {
    fn new() -> Self {
        Self { told: Instant::now(), bytes: 0 }
    }

    fn tell(&mut self, metrics: &Metrics) {
        let (elapsed, left) = (self.told.elapsed(), metrics.unread_bytes());
        if elapsed < PROGRESS.0 {
            return;
        }
        let done = metrics.bytes.get();
        let rate = (done - self.bytes) as f64 / elapsed.as_secs_f64();
        (self.told, self.bytes) = (Instant::now(), done);
        if left >= PROGRESS.1 {
            let percent = done * 100 / (done + left);
            info!(
                "catching up: {percent} % done, {} left, {}/s",
                ByteSize(left),
                ByteSize(rate as u64)
            );
        }
    }
}

//! A producer from its start to its end.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use async_nats::Client;
use async_nats::jetstream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::args::{Compression, Config};
use super::input::Input;
use super::journal::Journal;
use super::plain::Plain;
use super::shipping::{PERMIT_BYTES, Setup, Shipping};
use super::sources::Sources;
use super::status::Figures;
use crate::shipper::head::{Generation, HEADER, Head};
use crate::shipper::name::{Source, partition_of_host};
use crate::shipper::stream::last_message;
use crate::shipper::tail::From;
use crate::shipper::tail::checkpoint::Mode;
use crate::shipper::units::ByteSize;
use crate::shipper::{connect, metrics};

/// How often globs are looked at.
const GLOB_EVERY: Duration = Duration::from_secs(2);
/// How often a long catch-up says how far it is, and from how many bytes on it is long.
const PROGRESS: (Duration, u64) = (Duration::from_secs(5), 64 << 20);
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
    figures: Arc<Figures>,
    started: BTreeSet<Source>,
    /// There were checkpoints at the start.
    was_here_before: bool,
    tasks: JoinSet<(String, std::io::Result<()>)>,
    stop: CancellationToken,
}

/// Ships until `stop`, or until standard input ends where nothing else is shipped.
///
/// # Errors
/// What cannot mend itself: files that cannot be told apart, a state directory that cannot be used, a stream of others.
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
    sources.files()?;
    let client = connect::client(&config.broker, "producer", "shipper-producer", &stop).await?;
    let mut context = jetstream::new(client.clone());
    context.set_timeout(ACK_WITHIN);
    let figures = Arc::new(Figures::default());
    let shown = Arc::clone(&figures);
    metrics::serve(config.metrics, move || shown.page(), stop.clone()).await?;
    let memory = Arc::new(Semaphore::new((config.window_bytes as usize).div_ceil(PERMIT_BYTES)));
    let disk = Arc::new(Semaphore::new(AT_THE_DISK));
    let tasks = JoinSet::new();
    let started = BTreeSet::new();
    let was_here_before = !super::status::read(&config.state)?.is_empty();
    let mut producer = Producer {
        config,
        client,
        context,
        sources,
        memory,
        disk,
        figures,
        started,
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
        let mut look = tokio::time::interval(GLOB_EVERY);
        let mut progress = Progress::new();
        let globs = self.sources.has_globs();
        loop {
            let idle = self.tasks.is_empty();
            tokio::select! {
                ended = self.tasks.join_next(), if !idle => match ended {
                    Some(Ok((_, Ok(())))) | None => {}
                    Some(Ok((subject, Err(error)))) => {
                        self.stop.cancel();
                        while self.tasks.join_next().await.is_some() {}
                        bail!("{subject}: the checkpoint cannot be saved: {error}");
                    }
                    Some(Err(panicked)) => bail!("a source ended early: {panicked}"),
                },
                () = self.stop.cancelled(), if idle => break,
                _ = look.tick(), if !self.stop.is_cancelled() => {
                    if globs && let Err(error) = self.start_files(false).await {
                        error!(%error, "new files are not shipped");
                    }
                    progress.tell(&self.figures);
                }
            }
            if self.tasks.is_empty() && (!globs || self.stop.is_cancelled()) {
                break;
            }
        }
        tokio::time::timeout(self.config.drain, self.client.flush())
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

    /// Starts what is not shipped yet. A file of a glob that cannot be is left for the next look.
    async fn start_files(&mut self, first: bool) -> Result<()> {
        for (source, path) in self.sources.files()? {
            if self.started.contains(&source) {
                continue;
            }
            match self.start_file(&source, path.clone(), first).await {
                Err(error) if first => return Err(error),
                Err(error) => warn!(path = %path.display(), %error, "not shipped, trying again"),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    async fn start_file(&mut self, source: &Source, path: PathBuf, first: bool) -> Result<()> {
        let (journal, checkpoint) = Journal::open(&self.config.state, &source.to_string())?;
        let mode = self.mode(checkpoint.as_ref().map(|c| c.mode)).await?;
        let (tail, begun) = match checkpoint {
            Some(checkpoint) => {
                let generation: Generation = checkpoint.generation.parse()?;
                let begun = Begun { generation, subject: checkpoint.subject, since: checkpoint.since };
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

    /// The mode of a source: that of its checkpoint for good, else what was asked for, else what the broker has.
    async fn mode(&self, saved: Option<Mode>) -> Result<Mode> {
        let asked = self.config.mode.fixed();
        match (saved, asked) {
            (Some(saved), Some(asked)) if saved != asked => bail!(
                "the checkpoint says {saved:?}, SHIPPER_MODE says {asked:?}: remove the checkpoint in {} to change the mode",
                self.config.state.display()
            ),
            (Some(mode), _) | (None, Some(mode)) => Ok(mode),
            (None, None) => {
                Ok(if connect::has_jetstream(&self.client) { Mode::JetStream } else { Mode::Core })
            }
        }
    }

    fn follow(&self, mode: Mode) -> crate::shipper::tail::Follow {
        let mut follow = self.config.follow.clone();
        follow.cutter.one_event = mode == Mode::Core && follow.cutter.event_start.is_some();
        let most = self.client.server_info().max_payload.saturating_sub(HEAD_ROOM).max(HEAD_ROOM);
        let fits = follow.cutter.batch_bytes.get().min(most);
        follow.cutter.batch_bytes = fits.try_into().expect("above 0");
        let line = follow.cutter.line_bytes.get().min(fits - 1);
        follow.cutter.line_bytes = line.try_into().expect("above 0");
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
            Some((begun, floor)) => {
                (begun.generation, if begun.subject == subject { begun.since } else { floor }, floor)
            }
            None => (self.new_generation(mode, &source).await?, 0, 0),
        };
        info!("Publishing {} to {subject}", path.display());
        let events = self.config.follow.cutter.event_start.is_some();
        let setup = Setup {
            context: self.context.clone(),
            client: self.client.clone(),
            subject: subject.clone(),
            path,
            generation,
            since,
            floor,
            batch_bytes: self.follow(mode).cutter.batch_bytes.get(),
            compress: self.config.compression == Compression::Zstd,
            poll: self.config.poll,
            drain: self.config.drain,
            memory: Arc::clone(&self.memory),
            disk: Arc::clone(&self.disk),
            figures: Arc::clone(&self.figures),
        };
        let stop = self.stop.clone();
        self.started.insert(source);
        match mode {
            Mode::JetStream => {
                let shipping = Shipping::new(setup, input, journal);
                self.tasks.spawn(async move { (subject, Box::pin(shipping.run(stop)).await) });
            }
            Mode::Core => {
                let plain = Plain { setup, input, journal, events };
                self.tasks.spawn(async move { (subject, Box::pin(plain.run(stop)).await) });
            }
        }
        Ok(())
    }

    /// A generation that is later than any that the stream has of the source.
    async fn new_generation(&self, mode: Mode, source: &Source) -> Result<Generation> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let older = match mode {
            Mode::Core => None,
            Mode::JetStream => self.last_generation(source).await?,
        };
        Ok(Generation::after(older, now_ms, fastrand::u32(..)))
    }

    async fn last_generation(&self, source: &Source) -> Result<Option<Generation>> {
        let stream =
            connect::patiently("the stream", &self.stop, || self.config.stream.open(&self.context)).await?;
        let subject = self.config.prefix.of_source(source);
        // Not to know it is not enough: a history that looks older than the last one would be dropped.
        let read = || last_message(&stream, &subject);
        let Some(last) = connect::patiently("the stream", &self.stop, read).await? else { return Ok(None) };
        let head = last.headers.get(HEADER).and_then(|head| head.as_str().parse::<Head>().ok());
        Ok(head.map(|head| head.generation))
    }
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

    fn tell(&mut self, figures: &Figures) {
        let (elapsed, left) = (self.told.elapsed(), figures.unread_bytes());
        if elapsed < PROGRESS.0 {
            return;
        }
        let done = figures.bytes.get();
        let rate = (done - self.bytes) as f64 / elapsed.as_secs_f64();
        (self.told, self.bytes) = (Instant::now(), done);
        if left >= PROGRESS.1 {
            let percent = done * 100 / (done + left);
            info!("catching up: {percent} % done, {} left, {}/s", ByteSize(left), ByteSize(rate as u64));
        }
    }
}

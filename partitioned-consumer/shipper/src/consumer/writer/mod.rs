//! Judges messages, appends their lines, syncs, commits, and then says so: in groups, one after the
//! other.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use jiff::Zoned;
use tokio::sync::mpsc;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use self::lookups::{Lookups, Search};
use super::args::Fsync;
use super::file_index::{Entry, FileIndex};
use super::files::Files;
use super::metrics::Metrics;
use super::offsets::{Committed, Offsets};
use super::parked::Parked;
use super::plan::Plan;
use super::receive::Delivery;
use super::retention::{RETENTION_INTERVAL, RetentionTask};
use super::target::{Changes, Open, Rotation, committed_bytes};
use crate::commit::Commit;
use crate::name::{Prefix, Source};

mod append;
mod commit;
mod judge;
mod lookups;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod model;
mod recover;

/// A group is committed when it has so many bytes or messages, or when nothing more waits.
const GROUP_BYTES: usize = 16 << 20;
const GROUP_MESSAGES: usize = 4096;
/// The pause before what failed is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);

/// What producers may make a writer remember.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Sources that a directory has files of. Lines of further ones are refused.
    pub(super) sources: usize,
    /// Sources whose commits are kept in memory. Those of others are read again when they are
    /// needed.
    pub(super) states: usize,
    /// Earlier writers that a commit remembers.
    pub(super) writers: usize,
}

/// Reads the local time, by which files are named.
pub(super) type Clock = Arc<dyn Fn() -> Zoned + Send + Sync>;

/// What a writer needs.
pub(super) struct Parts<O> {
    pub(super) prefix: Prefix,
    pub(super) rotation: Rotation,
    pub(super) fsync: Fsync,
    pub(super) file_index: FileIndex,
    pub(super) files: Files,
    /// Where commits are; none in core mode.
    pub(super) offset_store: Option<O>,
    /// The stream that messages come from; none in core mode.
    pub(super) stream: Option<Stream>,
    pub(super) retention_task: RetentionTask,
    pub(super) metrics: Arc<Metrics>,
    pub(super) clock: Clock,
    /// The pause before what failed is tried again.
    pub(super) retry: Duration,
    pub(super) bounds: Bounds,
    /// Cancelled when waiting for a disk or a broker is no longer of use.
    pub(super) give_up: CancellationToken,
}

/// See the module.
pub(super) struct Writer<O> {
    parts: Parts<O>,
    states: HashMap<Source, SourceState>,
    /// To be judged again at once.
    backlog: Vec<Delivery>,
    /// To be judged again when their predecessors may have been written.
    parked: Parked<Delivery>,
    lookups: Lookups,
    /// Groups so far.
    groups: u64,
}

/// What is known of a source.
#[derive(Default)]
struct SourceState {
    known: Committed,
    open: Option<Open>,
    /// How far the stream was searched for what decides on a message.
    searched: Option<Search>,
    /// The last group that it had a part in.
    used: u64,
}

/// A source's part of a group.
struct Work {
    source: Source,
    deliveries: Vec<Delivery>,
    plan: Plan,
    /// Where the lines go; the length is that before them.
    target: Option<Open>,
    commit: Option<Commit>,
}

/// The time to drain is over.
struct GivenUp;

impl<O: Offsets> Writer<O> {
    pub(super) fn new(mut parts: Parts<O>) -> Self {
        let lookups = Lookups::new(parts.stream.take(), Arc::clone(&parts.metrics));
        Self {
            parts,
            states: HashMap::new(),
            backlog: Vec::new(),
            parked: Parked::new(Instant::now()),
            lookups,
            groups: 0,
        }
    }

    /// Writes what comes, until no reader is left.
    pub(super) async fn run(mut self, mut queue: mpsc::Receiver<Delivery>) {
        let mut retention_task = tokio::time::interval(RETENTION_INTERVAL);
        loop {
            let mut group = std::mem::take(&mut self.backlog);
            if group.is_empty() {
                let look_at = self.parked.look_at();
                tokio::select! {
                    biased;
                    delivery = queue.recv() => match delivery {
                        Some(delivery) => group.push(delivery),
                        None => return,
                    },
                    // A reader may hang in a broker that does not answer.
                    () = self.parts.give_up.cancelled() => return,
                    () = tokio::time::sleep_until(look_at.into()), if !self.parked.is_empty() => {}
                    _ = retention_task.tick() => {
                        self.retention_task();
                        continue;
                    }
                }
            }
            let mut bytes: usize = group.iter().map(|delivery| delivery.payload.len()).sum();
            while bytes < GROUP_BYTES
                && group.len() < GROUP_MESSAGES
                && let Ok(delivery) = queue.try_recv()
            {
                bytes += delivery.payload.len();
                group.push(delivery);
            }
            self.parked.forget(|parked| parked.done.is_closed());
            let waited =
                self.parked.take(group.iter().map(|delivery| &delivery.source), Instant::now());
            // Before what came later of the same source.
            group.splice(0..0, waited);
            self.parts.metrics.queued_bytes.set(bytes as u64);
            if self.write(group).await.is_err() {
                return;
            }
            self.parts.metrics.parked.set(self.parked.len() as u64);
            self.parts.metrics.open_files.set(self.parts.files.count() as u64);
            self.parts.metrics.sources.set(self.parts.file_index.sources() as u64);
        }
    }

    async fn write(&mut self, group: Vec<Delivery>) -> Result<(), GivenUp> {
        let mut by_source: BTreeMap<Source, Vec<Delivery>> = BTreeMap::new();
        for delivery in group {
            by_source.entry(delivery.source.clone()).or_default().push(delivery);
        }
        self.refuse_too_many(&mut by_source);
        let unknown: Vec<Source> =
            by_source.keys().filter(|source| !self.states.contains_key(*source)).cloned().collect();
        self.load(&unknown).await?;
        self.lookups.begin_group();
        self.groups += 1;
        let mut works = Vec::new();
        for (source, deliveries) in by_source {
            self.states.entry(source.clone()).or_default().used = self.groups;
            if let Some(work) = self.judge(source, deliveries).await? {
                works.push(work);
            }
        }
        self.append(&mut works).await?;
        self.commit(works).await?;
        self.forget_idle();
        Ok(())
    }

    /// Drops lines of new sources where the directory has as many as it may.
    fn refuse_too_many(&self, by_source: &mut BTreeMap<Source, Vec<Delivery>>) {
        let Parts { file_index, bounds, metrics, .. } = &self.parts;
        let mut room = bounds.sources.saturating_sub(file_index.sources());
        let is_new = |source: &Source| !file_index.has_source(&source.to_string());
        let new: Vec<Source> = by_source.keys().filter(|source| is_new(source)).cloned().collect();
        for source in new {
            if room > 0 {
                room -= 1;
                continue;
            }
            let deliveries = by_source.remove(&source).unwrap_or_default();
            let reason = format!(
                "the directory has files of {} sources already: if that is right, raise \
                 SHIPPER_SOURCES",
                bounds.sources
            );
            metrics.refuse(deliveries.len() as u64, source.host(), &reason);
            deliveries.into_iter().for_each(finish);
        }
    }

    /// Forgets the commits of sources that have been quiet for longest, when there are too many.
    /// How far their files are committed goes to the file index first.
    fn forget_idle(&mut self) {
        let most = self.parts.bounds.states;
        if self.states.len() <= most {
            return;
        }
        let committed = self.committed_of_open_files();
        let mut by_use: Vec<(u64, Source)> =
            self.states.iter().map(|(source, state)| (state.used, source.clone())).collect();
        by_use.sort();
        let idle =
            by_use.into_iter().map(|(_, source)| source).take(self.states.len() - most * 3 / 4);
        let idle: Vec<Source> = idle.collect();
        let file_index = &self.parts.file_index;
        let open = idle.iter().flat_map(|source| file_index.open_files_of(source));
        let known = open.filter_map(|(path, entry)| {
            let bytes = *committed.get(&path)?;
            (bytes != entry.bytes).then_some((path, Some(Entry { bytes, ..entry })))
        });
        let changes: Changes = known.collect();
        if let Err(error) = block_in_place(|| self.parts.file_index.record(changes)) {
            warn!(%error, "idle sources are kept in memory for now");
            return;
        }
        for source in idle {
            if let Some(open) = self.states.remove(&source).and_then(|state| state.open) {
                self.parts.files.close(&open.path);
            }
        }
    }

    async fn pause(&self) -> Result<(), GivenUp> {
        tokio::select! {
            () = tokio::time::sleep(self.parts.retry) => Ok(()),
            () = self.parts.give_up.cancelled() => Err(GivenUp),
        }
    }

    /// The newest commit of a source, as far as it is known.
    fn commit_of(&self, source: &Source) -> Option<&Commit> {
        self.states.get(source).and_then(|state| state.known.commit.as_ref())
    }

    /// Finishes, packs and removes files.
    fn retention_task(&mut self) {
        let committed = self.committed_of_open_files();
        let Parts { retention_task, file_index, files, rotation, clock, .. } = &mut self.parts;
        let begin = rotation.period.begin(&clock());
        let finished =
            match block_in_place(|| retention_task.run((file_index, files), &committed, &begin)) {
                Ok(finished) => finished,
                Err(error) => {
                    warn!(%error, "old files are not cleared away");
                    return;
                }
            };
        for path in finished {
            files.close(&path);
            for state in self.states.values_mut() {
                state.open.take_if(|open| open.path == path);
            }
        }
    }

    /// How far the open files are committed, as far as this process knows more than the file index.
    fn committed_of_open_files(&self) -> HashMap<String, u64> {
        let mut committed = HashMap::new();
        for (source, state) in &self.states {
            for (path, entry) in self.parts.file_index.open_files_of(source) {
                let (open, commit) = (state.open.as_ref(), state.known.commit.as_ref());
                let bytes = committed_bytes(&self.parts.file_index, (&path, &entry), open, commit);
                committed.insert(path, bytes);
            }
        }
        committed
    }
}

fn added(pieces: &[Bytes]) -> u64 {
    pieces.iter().map(|piece| piece.len() as u64 + 1).sum()
}

fn finish(delivery: Delivery) {
    // A reader that is gone has nothing to acknowledge.
    delivery.done.send(()).unwrap_or_default();
}

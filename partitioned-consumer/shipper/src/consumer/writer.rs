//! Judges messages, appends their lines, syncs, commits, and then says so: in groups, one after the
//! other.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Stream;
use bytes::Bytes;
use futures_util::future::join_all;
use jiff::Zoned;
use tokio::sync::mpsc;
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::args::Fsync;
use super::file_index::{Entry, FileIndex};
use super::files::Files;
use super::offsets::{Committed, OffsetStoreError, Offsets, Outcome};
use super::parked::Parked;
use super::plan::{self, Facts, Item, Plan};
use super::receive::Delivery;
use super::retention::{self, RETENTION_INTERVAL, RetentionTask};
use super::status::Metrics;
use super::steps::step;
use super::target::{Changes, Open, Rotation, Wanted, committed_bytes};
use crate::accept::{Behind, Mark, wanted};
use crate::commit::{Commit, Tail};
use crate::head::{HEADER, Head};
use crate::name::{Prefix, Source};

/// A group is committed when it has so many bytes or messages, or when nothing more waits.
const GROUP_BYTES: usize = 16 << 20;
const GROUP_MESSAGES: usize = 4096;
/// Messages of the stream that are looked up for one group: each is a round trip to the broker, for
/// which all sources wait.
const LOOKUPS: u32 = 64;
/// The pause before what failed is tried again.
pub(super) const RETRY: Duration = Duration::from_millis(500);
/// Files that are synced at the same time.
const SYNC_THREADS: usize = 4;

/// What producers may make a writer remember.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Sources that a directory has files of. Lines of further ones are refused.
    pub(super) sources: usize,
    /// Sources whose commits are kept in memory. Those of others are read again when they are
    /// needed.
    pub(super) states: usize,
}

/// Tells the local time, by which files are named.
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
    /// Messages that may still be looked up for the present group.
    lookups_left: u32,
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

/// A search that has not found anything yet. What was looked at says nothing, now and later.
#[derive(Clone, Copy)]
struct Search {
    /// The sequence of the message that waits, and the mark that it waits for.
    of: (u64, u64),
    /// The sequence to go on from.
    next: u64,
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
    pub(super) fn new(parts: Parts<O>) -> Self {
        Self {
            parts,
            states: HashMap::new(),
            backlog: Vec::new(),
            parked: Parked::new(Instant::now()),
            lookups_left: LOOKUPS,
            groups: 0,
        }
    }

    /// Cuts what earlier runs left uncommitted.
    ///
    /// # Errors
    /// The disk's; the broker is waited for.
    pub(super) async fn recover(&mut self) -> anyhow::Result<()> {
        retention::tidy_packed(&mut self.parts.file_index)?;
        let mut by_source: BTreeMap<String, Vec<(String, Entry)>> = BTreeMap::new();
        for (path, entry) in self.parts.file_index.entries().filter(|(_, entry)| entry.open) {
            by_source.entry(entry.source.clone()).or_default().push((path.clone(), entry.clone()));
        }
        let Some(offset_store) = self.parts.offset_store.clone() else {
            // Without commits all that is there counts.
            let open = by_source.into_values().flatten();
            let changes = open.map(|(path, entry)| self.as_it_is(path, entry, true)).collect();
            return Ok(self.parts.file_index.record(changes)?);
        };
        if !self.parts.file_index.trusts(&offset_store.identity())? {
            error!(
                "the bucket of commits is not the one that this directory knows: files stay as \
                 they are, and lines of the last moments may be repeated"
            );
            let open = by_source.into_values().flatten();
            let changes = open.map(|(path, entry)| self.as_it_is(path, entry, false)).collect();
            self.parts.file_index.record(changes)?;
            return Ok(self.parts.file_index.trust(&offset_store.identity())?);
        }
        let mut changes = Vec::new();
        for (source, files) in by_source {
            let read = || offset_store.read(&source);
            let known = crate::connect::patiently("the commits", &self.parts.give_up, read).await?;
            changes.extend(self.recover_source(&source, files, &known)?);
        }
        Ok(self.parts.file_index.record(changes)?)
    }

    /// Cuts the open files of one source to what is committed of them.
    fn recover_source(
        &mut self,
        source: &str,
        files: Vec<(String, Entry)>,
        known: &Committed,
    ) -> io::Result<Changes> {
        let mut changes = Vec::new();
        if known.commit.is_none() && known.revision > 0 {
            warn!(source, "the commits of this source were removed: its files stay as they are");
            changes
                .extend(files.into_iter().map(|(path, entry)| self.as_it_is(path, entry, false)));
            return Ok(changes);
        }
        let last = self.last_begun(&files, known.commit.as_ref());
        for (path, entry) in files {
            if last.as_ref().is_some_and(|last| *last != path) {
                warn!(
                    path,
                    "an earlier version left this file open, and its length is not known: it stays \
                     as it is"
                );
                changes.push(self.as_it_is(path, entry, false));
                continue;
            }
            let writer = self.parts.file_index.writer();
            let bytes = committed_bytes((&path, &entry), writer, None, known.commit.as_ref());
            let length =
                std::fs::metadata(self.parts.file_index.path(&path)).map_or(0, |m| m.len());
            if length > bytes {
                info!(path, length, bytes, "cutting what was not committed");
                self.parts.metrics.cut_bytes.add(length - bytes);
            }
            self.parts.files.cut_to(&path, bytes)?;
            changes.push((path, Some(Entry { bytes, ..entry })));
        }
        Ok(changes)
    }

    /// Of several open files of a source, which only earlier versions left, the one that may have
    /// an uncommitted end: that which the commit names, else the one that was written last.
    fn last_begun(&self, files: &[(String, Entry)], commit: Option<&Commit>) -> Option<String> {
        let writer = self.parts.file_index.writer();
        let is_named =
            |path: &str| commit.is_some_and(|commit| commit.length_of(writer, path).is_some());
        let modified = |path: &str| {
            std::fs::metadata(self.parts.file_index.path(path)).and_then(|it| it.modified()).ok()
        };
        let last =
            files.iter().map(|(path, _)| path).max_by_key(|path| (is_named(path), modified(path)));
        last.filter(|_| files.len() > 1).cloned()
    }

    /// The state of a file all of whose bytes count from now on.
    fn as_it_is(&self, path: String, entry: Entry, open: bool) -> (String, Option<Entry>) {
        let bytes = std::fs::metadata(self.parts.file_index.path(&path))
            .map_or(0, |metadata| metadata.len());
        (path, Some(Entry { bytes, open, ..entry }))
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
        (self.lookups_left, self.groups) = (LOOKUPS, self.groups + 1);
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

    /// Reads the newest commits of sources.
    async fn load(&mut self, sources: &[Source]) -> Result<(), GivenUp> {
        let Some(offset_store) = self.parts.offset_store.clone() else {
            for source in sources {
                self.states.entry(source.clone()).or_default();
            }
            return Ok(());
        };
        let mut left = sources.to_vec();
        while !left.is_empty() {
            let names: Vec<String> = left.iter().map(ToString::to_string).collect();
            let read = join_all(names.iter().map(|name| offset_store.read(name))).await;
            let mut failed = Vec::new();
            for (source, read) in left.into_iter().zip(read) {
                match read {
                    Ok(known) => self.note_committed(source, known),
                    Err(error) => {
                        self.trouble(&error);
                        failed.push(source);
                    }
                }
            }
            left = failed;
            if !left.is_empty() {
                self.pause().await?;
            }
        }
        Ok(())
    }

    /// Takes over a commit. Another writer's lines may have come between ours, so the file is
    /// chosen anew.
    fn note_committed(&mut self, source: Source, known: Committed) {
        if self.is_forgotten(&source, &known) {
            return;
        }
        let state = self.states.entry(source).or_default();
        if state.known.revision != known.revision {
            *state = SourceState { known, open: None, searched: None, used: state.used };
        }
    }

    /// Plans a source's messages. What rests on a doubt is planned again from the newest commit.
    async fn judge(
        &mut self,
        source: Source,
        mut deliveries: Vec<Delivery>,
    ) -> Result<Option<Work>, GivenUp> {
        let items: Vec<Item> = deliveries
            .iter()
            .map(|d| Item {
                head: d.head,
                partition: d.partition,
                sequence: d.sequence,
                payload: d.payload.clone(),
            })
            .collect();
        let (mut facts, mut is_newest) = (Facts::default(), self.parts.offset_store.is_none());
        let plan = loop {
            let plan = Plan::new(self.states[&source].known.commit.as_ref(), &items, &facts);
            if plan.is_doubtful() && !std::mem::replace(&mut is_newest, true) {
                self.load(std::slice::from_ref(&source)).await?;
                continue;
            }
            if let Some((index, mark)) = plan.unclear {
                match self.behind(&source, mark, &items, index, &deliveries[index].subject).await {
                    Some(found) => facts.learn(items[index].sequence, found),
                    None => break plan,
                }
                continue;
            }
            let Some(first) = plan.waiting.first().filter(|_| !facts.alone) else { break plan };
            facts.alone = self.is_alone(&source, &deliveries[*first].subject).await;
            if !facts.alone {
                break plan;
            }
        };
        self.tell(&source, &plan);
        let mut waiting: Vec<Delivery> =
            plan.waiting.iter().rev().map(|index| deliveries.remove(*index)).collect();
        waiting.reverse();
        // One that is not kept comes again in a while.
        waiting.retain(|delivery| delivery.may_wait_here);
        self.parked.park(source.clone(), waiting);
        if !plan.changes(self.states[&source].known.commit.as_ref()) {
            deliveries.into_iter().for_each(finish);
            return Ok(None);
        }
        Ok(Some(Work { source, deliveries, plan, target: None, commit: None }))
    }

    /// What stands behind a message that begins above the mark: among those at hand, else in the
    /// stream. The search there goes on from where it ended before, and takes no more than its part
    /// of the time.
    async fn behind(
        &mut self,
        source: &Source,
        mark: Option<Mark>,
        items: &[Item],
        index: usize,
        subject: &str,
    ) -> Option<(u64, Behind)> {
        if let Some(found) = plan::behind(mark, items, index) {
            return Some(found);
        }
        let stream = self.parts.stream.as_ref()?;
        let head = items[index].head?;
        let mark = wanted(mark, &head).0;
        let of = (items[index].sequence, mark);
        let state = self.states.get_mut(source)?;
        let mut search = state
            .searched
            .filter(|search| search.of == of)
            .unwrap_or(Search { of, next: items[index].sequence + 1 });
        let mut found = None;
        while self.lookups_left > 0 && found.is_none() {
            self.lookups_left -= 1;
            self.parts.metrics.lookups.add(1);
            // The leader is asked. Whatever goes wrong, the message waits and is looked at again.
            let Ok(message) = stream.get_first_raw_message_by_subject(subject, search.next).await
            else {
                break;
            };
            let later =
                message.headers.get(HEADER).and_then(|later| later.as_str().parse::<Head>().ok());
            let behind = later.and_then(|later| Behind::says(mark, &head, &later));
            found = behind.map(|behind| (message.sequence, behind));
            search.next = message.sequence + 1;
        }
        state.searched = Some(search).filter(|_| found.is_none());
        found
    }

    /// Whether the stream has nothing of the source but on this subject: what came before on
    /// another one is gone.
    async fn is_alone(&mut self, source: &Source, subject: &str) -> bool {
        let Some(stream) = &self.parts.stream else { return false };
        if self.lookups_left == 0 {
            return false;
        }
        self.lookups_left -= 1;
        self.parts.metrics.lookups.add(1);
        let all = self.parts.prefix.of_source(source);
        stream
            .get_first_raw_message_by_subject(all, 1)
            .await
            .is_ok_and(|first| first.subject.as_str() == subject)
    }

    fn tell(&self, source: &Source, plan: &Plan) {
        let metrics = &self.parts.metrics;
        metrics.duplicates.add(plan.duplicates);
        metrics.ahead.add(plan.ahead);
        metrics.stale.add(plan.stale);
        metrics.lost_bytes.add(plan.lost_bytes);
        metrics.skipped_bytes.add(plan.skipped_bytes);
        if plan.lost_bytes > 0 {
            error!(%source, bytes = plan.lost_bytes, "the broker lost messages that it had \
                                                      acknowledged");
        }
        if plan.stale > 0 {
            error!(%source, messages = plan.stale, "dropped messages of an older history: are \
                                                    there two producers of that name");
        }
        if plan.skipped_bytes > 0 {
            warn!(%source, bytes = plan.skipped_bytes, "the producer could not read some lines");
        }
    }

    /// Appends and syncs the lines of a group. A disk that is full is waited for: nothing is
    /// acknowledged meanwhile.
    async fn append(&mut self, works: &mut [Work]) -> Result<(), GivenUp> {
        let mut waiting = false;
        loop {
            match block_in_place(|| self.try_append(works)) {
                Ok(()) if !waiting => return Ok(()),
                Ok(()) => {
                    info!("lines can be written again");
                    self.parts.metrics.stopped.set(0);
                    self.parts.metrics.recovered();
                    return Ok(());
                }
                Err(error) => {
                    if !std::mem::replace(&mut waiting, true) {
                        let full = error.kind() == io::ErrorKind::StorageFull;
                        let what =
                            if full { "the disk is full" } else { "lines cannot be written" };
                        error!(%error, "{what}: acknowledging nothing until it can be");
                        self.parts.metrics.stopped.set(1);
                        self.parts.metrics.failed(format!("{what}: {error}"));
                    }
                    let begun: Vec<_> =
                        works.iter().filter_map(|work| work.target.clone()).collect();
                    block_in_place(|| self.take_back(&begun));
                    self.pause().await?;
                }
            }
        }
    }

    fn try_append(&mut self, works: &mut [Work]) -> io::Result<()> {
        let Parts { rotation, file_index, files, clock, .. } = &mut self.parts;
        let (mut changes, mut fresh, now) = (Vec::new(), Vec::new(), clock());
        let mut choose_all = || {
            for (index, work) in
                works.iter_mut().enumerate().filter(|(_, work)| !work.plan.pieces.is_empty())
            {
                if let Some(target) = &work.target {
                    // Tried before: from the same length again.
                    files.cut_to(&target.path, target.bytes)?;
                    continue;
                }
                let state = &self.states[&work.source];
                let wanted = Wanted {
                    source: &work.source,
                    present: state.open.as_ref(),
                    commit: state.known.commit.as_ref(),
                    add: added(&work.plan.pieces),
                    now: &now,
                };
                work.target = Some(rotation.choose(&wanted, (file_index, files), &mut changes)?);
                fresh.push(index);
            }
            file_index.record(std::mem::take(&mut changes))
        };
        if let Err(error) = choose_all() {
            // What is not in the file index must not be written: whichever step failed, no file of
            // this round is in it.
            fresh.into_iter().for_each(|index| works[index].target = None);
            return Err(error);
        }
        let mut written = Vec::new();
        for work in works.iter() {
            if let Some(target) = &work.target {
                written.push(files.append(&target.path, &work.plan.pieces)?);
            }
        }
        step(|| {})?;
        if self.parts.fsync == Fsync::Always { sync(&written) } else { Ok(()) }
    }

    /// Cuts files back to what is committed. What cannot be cut now is cut before it is appended
    /// to, or at the next start.
    fn take_back(&mut self, targets: &[Open]) {
        for target in targets {
            // A handle on which a write or a sync failed is not trusted again.
            self.parts.files.close(&target.path);
            if let Err(error) = self.parts.files.cut_to(&target.path, target.bytes) {
                warn!(path = target.path, %error, "an uncommitted end of a file stays for now");
            }
        }
    }

    /// Commits a group, source by source and all at once; then its messages are done.
    async fn commit(&mut self, mut works: Vec<Work>) -> Result<(), GivenUp> {
        for work in &mut works {
            work.commit = Some(self.next_commit(work));
        }
        while !works.is_empty() {
            let outcomes = self.commit_once(&works).await;
            let mut left = Vec::new();
            for (work, outcome) in works.into_iter().zip(outcomes) {
                match outcome {
                    Ok(Outcome::Done(revision)) => self.committed(work, revision),
                    Ok(Outcome::Overtaken(newest)) if self.is_forgotten(&work.source, &newest) => {
                        left.push(work);
                    }
                    Ok(Outcome::Overtaken(newest)) => self.overtaken(work, newest),
                    Err(error) => {
                        self.trouble(&error);
                        left.push(work);
                    }
                }
            }
            works = left;
            if !works.is_empty() {
                self.pause().await?;
            }
        }
        self.parts.metrics.groups.add(1);
        Ok(())
    }

    fn next_commit(&self, work: &Work) -> Commit {
        let before = self.states[&work.source].known.commit.as_ref();
        let writer = self.parts.file_index.writer().to_owned();
        let tail = match (&work.target, before) {
            (Some(target), _) => Tail {
                writer,
                file: target.path.clone(),
                bytes: target.bytes + added(&work.plan.pieces),
            },
            (None, Some(before)) => before.tail.clone(),
            (None, None) => Tail { writer, file: String::new(), bytes: 0 },
        };
        let mut commit = Commit::after(before, tail);
        commit.mark = work.plan.mark;
        commit.plain.clone_from(&work.plan.plain);
        commit.missing_bytes += work.plan.lost_bytes + work.plan.skipped_bytes;
        commit
    }

    async fn commit_once(&self, works: &[Work]) -> Vec<Result<Outcome, OffsetStoreError>> {
        let Some(offset_store) = &self.parts.offset_store else {
            return works.iter().map(|_| Ok(Outcome::Done(0))).collect();
        };
        let names: Vec<String> = works.iter().map(|work| work.source.to_string()).collect();
        let writes = works.iter().zip(&names).map(|(work, name)| {
            let revision = self.states[&work.source].known.revision;
            offset_store.write(
                name,
                revision,
                work.commit.as_ref().expect("made before the first attempt"),
            )
        });
        join_all(writes).await
    }

    fn committed(&mut self, work: Work, revision: u64) {
        let metrics = &self.parts.metrics;
        let written = added(&work.plan.pieces);
        metrics.bytes.add(written);
        metrics.messages.add(work.deliveries.len() as u64);
        metrics.recovered();
        let state = self.states.entry(work.source).or_default();
        // Without a ledger nothing is compared with it.
        let commit = work.commit.filter(|_| self.parts.offset_store.is_some());
        state.known = Committed { revision, commit };
        state.searched = None;
        if let Some(mut target) = work.target {
            target.bytes += written;
            state.open = Some(target);
        }
        work.deliveries.into_iter().for_each(finish);
    }

    /// Whether the broker lost a commit of ours, as after a power cut. What it stood for is on the
    /// disk, and stays: the next commit goes on from ours.
    fn is_forgotten(&mut self, source: &Source, newest: &Committed) -> bool {
        let Some(state) = self.states.get_mut(source) else { return false };
        let Some(ours) = &state.known.commit else { return false };
        if !ours.is_forgotten_by(newest.commit.as_ref()) {
            return false;
        }
        error!(%source, "the broker forgot what it had stored of this source's commits; going on \
                         from what is on the disk");
        state.known.revision = newest.revision;
        true
    }

    /// Another consumer has the source, or had it: our lines are taken back, and its messages
    /// judged again.
    fn overtaken(&mut self, work: Work, newest: Committed) {
        warn!(source = %work.source, "another consumer committed first, taking back what was \
                                      written");
        self.parts.metrics.overtaken.add(1);
        if let Some(mut target) = work.target {
            let own = newest.commit.as_ref();
            let own = own
                .and_then(|commit| commit.length_of(self.parts.file_index.writer(), &target.path));
            target.bytes = own.unwrap_or(target.bytes);
            block_in_place(|| self.take_back(&[target]));
        }
        self.note_committed(work.source, newest);
        self.backlog.extend(work.deliveries);
    }

    fn trouble(&self, error: &OffsetStoreError) {
        if self.parts.metrics.failed(error.to_string()) {
            warn!(%error, "commits have to wait");
        }
    }

    async fn pause(&self) -> Result<(), GivenUp> {
        tokio::select! {
            () = tokio::time::sleep(self.parts.retry) => Ok(()),
            () = self.parts.give_up.cancelled() => Err(GivenUp),
        }
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
}

impl<O: Offsets> Writer<O> {
    /// How far the open files are committed, as far as this process knows more than the file index.
    fn committed_of_open_files(&self) -> HashMap<String, u64> {
        let mut committed = HashMap::new();
        for (source, state) in &self.states {
            for (path, entry) in self.parts.file_index.open_files_of(source) {
                let (open, commit) = (state.open.as_ref(), state.known.commit.as_ref());
                let writer = self.parts.file_index.writer();
                let bytes = committed_bytes((&path, &entry), writer, open, commit);
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

/// Syncs files, a few at a time: each waits for the disk, and the disk can do several at once.
fn sync(files: &[Arc<File>]) -> io::Result<()> {
    if let [file] = files {
        return file.sync_data();
    }
    std::thread::scope(|scope| {
        let each = files.len().div_ceil(SYNC_THREADS).max(1);
        let threads: Vec<_> = files
            .chunks(each)
            .map(|chunk| scope.spawn(move || chunk.iter().try_for_each(|file| file.sync_data())))
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("syncing does not panic"))
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod model;

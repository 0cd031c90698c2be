//! The real writer, with its file index, files, rotation and clearing away, against a model of what
//! is committed.
//!
//! Two consumers of one cluster have a directory each, on a real disk; their commits are in memory.
//! They are given the same lines at any time, in turns or side by side, so that they overtake each
//! other; the clock goes on and back; files are finished and packed; the disk refuses, commits fail
//! or are not heard of, and the process dies before, in and after every step. The judge knows one
//! rule: a committed line never goes away, and none is there twice.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{LazyLock, Mutex};
use std::task::Poll;

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, oneshot};

use super::super::offsets::{OffsetStoreError, OffsetStoreIdentity};
use super::super::steps::{Crash, Fault, arm, disarm};
use super::*;
use crate::head::tests::head;
use crate::pattern::{OutputPattern, Period};
use crate::retain::Retention;
use crate::tail::checkpoint::Mode;

const CONSUMERS: usize = 2;
const SOURCES: [&str; 2] = ["web1", "web2"];
/// Bytes of a line, its line feed included.
const LINE: u64 = 8;

/// Commits in memory, which fail as a broker does.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<Commits>>);

#[derive(Default)]
struct Commits {
    newest: BTreeMap<String, Committed>,
    revision: u64,
    /// So many are stored, and nobody hears of it.
    unheard: u8,
    /// So many are not stored.
    refused: u8,
}

impl Commits {
    fn replace(
        &mut self,
        source: &str,
        revision: u64,
        commit: &Commit,
    ) -> Result<Option<u64>, OffsetStoreError> {
        let failed = Err(OffsetStoreError("no answer".into()));
        if self.refused > 0 {
            self.refused -= 1;
            return failed;
        }
        let newest = self.newest.entry(source.to_owned()).or_default();
        if newest.revision != revision {
            return Ok(None);
        }
        self.revision += 1;
        *newest = Committed { revision: self.revision, commit: Some(commit.clone()) };
        if self.unheard > 0 {
            self.unheard -= 1;
            return failed;
        }
        Ok(Some(self.revision))
    }
}

impl Memory {
    /// Lines of a source that are committed.
    fn lines(&self, source: &str) -> u64 {
        let commits = self.0.lock().unwrap();
        let commit = commits.newest.get(source).and_then(|known| known.commit.as_ref());
        commit.and_then(|commit| commit.mark).map_or(0, |mark| mark.offset / LINE)
    }
}

impl Offsets for Memory {
    fn identity(&self) -> OffsetStoreIdentity {
        OffsetStoreIdentity { born_ns: 1, prefix: "default.LOGS.".into() }
    }

    async fn read(&self, source: &str) -> Result<Committed, OffsetStoreError> {
        tokio::task::yield_now().await;
        Ok(self.0.lock().unwrap().newest.get(source).cloned().unwrap_or_default())
    }

    async fn replace(
        &self,
        source: &str,
        revision: u64,
        commit: &Commit,
    ) -> Result<Option<u64>, OffsetStoreError> {
        tokio::task::yield_now().await;
        let replaced = self.0.lock().unwrap().replace(source, revision, commit);
        tokio::task::yield_now().await;
        replaced
    }
}

/// What is given to a consumer: so many lines of each source, from so many below what is committed
/// on.
#[derive(Clone, Debug)]
struct Batch {
    back: u64,
    lines: [u64; SOURCES.len()],
}

#[derive(Clone, Debug)]
enum Act {
    /// A consumer gets a batch. It is killed when it has been polled so often.
    Deliver {
        who: usize,
        batch: Batch,
        killed_at: Option<u8>,
    },
    /// Both get one, and take these turns.
    Race {
        batches: [Batch; CONSUMERS],
        turns: Vec<usize>,
        killed_at: Option<(usize, u8)>,
    },
    /// The clock is put forward, or back.
    Minutes(i64),
    RetentionTask(usize),
    Restart(usize),
    /// Something goes wrong after so many steps at the disk.
    Arm(u32, Fault),
    Unheard(u8),
    Refused(u8),
}

/// What the consumers of one case have in common.
#[derive(Clone, Copy, Debug)]
struct Setting {
    rotate_lines: Option<u64>,
    compress: bool,
    most_states: usize,
    most_writers: usize,
}

struct Bench {
    runtime: &'static Runtime,
    base: TempDir,
    setting: Setting,
    commits: Memory,
    now: Arc<Mutex<Zoned>>,
    writers: [Option<Writer<Memory>>; CONSUMERS],
    receipts: Vec<(&'static str, u64, oneshot::Receiver<()>)>,
    lengths: BTreeMap<PathBuf, u64>,
}

type Turn<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

fn runtime() -> &'static Runtime {
    static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
        Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap()
    });
    &RUNTIME
}

fn line(number: u64) -> String {
    format!("{number:07}")
}

/// Writes a batch, and whatever has to be judged again.
async fn deliver(writer: &mut Writer<Memory>, mut group: Vec<Delivery>) {
    while !group.is_empty() {
        if writer.write(group).await.is_err() {
            return;
        }
        group = std::mem::take(&mut writer.backlog);
    }
}

/// Runs consumers side by side, and returns those that died.
async fn run(
    mut running: Vec<(usize, Turn<'_>)>,
    turns: &[usize],
    mut killed_at: Option<(usize, u8)>,
) -> BTreeSet<usize> {
    let mut dead = BTreeSet::new();
    let mut turns = turns.iter().cycle();
    std::future::poll_fn(|context| {
        let wanted = turns.next().copied().unwrap_or(0);
        let at = running.iter().position(|(who, _)| *who == wanted).unwrap_or(0);
        let Some((who, future)) = running.get_mut(at) else { return Poll::Ready(()) };
        let who = *who;
        let is_killed = match &mut killed_at {
            Some((victim, polls)) if *victim == who => {
                *polls = polls.saturating_sub(1);
                *polls == 0
            }
            _ => false,
        };
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context)));
        let crashed = match polled {
            Err(crash) if crash.is::<Crash>() => true,
            Err(panic) => resume_unwind(panic),
            Ok(Poll::Pending) if !is_killed => {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Ok(done) => done.is_pending(),
        };
        if crashed {
            dead.insert(who);
        }
        drop(running.swap_remove(at));
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    dead
}

impl Bench {
    fn new(setting: Setting) -> Self {
        let memory = Path::new("/dev/shm");
        let base = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
        let now: Zoned = "2024-05-06T12:00:30Z[UTC]".parse().unwrap();
        let mut bench = Self {
            runtime: runtime(),
            base: base.unwrap(),
            setting,
            commits: Memory::default(),
            now: Arc::new(Mutex::new(now)),
            writers: [None, None],
            receipts: Vec::new(),
            lengths: BTreeMap::new(),
        };
        (0..CONSUMERS).for_each(|who| bench.start(who));
        bench
    }

    fn directory(&self, who: usize) -> PathBuf {
        self.base.path().join(who.to_string())
    }

    /// A consumer as it starts, before it has recovered.
    fn writer(&self, who: usize) -> io::Result<Writer<Memory>> {
        let directory = self.directory(who);
        let file_index = FileIndex::open(&directory, || Mode::JetStream)?;
        let now = Arc::clone(&self.now);
        Ok(Writer::new(Parts {
            prefix: Prefix::parse("logs").unwrap(),
            rotation: Rotation {
                output: OutputPattern::parse("log").unwrap(),
                period: Period::Minutes(1),
                bytes: self.setting.rotate_lines.map(|lines| lines * LINE),
            },
            fsync: Fsync::Never,
            file_index,
            files: Files::new(&directory, 3),
            offset_store: Some(self.commits.clone()),
            stream: None,
            retention_task: RetentionTask {
                retention: Retention::default(),
                compress: self.setting.compress,
                packing: None,
            },
            metrics: Arc::default(),
            clock: Arc::new(move || now.lock().unwrap().clone()),
            retry: Duration::from_millis(1),
            bounds: Bounds {
                sources: usize::MAX,
                states: self.setting.most_states,
                writers: self.setting.most_writers,
            },
            give_up: CancellationToken::new(),
        }))
    }

    /// Starts a consumer, as often as the disk or a crash keeps it from that.
    fn start(&mut self, who: usize) {
        self.writers[who] = None;
        while self.writers[who].is_none() {
            let started = catch_unwind(AssertUnwindSafe(|| {
                let mut writer = self.writer(who).ok()?;
                self.runtime.block_on(writer.recover()).ok()?;
                Some(writer)
            }));
            match started {
                Ok(writer) => self.writers[who] = writer,
                Err(crash) if crash.is::<Crash>() => {}
                Err(panic) => resume_unwind(panic),
            }
        }
    }

    fn group(&mut self, batch: &Batch) -> Vec<Delivery> {
        let mut group = Vec::new();
        for (name, lines) in SOURCES.into_iter().zip(batch.lines).filter(|(_, lines)| *lines > 0) {
            let start = self.commits.lines(name).saturating_sub(batch.back);
            let numbers = start..start + lines;
            let text: Vec<String> = numbers.clone().map(line).collect();
            let (done, receipt) = oneshot::channel();
            self.receipts.push((name, numbers.end, receipt));
            let memory = Arc::new(Semaphore::new(1));
            group.push(Delivery {
                source: Source::new(name, None).unwrap(),
                subject: format!("logs.p0.{name}"),
                partition: 0,
                head: Some(head(numbers.start * LINE, numbers.end * LINE, numbers.start * LINE)),
                sequence: numbers.end,
                payload: text.join("\n").into(),
                done,
                may_wait_here: true,
                _permit: memory.try_acquire_owned().unwrap(),
            });
        }
        group
    }

    fn deliver(
        &mut self,
        batches: &[(usize, Batch)],
        turns: &[usize],
        killed_at: Option<(usize, u8)>,
    ) {
        let groups: Vec<_> = batches.iter().map(|(who, batch)| (*who, self.group(batch))).collect();
        for (who, _) in &groups {
            if self.writers[*who].is_none() {
                self.start(*who);
            }
        }
        let mut writers: Vec<_> = self.writers.iter_mut().map(Option::as_mut).collect();
        let mut running: Vec<(usize, Turn<'_>)> = Vec::new();
        for (who, group) in groups {
            let writer = writers[who].take().expect("it was started");
            running.push((who, Box::pin(deliver(writer, group))));
        }
        let dead = self.runtime.block_on(run(running, turns, killed_at));
        dead.into_iter().for_each(|who| self.writers[who] = None);
    }

    fn retention_task(&mut self, who: usize) {
        if self.writers[who].is_none() {
            self.start(who);
        }
        let _inside = self.runtime.enter();
        let writer = self.writers[who].as_mut().unwrap();
        let swept = catch_unwind(AssertUnwindSafe(|| {
            writer.retention_task();
            while writer
                .parts
                .retention_task
                .packing
                .as_ref()
                .is_some_and(|(_, task)| !task.is_finished())
            {
                std::thread::yield_now();
            }
        }));
        match swept {
            Err(crash) if crash.is::<Crash>() => self.writers[who] = None,
            Err(panic) => resume_unwind(panic),
            Ok(()) => {}
        }
    }

    fn act(&mut self, act: Act) {
        match act {
            Act::Deliver { who, batch, killed_at } => {
                self.deliver(&[(who, batch)], &[who], killed_at.map(|polls| (who, polls)));
            }
            Act::Race { batches, turns, killed_at } => {
                let batches: Vec<_> = batches.into_iter().enumerate().collect();
                self.deliver(&batches, &turns, killed_at);
            }
            Act::Minutes(minutes) => {
                let mut now = self.now.lock().unwrap();
                *now = now.saturating_add(jiff::SignedDuration::from_mins(minutes));
            }
            Act::RetentionTask(who) => self.retention_task(who),
            Act::Restart(who) => self.start(who),
            Act::Arm(after, fault) => arm(after, fault),
            Act::Unheard(times) => self.commits.0.lock().unwrap().unheard = times,
            Act::Refused(times) => self.commits.0.lock().unwrap().refused = times,
        }
        self.date_files();
        self.check_presence();
    }

    /// Files that changed did so now, by the clock of the model.
    fn date_files(&mut self) {
        let now = self.now.lock().unwrap().timestamp().into();
        for (_, path) in self.files() {
            let length = fs::metadata(&path).unwrap().len();
            if self.lengths.insert(path.clone(), length) != Some(length)
                && path.extension().is_none_or(|it| it != "zst")
            {
                File::options().append(true).open(&path).unwrap().set_modified(now).unwrap();
            }
        }
    }

    /// All files with lines, by source.
    fn files(&self) -> Vec<(&'static str, PathBuf)> {
        let directories = (0..CONSUMERS)
            .flat_map(|who| SOURCES.map(|name| (name, self.directory(who).join(name))));
        let mut files = Vec::new();
        for (name, directory) in directories {
            let entries = fs::read_dir(directory).into_iter().flatten();
            let paths = entries.map(|entry| entry.unwrap().path());
            files.extend(
                paths
                    .filter(|path| path.extension().is_none_or(|it| it != "tmp"))
                    .map(|path| (name, path)),
            );
        }
        files.sort();
        files
    }

    /// What is in the files: lines by source and file; what is no line is none of ours.
    fn lines(&self) -> Vec<(&'static str, PathBuf, Vec<Option<u64>>)> {
        let read = |path: &Path| {
            let bytes = fs::read(path).unwrap();
            if path.extension().is_some_and(|it| it == "zst") {
                zstd::decode_all(&*bytes).unwrap()
            } else {
                bytes
            }
        };
        let number = |line: &[u8]| {
            let text = std::str::from_utf8(line).ok()?.strip_suffix('\n')?;
            text.parse().ok().filter(|number| line_is(text, *number))
        };
        let of_file = |(name, path): (&'static str, PathBuf)| {
            let bytes = read(&path);
            let numbers = bytes.split_inclusive(|byte| *byte == b'\n').map(number).collect();
            (name, path, numbers)
        };
        self.files().into_iter().map(of_file).collect()
    }

    /// Every committed line is there, and what was acknowledged is committed.
    fn check_presence(&mut self) {
        let lines = self.lines();
        for name in SOURCES {
            let here: BTreeSet<u64> = lines
                .iter()
                .filter(|(of, ..)| *of == name)
                .flat_map(|(.., it)| it.iter().flatten().copied())
                .collect();
            let missing: Vec<u64> =
                (0..self.commits.lines(name)).filter(|number| !here.contains(number)).collect();
            assert!(
                missing.is_empty(),
                "{name}: {missing:?} were committed, and are gone from {lines:#?}"
            );
        }
        let commits = self.commits.clone();
        self.receipts.retain_mut(|(name, end, receipt)| match receipt.try_recv() {
            Ok(()) => {
                assert!(
                    commits.lines(name) >= *end,
                    "{name}: acknowledged up to {end} and not committed"
                );
                false
            }
            Err(oneshot::error::TryRecvError::Empty) => true,
            Err(oneshot::error::TryRecvError::Closed) => false,
        });
    }

    /// Nothing is there twice, or that is not committed, when all have recovered and none was
    /// forgotten.
    fn check_exactly(&mut self) {
        self.check_presence();
        if self.setting.most_writers == 0 {
            // Whoever is forgotten keeps its files as they are.
            return;
        }
        let lines = self.lines();
        for name in SOURCES {
            let mut times: BTreeMap<u64, u32> = BTreeMap::new();
            for (_, path, numbers) in lines.iter().filter(|(of, ..)| *of == name) {
                let whole: Vec<u64> = numbers.iter().copied().flatten().collect();
                assert_eq!(whole.len(), numbers.len(), "{}: torn, {lines:#?}", path.display());
                assert!(whole.is_sorted(), "{}: out of order, {whole:?}", path.display());
                whole.into_iter().for_each(|number| *times.entry(number).or_default() += 1);
            }
            let wrong: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
            assert!(wrong.is_empty(), "{name}: {wrong:?} are there more than once, {lines:#?}");
            let committed = self.commits.lines(name);
            assert_eq!(times.len() as u64, committed, "{name}: more than is committed, {lines:#?}");
        }
    }

    /// Everything comes back and goes on.
    fn finish(mut self) {
        disarm();
        *self.commits.0.lock().unwrap() = {
            let mut commits = self.commits.0.lock().unwrap();
            Commits { unheard: 0, refused: 0, ..std::mem::take(&mut *commits) }
        };
        (0..CONSUMERS).for_each(|who| self.start(who));
        self.check_exactly();
        for who in 0..CONSUMERS {
            let batch = Batch { back: 3, lines: [5; SOURCES.len()] };
            self.act(Act::Deliver { who, batch, killed_at: None });
            self.act(Act::Minutes(1));
            self.act(Act::RetentionTask(who));
        }
        (0..CONSUMERS).for_each(|who| self.start(who));
        self.check_exactly();
    }
}

fn line_is(text: &str, number: u64) -> bool {
    text == line(number)
}

const PLAIN: Setting =
    Setting { rotate_lines: None, compress: false, most_states: 100, most_writers: 64 };

fn batch(back: u64, lines: u64) -> Batch {
    Batch { back, lines: [lines, 0] }
}

fn give(who: usize, back: u64, lines: u64) -> Act {
    Act::Deliver { who, batch: batch(back, lines), killed_at: None }
}

#[test]
fn a_restart_cuts_no_file_that_was_left_when_its_writer_was_overtaken() {
    let mut bench = Bench::new(PLAIN);
    bench.act(give(0, 0, 3));
    // Another one goes on with the source, and the first one hears of it when it is refused.
    bench.act(give(1, 0, 2));
    bench.act(give(0, 0, 1));
    // It begins another file, and its commit names that alone.
    bench.act(Act::Minutes(1));
    bench.act(give(0, 0, 2));
    bench.act(Act::Restart(0));
    bench.finish();
}

#[test]
fn a_file_that_grew_after_a_restart_is_not_cut_to_what_it_was_then() {
    let mut bench = Bench::new(PLAIN);
    bench.act(give(0, 0, 3));
    bench.act(Act::Restart(0));
    bench.act(give(0, 0, 3));
    bench.act(give(1, 0, 1));
    bench.act(Act::Minutes(1));
    bench.act(give(0, 0, 1));
    // A clock that is put back chooses the first name again.
    bench.act(Act::Minutes(-1));
    bench.act(give(0, 0, 1));
    bench.act(Act::Restart(0));
    bench.finish();
}

#[test]
fn what_could_not_be_taken_back_is_not_left_in_a_finished_file() {
    let mut bench = Bench::new(PLAIN);
    bench.act(give(0, 0, 3));
    bench.act(give(1, 0, 2));
    // The lines are appended and synced; the steps behind that fail.
    bench.act(Act::Arm(2, Fault::Refuses(1)));
    bench.act(give(0, 2, 2));
    bench.act(Act::Minutes(1));
    bench.act(Act::RetentionTask(0));
    bench.finish();
}

#[test]
fn a_writer_that_the_commit_does_not_remember_keeps_its_files() {
    let mut bench = Bench::new(Setting { most_writers: 0, ..PLAIN });
    bench.act(give(0, 0, 3));
    bench.act(give(1, 0, 2));
    // It hears of that when it is refused, and looks at its file while it runs.
    bench.act(give(0, 0, 1));
    bench.act(give(1, 0, 2));
    bench.act(Act::Minutes(1));
    bench.act(Act::RetentionTask(0));
    bench.act(Act::Restart(0));
    bench.finish();
}

fn batches() -> impl Strategy<Value = Batch> {
    (0_u64..4, [0_u64..4, 0_u64..4]).prop_map(|(back, lines)| Batch { back, lines })
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let who = || 0..CONSUMERS;
    let killed_at = proptest::option::weighted(0.15, 1_u8..12);
    let alone = (who(), batches(), killed_at);
    let alone = alone.prop_map(|(who, batch, killed_at)| Act::Deliver { who, batch, killed_at });
    let killed_at = proptest::option::weighted(0.15, (who(), 1_u8..12));
    let race = ([batches(), batches()], proptest::collection::vec(who(), 1..12), killed_at);
    let race = race.prop_map(|(batches, turns, killed_at)| Act::Race { batches, turns, killed_at });
    let fault = prop_oneof![
        2 => Just(Fault::Dies),
        2 => Just(Fault::DiesTorn),
        2 => (1_u8..4).prop_map(Fault::Refuses),
    ];
    let act = prop_oneof![
        8 => alone,
        4 => race,
        3 => prop_oneof![3 => 1_i64..3, 1 => -2_i64..0].prop_map(Act::Minutes),
        2 => who().prop_map(Act::RetentionTask),
        2 => who().prop_map(Act::Restart),
        3 => (0_u32..8, fault).prop_map(|(after, fault)| Act::Arm(after, fault)),
        1 => (1_u8..3).prop_map(Act::Unheard),
        1 => (1_u8..3).prop_map(Act::Refused),
    ];
    proptest::collection::vec(act, 1..50)
}

fn settings() -> impl Strategy<Value = Setting> {
    let rotate_lines = proptest::option::of(2_u64..8);
    let most_states = prop_oneof![Just(1_usize), Just(100)];
    let most_writers = prop_oneof![4 => Just(64_usize), 1 => Just(0)];
    (rotate_lines, any::<bool>(), most_states, most_writers).prop_map(
        |(rotate_lines, compress, most_states, most_writers)| Setting {
            rotate_lines,
            compress,
            most_states,
            most_writers,
        },
    )
}

/// Cases of a short run; `NATSWAY_MODEL_CASES` asks for more.
fn cases() -> u32 {
    std::env::var("NATSWAY_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(400)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn a_committed_line_never_goes_away_and_none_is_there_twice(setting in settings(), acts in acts()) {
        disarm();
        let mut bench = Bench::new(setting);
        for act in acts {
            bench.act(act);
        }
        bench.finish();
    }
}

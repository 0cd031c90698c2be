//! The tailer on real files against a model of what was written.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::segments::FINISHED_KEPT;
use super::*;
use crate::framing::{Framer, LongLines};

/// Long enough for every wait of the tailer.
const LONG: Duration = Duration::from_secs(10);

fn follow(from: From) -> Follow {
    Follow {
        framer: Framer {
            batch_bytes: NonZeroUsize::new(64).unwrap(),
            line_bytes: NonZeroUsize::new(40).unwrap(),
            long_lines: LongLines::Split,
            event_start: None,
            one_event: false,
        },
        from,
        linger: Duration::from_millis(50),
        event_timeout: Duration::from_secs(1),
        rotate_wait: Duration::from_secs(1),
    }
}

/// A file as one writer sees it: from its creation or truncation to the next.
#[derive(Default, Debug)]
struct Content {
    text: String,
    /// How much of it may be missing from the output: it was cut off before it was read.
    cut_off: bool,
    /// Its file is removed: a tailer that has it open reads it to the end, a later one cannot.
    removed: bool,
    /// The tailer had seen some of it, so that its loss must be noticed.
    seen: bool,
    /// The checkpoint says so, too.
    seen_saved: bool,
}

struct Bench {
    directory: TempDir,
    tailer: Tailer,
    now: Duration,
    /// What is on the disk as the checkpoint.
    saved: Option<TailState>,
    /// What the consumer has, by its mark.
    output: Vec<u8>,
    mark: u64,
    /// Offsets of whole messages that may be acknowledged.
    boundaries: Vec<u64>,
    contents: Vec<Content>,
    writer: Option<File>,
    lines: u32,
    truncations: u64,
}

impl Bench {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("app.log");
        let mut bench = Self {
            tailer: Tailer::new(&path, follow(From::Beginning), None).unwrap(),
            directory,
            now: Duration::from_secs(1),
            saved: None,
            output: Vec::new(),
            mark: 0,
            boundaries: vec![0],
            contents: Vec::new(),
            writer: None,
            lines: 0,
            truncations: 0,
        };
        bench.create();
        // What is rotated away before the first poll is not ours to send.
        bench.poll();
        bench
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("app.log")
    }

    fn create(&mut self) {
        let file = OpenOptions::new().create(true).append(true).open(self.path()).unwrap();
        self.writer = Some(file);
        self.contents.push(Content::default());
    }

    fn write(&mut self, text: &str) {
        self.writer.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
        self.contents.last_mut().unwrap().text.push_str(text);
    }

    fn write_lines(&mut self, count: u32) {
        for _ in 0..count {
            self.lines += 1;
            self.write(&format!("line {}\n", self.lines));
        }
    }

    fn write_partial(&mut self) {
        let line = self.contents.last().unwrap().text.rsplit('\n').next().unwrap_or_default();
        // Below the limit, whatever follows.
        if line.len() > 20 {
            return;
        }
        self.lines += 1;
        self.write(&format!("part {} ", self.lines));
    }

    fn rotate(&mut self) {
        let name = |number: u32| self.directory.path().join(format!("app.log.{number}"));
        for number in (1..400).rev().filter(|n| name(*n).exists()).collect::<Vec<_>>() {
            fs::rename(name(number), name(number + 1)).unwrap();
        }
        fs::rename(self.path(), name(1)).unwrap();
        self.create();
    }

    fn truncate(&mut self) {
        self.writer.as_mut().unwrap().set_len(0).unwrap();
        self.contents.last_mut().unwrap().cut_off = true;
        self.contents.push(Content::default());
    }

    fn copy_truncate(&mut self) {
        // A copy is known by the head that was seen; one of bytes that nobody saw passes for a
        // rotated file.
        self.catch_up();
        self.save(usize::MAX);
        if self.contents.last().unwrap().text.is_empty() {
            return;
        }
        self.write_lines(2);
        fs::copy(
            self.path(),
            self.directory.path().join(format!("app.log-2024{:04}", self.contents.len())),
        )
        .unwrap();
        self.truncate();
    }

    fn remove(&mut self) {
        // A file that nobody ever polled leaves no trace; and while the inode and birth of an empty
        // one are used again within a tick of the clock, they say nothing.
        self.catch_up();
        self.save(usize::MAX);
        if self.contents.last().unwrap().text.is_empty() {
            return;
        }
        fs::remove_file(self.path()).unwrap();
        self.contents.last_mut().unwrap().removed = true;
        self.create();
    }

    /// One poll; what it gives goes to the consumer, as the acceptance rule has it.
    fn poll(&mut self) -> bool {
        let step = self.tailer.poll(self.now, false).unwrap();
        if let Some(content) = self.contents.last_mut() {
            let file = File::open(self.directory.path().join("app.log")).unwrap();
            content.seen |=
                self.tailer.reading().is_some_and(|it| it.head_bytes > 0 && it.is(&file).unwrap());
        }
        match step {
            Step::Idle => return false,
            Step::Save => self.save(usize::MAX),
            Step::Chunk(chunk) => {
                assert!(chunk.end > chunk.start);
                assert!(chunk.start <= self.mark, "{chunk:?} leaves a hole above {}", self.mark);
                if chunk.end > self.mark {
                    let skip = (self.mark - chunk.start) as usize;
                    if chunk.gap.is_none() && skip <= chunk.payload.len() {
                        self.output.extend_from_slice(&chunk.payload[skip..]);
                        self.output.push(b'\n');
                    }
                    self.mark = chunk.end;
                }
                self.boundaries.push(chunk.end);
            }
        }
        true
    }

    /// Saves a checkpoint with one of the last `back` messages unacknowledged.
    fn save(&mut self, back: usize) {
        let floor = self.saved.as_ref().map_or(0, |saved| saved.offset);
        let reached: Vec<u64> = self.boundaries.iter().copied().filter(|b| *b >= floor).collect();
        let offset = reached
            .get(reached.len().saturating_sub(back.saturating_add(1)))
            .copied()
            .unwrap_or(floor);
        self.saved = Some(self.tailer.state(offset, false));
        self.contents.iter_mut().for_each(|content| content.seen_saved = content.seen);
    }

    fn breaks(&self) -> u64 {
        self.tailer.tally().truncations + self.tailer.tally().vanished
    }

    fn catch_up(&mut self) {
        let (mut idle, mut polls) = (0, 0);
        while idle < 4 {
            polls += 1;
            assert!(polls < 20_000, "there is no end to what it reads");
            if self.poll() {
                idle = 0;
            } else {
                idle += 1;
                self.now += LONG;
            }
        }
    }

    fn restart(&mut self) {
        let path = self.path();
        let offset = self.saved.as_ref().map_or(0, |saved| saved.offset);
        for content in &mut self.contents {
            content.seen = content.seen_saved;
            content.cut_off |= content.removed;
        }
        self.truncations += self.breaks();
        self.boundaries.retain(|boundary| *boundary <= offset);
        self.tailer = Tailer::new(&path, follow(From::Beginning), self.saved.clone()).unwrap();
    }

    /// Every line is there once and in order, but for those that were cut off.
    fn check(&mut self) {
        self.catch_up();
        let output = String::from_utf8(self.output.clone()).unwrap();
        let mut sent = output.lines().peekable();
        let (mut lost, mut lost_of_seen) = (0, 0);
        let last = self.contents.len() - 1;
        for (number, content) in self.contents.iter().enumerate() {
            let whole = content.text.rfind('\n').map_or(0, |at| at + 1);
            let text = if number == last { &content.text[..whole] } else { &content.text };
            for line in text.lines() {
                if sent.peek() == Some(&line) {
                    sent.next();
                } else {
                    assert!(
                        content.cut_off,
                        "{line:?} is missing or in the wrong place; {:?} in\n{output}",
                        sent.peek()
                    );
                    lost += 1;
                    lost_of_seen += u32::from(content.seen);
                }
            }
        }
        assert_eq!(sent.next(), None, "more than was written, in\n{output}");
        let noticed = self.truncations + self.breaks();
        assert!(lost_of_seen == 0 || noticed > 0, "{lost} lines lost and nothing noticed");
        let distinct: BTreeSet<&str> = output.lines().collect();
        assert_eq!(distinct.len(), output.lines().count(), "a line came twice in\n{output}");
    }
}

#[derive(Clone, Debug)]
enum Act {
    Lines(u32),
    Partial,
    Poll(u32),
    Wait,
    Rotate,
    Truncate,
    CopyTruncate,
    Remove,
    Save(usize),
    Restart,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        6 => (1_u32..8).prop_map(Act::Lines),
        2 => Just(Act::Partial),
        5 => (1_u32..6).prop_map(Act::Poll),
        2 => Just(Act::Wait),
        3 => Just(Act::Rotate),
        1 => Just(Act::Truncate),
        1 => Just(Act::CopyTruncate),
        1 => Just(Act::Remove),
        2 => (0_usize..4).prop_map(Act::Save),
        2 => Just(Act::Restart),
    ];
    proptest::collection::vec(act, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn whatever_happens_to_the_file_every_line_is_sent_once(acts in acts()) {
        let mut bench = Bench::new();
        for act in acts {
            match act {
                Act::Lines(count) => bench.write_lines(count),
                Act::Partial => bench.write_partial(),
                Act::Poll(count) => {
                    for _ in 0..count {
                        bench.poll();
                    }
                }
                Act::Wait => bench.now += LONG,
                Act::Rotate => bench.rotate(),
                Act::Truncate => bench.truncate(),
                Act::CopyTruncate => bench.copy_truncate(),
                Act::Remove => bench.remove(),
                Act::Save(back) => bench.save(back),
                Act::Restart => bench.restart(),
            }
        }
        bench.check();
    }
}

#[test]
fn a_rotation_storm_between_two_looks_loses_nothing() {
    let mut bench = Bench::new();
    bench.write_lines(1);
    while bench.poll() {}
    for _ in 0..20 {
        bench.write_lines(2);
        bench.rotate();
    }
    bench.check();
    assert_eq!(bench.output.iter().filter(|b| **b == b'\n').count(), 41);
}

#[test]
fn a_storm_of_more_files_than_are_remembered_is_read_once() {
    let mut bench = Bench::new();
    bench.write_lines(1);
    while bench.poll() {}
    for _ in 0..FINISHED_KEPT + 44 {
        bench.write_lines(2);
        bench.rotate();
    }
    for _ in 0..10 {
        for _ in 0..100 {
            bench.poll();
            bench.now += LONG / 20;
        }
        bench.save(2);
        bench.restart();
    }
    bench.check();
    assert_eq!(bench.output.iter().filter(|b| **b == b'\n').count(), 2 * (FINISHED_KEPT + 44) + 1);
}

/// Lines that were not read yet are in a file that was rotated, and a restart finds it at no name
/// at all.
fn restarted_with_the_file_between_two_names() -> (Bench, PathBuf, PathBuf) {
    let mut bench = Bench::new();
    bench.write_lines(2);
    bench.catch_up();
    bench.save(0);
    bench.write_lines(3);
    bench.rotate();
    bench.write_lines(2);
    let rotated = bench.directory.path().join("app.log.1");
    // No name that a rotation gives.
    let hidden = bench.directory.path().join("elsewhere");
    fs::rename(&rotated, &hidden).unwrap();
    bench.restart();
    (bench, hidden, rotated)
}

#[test]
fn a_file_that_is_between_two_names_is_waited_for() {
    let (mut bench, hidden, rotated) = restarted_with_the_file_between_two_names();
    for _ in 0..20 {
        assert!(!bench.poll(), "goes on although a file with unread lines may only be renamed");
    }
    fs::rename(&hidden, &rotated).unwrap();
    bench.check();
    assert_eq!((bench.mark > 0, bench.breaks()), (true, 0));
}

#[test]
fn a_file_that_stays_away_is_counted_as_gone() {
    let (mut bench, _hidden, _rotated) = restarted_with_the_file_between_two_names();
    bench.catch_up();
    assert_eq!(bench.tailer.tally().vanished, 1);
    let output = String::from_utf8(bench.output.clone()).unwrap();
    assert_eq!(output.lines().collect::<Vec<_>>(), ["line 1", "line 2", "line 6", "line 7"]);
}

#[test]
fn a_truncation_is_counted_with_the_bytes_that_were_seen() {
    let mut bench = Bench::new();
    bench.write_lines(1);
    while bench.poll() {}
    bench.now += LONG;
    while bench.poll() {}
    bench.write("unread");
    bench.poll();
    bench.truncate();
    bench.write_lines(1);
    bench.catch_up();
    let tally = bench.tailer.tally();
    assert_eq!((tally.truncations, tally.lost_bytes), (1, 6), "{tally:?}");
    bench.check();
}

#[test]
fn a_file_that_was_rewritten_in_place_while_nobody_looked_is_read_from_its_beginning() {
    let mut bench = Bench::new();
    // More than the head that tells files apart, which the new content has as well.
    bench.write_lines(200);
    bench.catch_up();
    bench.save(0);
    let old = fs::read_to_string(bench.path()).unwrap();
    let (head, tail) = old.split_at(1_200);
    let new = format!("{head}{}\nmore\n", tail.replace("line", "LINE"));
    fs::write(bench.path(), &new).unwrap();
    bench.restart();
    bench.output.clear();
    bench.mark = 0;
    for _ in 0..200 {
        if let Step::Chunk(chunk) = bench.tailer.poll(bench.now, false).unwrap() {
            if chunk.gap.is_none() {
                bench.output.extend_from_slice(&chunk.payload);
                bench.output.push(b'\n');
            }
        } else {
            drop(bench.tailer.state(0, false));
            bench.now += LONG;
        }
    }
    assert_eq!(String::from_utf8_lossy(&bench.output), new);
    assert_eq!(bench.tailer.tally().truncations, 1);
}

#[test]
fn what_an_earlier_process_may_have_sent_is_not_counted_as_lost() {
    let mut bench = Bench::new();
    bench.write_lines(1);
    while bench.poll() {}
    bench.write_lines(20);
    bench.poll();
    // Looked at and saved, and sent within the second before the crash.
    bench.save(9);
    bench.catch_up();
    let crashed = bench.saved.clone().unwrap();
    assert!(crashed.segments[0].seen_bytes > crashed.offset && !crashed.clean);
    bench.truncate();
    bench.restart();
    bench.catch_up();
    let tally = bench.tailer.tally();
    assert_eq!((tally.truncations, tally.lost_bytes), (1, 0));
    // A process that ended in order sent nothing more.
    let mut tailer = Tailer::new(
        &bench.path(),
        follow(From::Beginning),
        Some(TailState { clean: true, ..crashed.clone() }),
    )
    .unwrap();
    let lost = crashed.segments[0].seen_bytes - crashed.offset;
    for _ in 0..4 {
        if tailer.poll(LONG, false).unwrap() == Step::Save {
            drop(tailer.state(0, false));
        }
    }
    assert_eq!(tailer.tally().lost_bytes, lost);
}

#[test]
fn the_end_of_a_file_is_behind_its_last_whole_line() {
    let mut bench = Bench::new();
    bench.write("old\npart");
    bench.tailer = Tailer::new(&bench.path(), follow(From::End), None).unwrap();
    bench.poll();
    bench.write("ial\nnew\n");
    bench.catch_up();
    assert_eq!(String::from_utf8_lossy(&bench.output), "partial\nnew\n");
}

#[test]
fn what_is_no_file_is_refused_and_never_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.log");
    let pipe =
        || assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    pipe();
    let mut tailer = Tailer::new(&path, follow(From::Beginning), None).unwrap();
    assert!(tailer.poll(LONG, false).unwrap_err().to_string().contains("a pipe"));
    fs::remove_file(&path).unwrap();
    fs::write(&path, "first\n").unwrap();
    assert_eq!(tailer.poll(LONG, false).unwrap(), Step::Save);
    // One that takes the place of the file.
    fs::remove_file(&path).unwrap();
    pipe();
    let mut sent = Vec::new();
    for poll in 2..12 {
        match tailer.poll(LONG * poll, false).unwrap() {
            Step::Chunk(chunk) => sent.extend_from_slice(&chunk.payload),
            Step::Save => drop(tailer.state(0, false)),
            Step::Idle => {}
        }
    }
    assert_eq!(String::from_utf8_lossy(&sent), "first");
}

#[test]
fn a_file_that_comes_later_is_read_from_its_beginning() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("app.log");
    let mut tailer = Tailer::new(&path, follow(From::End), None).unwrap();
    assert_eq!(tailer.poll(LONG, false).unwrap(), Step::Idle);
    fs::write(&path, "first\n").unwrap();
    let mut steps = (0..4).map(|_| tailer.poll(LONG * 2, false).unwrap()).collect::<Vec<_>>();
    assert_eq!(steps.remove(0), Step::Save);
}

#[test]
fn a_removed_file_is_let_go_and_what_follows_at_the_path_is_no_loss() {
    let mut bench = Bench::new();
    bench.write_lines(2);
    bench.catch_up();
    bench.write_lines(1);
    bench.write("unfinished");
    fs::remove_file(bench.path()).unwrap();
    let open = |bench: &Bench| {
        let place = bench.tailer.reading().unwrap().place.inode;
        fs::read_dir("/proc/self/fd").unwrap().flatten().any(|fd| {
            fs::metadata(fd.path())
                .is_ok_and(|it| std::os::unix::fs::MetadataExt::ino(&it) == place)
        })
    };
    bench.writer = None;
    for _ in 0..20 {
        let step = bench.tailer.poll(bench.now, false).unwrap();
        if let Step::Chunk(chunk) = &step {
            bench.output.extend_from_slice(&chunk.payload);
            bench.output.push(b'\n');
        }
        if step == Step::Save {
            bench.saved = Some(bench.tailer.state(bench.tailer.position(), false));
        }
        bench.now += LONG;
    }
    assert_eq!(String::from_utf8_lossy(&bench.output), "line 1\nline 2\nline 3\nunfinished\n");
    assert!(!open(&bench), "it is still open");
    bench.mark = bench.tailer.position();
    bench.output.clear();
    bench.create();
    bench.write_lines(1);
    bench.catch_up();
    assert_eq!(String::from_utf8_lossy(&bench.output), "line 4\n");
    assert_eq!(bench.tailer.tally().vanished, 0);
}

#[test]
fn rotated_files_of_before_the_first_start_are_left_alone() {
    let mut bench = Bench::new();
    bench.write_lines(3);
    bench.rotate();
    bench.write_lines(1);
    bench.tailer = Tailer::new(&bench.path(), follow(From::Beginning), None).unwrap();
    bench.rotate();
    bench.write_lines(1);
    bench.catch_up();
    assert_eq!(
        String::from_utf8_lossy(&bench.output),
        "line 5\n",
        "what was rotated before the first poll is old"
    );
}

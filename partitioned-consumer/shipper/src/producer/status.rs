//! What a producer tells about its files: metrics for metrics, and a small document that
//! `producer status` reads.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::metrics::{Kind, Metric, Row, page};
use crate::tail::Tally;
use crate::tail::checkpoint::{Checkpoint, replace_lightly};

/// What one source does now; written beside its checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// The path that is followed.
    pub path: PathBuf,
    /// The subject.
    pub subject: String,
    /// Bytes of the file that are not read.
    pub unread_bytes: u64,
    /// Bytes on their way.
    pub in_flight_bytes: u64,
    /// There is no file at the path.
    #[serde(default)]
    pub gone: bool,
    /// What happened to the file.
    pub tally: Tally,
    /// The last thing that went wrong, until something goes well again.
    pub last_error: Option<String>,
}

/// What the user named and is not shipped, and why; written into the state directory.
type Problems = Vec<(PathBuf, String)>;

fn problems_path(directory: &Path) -> PathBuf {
    // No source has a name that begins with a dot.
    directory.join(".problems")
}

/// Writes what `producer status` tells of paths that have no checkpoint.
pub(super) fn save_problems(directory: &Path, problems: Problems) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    replace_lightly(&problems_path(directory), &serde_json::to_vec(&problems)?)
}

/// Forgets them.
pub(super) fn forget_problems(directory: &Path) {
    // There are none as a rule; and those that stay are only told of.
    std::fs::remove_file(problems_path(directory)).unwrap_or_default();
}

/// One line of `producer status`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Host, or host and file.
    pub source: String,
    /// `core` or `jetstream`; none for what is not shipped yet.
    pub mode: Option<crate::tail::checkpoint::Mode>,
    /// Whether a producer has it at present.
    pub running: bool,
    /// Bytes of the source's history that are stored.
    pub offset: u64,
    /// Bytes of its file that are not.
    pub lag_bytes: u64,
    /// What it does.
    pub status: SourceStatus,
}

/// Reads all checkpoints of a directory.
///
/// # Errors
/// The system's, when the directory cannot be listed.
pub fn read(directory: &Path) -> io::Result<Vec<Report>> {
    let mut reports = Vec::new();
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(reports),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        let is_checkpoint = path.extension().is_some_and(|extension| extension == "json");
        let Some(checkpoint) =
            is_checkpoint.then(|| Checkpoint::read(&path).ok().flatten()).flatten()
        else {
            continue;
        };
        let status = std::fs::read(path.with_extension("status")).ok();
        let status = status.and_then(|json| serde_json::from_slice(&json).ok());
        let mut status: SourceStatus = status.unwrap_or_default();
        status.path.clone_from(&checkpoint.path);
        status.subject.clone_from(&checkpoint.subject);
        let lock = File::open(path.with_extension("lock"));
        reports.push(Report {
            source: path.file_stem().unwrap_or_default().to_string_lossy().into_owned(),
            mode: Some(checkpoint.mode),
            running: lock.is_ok_and(|lock| lock.try_lock_shared().is_err()),
            offset: checkpoint.tail.offset,
            lag_bytes: lag(&checkpoint),
            status,
        });
    }
    reports.sort_by(|a, b| a.source.cmp(&b.source));
    let problems = std::fs::read(problems_path(directory)).ok();
    let problems: Problems =
        problems.and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
    reports.extend(problems.into_iter().map(|(path, problem)| Report {
        source: "-".into(),
        mode: None,
        running: false,
        offset: 0,
        lag_bytes: 0,
        status: SourceStatus { path, last_error: Some(problem), ..Default::default() },
    }));
    Ok(reports)
}

/// Bytes on the disk that are not stored elsewhere, as far as the checkpoint and a poll at the
/// files tell.
fn lag(checkpoint: &Checkpoint) -> u64 {
    let offset = checkpoint.tail.offset;
    let at_path = std::fs::metadata(&checkpoint.path).ok();
    let mut lag = 0;
    let mut path_counted = false;
    for segment in &checkpoint.tail.segments {
        let present =
            at_path.as_ref().filter(|m| crate::tail::FileId::of(m) == segment.identity.place);
        path_counted |= present.is_some();
        let length = present.map_or(segment.seen_bytes, std::fs::Metadata::len);
        let end = segment.end.unwrap_or(segment.start + length.saturating_sub(segment.file_start));
        lag += end.saturating_sub(offset.max(segment.start));
    }
    lag + if path_counted { 0 } else { at_path.map_or(0, |m| m.len()) }
}

/// The table that people read.
pub fn table(reports: &[Report]) -> String {
    use std::fmt::Write;

    let mut text = String::new();
    let line = |text: &mut String, cells: [&str; 7]| {
        let [source, running, mode, offset, lag, subject, error] = cells;
        let row = format!(
            "{source:<32} {running:<8} {mode:<9} {offset:>14} {lag:>12}  {subject:<40} {error}"
        );
        writeln!(text, "{}", row.trim_end()).unwrap_or_default();
    };
    line(&mut text, ["SOURCE", "RUNNING", "MODE", "OFFSET", "LAG BYTES", "SUBJECT", "LAST ERROR"]);
    for report in reports {
        let mode = match report.mode {
            None => "-",
            Some(crate::tail::checkpoint::Mode::Core) => "core",
            Some(crate::tail::checkpoint::Mode::JetStream) => "jetstream",
        };
        let running = if report.running { "yes" } else { "no" };
        let gone = report.status.gone.then_some("the file is gone");
        let error = report.status.last_error.as_deref().or(gone).unwrap_or("-");
        let (offset, lag) = (report.offset.to_string(), report.lag_bytes.to_string());
        line(
            &mut text,
            [&report.source, running, mode, &offset, &lag, &report.status.subject, error],
        );
    }
    text
}

/// What all sources of a process count together.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) messages: Metric,
    pub(crate) bytes: Metric,
    pub(crate) retries: Metric,
    pub(crate) waiting: Metric,
    /// Sources whose checkpoint cannot be saved.
    pub(crate) stopped: Metric,
    /// Named files that do not exist, and globs that nothing matches.
    pub(crate) missing_files: Metric,
    pub(crate) refused_files: Metric,
    /// By source; a snapshot that its task replaces.
    sources: Mutex<Vec<Arc<Mutex<SourceStatus>>>>,
}

impl Metrics {
    /// A place for one source's status.
    pub(crate) fn register(&self, path: &Path, subject: &str) -> Arc<Mutex<SourceStatus>> {
        let status = SourceStatus {
            path: path.to_owned(),
            subject: subject.to_owned(),
            ..Default::default()
        };
        let status = Arc::new(Mutex::new(status));
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&status));
        status
    }

    /// Whether the file at a path was told to be gone.
    pub(super) fn is_gone(&self, path: &Path) -> bool {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources.iter().any(|source| {
            let source = source.lock().unwrap_or_else(PoisonError::into_inner);
            source.path == path && source.gone
        })
    }

    /// Notes which files are gone.
    pub(super) fn set_gone(&self, gone: &[PathBuf]) {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        for source in sources.iter() {
            let mut source = source.lock().unwrap_or_else(PoisonError::into_inner);
            source.gone = gone.contains(&source.path);
        }
    }

    /// The sum over all sources of one of their numbers.
    fn sum(&self, number: impl Fn(&SourceStatus) -> u64) -> u64 {
        let sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        sources
            .iter()
            .map(|source| number(&source.lock().unwrap_or_else(PoisonError::into_inner)))
            .sum()
    }

    pub(crate) fn unread_bytes(&self) -> u64 {
        self.sum(|source| source.unread_bytes)
    }

    pub(crate) fn page(&self) -> String {
        let counter =
            |name, help, value| Row { name, help, kind: Kind::Counter, value: Some(value) };
        let gauge = |name, help, value| Row { name, help, kind: Kind::Gauge, value: Some(value) };
        page([
            counter(
                "shipper_messages_total",
                "Messages that the stream acknowledged.",
                self.messages.get(),
            ),
            counter("shipper_bytes_total", "Bytes of files that are stored.", self.bytes.get()),
            counter(
                "shipper_retries_total",
                "Times that a source went back to what is not stored.",
                self.retries.get(),
            ),
            counter(
                "shipper_rotations_total",
                "Files renamed away.",
                self.sum(|s| s.tally.rotations),
            ),
            counter(
                "shipper_truncations_total",
                "Files truncated in place.",
                self.sum(|s| s.tally.truncations),
            ),
            counter(
                "shipper_vanished_total",
                "Files gone before they were read.",
                self.sum(|s| s.tally.vanished),
            ),
            counter(
                "shipper_lost_bytes_total",
                "Bytes gone before they were read.",
                self.sum(|s| s.tally.lost_bytes),
            ),
            counter(
                "shipper_long_lines_total",
                "Lines above the limit.",
                self.sum(|s| s.tally.long_lines),
            ),
            gauge(
                "shipper_unread_bytes",
                "Bytes of files that are not read yet.",
                self.unread_bytes(),
            ),
            gauge(
                "shipper_in_flight_bytes",
                "Bytes read and not acknowledged yet.",
                self.sum(|s| s.in_flight_bytes),
            ),
            gauge(
                "shipper_waiting_sources",
                "Sources that wait for the stream to take more.",
                self.waiting.get(),
            ),
            gauge(
                "shipper_stopped",
                "Sources whose checkpoint cannot be saved; nothing is read of them.",
                self.stopped.get(),
            ),
            gauge(
                "shipper_missing_files",
                "Named files that do not exist, globs that nothing matches, and followed files \
                 that are gone.",
                self.missing_files.get() + self.sum(|s| u64::from(s.gone)),
            ),
            gauge("shipper_refused_files", "Files that are not shipped.", self.refused_files.get()),
        ])
    }
}

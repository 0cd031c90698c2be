//! What a consumer tells: metrics for metrics, and what `consumer status` shows.

use std::io;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use async_nats::jetstream;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use tracing::error;

use super::args::{Config, Partitions};
use super::file_index::FileIndex;
use super::list;
use super::offsets::OffsetStore;
use crate::connect;
use crate::metrics::{Kind, Metric, Row, page};
use crate::tail::checkpoint::replace_lightly;
use natsway_partitioned_consumer::ElasticGroup;

/// Refused messages are all counted, and told of so often.
const TELL_REFUSALS_EVERY: Duration = Duration::from_secs(10);

/// What a process counts.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    pub(super) messages: Metric,
    pub(super) bytes: Metric,
    pub(super) groups: Metric,
    pub(super) duplicates: Metric,
    pub(super) ahead: Metric,
    pub(super) stale: Metric,
    pub(super) lost_bytes: Metric,
    pub(super) skipped_bytes: Metric,
    pub(super) cut_bytes: Metric,
    pub(super) overtaken: Metric,
    pub(super) refused: Metric,
    pub(super) stopped: Metric,
    pub(super) parked: Metric,
    pub(super) queued_bytes: Metric,
    pub(super) open_files: Metric,
    pub(super) lookups: Metric,
    pub(super) sources: Metric,
    refusal_told: Mutex<Option<Instant>>,
    last_error: Mutex<Option<String>>,
}

/// What is written into the directory for `consumer status`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DirectoryStatus {
    /// The process.
    pub pid: u32,
    /// Messages written since it started.
    pub messages: u64,
    /// Bytes written since it started.
    pub bytes: u64,
    /// It acknowledges nothing, because it cannot write.
    pub stopped: bool,
    /// Files that are open.
    pub open_files: u64,
    /// The last thing that went wrong, until something goes well again.
    pub last_error: Option<String>,
}

impl Metrics {
    /// Notes what went wrong; `true` when that is news.
    pub(super) fn failed(&self, error: String) -> bool {
        let mut last = self.last_error.lock().unwrap_or_else(PoisonError::into_inner);
        let news = last.is_none();
        *last = Some(error);
        news
    }

    /// Counts messages that can never be written, and says so, naming the host; not for each, since
    /// whoever sends one may send many.
    pub(super) fn refuse(&self, messages: u64, host: &str, reason: &str) {
        self.refused.add(messages);
        let mut told = self.refusal_told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| told.elapsed() < TELL_REFUSALS_EVERY) {
            return;
        }
        *told = Some(Instant::now());
        let (host, total) = (host.to_owned(), self.refused.get());
        self.failed(format!("messages of {host} were refused: {reason}"));
        error!(host, reason, total, "a message that can never be written is dropped");
    }

    /// Something went well.
    pub(super) fn recovered(&self) {
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn last_error(&self) -> Option<String> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Writes what `consumer status` reads.
    pub(super) fn save(&self, directory: &Path) -> io::Result<()> {
        let status = DirectoryStatus {
            pid: std::process::id(),
            messages: self.messages.get(),
            bytes: self.bytes.get(),
            stopped: self.stopped.get() > 0,
            open_files: self.open_files.get(),
            last_error: self.last_error(),
        };
        replace_lightly(&FileIndex::status_path(directory), &serde_json::to_vec(&status)?)
    }

    pub(super) fn page(&self) -> String {
        let counter = |name, help, value: &Metric| Row {
            name,
            help,
            kind: Kind::Counter,
            value: value.get(),
        };
        let gauge =
            |name, help, value: &Metric| Row { name, help, kind: Kind::Gauge, value: value.get() };
        page([
            counter("shipper_messages_total", "Messages written and acknowledged.", &self.messages),
            counter("shipper_bytes_total", "Bytes written and committed.", &self.bytes),
            counter("shipper_groups_total", "Groups committed.", &self.groups),
            counter(
                "shipper_duplicates_total",
                "Messages that were written before.",
                &self.duplicates,
            ),
            counter(
                "shipper_ahead_total",
                "Messages whose predecessor has to be sent again.",
                &self.ahead,
            ),
            counter("shipper_stale_total", "Messages of an older history, dropped.", &self.stale),
            counter(
                "shipper_lost_bytes_total",
                "Bytes that the broker acknowledged and lost.",
                &self.lost_bytes,
            ),
            counter(
                "shipper_skipped_bytes_total",
                "Bytes that producers could not read.",
                &self.skipped_bytes,
            ),
            counter(
                "shipper_cut_bytes_total",
                "Uncommitted bytes cut from files at the start.",
                &self.cut_bytes,
            ),
            counter(
                "shipper_overtaken_total",
                "Commits refused since another consumer was first.",
                &self.overtaken,
            ),
            counter(
                "shipper_refused_total",
                "Messages that can never be written, dropped.",
                &self.refused,
            ),
            gauge("shipper_stopped", "1 while lines cannot be written.", &self.stopped),
            gauge(
                "shipper_parked_messages",
                "Messages that wait for another partition.",
                &self.parked,
            ),
            gauge("shipper_group_bytes", "Bytes of the group that is written.", &self.queued_bytes),
            gauge("shipper_open_files", "Files that are open.", &self.open_files),
            gauge("shipper_sources", "Sources that the directory has files of.", &self.sources),
            counter(
                "shipper_lookups_total",
                "Messages looked up in the stream to decide on others.",
                &self.lookups,
            ),
        ])
    }
}

/// A partition of a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct PartitionStatus {
    /// Its number: of the shipper for a list, of the group for shared ones.
    pub partition: u32,
    /// Who reads it, where a group says so.
    pub owner: Option<String>,
    /// The last sequence of the stream that is written, where it is known.
    pub written_sequence: Option<u64>,
    /// Messages that are not written.
    pub lag_messages: u64,
    /// Their bytes, by the mean size of the stream's messages.
    pub lag_bytes: u64,
}

/// A source of a cluster.
#[derive(Clone, Debug, Serialize)]
pub struct SourceCommit {
    /// Host, or host and file.
    pub source: String,
    /// How far its history is written.
    pub offset: Option<u64>,
    /// The directory that has its newest lines.
    pub writer: String,
    /// The file in it.
    pub file: String,
    /// Bytes that were lost or skipped on the way.
    pub missing_bytes: u64,
}

/// What `consumer status` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The cluster.
    pub cluster: String,
    /// The process that writes to this directory, as it said last.
    pub directory: Option<DirectoryStatus>,
    /// Its partitions.
    pub partitions: Vec<PartitionStatus>,
    /// Its sources.
    pub sources: Vec<SourceCommit>,
}

/// Asks the broker and the directory.
///
/// # Errors
/// When the broker or the stream cannot be reached.
pub async fn read(config: &Config) -> Result<Report> {
    let status = std::fs::read(FileIndex::status_path(&config.directory)).ok();
    let directory = status.and_then(|json| serde_json::from_slice(&json).ok());
    let cluster = config.cluster.clone();
    let stop = CancellationToken::new();
    let give_up = stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
        give_up.cancel();
    });
    let client = connect::client(&config.broker, "consumer", "shipper-status", &stop).await?;
    if !connect::has_jetstream(&client) {
        return Ok(Report { cluster, directory, partitions: Vec::new(), sources: Vec::new() });
    }
    let context = jetstream::new(client);
    let stream = context.get_stream(&config.stream.name).await?;
    let state = &stream.cached_info().state;
    let mean = state.bytes.checked_div(state.messages).unwrap_or(0);
    let mut partitions = Vec::new();
    match &config.partitions {
        Partitions::List(list) => {
            for partition in list {
                let name = list::consumer_name(&config.cluster, *partition);
                let Ok(consumer) = stream.consumer_info(&name).await else { continue };
                let lag_messages = consumer.num_pending + consumer.num_ack_pending as u64;
                let written_sequence = Some(consumer.ack_floor.stream_sequence);
                let lag_bytes = lag_messages * mean;
                partitions.push(PartitionStatus {
                    partition: *partition,
                    owner: None,
                    written_sequence,
                    lag_messages,
                    lag_bytes,
                });
            }
        }
        Partitions::Shared => {
            let group = ElasticGroup::new(context.clone(), &config.stream.name, &config.cluster)?;
            partitions.extend(group.report().await?.by_partition.into_iter().map(|partition| {
                PartitionStatus {
                    partition: partition.partition,
                    owner: partition.owner,
                    written_sequence: None,
                    lag_messages: partition.lag_messages,
                    lag_bytes: partition.lag_messages * mean,
                }
            }));
        }
    }
    let commits = match OffsetStore::exists(&context).await {
        true => {
            let Config { cluster, stream, .. } = config;
            OffsetStore::open(&context, cluster, &stream.name, stream.replicas).await?.all().await?
        }
        false => Vec::new(),
    };
    let sources = commits.into_iter().map(|(source, commit)| SourceCommit {
        source,
        offset: commit.mark.map(|mark| mark.offset),
        writer: commit.tail.writer,
        file: commit.tail.file,
        missing_bytes: commit.missing_bytes,
    });
    Ok(Report { cluster, directory, partitions, sources: sources.collect() })
}

/// The tables that people read.
pub fn table(report: &Report) -> String {
    use std::fmt::Write;

    let mut text = String::new();
    let mut line = |row: String| writeln!(text, "{}", row.trim_end()).unwrap_or_default();
    if let Some(directory) = &report.directory {
        let error = directory.last_error.as_deref().unwrap_or("-");
        line(format!("cluster {}, process {}, last error: {error}", report.cluster, directory.pid));
    }
    line(format!(
        "{:<9} {:<24} {:>14} {:>12} {:>14}",
        "PARTITION", "OWNER", "WRITTEN SEQ", "LAG", "LAG BYTES"
    ));
    for partition in &report.partitions {
        let PartitionStatus { partition, owner, written_sequence, lag_messages, lag_bytes } =
            partition;
        let owner = owner.as_deref().unwrap_or("-");
        let written = written_sequence.map_or("-".to_owned(), |sequence| sequence.to_string());
        line(format!(
            "{partition:<9} {owner:<24} {written:>14} {lag_messages:>12} {lag_bytes:>14}"
        ));
    }
    line(format!(
        "{:<32} {:>14} {:>10}  {:<18} {}",
        "SOURCE", "OFFSET", "MISSING", "WRITER", "FILE"
    ));
    for source in &report.sources {
        let SourceCommit { source, offset, writer, file, missing_bytes } = source;
        let offset = offset.map_or("-".to_owned(), |offset| offset.to_string());
        line(format!("{source:<32} {offset:>14} {missing_bytes:>10}  {writer:<18} {file}"));
    }
    text
}

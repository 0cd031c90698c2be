//! What `consumer status` shows: how the process says that it is doing, and how far the cluster is.

use std::io;
use std::path::Path;
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::Stream;
use natsway_partitioned_consumer::ElasticGroup;
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;

use super::args::{Config, Partitions};
use super::durable::consumer_name;
use super::file_index::FileIndex;
use super::metrics::Metrics;
use super::offsets::OffsetStore;
use super::unreadable::Failure;
use crate::connect;
use crate::error::{Error, ErrorKind};
use crate::tail::checkpoint::replace_lightly;

/// How long the broker may take to be reached.
const REACHED_WITHIN: Duration = Duration::from_secs(5);

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

impl DirectoryStatus {
    /// How the process is doing, by what it counts.
    fn of(metrics: &Metrics) -> Self {
        Self {
            pid: std::process::id(),
            messages: metrics.messages.get(),
            bytes: metrics.bytes.get(),
            stopped: metrics.stopped.get() > 0,
            open_files: metrics.open_files.get(),
            last_error: metrics.last_error(),
        }
    }

    /// Writes what `consumer status` reads.
    pub(super) fn save(metrics: &Metrics, directory: &Path) -> io::Result<()> {
        replace_lightly(
            &FileIndex::status_path(directory),
            &serde_json::to_vec(&Self::of(metrics))?,
        )
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
/// [`ErrorKind::Stopped`] when the broker is not reached in time, [`ErrorKind::Broker`] when it
/// does not answer.
pub async fn read(config: &Config) -> Result<Report, Error> {
    let status = std::fs::read(FileIndex::status_path(&config.directory)).ok();
    let directory = status.and_then(|json| serde_json::from_slice(&json).ok());
    let cluster = config.cluster.clone();
    let stop = CancellationToken::new();
    let give_up = stop.clone();
    tokio::spawn(async move {
        tokio::time::sleep(REACHED_WITHIN).await;
        give_up.cancel();
    });
    let client = connect::client(&config.broker, "consumer", "shipper-status", &stop).await?;
    if !connect::has_jetstream(&client) {
        return Ok(Report { cluster, directory, partitions: Vec::new(), sources: Vec::new() });
    }
    let context = jetstream::new(client);
    let asked = async {
        let stream = context.get_stream(&config.stream.name).await?;
        let partitions = match &config.partitions {
            Partitions::List(list) => partitions_of_list(&stream, &config.cluster, list).await,
            Partitions::Shared => {
                partitions_of_group(context.clone(), &stream, &config.cluster).await?
            }
        };
        Ok::<_, Failure>((partitions, sources(&context, config).await?))
    };
    let failed =
        |error| ErrorKind::Broker.caused("the broker cannot say how far the cluster is", error);
    let (partitions, sources) = asked.await.map_err(failed)?;
    Ok(Report { cluster, directory, partitions, sources })
}

/// The mean size of the stream's messages.
fn mean_bytes(stream: &Stream) -> u64 {
    let state = &stream.cached_info().state;
    state.bytes.checked_div(state.messages).unwrap_or(0)
}

async fn partitions_of_list(stream: &Stream, cluster: &str, list: &[u32]) -> Vec<PartitionStatus> {
    let mut partitions = Vec::new();
    for partition in list {
        let name = consumer_name(cluster, *partition);
        let Ok(consumer) = stream.consumer_info(&name).await else { continue };
        let lag_messages = consumer.num_pending + consumer.num_ack_pending as u64;
        partitions.push(PartitionStatus {
            partition: *partition,
            owner: None,
            written_sequence: Some(consumer.ack_floor.stream_sequence),
            lag_messages,
            lag_bytes: lag_messages * mean_bytes(stream),
        });
    }
    partitions
}

async fn partitions_of_group(
    context: jetstream::Context,
    stream: &Stream,
    cluster: &str,
) -> Result<Vec<PartitionStatus>, Failure> {
    let group = ElasticGroup::new(context, &stream.cached_info().config.name, cluster)?;
    let partitions =
        group.report().await?.by_partition.into_iter().map(|partition| PartitionStatus {
            partition: partition.partition,
            owner: partition.owner,
            written_sequence: None,
            lag_messages: partition.lag_messages,
            lag_bytes: partition.lag_messages * mean_bytes(stream),
        });
    Ok(partitions.collect())
}

/// The commits of the cluster; none where nothing was ever committed.
async fn sources(
    context: &jetstream::Context,
    config: &Config,
) -> Result<Vec<SourceCommit>, Failure> {
    if !OffsetStore::exists(context).await {
        return Ok(Vec::new());
    }
    let Config { cluster, stream, .. } = config;
    let commits =
        OffsetStore::open(context, cluster, &stream.name, stream.replicas).await?.all().await?;
    let sources = commits.into_iter().map(|(source, commit)| SourceCommit {
        source,
        offset: commit.mark.map(|mark| mark.offset),
        writer: commit.tail.writer,
        file: commit.tail.file,
        missing_bytes: commit.missing_bytes,
    });
    Ok(sources.collect())
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

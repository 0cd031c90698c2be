//! A consumer from its start to its end.

use std::sync::Arc;
use std::time::Duration;

use async_nats::Client;
use async_nats::jetstream::{self, stream::Stream};
use jiff::Zoned;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::args::{Config, Partitions};
use super::elastic::ElasticReader;
use super::file_index::FileIndex;
use super::files::Files;
use super::list::ListReader;
use super::liveness::Liveness;
use super::metrics::Metrics;
use super::offsets::OffsetStore;
use super::plain::PlainReader;
use super::receive::{Delivery, Limits, Receiver};
use super::retention::RetentionTask;
use super::status::DirectoryStatus;
use super::target::Rotation;
use super::writer::{Bounds, Parts, RETRY, Writer};
use crate::args::Compression;
use crate::commit::MOST_LEFT;
use crate::error::{Error, ErrorKind, whole};
use crate::tail::checkpoint::Mode;
use crate::{connect, metrics};

/// How long a commit or another answer of the broker may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);
/// Sources whose commits are kept in memory, of some hundred bytes each.
const STATES: usize = 10_000;
const STATUS_EVERY: Duration = Duration::from_secs(2);

struct Consumer {
    config: Config,
    /// For messages.
    client: Client,
    /// For commits, so that they do not queue behind messages.
    commits: jetstream::Context,
    metrics: Arc<Metrics>,
    readers: JoinSet<()>,
    stop: CancellationToken,
    give_up: CancellationToken,
}

/// Writes until `stop`, then what was received until then, within the time to drain.
///
/// # Errors
/// What cannot mend itself: a directory that another consumer has, a stream of others.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), Error> {
    let asked_to_stop = stop.clone();
    match Box::pin(begin(config, stop)).await {
        Err(error) if asked_to_stop.is_cancelled() => {
            warn!("stopped while waiting: {}", whole(&error));
            Ok(())
        }
        ended => ended,
    }
}

async fn begin(config: Config, stop: CancellationToken) -> Result<(), Error> {
    let client = connect::client(&config.broker, "consumer", "shipper-consumer", &stop).await?;
    let mut commits = jetstream::new(
        connect::client(&config.broker, "consumer", "shipper-commits", &stop).await?,
    );
    commits.set_timeout(ANSWER_WITHIN);
    let asked = config.mode.fixed();
    let mode = || match connect::has_jetstream(&client) {
        _ if asked.is_some() => asked.unwrap_or(Mode::Core),
        true => Mode::JetStream,
        false => Mode::Core,
    };
    let directory = config.directory.display().to_string();
    let file_index =
        FileIndex::open(&config.directory, mode).map_err(|error| Error::disk(&directory, error))?;
    if let Some(asked) = asked.filter(|asked| *asked != file_index.mode()) {
        return Err(ErrorKind::Mismatch.with(format!(
            "{directory} was begun in mode {:?}, SHIPPER_MODE says {asked:?}: use another \
             directory",
            file_index.mode()
        )));
    }
    let metrics = Arc::new(Metrics::default());
    let shown = Arc::clone(&metrics);
    metrics::serve(config.metrics, move || shown.page(), stop.clone()).await?;
    let (readers, give_up) = (JoinSet::new(), CancellationToken::new());
    let consumer = Consumer { config, client, commits, metrics, readers, stop, give_up };
    Box::pin(consumer.work(file_index)).await
}

impl Consumer {
    async fn work(mut self, file_index: FileIndex) -> Result<(), Error> {
        let jetstream = file_index.mode() == Mode::JetStream;
        let member = file_index.writer().to_owned();
        let (stream, offset_store) =
            if jetstream { self.open_stream().await? } else { (None, None) };
        let config = &self.config;
        let (receiver, deliveries) = Receiver::new(
            config.prefix.clone(),
            config.output.has_file(),
            Limits {
                window_bytes: config.window_bytes,
                unpacked_bytes: config
                    .unpacked_bytes
                    .max(self.client.server_info().max_payload as u64),
            },
            jetstream,
            Arc::clone(&self.metrics),
        );
        let mut writer = Writer::new(self.parts(file_index, offset_store, stream.clone()));
        writer.recover().await?;
        let liveness = self.start_readers(&receiver, stream, member).await?;
        drop(receiver);
        self.write(writer, deliveries).await;
        if let Some(liveness) = liveness {
            liveness.await.map_err(|error| {
                ErrorKind::Defect.caused("the watch over the members ended early", error)
            })?;
        }
        // Acknowledgements are on their way.
        let flushed = tokio::time::timeout(ANSWER_WITHIN, self.client.flush()).await;
        if !matches!(flushed, Ok(Ok(()))) {
            warn!(
                "the last acknowledgements may not have arrived; the messages are known when they \
                 come again"
            );
        }
        Ok(())
    }

    async fn open_stream(&self) -> Result<(Option<Stream>, Option<OffsetStore>), Error> {
        let Config { stream: plan, cluster, .. } = &self.config;
        let stream = match self.config.stream_target {
            None => Some(
                connect::patiently("the stream", &self.stop, || plan.open(&self.commits)).await?,
            ),
            // Somebody made it, perhaps under another account; where it can be seen, it is asked in
            // doubt.
            Some(_) => self.commits.get_stream(&plan.name).await.ok(),
        };
        let open = || OffsetStore::open(&self.commits, cluster, &plan.name, plan.replicas);
        let offset_store = connect::patiently("the commits", &self.stop, open).await?;
        Ok((stream, Some(offset_store)))
    }

    fn parts(
        &self,
        file_index: FileIndex,
        offset_store: Option<OffsetStore>,
        stream: Option<Stream>,
    ) -> Parts<OffsetStore> {
        let config = &self.config;
        Parts {
            prefix: config.prefix.clone(),
            rotation: Rotation {
                output: config.output.clone(),
                period: config.period,
                bytes: config.rotate_bytes,
            },
            fsync: config.fsync,
            file_index,
            files: Files::new(&config.directory, config.handles),
            offset_store,
            stream,
            retention_task: RetentionTask {
                retention: config.retention,
                compress: config.compression == Compression::Zstd,
                packing: None,
            },
            metrics: Arc::clone(&self.metrics),
            clock: Arc::new(Zoned::now),
            retry: RETRY,
            bounds: Bounds { sources: config.sources, states: STATES, writers: MOST_LEFT },
            give_up: self.give_up.clone(),
        }
    }

    /// Starts reading; gives what keeps the membership, where there is one.
    async fn start_readers(
        &mut self,
        receiver: &Receiver,
        stream: Option<Stream>,
        member: String,
    ) -> Result<Option<tokio::task::JoinHandle<()>>, Error> {
        let stop = self.stop.clone();
        match (self.config.partitions.clone(), stream) {
            (Partitions::Shared, Some(_)) => {
                return self.start_shared(receiver, member).await.map(Some);
            }
            (Partitions::Shared, None) => {
                return Err(ErrorKind::Broker
                    .with("SHIPPER_READ_PARTITIONS=auto needs a broker with JetStream"));
            }
            (Partitions::List(list), stream) => {
                let stream = self.to_read(stream.as_ref()).await?;
                let readers = list.len();
                for partition in list {
                    let subject = match &self.config.stream_target {
                        Some(target) => format!("{target}.p{partition}"),
                        None => self.config.prefix.of_partition(partition),
                    };
                    info!(
                        "Waiting for messages on subject {subject} @ nats://{}",
                        self.config.broker
                    );
                    match &stream {
                        Some(stream) => {
                            let reader = ListReader {
                                client: self.client.clone(),
                                stream: stream.clone(),
                                cluster: self.config.cluster.clone(),
                                partition,
                                filter: subject,
                                readers,
                                receiver: receiver.share(readers),
                            };
                            self.readers.spawn(reader.run(stop.clone()));
                        }
                        _ => {
                            let subscribed = self.client.subscribe(subject).await;
                            let failed = |error| {
                                ErrorKind::Broker
                                    .caused("the partition cannot be subscribed to", error)
                            };
                            let subscription = subscribed.map_err(failed)?;
                            let reader = PlainReader {
                                client: self.client.clone(),
                                subscription,
                                receiver: receiver.share(readers),
                            };
                            self.readers.spawn(reader.run(stop.clone()));
                        }
                    }
                }
            }
        }
        Ok(None)
    }

    /// The stream on the connection for messages, if it is to be read through consumers of ours.
    /// All that readers need is asked for before the first of them reads, since what comes to one
    /// may end the connection on which another's answer would have come.
    async fn to_read(&self, stream: Option<&Stream>) -> Result<Option<Stream>, Error> {
        let Some(stream) = stream.filter(|_| self.config.stream_target.is_none()) else {
            return Ok(None);
        };
        let (context, name) =
            (jetstream::new(self.client.clone()), &stream.cached_info().config.name);
        connect::patiently("the stream", &self.stop, || context.get_stream(name)).await.map(Some)
    }

    async fn start_shared(
        &mut self,
        receiver: &Receiver,
        member: String,
    ) -> Result<tokio::task::JoinHandle<()>, Error> {
        let config = &self.config;
        let reader = ElasticReader {
            context: jetstream::new(self.client.clone()),
            stream: config.stream.name.clone(),
            cluster: config.cluster.clone(),
            member: member.clone(),
            filter: config.prefix.everything(),
            partitions: config.group_partitions,
            receiver: receiver.clone(),
            drain_timeout: config.drain_timeout,
        };
        let group = connect::patiently("the group", &self.stop, || reader.group()).await?;
        let liveness = Liveness {
            context: self.commits.clone(),
            group: group.clone(),
            member,
            timeout: config.member_timeout,
            replicas: config.stream.replicas,
        };
        let stop = self.stop.clone();
        self.readers.spawn(async move { Box::pin(reader.run(group, stop)).await });
        Ok(tokio::spawn(liveness.run(self.stop.clone())))
    }

    /// Writes until all readers have ended; after `stop` not longer than the time to drain.
    async fn write(&mut self, writer: Writer<OffsetStore>, deliveries: mpsc::Receiver<Delivery>) {
        let mut writing = tokio::spawn(async move { Box::pin(writer.run(deliveries)).await });
        let mut status = tokio::time::interval(STATUS_EVERY);
        let drain = self.config.drain_timeout;
        let mut deadline = Box::pin(async {
            self.stop.cancelled().await;
            tokio::time::sleep(drain).await;
        });
        let mut late = false;
        loop {
            tokio::select! {
                ended = &mut writing => {
                    if let Err(error) = ended {
                        warn!(%error, "the writer ended early");
                    }
                    break;
                }
                _ = status.tick() => {
                    let saved = tokio::task::block_in_place(|| {
                        DirectoryStatus::save(&self.metrics, &self.config.directory)
                    });
                    // On a full disk it is the writer who says so.
                    saved.unwrap_or_default();
                }
                () = &mut deadline, if !late => {
                    late = true;
                    warn!("stopped before everything was written; what is missing comes again at \
                           the next start");
                    self.give_up.cancel();
                    self.readers.abort_all();
                }
            }
        }
        drop(deadline);
        self.readers.shutdown().await;
        DirectoryStatus::save(&self.metrics, &self.config.directory).unwrap_or_default();
    }
}

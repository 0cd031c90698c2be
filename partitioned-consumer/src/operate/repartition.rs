//! Changing the number of partitions of an elastic group without breaking the order of any key.
//!
//! A key may move to another partition, so nothing that was copied under the new number may be
//! handled before everything copied under the old one. The steps, each written to a journal before
//! it is taken, so that a run that was cut off is finished by starting it again:
//!
//! 1. all members are dropped, so that nothing is consumed and the last copied message stays
//!    readable;
//! 2. copying stops, and the last copied sequence of the source stream is noted (the *cut*);
//! 3. the members come back and handle what was copied;
//! 4. with the work queue empty, the members are dropped again, the entry gets the new number, and
//!    copying goes on behind the cut with the new transforms;
//! 5. the members come back.
//!
//! Messages published meanwhile wait in the source stream, whose limits therefore have to hold
//! them.

use std::time::Duration;

use async_nats::jetstream::stream;
use tokio::time::{Instant, sleep};

use crate::api;
use crate::error::{Error, ErrorKind};
use crate::group::config::{Document, ElasticConfig};
use crate::group::consumers::consumers;
use crate::group::elastic_group::{
    ElasticGroup, LEAST_DUPLICATE_WINDOW, duplicate_window, refuse_first_generation, work_queue,
};
use crate::group::entry;
use crate::group::kind::GroupKind;
use crate::group::membership::{MemberMapping, Membership};
use crate::group::name::check_member;
use crate::group::partition::MAX_PARTITIONS;
use crate::group::settings::{self, GroupSettings, RepartitionJournal};

/// What a repartition did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repartitioned {
    /// The partitions before.
    pub from: u32,
    /// The partitions now.
    pub to: u32,
    /// The last sequence of the source stream that was handled under the old number.
    pub cut: u64,
}

/// How long the work queue has to be still, with nothing left to copy, before an empty one is
/// believed.
const QUIET: Duration = Duration::from_secs(2);
const POLL_INTERVAL: Duration = Duration::from_millis(50);

impl ElasticGroup {
    /// Changes the number of partitions; gives up when the members have not handled the backlog
    /// within `limit`.
    ///
    /// Members of this library and members written in Go end with a "changed" error when the number
    /// changes, and have to be started again; what is left to them keeps its order.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`], [`ErrorKind::GroupNotFound`], [`ErrorKind::NotAllowed`] for a
    /// group without members, one of the older generation, one that uses mappings (see
    /// [`ElasticGroup::repartition_mapped`]), or a work queue that is empty and whose cut cannot be
    /// proved; [`ErrorKind::Timeout`] when the backlog was not handled in time. Call it again to go
    /// on where it stopped.
    pub async fn repartition(
        &self,
        partitions: u32,
        limit: Duration,
    ) -> Result<Repartitioned, Error> {
        self.repartition_as(partitions, Vec::new(), limit).await
    }

    /// As [`ElasticGroup::repartition`], with mappings for the new partitions. While the rest of
    /// the old ones is handled, their members share those evenly.
    ///
    /// # Errors
    /// As [`ElasticGroup::repartition`]; [`ErrorKind::InvalidConfig`] naming every fault of the
    /// mappings.
    pub async fn repartition_mapped(
        &self,
        partitions: u32,
        mappings: impl IntoIterator<Item = MemberMapping>,
        limit: Duration,
    ) -> Result<Repartitioned, Error> {
        let mappings: Vec<MemberMapping> = mappings.into_iter().collect();
        if mappings.is_empty() {
            return Err(ErrorKind::InvalidConfig.with("no mapping given: expected at least one"));
        }
        mappings.iter().try_for_each(|mapping| check_member(&mapping.member))?;
        self.repartition_as(partitions, mappings, limit).await
    }

    async fn repartition_as(
        &self,
        partitions: u32,
        mappings: Vec<MemberMapping>,
        limit: Duration,
    ) -> Result<Repartitioned, Error> {
        if partitions == 0 || partitions > MAX_PARTITIONS {
            return Err(ErrorKind::InvalidConfig
                .with(format!("partitions {partitions}: expected 1..={MAX_PARTITIONS}")));
        }
        let deadline = Instant::now() + limit;
        let config = self.config().await?;
        refuse_first_generation(&config)?;
        let mut journal = self.begin(partitions, mappings, &config).await?;
        let cut = match journal.cut {
            Some(cut) => cut,
            None => {
                let cut = self.cut(deadline).await?;
                journal.cut = Some(cut);
                self.note(Some(journal.clone())).await?;
                cut
            }
        };
        if config.partitions != journal.partitions {
            self.restore(&journal, config.partitions).await?;
            self.wait_for_empty(deadline).await?;
            self.drop_everybody().await?;
            self.write_partitions(journal.partitions).await?;
        }
        self.copy_again(cut).await?;
        if journal.mappings.is_empty() {
            self.restore(&journal, journal.partitions).await?;
        } else {
            self.set_mappings(journal.mappings.clone()).await?;
        }
        self.note(None).await?;
        Ok(Repartitioned { from: config.partitions, to: journal.partitions, cut })
    }

    async fn begin(
        &self,
        partitions: u32,
        mappings: Vec<MemberMapping>,
        config: &ElasticConfig,
    ) -> Result<RepartitionJournal, Error> {
        if let Some(journal) = self.settings().await?.repartition {
            if journal.partitions != partitions
                || (!mappings.is_empty() && journal.mappings != mappings)
            {
                return Err(ErrorKind::NotAllowed.with(format!(
                    "a change to {} partitions is under way: finish it first, by asking for the \
                     same again",
                    journal.partitions
                )));
            }
            return Ok(journal);
        }
        let members = config.membership.names();
        if members.is_empty() {
            return Err(ErrorKind::NotAllowed
                .with("the group has no members that could handle what was copied already"));
        }
        if mappings.is_empty() && matches!(config.membership, Membership::Mapped(_)) {
            return Err(ErrorKind::NotAllowed.with(format!(
                "the group uses mappings, which do not fit another number of partitions: give \
                 mappings for {partitions}, or delete the mappings and add the members, which \
                 shares them evenly"
            )));
        }
        if !mappings.is_empty() {
            let membership = Membership::Mapped(mappings.clone());
            ElasticConfig { partitions, membership, ..config.clone() }.check()?;
        }
        let journal = RepartitionJournal { partitions, members, mappings, cut: None };
        self.note(Some(journal.clone())).await?;
        Ok(journal)
    }

    async fn note(&self, journal: Option<RepartitionJournal>) -> Result<(), Error> {
        let edit = |settings: &mut GroupSettings| settings.repartition.clone_from(&journal);
        settings::change(&self.context, GroupKind::Elastic, &self.name, edit).await.map(|_| ())
    }

    async fn drop_everybody(&self) -> Result<(), Error> {
        self.change_membership(|_| Ok(Membership::Empty)).await?;
        let deadline = Instant::now() + Duration::from_secs(60);
        while !consumers(&self.context, &self.name.work_queue()).await?.is_empty() {
            if Instant::now() > deadline {
                return Err(ErrorKind::Timeout.with(
                    "a dropped member does not let go of its consumer; is its drain time-out long",
                ));
            }
            sleep(POLL_INTERVAL).await;
        }
        Ok(())
    }

    /// Stops copying, and finds the last sequence that was copied.
    async fn cut(&self, deadline: Instant) -> Result<u64, Error> {
        self.drop_everybody().await?;
        let queue = self.name.work_queue();
        // An empty queue keeps no trace of what was copied last: wait for a message, or for proof
        // that none is missing.
        let mut still_since = Instant::now();
        let source_end = loop {
            let end =
                api::check_stream(&self.context, self.name.stream()).await?.state.last_sequence;
            let info = api::check_stream(&self.context, &queue).await?;
            if info.state.messages > 0 || info.config.sources.is_none() {
                break end;
            }
            if info.sources.iter().any(|s| s.lag > 0) {
                still_since = Instant::now();
            }
            if still_since.elapsed() >= QUIET {
                break end;
            }
            if Instant::now() > deadline {
                return Err(ErrorKind::Timeout.with("the work queue did not come to rest in time"));
            }
            sleep(POLL_INTERVAL).await;
        };
        self.stop_copying().await?;
        let info = api::check_stream(&self.context, &queue).await?;
        if info.state.messages == 0 {
            return Ok(source_end);
        }
        let failed = |error: &dyn std::fmt::Display| {
            ErrorKind::Broker.with(format!("the last copied message could not be read: {error}"))
        };
        let stream =
            self.context.get_stream_no_info(&queue).await.map_err(|error| failed(&error))?;
        let last = stream
            .get_raw_message(info.state.last_sequence)
            .await
            .map_err(|error| failed(&error))?;
        let source = last.headers.get("Nats-Stream-Source").map(|value| value.as_str().to_owned());
        source.and_then(|text| text.split(' ').nth(1)?.parse().ok()).ok_or_else(|| {
            ErrorKind::NotAllowed.with(format!(
                "the last message of stream {queue:?} was not copied from {:?}",
                self.name.stream()
            ))
        })
    }

    pub(crate) async fn stop_copying(&self) -> Result<(), Error> {
        let mut config = api::check_stream(&self.context, &self.name.work_queue()).await?.config;
        config.sources = None;
        // What it remembers is forgotten before it copies on.
        config.duplicate_window = LEAST_DUPLICATE_WINDOW;
        self.update_work_queue(&config).await
    }

    /// Copies from behind `cut` on.
    pub(crate) async fn copy_again(&self, cut: u64) -> Result<(), Error> {
        let source = api::check_stream(&self.context, self.name.stream()).await?.config;
        let mut config = work_queue(&self.name, &source, &self.config().await?);
        config.duplicate_window = duplicate_window(&self.context);
        for source in config.sources.iter_mut().flatten() {
            source.start_sequence = Some(cut + 1);
        }
        self.update_work_queue(&config).await
    }

    async fn update_work_queue(&self, config: &stream::Config) -> Result<(), Error> {
        let updated = api::request::<_, stream::Info>(
            &self.context,
            format!("STREAM.UPDATE.{}", config.name),
            config,
        )
        .await;
        updated
            .map(|_| ())
            .map_err(|error| error.into_error("the work-queue stream could not be changed"))
    }

    /// Brings the members back, with even shares.
    async fn restore(&self, journal: &RepartitionJournal, partitions: u32) -> Result<(), Error> {
        let seats = journal.members.iter().take(partitions as usize).cloned();
        let members = Membership::balanced(seats);
        self.change_membership(|_| Ok(members.clone())).await.map(|_| ())
    }

    async fn wait_for_empty(&self, deadline: Instant) -> Result<(), Error> {
        loop {
            let left =
                api::check_stream(&self.context, &self.name.work_queue()).await?.state.messages;
            if left == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ErrorKind::Timeout.with(format!(
                    "{left} messages copied under the old number are not handled yet: check the \
                     members, and call again"
                )));
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    async fn write_partitions(&self, partitions: u32) -> Result<(), Error> {
        let written = entry::rewrite(&self.context, GroupKind::Elastic, &self.name, |json| {
            let mut document = Document::parse(json)?;
            document.set_partitions(partitions);
            let json = document.to_json();
            ElasticConfig::from_json(&json)?;
            Ok(Some((json, ())))
        });
        written.await.map(|_| ())
    }
}

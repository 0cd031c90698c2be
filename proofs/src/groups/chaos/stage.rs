//! The group under chaos, of either kind.

use anyhow::Result;
use async_nats::jetstream::{self, consumer, stream};
use futures_util::TryStreamExt;
use natsway_partitioned_consumer::{
    ElasticConfig, ElasticGroup, Error, Group, GroupKind, Membership, StaticConfig, StaticGroup,
};

use super::{GROUP, MEMBERS, PARTITIONS, STREAM};

/// See the module.
pub(super) enum Stage {
    Elastic(ElasticGroup),
    Static(StaticGroup),
}

impl Stage {
    /// Makes the stream and the group, with every member in it.
    pub(super) async fn set(
        context: &jetstream::Context,
        kind: GroupKind,
        replicas: usize,
    ) -> Result<Self> {
        let mut config = stream::Config {
            name: STREAM.into(),
            subjects: vec!["orders.*".into()],
            num_replicas: replicas,
            ..Default::default()
        };
        if kind == GroupKind::Static {
            config.subject_transform = Some(stream::SubjectTransform {
                source: "orders.*".into(),
                destination: format!(
                    "{{{{partition({PARTITIONS},1)}}}}.orders.{{{{wildcard(1)}}}}"
                ),
            });
        }
        context.create_stream(config).await?;
        Ok(match kind {
            GroupKind::Static => {
                let group = StaticGroup::new(context.clone(), STREAM, GROUP)?;
                group.create(&StaticConfig::new(PARTITIONS, Membership::balanced(MEMBERS))).await?;
                Self::Static(group)
            }
            GroupKind::Elastic => {
                let group = ElasticGroup::new(context.clone(), STREAM, GROUP)?;
                group.create(&ElasticConfig::new(PARTITIONS).filter("orders.*", [1])).await?;
                group.add_members(MEMBERS).await?;
                Self::Elastic(group)
            }
        })
    }

    pub(super) async fn step_down(&self, member: &str) -> Result<(), Error> {
        let group: &Group = match self {
            Self::Elastic(group) => group,
            Self::Static(group) => group,
        };
        group.step_down(member).await
    }

    fn consumed(&self) -> String {
        match self {
            Self::Elastic(group) => group.name().work_queue(),
            Self::Static(_) => STREAM.into(),
        }
    }

    /// The stream that members consume.
    pub(super) async fn stream(&self, context: &jetstream::Context) -> Result<stream::Stream> {
        Ok(context.get_stream(self.consumed()).await?)
    }

    /// Where each consumer stands.
    pub(super) async fn consumers(
        &self,
        context: &jetstream::Context,
    ) -> Result<Vec<consumer::Info>> {
        let stream = self.stream(context).await?;
        Ok(stream.consumers().try_collect().await?)
    }

    /// Messages that are not handled and acknowledged yet.
    pub(super) async fn left_over(&self, context: &jetstream::Context) -> Result<u64> {
        match self {
            Self::Elastic(_) => {
                let info = self.stream(context).await?.get_info().await?;
                Ok(info.state.messages + info.sources.iter().map(|source| source.lag).sum::<u64>())
            }
            Self::Static(_) => {
                let consumers = self.consumers(context).await?;
                Ok(consumers.iter().map(|c| c.num_pending + c.num_ack_pending as u64).sum())
            }
        }
    }
}

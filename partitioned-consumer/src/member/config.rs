//! What a member is and how it works, as its builder was told.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, pull};

use crate::group::kind::GroupKind;
use crate::group::name::GroupName;
use crate::group::partition::split_partition;
use crate::group::settings::DeadLetter;
use crate::order::FlowConfig;

/// What runs one at a time and in order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OrderBy {
    /// Messages of one partition: safe for every key.
    #[default]
    Partition,
    /// Messages of one subject: more in parallel, where the whole subject is the key.
    Subject,
    /// All messages of the member.
    Stream,
}

/// What the member is and how it works; checked by the builder.
#[derive(Clone)]
pub(crate) struct MemberConfig {
    pub(crate) kind: GroupKind,
    pub(crate) name: GroupName,
    pub(crate) member: String,
    pub(crate) api_prefix: String,
    pub(crate) template: pull::Config,
    pub(crate) buffer: usize,
    pub(crate) concurrency: usize,
    pub(crate) order_by: OrderBy,
    pub(crate) drain_timeout: Duration,
    pub(crate) dead_letter: Option<DeadLetter>,
    /// The dead letters are the builder's; otherwise they follow the group's settings.
    pub(crate) own_dead_letter: bool,
}

impl MemberConfig {
    /// The flow's settings until a consumer exists, which decides most of them.
    pub(crate) fn flow(&self) -> FlowConfig {
        let acks = self.template.ack_policy != AckPolicy::None;
        FlowConfig {
            pinned_ttl: Duration::from_secs(5),
            redelivery_after: Duration::from_secs(5),
            max_ack_pending: None,
            buffer: self.buffer,
            concurrency: self.concurrency,
            acks,
            dead_letter_after: self
                .dead_letter
                .as_ref()
                .filter(|_| acks)
                .map(|d| d.after_deliveries),
        }
    }
}

impl OrderBy {
    /// The queue of a subject.
    pub(super) fn queue(self, subject: &str) -> u64 {
        let (partition, rest) = split_partition(subject);
        match self {
            Self::Partition => partition.map_or(u64::MAX, u64::from),
            Self::Subject => fnv64(rest),
            Self::Stream => 0,
        }
    }
}

/// Which queue a subject gets; two that share one only wait for each other.
fn fnv64(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

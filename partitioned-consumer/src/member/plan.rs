//! The consumer that a member needs: the caller's configuration as the template, and what the group
//! decides over it.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PriorityPolicy, pull};

use crate::error::{Error, ErrorKind};
use crate::group::config::Generation;
use crate::group::kind::GroupKind;
use crate::group::name::GroupName;

/// The priority group under which instances of one member are pinned.
const PRIORITY_GROUP: &str = "PCG";
const DEFAULT_ACK_WAIT: Duration = Duration::from_secs(5);
const MIN_PINNED_TTL: Duration = Duration::from_secs(1);
const FIRST_GENERATION_MIN_ACK_WAIT: Duration = Duration::from_secs(6);

/// A member's consumer, settings that every instance of the member must agree on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ConsumerPlan {
    pub(crate) stream: String,
    pub(crate) consumer: String,
    pub(crate) priority_group: String,
    pub(crate) config: pull::Config,
}

impl ConsumerPlan {
    /// Fills the template in for a member.
    pub(crate) fn new(
        kind: GroupKind,
        generation: Generation,
        name: &GroupName,
        member: &str,
        template: &pull::Config,
        filter_subjects: Vec<String>,
    ) -> Result<Self, Error> {
        if kind == GroupKind::Elastic && template.ack_policy != AckPolicy::Explicit {
            return Err(ErrorKind::InvalidConfig.with(
                "ack_policy: expected explicit, since a work-queue stream removes what is \
                 acknowledged",
            ));
        }
        let consumer = kind.consumer(name, member);
        let priority_group = match generation {
            Generation::First => member.to_owned(),
            Generation::Current => PRIORITY_GROUP.to_owned(),
        };
        let mut config = template.clone();
        config.ack_wait = ack_wait(generation, template.ack_wait);
        config.priority_timeout = match generation {
            Generation::First => config.ack_wait,
            Generation::Current => config.ack_wait.max(MIN_PINNED_TTL),
        };
        config.filter_subject = String::new();
        config.filter_subjects = filter_subjects;
        config.priority_groups = vec![priority_group.clone()];
        config.priority_policy = PriorityPolicy::PinnedClient;
        match (kind, generation) {
            (GroupKind::Static, _) => config.durable_name = Some(consumer.clone()),
            (GroupKind::Elastic, generation) => {
                config.durable_name = None;
                config.name = Some(consumer.clone());
                config.inactive_threshold =
                    match (generation, template.inactive_threshold.is_zero()) {
                        (Generation::Current, _) => config.ack_wait,
                        (Generation::First, true) => FIRST_GENERATION_MIN_ACK_WAIT,
                        (Generation::First, false) => template.inactive_threshold,
                    };
            }
        }
        Ok(Self { stream: kind.consumed_stream(name), consumer, priority_group, config })
    }

    /// The shortest time after which the server may hand an unacknowledged message to somebody
    /// else.
    pub(crate) fn redelivery_after(&self) -> Duration {
        let backoff = self.config.backoff.iter().copied().filter(|b| !b.is_zero());
        backoff.chain([self.config.ack_wait]).min().unwrap_or(self.config.ack_wait)
    }
}

/// The longest that an instance may believe in its pin after the broker has given it up.
pub(crate) fn longest_lease(template: &pull::Config) -> Duration {
    ack_wait(Generation::Current, template.ack_wait).max(MIN_PINNED_TTL)
}

fn ack_wait(generation: Generation, wanted: Duration) -> Duration {
    match generation {
        Generation::First => wanted.max(FIRST_GENERATION_MIN_ACK_WAIT),
        Generation::Current if wanted.is_zero() => DEFAULT_ACK_WAIT,
        Generation::Current => wanted,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(kind: GroupKind, template: pull::Config) -> Result<ConsumerPlan, Error> {
        let name = GroupName::new("S", "g").unwrap();
        ConsumerPlan::new(kind, Generation::Current, &name, "m1", &template, vec!["0.>".into()])
    }

    #[test]
    fn the_group_decides_names_pinning_and_time_outs() {
        let template = pull::Config {
            max_ack_pending: 7,
            ack_wait: Duration::from_millis(400),
            ..Default::default()
        };
        let elastic = plan(GroupKind::Elastic, template.clone()).unwrap();
        assert_eq!((elastic.stream.as_str(), elastic.consumer.as_str()), ("S-g", "m1"));
        assert_eq!(elastic.config.name.as_deref(), Some("m1"));
        assert_eq!(elastic.config.durable_name, None);
        assert_eq!(elastic.config.inactive_threshold, Duration::from_millis(400));
        assert_eq!(elastic.config.priority_timeout, Duration::from_secs(1));
        assert_eq!(elastic.config.priority_groups, ["PCG"]);
        assert_eq!(elastic.config.max_ack_pending, 7);
        let fixed = plan(GroupKind::Static, template).unwrap();
        assert_eq!(fixed.config.durable_name.as_deref(), Some("g-m1"));
        assert_eq!(fixed.stream, "S");
    }

    #[test]
    fn a_missing_ack_wait_is_five_seconds() {
        let plan = plan(GroupKind::Static, pull::Config::default()).unwrap();
        assert_eq!(plan.config.ack_wait, Duration::from_secs(5));
        assert_eq!(plan.config.priority_timeout, Duration::from_secs(5));
    }

    #[test]
    fn elastic_groups_need_explicit_acks() {
        let template = pull::Config { ack_policy: AckPolicy::None, ..Default::default() };
        assert_eq!(
            plan(GroupKind::Elastic, template.clone()).unwrap_err().kind(),
            ErrorKind::InvalidConfig
        );
        assert!(plan(GroupKind::Static, template).is_ok());
    }
}

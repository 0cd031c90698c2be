//! The start of a member: what is better said to the caller than found out later, and then
//! everything that runs.

use std::sync::Arc;

use async_nats::jetstream;
use async_nats::jetstream::consumer::AckPolicy;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::assignment::{Assignment, GroupConfig};
use super::config::{MemberConfig, OrderBy};
use super::consumer_lock;
use super::engine::{Channels, Engine};
use super::event::{MemberEvents, MemberState};
use super::handle::MemberHandle;
use super::plan::ConsumerPlan;
use super::watch::follow;
use super::work::Work;
use crate::api;
use crate::error::{Error, ErrorKind};
use crate::group::dead_letter;
use crate::group::handle::Group;
use crate::group::name::check_member;
use crate::group::settings::{self, DeadLetter};
use crate::group::source_loss::SourceLoss;

/// Checks what can be checked, and starts the member.
pub(super) async fn start(
    context: jetstream::Context,
    mut config: MemberConfig,
) -> Result<(MemberHandle, Arc<Work>), Error> {
    check_member(&config.member)?;
    if config.template.ack_policy == AckPolicy::All {
        // An acknowledgement covers everything before it, so nothing may overtake.
        config.order_by = OrderBy::Stream;
        config.concurrency = 1;
    }
    let group = GroupConfig::read(&context, config.kind, &config.name).await?;
    check(&context, &config, &group).await?;
    config.own_dead_letter = config.dead_letter.is_some();
    match &config.dead_letter {
        Some(DeadLetter { subject, .. }) => {
            let group = Group {
                context: context.clone(),
                api_prefix: config.api_prefix.clone(),
                kind: config.kind,
                name: config.name.clone(),
            };
            dead_letter::check_own(&group, subject).await?;
        }
        None => {
            let shared = settings::read(&context, config.kind, &config.name).await?;
            config.dead_letter = shared.dead_letter();
        }
    }
    Ok(spawn(context, config, group))
}

/// Refuses what could never work.
async fn check(
    context: &jetstream::Context,
    config: &MemberConfig,
    group: &GroupConfig,
) -> Result<(), Error> {
    let MemberConfig { kind, name, member, template, .. } = config;
    api::check_stream(context, &kind.consumed_stream(name)).await?;
    match group {
        GroupConfig::Elastic(group) => {
            ConsumerPlan::new(*kind, group.generation, name, member, template, Vec::new())
                .map(|_| ())
        }
        GroupConfig::Static(group) => {
            if !group.membership.contains(member) {
                return Err(
                    ErrorKind::NotAMember.with(format!("{member:?} is not a member of {name}"))
                );
            }
            let filters = group.partition_filters(member);
            if filters.is_empty() {
                return Ok(());
            }
            let plan = ConsumerPlan::new(*kind, group.generation, name, member, template, filters)?;
            match consumer_lock::create(context, &plan).await {
                Ok(_) => Ok(()),
                Err(error) if error.code() == Some(api::code::CONSUMER_EXISTS) => {
                    Err(ErrorKind::ConsumerMismatch.with(format!(
                        "consumer {:?} exists with other settings: every instance of {member:?} \
                         has to give the same",
                        plan.consumer
                    )))
                }
                Err(error) => Err(error.into_error("the consumer could not be created")),
            }
        }
    }
}

/// Starts the engine, and what tells it of changes of the group's entry and settings.
fn spawn(
    context: jetstream::Context,
    config: MemberConfig,
    group: GroupConfig,
) -> (MemberHandle, Arc<Work>) {
    // One value each is on its way at most; the followers wait while the engine is busy.
    let (entry_sender, entry) = mpsc::channel(4);
    let (settings_sender, settings) = mpsc::channel(4);
    let kind = group.kind();
    tokio::spawn(follow(context.clone(), kind.bucket(), config.name.key(), entry_sender));
    let shared = settings::key(kind, &config.name);
    tokio::spawn(follow(context.clone(), settings::BUCKET, shared, settings_sender));
    let events = MemberEvents::new(&config.name, &config.member);
    let (state_sender, state) = watch::channel(MemberState::Waiting);
    let (loss_sender, source_loss) = watch::channel(SourceLoss::default());
    let stop = CancellationToken::new();
    let work = Work::new(context.client(), config.flow());
    let channels = Channels {
        work: Arc::clone(&work),
        entry,
        settings,
        state: state_sender,
        events: events.clone(),
        source_loss: loss_sender,
        stop: stop.clone(),
    };
    let assignment = Assignment { group, member: config.member.clone() };
    let engine = Engine::new(config, context, assignment, channels);
    let task = Some(tokio::spawn(engine.run()));
    (MemberHandle { events, state, source_loss, stop, task }, work)
}

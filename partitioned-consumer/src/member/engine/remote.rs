//! What the engine asks the broker; each question runs beside the engine and comes back as an
//! [`Answer`].

use std::time::Duration;

use async_nats::{Client, Subject, jetstream};
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::timeout;

use super::super::consumer_lock;
use super::super::event::MemberEvent;
use super::super::lifecycle::{self, CreateFault, Existing};
use super::super::plan::ConsumerPlan;
use super::Engine;
use super::answer::{Answer, Compared};
use crate::api::{self, ApiError, code};
use crate::error::Error;
use crate::group::source_loss;
use crate::order::{self as flow, Position};

impl Engine {
    pub(super) fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Life(event) => self.life_step(event),
            Answer::Created { filters, made_at } => {
                self.made_at = Some(made_at);
                self.life_step(lifecycle::Event::Created(filters));
            }
            Answer::Position(position) => self.flow_step(flow::Event::Position(position)),
            Answer::DeadLettered(event) => self.channels.events.publish(event),
            Answer::Compared(found) => {
                self.comparing = false;
                if let Some(found) = found {
                    self.compared(found);
                }
            }
            Answer::Nothing => {}
        }
    }

    /// Compares the source stream with what was copied, and brings the group's account up to date.
    pub(super) fn compare_with_source(&mut self) {
        self.comparing = true;
        let (context, name, sample) = (self.context.clone(), self.config.name.clone(), self.copied);
        self.answers.push(
            async move {
                let compared = async {
                    let Some(observation) = source_loss::observe(&context, &name, sample).await?
                    else {
                        return Ok(None);
                    };
                    let account = source_loss::update(&context, &name, &observation).await?;
                    let keeps_too_few = account.keeps_too_few(&observation);
                    Ok::<_, Error>(Some(Compared { loss: account.loss(), keeps_too_few }))
                };
                Answer::Compared(compared.await.unwrap_or_else(|error| {
                    // A member without the permissions goes on without; who has them tells.
                    tracing::debug!(%error, "the source stream was not compared with what was \
                                             copied");
                    None
                }))
            }
            .boxed(),
        );
    }

    fn compared(&mut self, Compared { loss, keeps_too_few }: Compared) {
        let before = self.channels.source_loss.send_replace(loss);
        if loss.messages > before.messages {
            self.channels.events.publish(MemberEvent::SourceDropped(loss));
        }
        if keeps_too_few.is_some() && self.kept_logged != keeps_too_few {
            let (group, lag_messages) = (&self.config.name, loss.largest_lag_messages);
            tracing::warn!(
                %group, lag_messages, kept_messages = keeps_too_few,
                "the source stream keeps less than the group was behind with copying: the next \
                 such lag loses messages"
            );
        }
        self.kept_logged = keeps_too_few;
    }

    fn plan_for(&self, filters: &[String]) -> Result<ConsumerPlan, Error> {
        let Self { config: c, generation, .. } = self;
        ConsumerPlan::new(c.kind, *generation, &c.name, &c.member, &c.template, filters.to_vec())
    }

    pub(super) fn create(&mut self, filters: Vec<String>) {
        let plan = match self.plan_for(&filters) {
            Ok(plan) => plan,
            Err(error) => return self.life_step(lifecycle::Event::Broken(error)),
        };
        self.work.configure(|config| {
            config.pinned_ttl = plan.config.priority_timeout;
            config.redelivery_after = plan.redelivery_after();
            config.max_ack_pending = match plan.config.max_ack_pending {
                // The broker's default.
                0 => Some(1000),
                limit => usize::try_from(limit).ok(),
            };
        });
        self.plan = Some(plan.clone());
        let (context, kind, name) =
            (self.context.clone(), self.config.kind, self.config.name.clone());
        self.answers.push(
            async move {
                let event = match consumer_lock::create(&context, &plan).await {
                    Ok(info) => return Answer::Created { filters, made_at: info.created },
                    Err(error) => match error.code() {
                        Some(code::FILTER_OVERLAPS) => {
                            lifecycle::Event::CreateFailed(CreateFault::Overlaps)
                        }
                        Some(code::CONSUMER_EXISTS) => {
                            lifecycle::Event::CreateFailed(CreateFault::Differs)
                        }
                        Some(code::STREAM_NOT_FOUND)
                            if entry_is_gone(&context, kind.bucket(), &name.key()).await =>
                        {
                            lifecycle::Event::GroupDeleted
                        }
                        Some(code::STREAM_NOT_FOUND) => {
                            lifecycle::Event::CreateFailed(CreateFault::NoStream)
                        }
                        _ => lifecycle::Event::CreateFailed(CreateFault::Other(
                            error.into_error("the consumer could not be created"),
                        )),
                    },
                };
                Answer::Life(event)
            }
            .boxed(),
        );
    }

    /// Asks about the consumer of our name: is somebody at work with it?
    pub(super) fn inspect(&mut self, filters: Vec<String>) {
        let Some(plan) = self.plan.clone() else {
            return self.life_step(lifecycle::Event::Inspected(Existing::Absent));
        };
        let context = self.context.clone();
        self.answers.push(
            async move {
                let existing = match api::consumer_info(&context, &plan.stream, &plan.consumer)
                    .await
                {
                    Ok(info) if api::pinned(&info, &plan.priority_group).is_some() => {
                        Existing::Pinned { same_filters: info.config.filter_subjects == filters }
                    }
                    Ok(info) => Existing::Unpinned { in_flight: info.num_ack_pending > 0 },
                    Err(error) if error.code() == Some(code::CONSUMER_NOT_FOUND) => {
                        Existing::Absent
                    }
                    Err(_) => Existing::Unknown,
                };
                Answer::Life(lifecycle::Event::Inspected(existing))
            }
            .boxed(),
        );
    }

    /// Deletes our consumer, after the broker has taken every acknowledgement.
    pub(super) fn delete(&mut self) {
        let Some(plan) = self.plan.clone() else {
            return self.life_step(lifecycle::Event::Deleted { by_us: false });
        };
        let (context, client, reply) =
            (self.context.clone(), self.client.clone(), self.work.any_reply());
        self.answers.push(
            async move {
                if let Some(reply) = reply {
                    barrier(&client, reply).await;
                }
                let by_us = consumer_lock::delete(&context, &plan).await.unwrap_or_else(|error| {
                    tracing::debug!(?error, "the consumer was not deleted; creating it will tell");
                    false
                });
                Answer::Life(lifecycle::Event::Deleted { by_us })
            }
            .boxed(),
        );
    }

    pub(super) fn ask_position(&mut self, question: u64) {
        let Some(plan) = self.plan.clone() else { return };
        let (context, made_at) = (self.context.clone(), self.made_at);
        self.answers.push(
            async move {
                match api::consumer_info(&context, &plan.stream, &plan.consumer).await {
                    // Ours was deleted, and another has its name: our pulls reach nobody.
                    Ok(info) if made_at.is_some_and(|at| at != info.created) => {
                        Answer::Life(lifecycle::Event::ConsumerGone)
                    }
                    Ok(info) => {
                        Answer::Position(position_of(question, &info, &plan.priority_group))
                    }
                    Err(error) => gone_or_nothing(&error),
                }
            }
            .boxed(),
        );
    }

    /// A pull reached nobody, or was told that the consumer `was_deleted`: find out, and whether
    /// the whole group went with it.
    pub(super) fn ask_whether_gone(&mut self, was_deleted: bool) {
        let Some(plan) = self.plan.clone() else { return };
        let made_at = self.made_at.filter(|_| !was_deleted);
        let (context, kind, name) =
            (self.context.clone(), self.config.kind, self.config.name.clone());
        self.answers.push(
            async move {
                let answer = match api::consumer_info(&context, &plan.stream, &plan.consumer).await
                {
                    // A pull reaches nobody while a cluster has no leader for the consumer, and
                    // before its servers have told each other where a new one is.
                    Ok(info) if made_at.is_some_and(|at| at == info.created) => {
                        return Answer::Nothing;
                    }
                    // It is back already, made by another instance: our pulls are gone all the
                    // same.
                    Ok(_) => Answer::Life(lifecycle::Event::ConsumerGone),
                    Err(error) => gone_or_nothing(&error),
                };
                if matches!(answer, Answer::Life(_))
                    && entry_is_gone(&context, kind.bucket(), &name.key()).await
                {
                    return Answer::Life(lifecycle::Event::GroupDeleted);
                }
                answer
            }
            .boxed(),
        );
    }

    /// Returns when the broker has processed every acknowledgement sent before.
    pub(super) async fn barrier(&mut self) {
        if let Some(reply) = self.work.any_reply() {
            barrier(&self.client, reply).await;
        }
    }

    /// Gives the pin up, so that a standby goes on at once.
    pub(super) async fn unpin(&mut self) {
        let Some(plan) = &self.plan else { return };
        let asked = api::unpin(&self.context, &plan.stream, &plan.consumer, &plan.priority_group);
        if !matches!(timeout(Duration::from_secs(2), asked).await, Ok(Ok(()))) {
            tracing::debug!("the pin was not given up; it will lapse");
        }
    }
}

/// Waits until the broker has processed every acknowledgement sent before: they are taken in order,
/// and one that asks for a reply gets it when its turn has come.
async fn barrier(client: &Client, reply: Subject) {
    let asked = client.request(reply, Bytes::from_static(b"+WPI"));
    if !matches!(timeout(Duration::from_secs(1), asked).await, Ok(Ok(_))) {
        tracing::debug!(
            "no word about earlier acknowledgements; some messages may be delivered again"
        );
    }
}

fn gone_or_nothing(error: &ApiError) -> Answer {
    match error.code() {
        Some(code::CONSUMER_NOT_FOUND | code::STREAM_NOT_FOUND) => {
            Answer::Life(lifecycle::Event::ConsumerGone)
        }
        _ => Answer::Nothing,
    }
}

/// Whether the group's entry was deleted; when in doubt, no.
async fn entry_is_gone(context: &jetstream::Context, bucket: &str, key: &str) -> bool {
    match context.get_key_value(bucket).await {
        Ok(store) => matches!(store.get(key).await, Ok(None)),
        Err(_) => false,
    }
}

fn position_of(question: u64, info: &jetstream::consumer::Info, group: &str) -> Position {
    Position {
        question,
        delivered_stream_seq: info.delivered.stream_sequence,
        delivered_consumer_seq: info.delivered.consumer_sequence,
        ack_floor_stream_seq: info.ack_floor.stream_sequence,
        ack_pending: info.num_ack_pending,
        pinned: api::pinned(info, group),
    }
}

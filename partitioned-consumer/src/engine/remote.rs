//! What the engine asks the broker; each question runs beside the engine and comes back as an [`Answer`].

use std::sync::Arc;
use std::time::Duration;

use async_nats::datetime::DateTime;
use async_nats::jetstream;
use async_nats::{Client, HeaderMap, Subject};
use bytes::Bytes;
use futures_util::FutureExt;
use tokio::time::timeout;

use super::{Assign, Engine};
use crate::api::{self, ApiError, code};
use crate::consume::Notice;
use crate::copied::{self, SourceLoss};
use crate::error::Error;
use crate::flow::{self, Position, Run};
use crate::lifecycle::{self, CreateFault, Existing};
use crate::maker;
use crate::message::{Received, split_partition};
use crate::plan::ConsumerPlan;

/// What a question came to.
pub(super) enum Answer {
    Life(lifecycle::Event),
    /// The consumer exists; when it was made tells it from a later one of its name.
    Created {
        filters: Vec<String>,
        made_at: DateTime,
    },
    Position(Position),
    /// The question failed and will be asked again in time.
    Nothing,
    Buried(Notice),
    /// What a look at the source stream found, when it could be had.
    Compared(Option<Compared>),
}

/// What a look at the source stream found.
pub(super) struct Compared {
    loss: SourceLoss,
    /// How many messages the source keeps, when that is fewer than the group was behind.
    keeps_too_few: Option<u64>,
}

impl<A: Assign> Engine<A> {
    pub(super) fn answered(&mut self, answer: Answer) {
        match answer {
            Answer::Life(event) => self.life_step(event),
            Answer::Created { filters, made_at } => {
                self.made_at = Some(made_at);
                self.life_step(lifecycle::Event::Created(filters));
            }
            Answer::Position(position) => self.flow_step(flow::Event::Position(position)),
            Answer::Buried(notice) => self.channels.notices.tell(notice),
            Answer::Compared(found) => {
                self.looking = false;
                if let Some(found) = found {
                    self.compared(found);
                }
            }
            Answer::Nothing => {}
        }
    }

    /// Compares the source stream with what was copied, and brings the group's account up to date.
    pub(super) fn look_at_source(&mut self) {
        self.looking = true;
        let (context, name, sample) = (self.context.clone(), self.settings.name.clone(), self.copied);
        self.answers.push(
            async move {
                let compared = async {
                    let Some(look) = copied::look(&context, &name, sample).await? else { return Ok(None) };
                    let account = copied::update(&context, &name, &look).await?;
                    let keeps_too_few = account.keeps_too_few(&look);
                    Ok::<_, Error>(Some(Compared { loss: account.loss(), keeps_too_few }))
                };
                Answer::Compared(compared.await.unwrap_or_else(|error| {
                    // A member without the permissions goes on without; who has them tells.
                    tracing::debug!(%error, "the source stream was not compared with what was copied");
                    None
                }))
            }
            .boxed(),
        );
    }

    fn compared(&mut self, Compared { loss, keeps_too_few }: Compared) {
        let before = self.channels.source_loss.send_replace(loss);
        if loss.messages > before.messages {
            self.channels.notices.tell(Notice::SourceDropped(loss));
        }
        if keeps_too_few.is_some() && self.kept_told != keeps_too_few {
            let (group, lag_messages) = (&self.settings.name, loss.largest_lag_messages);
            tracing::warn!(
                %group, lag_messages, kept_messages = keeps_too_few,
                "the source stream keeps less than the group was behind with copying: the next such lag loses messages"
            );
        }
        self.kept_told = keeps_too_few;
    }

    fn plan_for(&self, filters: &[String]) -> Result<ConsumerPlan, Error> {
        let Self { settings: s, generation, .. } = self;
        ConsumerPlan::new(s.kind, *generation, &s.name, &s.member, &s.template, filters.to_vec())
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
        let (context, kind, name) = (self.context.clone(), self.settings.kind, self.settings.name.clone());
        self.answers.push(
            async move {
                let event = match maker::create(&context, &plan).await {
                    Ok(info) => return Answer::Created { filters, made_at: info.created },
                    Err(error) => match error.code() {
                        Some(code::FILTER_OVERLAPS) => lifecycle::Event::CreateFailed(CreateFault::Overlaps),
                        Some(code::CONSUMER_EXISTS) => lifecycle::Event::CreateFailed(CreateFault::Differs),
                        Some(code::STREAM_NOT_FOUND)
                            if entry_is_gone(&context, kind.bucket(), &name.key()).await =>
                        {
                            lifecycle::Event::GroupDeleted
                        }
                        Some(code::STREAM_NOT_FOUND) => lifecycle::Event::CreateFailed(CreateFault::NoStream),
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

    /// Looks at the consumer of our name: is somebody at work with it?
    pub(super) fn inspect(&mut self, filters: Vec<String>) {
        let Some(plan) = self.plan.clone() else {
            return self.life_step(lifecycle::Event::Inspected(Existing::Absent));
        };
        let context = self.context.clone();
        self.answers.push(
            async move {
                let existing = match api::consumer_info(&context, &plan.stream, &plan.consumer).await {
                    Ok(info) if api::pinned(&info, &plan.priority_group).is_some() => {
                        Existing::Pinned { same_filters: info.config.filter_subjects == filters }
                    }
                    Ok(info) => Existing::Unpinned { in_flight: info.num_ack_pending > 0 },
                    Err(error) if error.code() == Some(code::CONSUMER_NOT_FOUND) => Existing::Absent,
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
        let (context, client, reply) = (self.context.clone(), self.client.clone(), self.work.any_reply());
        self.answers.push(
            async move {
                if let Some(reply) = reply {
                    barrier(&client, reply).await;
                }
                let by_us = maker::delete(&context, &plan).await.unwrap_or_else(|error| {
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
                    Ok(info) => Answer::Position(Self::position_of(question, &info, &plan.priority_group)),
                    Err(error) => gone_or_nothing(&error),
                }
            }
            .boxed(),
        );
    }

    /// A pull was told that there is no such consumer: find out, and whether the whole group went with it.
    pub(super) fn ask_whether_gone(&mut self) {
        let Some(plan) = self.plan.clone() else { return };
        let (context, kind, name) = (self.context.clone(), self.settings.kind, self.settings.name.clone());
        self.answers.push(
            async move {
                let answer = match api::consumer_info(&context, &plan.stream, &plan.consumer).await {
                    // It is back already, made by another instance: our pulls are gone all the same.
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

    /// Moves a poison message to the dead letters; only then is it given up.
    pub(super) fn bury(&mut self, run: Run<Box<Received>>) {
        let ticket = self.work.burial(&run);
        // Without a place to bury it any more, the end of the run has it delivered again.
        let Some(dead_letter) = self.settings.dead_letter.clone() else { return };
        let content = run.content;
        let (context, settings) = (self.context.clone(), self.settings.clone());
        self.answers.push(
            async move {
                let sequence = content.meta.stream_seq;
                let (partition, subject) = split_partition(&content.subject);
                let mut headers = own_headers(content.headers.as_ref());
                note(
                    &mut headers,
                    "Natsway-Dead-Letter-Stream",
                    &settings.kind.consumed_stream(&settings.name),
                );
                note(&mut headers, "Natsway-Dead-Letter-Sequence", &sequence.to_string());
                note(&mut headers, "Natsway-Dead-Letter-Subject", subject);
                note(
                    &mut headers,
                    "Natsway-Dead-Letter-Partition",
                    &partition.map_or(String::new(), |p| p.to_string()),
                );
                note(&mut headers, "Natsway-Dead-Letter-Group", &settings.name.to_string());
                note(&mut headers, "Natsway-Dead-Letter-Member", &settings.member);
                note(
                    &mut headers,
                    "Natsway-Dead-Letter-Deliveries",
                    &(content.meta.deliveries - 1).to_string(),
                );
                // A second burial, after a lost acknowledgement, is recognised by the stream.
                note(
                    &mut headers,
                    "Nats-Msg-Id",
                    &format!("{}-{}-{sequence}", settings.kind.as_str(), settings.name),
                );
                let sent =
                    context.publish_with_headers(dead_letter.subject.clone(), headers, content.payload).await;
                let stored = match sent {
                    Ok(ack) => ack.await.map(|_| ()),
                    Err(error) => Err(error),
                };
                let settled = match &stored {
                    Ok(()) => ticket.term(Some("moved to the dead letters")).await,
                    Err(_) => ticket.nak(Some(Duration::from_secs(1))).await,
                };
                if let Err(error) = settled {
                    tracing::debug!(%error, "a dead letter was not settled");
                }
                Answer::Buried(match stored {
                    Ok(()) => Notice::DeadLettered { stream_sequence: sequence },
                    Err(error) => Notice::Retrying(Arc::new(crate::error::ErrorKind::Broker.caused(
                        format!(
                            "the dead letter could not be stored; give {:?} a stream",
                            dead_letter.subject
                        ),
                        error,
                    ))),
                })
            }
            .boxed(),
        );
    }

    pub(super) async fn unpin(&mut self) {
        let Some(plan) = &self.plan else { return };
        let asked = api::unpin(&self.context, &plan.stream, &plan.consumer, &plan.priority_group);
        if !matches!(timeout(Duration::from_secs(2), asked).await, Ok(Ok(()))) {
            tracing::debug!("the pin was not given up; it will lapse");
        }
    }
}

/// Waits until the broker has processed every acknowledgement sent before: they are taken in order, and one that asks
/// for a reply gets it when its turn has come.
pub(super) async fn barrier(client: &Client, reply: Subject) {
    let asked = client.request(reply, Bytes::from_static(b"+WPI"));
    if !matches!(timeout(Duration::from_secs(1), asked).await, Ok(Ok(_))) {
        tracing::debug!("no word about earlier acknowledgements; some messages may be delivered again");
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

/// The publisher's headers: the broker's own (all `Nats-…`) may not be published again, and would act again.
fn own_headers(received: Option<&HeaderMap>) -> HeaderMap {
    let mut kept = HeaderMap::new();
    for (name, values) in received.into_iter().flat_map(HeaderMap::iter) {
        if !name.to_string().to_ascii_lowercase().starts_with("nats-") {
            values.iter().for_each(|value| kept.append(name.clone(), value.clone()));
        }
    }
    kept
}

fn note(headers: &mut HeaderMap, name: &'static str, value: &str) {
    headers.insert(name, value);
}

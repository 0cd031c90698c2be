//! The way of a poison message to the dead letters.

use std::sync::Arc;
use std::time::Duration;

use async_nats::HeaderMap;
use futures_util::FutureExt;

use super::super::event::MemberEvent;
use super::super::message::Ticket;
use super::super::received::Received;
use super::Engine;
use super::answer::Answer;
use crate::error::ErrorKind;
use crate::group::partition::split_partition;
use crate::order::Run;

impl Engine {
    /// Moves a poison message to the dead letters; only then is it given up.
    pub(super) fn dead_letter(&mut self, run: Run<Box<Received>>) {
        let ticket = Ticket::new(&self.work, run.run, &run.content, self.work.session());
        // Without a subject for it any more, the end of the run has it delivered again.
        let Some(dead_letter) = self.config.dead_letter.clone() else { return };
        let content = run.content;
        let (context, config) = (self.context.clone(), self.config.clone());
        self.answers.push(
            async move {
                let sequence = content.meta.stream_seq;
                let (partition, subject) = split_partition(&content.subject);
                let mut headers = own_headers(content.headers.as_ref());
                note(
                    &mut headers,
                    "Natsway-Dead-Letter-Stream",
                    &config.kind.consumed_stream(&config.name),
                );
                note(&mut headers, "Natsway-Dead-Letter-Sequence", &sequence.to_string());
                note(&mut headers, "Natsway-Dead-Letter-Subject", subject);
                note(
                    &mut headers,
                    "Natsway-Dead-Letter-Partition",
                    &partition.map_or(String::new(), |p| p.to_string()),
                );
                note(&mut headers, "Natsway-Dead-Letter-Group", &config.name.to_string());
                note(&mut headers, "Natsway-Dead-Letter-Member", &config.member);
                note(
                    &mut headers,
                    "Natsway-Dead-Letter-Deliveries",
                    &(content.meta.deliveries - 1).to_string(),
                );
                // A second attempt, after a lost acknowledgement, is recognised by the stream.
                note(
                    &mut headers,
                    "Nats-Msg-Id",
                    &format!("{}-{}-{sequence}", config.kind.as_str(), config.name),
                );
                let sent = context
                    .publish_with_headers(dead_letter.subject.clone(), headers, content.payload)
                    .await;
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
                Answer::DeadLettered(match stored {
                    Ok(()) => MemberEvent::DeadLettered { stream_sequence: sequence },
                    Err(error) => MemberEvent::Retrying(Arc::new(ErrorKind::Broker.caused(
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
}

/// The publisher's headers: the broker's own (all `Nats-…`) may not be published again, and would
/// act again.
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

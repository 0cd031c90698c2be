//! What the broker sends to the member's inbox: messages, and words about pulls.

use std::sync::Arc;

use async_nats::Subscriber;
use futures_util::{FutureExt, StreamExt};

use super::super::received::{Meta, Received};
use super::Engine;
use crate::group::kind::GroupKind;
use crate::group::source_loss::Copied;
use crate::order::{Delivery, Event, PullStatus};

/// Most messages that are taken in before anything else is looked at.
const BURST: usize = 64;

impl Engine {
    /// Takes in a message, and those that came with it.
    pub(super) fn received(&mut self, message: async_nats::Message, inbox: &mut Subscriber) {
        let mut events = Vec::new();
        let mut next = Some(message);
        while let Some(message) = next {
            if message.status.is_some() {
                // What came before it may have made its pull known.
                self.work.step_all(events.drain(..));
                self.status(&message);
            } else {
                events.extend(self.delivery(message));
            }
            next = (events.len() < BURST).then(|| inbox.next().now_or_never().flatten()).flatten();
        }
        if let Some(Event::Delivered(newest)) = events.last() {
            self.note_copy(&newest.content);
        }
        if !events.is_empty() {
            self.work.step_all(events);
        }
    }

    /// Notes how far the group has copied, once for all that came together: it costs a look into
    /// the headers.
    fn note_copy(&mut self, newest: &Received) {
        if self.config.kind != GroupKind::Elastic {
            return;
        }
        let seen =
            newest.headers.as_ref().and_then(|headers| Copied::of(newest.meta.stream_seq, headers));
        self.copied = self.copied.max(seen);
    }

    fn delivery(&mut self, message: async_nats::Message) -> Option<Event<Box<Received>>> {
        let reply = message.reply?;
        let meta = Meta::parse(&reply)?;
        let pin = message
            .headers
            .as_ref()
            .and_then(|headers| headers.get(async_nats::header::NATS_PIN_ID));
        let pin = pin.map(|pin| {
            if *self.pin != *pin.as_str() {
                self.pin = pin.as_str().into();
            }
            Arc::clone(&self.pin)
        });
        Some(Event::Delivered(Delivery {
            stream_seq: meta.stream_seq,
            consumer_seq: meta.consumer_seq,
            deliveries: meta.deliveries,
            queue: self.config.order_by.queue(&message.subject),
            pin,
            content: Box::new(Received {
                subject: message.subject,
                payload: message.payload,
                headers: message.headers,
                reply,
                meta,
            }),
        }))
    }

    fn status(&mut self, message: &async_nats::Message) {
        let Some(pull) = message.subject.rsplit('.').next().and_then(|n| n.parse().ok()) else {
            return;
        };
        if !self.work.knows_pull(pull) {
            // An answer to an earlier consumer's pull, our own deletion of it among them.
            return;
        }
        let code = message.status.map_or(0, |s| s.as_u16());
        let text = message.description.as_deref().unwrap_or_default();
        let status = match code {
            100 => PullStatus::Accepted { ended: false },
            404 | 408 => PullStatus::Accepted { ended: true },
            409 if text.eq_ignore_ascii_case("Message Size Exceeds MaxBytes") => {
                PullStatus::Accepted { ended: true }
            }
            423 => PullStatus::WrongPin,
            503 => {
                self.ask_whether_gone(false);
                PullStatus::Refused
            }
            409 if text.eq_ignore_ascii_case("Consumer Deleted") => {
                // Somebody else may create it this instant, with our partitions in it.
                self.flow_step(Event::Abort);
                self.ask_whether_gone(true);
                return;
            }
            _ => PullStatus::Refused,
        };
        let unused = message.headers.as_ref().and_then(|h| h.get("Nats-Pending-Messages"));
        let unused = unused.and_then(|v| v.as_str().parse().ok()).unwrap_or(0);
        self.flow_step(Event::Status { pull, status, unused });
    }
}

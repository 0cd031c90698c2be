//! What is read and not yet stored: pure, in order, bounded by whoever fills it.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::head::{Generation, Head, Skipped};

/// A message on its way. It is kept until the stream has it, so that going back never has to read a
/// file again.
#[derive(Debug)]
pub(crate) struct PendingMessage<P> {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) payload: Bytes,
    pub(crate) zstd: Option<u64>,
    pub(crate) gap: Option<Skipped>,
    /// The right to occupy memory; given back when the message is dropped.
    pub(crate) _permit: P,
}

impl<P> PendingMessage<P> {
    /// Bytes of files that it carries. A gap passes over more offsets than that, and carries none.
    pub(crate) fn file_bytes(&self) -> u64 {
        if self.gap.is_some() { 0 } else { self.end - self.start }
    }
}

/// The messages of one source. They are acknowledged in order; a failure goes back to the first
/// that is not.
#[derive(Debug)]
pub(crate) struct Outbox<P> {
    generation: Generation,
    since: u64,
    floor: u64,
    round: u64,
    queue: VecDeque<PendingMessage<P>>,
    /// How many of the queue are on their way.
    sent: usize,
    /// After a failure one message goes ahead; the others follow when it is stored.
    probing: bool,
}

impl<P> Outbox<P> {
    /// `round` must differ from those of earlier processes.
    pub(crate) fn new(generation: Generation, since: u64, floor: u64, round: u64) -> Self {
        Self { generation, since, floor, round, queue: VecDeque::new(), sent: 0, probing: false }
    }

    /// Everything below is stored.
    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    pub(crate) fn push(&mut self, message: PendingMessage<P>) {
        self.queue.push_back(message);
    }

    /// The next message to send, with its head and message id.
    pub(crate) fn next(&mut self) -> Option<(Head, String, Bytes)> {
        if self.probing && self.sent > 0 {
            return None;
        }
        let message = self.queue.get(self.sent)?;
        self.sent += 1;
        let head = Head {
            generation: self.generation,
            start: message.start,
            end: message.end,
            floor: self.floor,
            since: self.since,
            zstd: message.zstd,
            gap: message.gap,
        };
        Some((head, head.message_id(self.round), message.payload.clone()))
    }

    /// The oldest message on its way is stored.
    pub(crate) fn acknowledged(&mut self) -> Option<PendingMessage<P>> {
        let message = self.queue.pop_front()?;
        self.sent = self.sent.saturating_sub(1);
        self.floor = message.end;
        self.probing = false;
        Some(message)
    }

    /// The oldest message on its way is not stored, as far as is known: everything is sent again,
    /// under new ids.
    pub(crate) fn failed(&mut self) {
        self.sent = 0;
        self.probing = true;
        self.round += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_goes_back_to_the_first_that_is_not_stored() {
        let mut outbox = Outbox::new("0000000000070badcafe".parse().unwrap(), 0, 10, 5);
        for (start, end) in [(10, 20), (20, 25), (25, 40)] {
            outbox.push(PendingMessage {
                start,
                end,
                payload: Bytes::new(),
                zstd: None,
                gap: None,
                _permit: (),
            });
        }
        let starts = |outbox: &mut Outbox<()>| {
            std::iter::from_fn(|| outbox.next())
                .map(|(head, id, _)| (head.start, head.floor, id))
                .collect::<Vec<_>>()
        };
        let id = |range: &str, round: &str| format!("0000000000070badcafe-{range}-{round}");
        assert_eq!(starts(&mut outbox).len(), 3);
        assert_eq!(outbox.acknowledged().unwrap().end, 20);
        outbox.failed();
        assert_eq!(starts(&mut outbox), [(20, 20, id("20-25", "6"))], "one goes ahead");
        outbox.acknowledged();
        assert_eq!(starts(&mut outbox), [(25, 25, id("25-40", "6"))]);
        outbox.acknowledged();
        assert_eq!((outbox.floor(), outbox.is_empty()), (40, true));
        let gap = Some(Skipped { why: crate::head::Gap::Truncated, bytes: 9 });
        let message = |gap| PendingMessage {
            start: 40,
            end: 1 << 28,
            payload: Bytes::new(),
            zstd: None,
            gap,
            _permit: (),
        };
        assert_eq!((message(None).file_bytes(), message(gap).file_bytes()), ((1 << 28) - 40, 0));
    }
}

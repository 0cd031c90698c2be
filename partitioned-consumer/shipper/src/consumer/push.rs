//! The order of what a push consumer delivers (`SHIPPER_STREAM_TARGET`): pure.
//!
//! After a crash, or a lost connection, the broker delivers new messages first, and those that
//! nobody acknowledged some time later. Lines would get out of order, and what is judged by its
//! place in the stream would look repeated. So at the beginning, and whenever the deliveries have a
//! hole, everything is held until all that the broker counts as unacknowledged is in hand; then it
//! goes on in the order of the stream.

use std::collections::BTreeMap;

/// See the module. `M` is a message.
#[derive(Debug)]
pub(super) struct PushOrder<M> {
    /// By sequence in the stream.
    held: BTreeMap<u64, M>,
    /// The delivery that comes next; none is known at the beginning.
    next_delivery: Option<u64>,
    settled: bool,
}

impl<M> PushOrder<M> {
    pub(super) fn new() -> Self {
        Self { held: BTreeMap::new(), next_delivery: None, settled: false }
    }

    /// A message has come as the `delivery`th of its consumer. Gives it back when it may go on at
    /// once.
    pub(super) fn arrived(&mut self, sequence: u64, delivery: u64, message: M) -> Option<M> {
        self.settled &= self.next_delivery == Some(delivery);
        self.next_delivery = Some(delivery + 1);
        if self.settled {
            return Some(message);
        }
        // One that came before is delivered again: either can be acknowledged.
        self.held.insert(sequence, message);
        None
    }

    /// Whether the broker has to be asked how many messages it counts as unacknowledged.
    pub(super) fn has_to_ask(&self) -> bool {
        !self.held.is_empty()
    }

    /// Any message that is held; all are of one consumer.
    pub(super) fn any(&self) -> Option<&M> {
        self.held.values().next()
    }

    /// The broker counts `unacknowledged` messages; `going_on` went on earlier and are not
    /// acknowledged. Gives what may go on now, in order.
    pub(super) fn answered(&mut self, unacknowledged: usize, going_on: usize) -> Vec<(u64, M)> {
        if unacknowledged > self.held.len() + going_on {
            return Vec::new();
        }
        self.settled = true;
        std::mem::take(&mut self.held).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_in_flight_at_a_crash_goes_before_what_is_new() {
        let mut order = PushOrder::new();
        assert_eq!(order.arrived(8, 20, "8"), None);
        assert!(order.answered(4, 0).is_empty(), "5, 6 and 7 are out");
        for (sequence, delivery) in [(5, 21), (6, 22), (7, 23)] {
            assert_eq!(order.arrived(sequence, delivery, "older"), None);
        }
        let order_of =
            |given: Vec<(u64, &str)>| given.into_iter().map(|it| it.0).collect::<Vec<_>>();
        assert_eq!(order_of(order.answered(4, 0)), [5, 6, 7, 8]);
        assert_eq!(order.arrived(9, 24, "9"), Some("9"));
        // Delivery 25 was lost on its way.
        assert_eq!(order.arrived(11, 26, "11"), None);
        assert!(order.has_to_ask() && order.answered(3, 1).is_empty());
        assert_eq!(order.arrived(10, 27, "10"), None);
        assert_eq!(order_of(order.answered(3, 1)), [10, 11]);
        assert!(!order.has_to_ask());
    }
}

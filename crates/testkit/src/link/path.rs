//! What a path does to the bytes on it: they wait for their turn at its bottleneck, then take their
//! time to the other end. Pure: the clock is an argument.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::Instant;

/// The bytes that are taken from a sender at a time.
pub(super) const CHUNK_BYTES: usize = 64 * 1024;
/// The bytes that may be on the way in one direction of a connection. Over 100 ms that is 160 MiB a
/// second, more than a test sends.
const IN_FLIGHT_BYTES: usize = 16 * 1024 * 1024;
/// What a parcel costs beside its bytes, so that those of one byte are bounded as well.
const PARCEL_BYTES: usize = 64;
/// What waits at a bottleneck, as time: the buffers of a usual router.
const BOTTLENECK: Duration = Duration::from_millis(100);
/// A path with a rate takes in what passes its bottleneck in this time at once.
const TICK: Duration = Duration::from_millis(20);

/// What one direction of a link is like; by default without delay and as fast as the machine.
///
/// ```
/// use std::time::Duration;
/// use natsway_testkit::LinkShape;
///
/// let far = LinkShape::delayed(Duration::from_millis(50)).with_rate(10_000_000 / 8);
/// assert_eq!(far.bytes_per_second.unwrap().get(), 1_250_000);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkShape {
    /// How long a byte is on the way, one way.
    pub delay: Duration,
    /// How many bytes all connections of the link together get through each second.
    pub bytes_per_second: Option<NonZeroU64>,
}

impl LinkShape {
    /// A direction with this delay.
    pub fn delayed(delay: Duration) -> Self {
        Self { delay, bytes_per_second: None }
    }

    /// The same with a rate.
    ///
    /// # Panics
    /// When the rate is zero: pause the link instead.
    #[must_use]
    pub fn with_rate(self, bytes_per_second: u64) -> Self {
        let rate =
            NonZeroU64::new(bytes_per_second).expect("a link without a rate is a paused one");
        Self { bytes_per_second: Some(rate), ..self }
    }

    /// The bytes to take from a sender at a time.
    pub(super) fn chunk_bytes(&self) -> usize {
        let Some(rate) = self.bytes_per_second else { return CHUNK_BYTES };
        let bytes = rate.get() / (1_000 / TICK.as_millis() as u64);
        usize::try_from(bytes).unwrap_or(CHUNK_BYTES).clamp(1, CHUNK_BYTES)
    }
}

/// Where the bytes of all connections queue in one direction of a link.
#[derive(Debug, Default)]
pub(super) struct Bottleneck {
    /// When everything that is in the queue has passed.
    free_at: Option<Instant>,
}

impl Bottleneck {
    /// Says from when on the queue takes more; `None` when it does.
    pub(super) fn full_until(&self, now: Instant) -> Option<Instant> {
        self.free_at?.checked_sub(BOTTLENECK).filter(|has_room_at| *has_room_at > now)
    }

    /// Queues a number of bytes and says when the last of them has passed.
    pub(super) fn pass(&mut self, now: Instant, bytes: usize, shape: LinkShape) -> Instant {
        let begins_at = self.free_at.map_or(now, |free_at| free_at.max(now));
        let Some(rate) = shape.bytes_per_second else {
            self.free_at = None;
            return begins_at;
        };
        let passed_at = begins_at + Duration::from_secs_f64(bytes as f64 / rate.get() as f64);
        self.free_at = Some(passed_at);
        passed_at
    }
}

/// What a sender has put on the path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parcel {
    /// Some bytes, one at least.
    Bytes(Vec<u8>),
    /// The end: the sender has shut its side down.
    End,
    /// The sender has reset the connection.
    Reset,
}

/// What is on the way in one direction of a connection, in order.
#[derive(Debug, Default)]
pub(super) struct Flight {
    parcels: VecDeque<(Instant, Parcel)>,
    /// Bytes of the first parcel that have arrived.
    arrived: usize,
    cost_bytes: usize,
    latest: Option<Instant>,
    has_ended: bool,
}

impl Flight {
    /// Whether the sender may send on: nothing ended it, and the path is not full.
    pub(super) fn has_room(&self) -> bool {
        !self.has_ended && self.cost_bytes < IN_FLIGHT_BYTES
    }

    /// Sends a parcel that is due then, or as soon as those before it are: a path keeps its order
    /// when its delay falls.
    pub(super) fn send(&mut self, due: Instant, parcel: Parcel) {
        let due = self.latest.map_or(due, |latest| latest.max(due));
        self.latest = Some(due);
        match &parcel {
            Parcel::Bytes(bytes) => self.cost_bytes += bytes.len() + PARCEL_BYTES,
            Parcel::End | Parcel::Reset => self.has_ended = true,
        }
        self.parcels.push_back((due, parcel));
    }

    /// When the next parcel is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.parcels.front().map(|(due, _)| *due)
    }

    /// The next parcel, if it is due.
    pub(super) fn due(&self, now: Instant) -> Option<&Parcel> {
        self.parcels.front().filter(|(due, _)| *due <= now).map(|(_, parcel)| parcel)
    }

    /// The bytes that are due of the next parcel; none when there are none.
    pub(super) fn due_bytes(&self, now: Instant) -> &[u8] {
        match self.due(now) {
            Some(Parcel::Bytes(bytes)) => &bytes[self.arrived..],
            _ => &[],
        }
    }

    /// A number of the bytes that are due have arrived.
    pub(super) fn arrive(&mut self, count: usize) {
        self.arrived += count;
        if let Some((_, Parcel::Bytes(bytes))) = self.parcels.front()
            && self.arrived >= bytes.len()
        {
            self.cost_bytes -= bytes.len() + PARCEL_BYTES;
            self.arrived = 0;
            self.parcels.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn a_bottleneck_passes_its_rate_and_holds_a_tenth_of_a_second() {
        let (mut bottleneck, start) = (Bottleneck::default(), Instant::now());
        let shape = LinkShape::default().with_rate(1_000);
        assert_eq!(shape.chunk_bytes(), 20);
        assert_eq!(bottleneck.pass(start, 50, shape), start + 50 * MILLISECOND);
        assert_eq!(bottleneck.pass(start, 50, shape), start + 100 * MILLISECOND);
        assert_eq!(bottleneck.full_until(start), None);
        assert_eq!(bottleneck.pass(start, 20, shape), start + 120 * MILLISECOND);
        assert_eq!(bottleneck.full_until(start), Some(start + 20 * MILLISECOND));
        assert_eq!(bottleneck.full_until(start + 20 * MILLISECOND), None);
        // What was not used does not add up.
        let later = start + Duration::from_secs(60);
        assert_eq!(bottleneck.pass(later, 10, shape), later + 10 * MILLISECOND);
        // Without a rate nothing waits but for what was before it.
        let free = LinkShape::default();
        assert_eq!(bottleneck.pass(later, 1_000_000, free), later + 10 * MILLISECOND);
        assert_eq!(bottleneck.pass(later, 1_000_000, free), later);
    }

    #[test]
    fn a_path_that_is_full_of_single_bytes_takes_no_more() {
        let (mut flight, due) = (Flight::default(), Instant::now());
        let mut sent = 0;
        while flight.has_room() {
            flight.send(due, Parcel::Bytes(vec![7]));
            sent += 1;
        }
        assert_eq!(sent, IN_FLIGHT_BYTES.div_ceil(1 + PARCEL_BYTES));
        flight.arrive(flight.due_bytes(due).len());
        assert!(flight.has_room());
        flight.send(due, Parcel::End);
        assert!(!flight.has_room(), "nothing follows the end");
    }

    proptest! {
        #[test]
        fn bytes_arrive_whole_in_order_and_not_early(
            sends in prop::collection::vec((1..50_usize, 0..40_u32, 0..100_u32), 1..60),
            takes in prop::collection::vec(1..60_usize, 1..20),
        ) {
            let (mut flight, mut now) = (Flight::default(), Instant::now());
            let (mut sent, mut dues) = (Vec::<u8>::new(), Vec::new());
            for (count, gap_ms, delay_ms) in sends {
                now += gap_ms * MILLISECOND;
                let due = now + delay_ms * MILLISECOND;
                let bytes: Vec<u8> = (sent.len()..sent.len() + count).map(|n| n as u8).collect();
                dues.extend(std::iter::repeat_n(due, count));
                sent.extend(&bytes);
                flight.send(due, Parcel::Bytes(bytes));
            }
            flight.send(now, Parcel::End);
            let mut arrived = Vec::<u8>::new();
            for take in takes.iter().cycle() {
                let now = flight.next_due().expect("the end is not taken");
                let due = flight.due_bytes(now);
                if due.is_empty() {
                    break;
                }
                let taken = due[..due.len().min(*take)].to_vec();
                let mut their_dues = dues.iter().skip(arrived.len()).take(taken.len());
                prop_assert!(their_dues.all(|due| *due <= now));
                arrived.extend(&taken);
                flight.arrive(taken.len());
            }
            prop_assert_eq!(arrived, sent);
            let last = flight.next_due().unwrap();
            prop_assert_eq!(flight.due(last), Some(&Parcel::End));
            prop_assert_eq!(flight.cost_bytes, 0);
        }
    }
}

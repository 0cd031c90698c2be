//! How many different messages a consumer was given, from its two sequences.

/// Where a consumer stands, by its `delivered`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Deliveries that were ever made, repeated ones included.
    pub consumer_seq: u64,
    /// The highest message that was ever delivered.
    pub stream_seq: u64,
}

/// Counts first deliveries.
///
/// The consumer's sequence also grows with each redelivery, and the stream's also with each message
/// that a filter passes over; first deliveries are no more than either. So a message that fails
/// again and again is no traffic, with a filter or without.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deliveries {
    last: Option<Position>,
    count: u64,
}

impl Deliveries {
    /// Takes the position of a poll and gives the first deliveries since the very first poll, which
    /// counts as many as it says itself.
    pub fn advance(&mut self, position: Position) -> u64 {
        let more = match self.last {
            None => position.consumer_seq.min(position.stream_seq),
            Some(last) => {
                let deliveries = position.consumer_seq.saturating_sub(last.consumer_seq);
                deliveries.min(position.stream_seq.saturating_sub(last.stream_seq))
            }
        };
        // A follower that lags shows an earlier position; what was counted is not counted again
        // when it catches up.
        let furthest = self.last.unwrap_or_default();
        self.last = Some(Position {
            consumer_seq: furthest.consumer_seq.max(position.consumer_seq),
            stream_seq: furthest.stream_seq.max(position.stream_seq),
        });
        self.count += more;
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(consumer_seq: u64, stream_seq: u64) -> Position {
        Position { consumer_seq, stream_seq }
    }

    #[test]
    fn redeliveries_and_filtered_messages_are_no_deliveries() {
        let mut deliveries = Deliveries::default();
        assert_eq!(deliveries.advance(at(100, 100)), 100);
        assert_eq!(deliveries.advance(at(150, 150)), 150);
        assert_eq!(deliveries.advance(at(190, 150)), 150, "forty redeliveries");
        assert_eq!(deliveries.advance(at(200, 950)), 160, "ten of eight hundred pass the filter");
    }

    #[test]
    fn a_poll_of_a_follower_counts_nothing_twice() {
        let mut deliveries = Deliveries::default();
        deliveries.advance(at(100, 100));
        assert_eq!(deliveries.advance(at(40, 40)), 100);
        assert_eq!(deliveries.advance(at(110, 110)), 110);
    }
}

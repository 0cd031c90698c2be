//! How old a request is when it arrives, although the sender's clock is not ours.
//!
//! Bytes can sit in a frozen broker or behind a cut link and arrive long after the client was
//! answered. Each request says when it was sent and what its time budget had left then;
//! `received - sent` is its age plus the unknown difference of two clocks. The least difference
//! lately seen from a sender is taken as that of a message that did not wait, so the age of any
//! other is what it has above the least.
//!
//! A sender that was not seen before, or whose least difference is falling, is *settling*: a
//! backlog that is released all at once looks like that, each message less late than the one
//! before. While it settles, the Unix clocks decide as they stand. Where they agree that is exact;
//! where they differ by more than a deadline, requests are refused for [`SETTLE_MS`], and a refusal
//! is safe, for the sender sends it again.

use std::collections::HashMap;

/// How long a minimum counts: two windows of this length, the older one given up as a third begins.
const WINDOW_MS: i64 = 60_000;

/// How long a sender's least difference must hold before it is trusted.
const SETTLE_MS: i64 = 100;

/// A least difference that falls by less than this is jitter of the network and of two clocks read
/// in milliseconds.
const JITTER_MS: i64 = 5;

/// Senders remembered, the one silent for longest given up for a new one. A gateway has one per
/// core and connection.
const SENDERS: usize = 4_096;

/// What is known of each sender. The caller gives the time, so this is pure.
#[derive(Debug, Default)]
pub(crate) struct Staleness {
    by_name: HashMap<Box<str>, usize>,
    senders: Vec<Sender>,
    /// Who sent last: mostly the one that sends next, so the map is not asked.
    last: usize,
}

#[derive(Debug)]
struct Sender {
    name: Box<str>,
    window_began_ms: i64,
    least: i64,
    least_before: i64,
    /// The difference at the last marked fall, and when that was.
    marked: i64,
    marked_ms: i64,
    seen_ms: i64,
}

/// What to do with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Age {
    /// It may run; this much of its budget was used on the way.
    Fresh { age_ms: u32 },
    /// Its client may have been answered already: it must not run.
    Expired,
}

impl Staleness {
    /// Judges a request that is to be answered at `reply`; the sender is all of `reply` but its
    /// last token.
    ///
    /// `sent_ms` is by the sender's clock, 0 when it did not say; `received_ms` by ours.
    pub(crate) fn judge(
        &mut self,
        reply: &str,
        sent_ms: u64,
        deadline_ms: u32,
        received_ms: u64,
    ) -> Age {
        if sent_ms == 0 {
            return if deadline_ms == 0 { Age::Expired } else { Age::Fresh { age_ms: 0 } };
        }
        let now_ms = signed(received_ms);
        let difference = now_ms.saturating_sub(signed(sent_ms));
        let name = reply.rsplit_once('.').map_or(reply, |(sender, _)| sender);
        let index = self.index_of(name, difference, now_ms);
        self.senders[index].judge(difference, i64::from(deadline_ms), now_ms)
    }

    /// Judges a request of a sender that cannot be told from others: the Unix clocks decide as they
    /// stand.
    pub(crate) fn judge_stranger(sent_ms: u64, deadline_ms: u32, received_ms: u64) -> Age {
        let difference =
            if sent_ms == 0 { 0 } else { signed(received_ms).saturating_sub(signed(sent_ms)) };
        match u32::try_from(difference.max(0)) {
            Ok(age_ms) if age_ms < deadline_ms => Age::Fresh { age_ms },
            _ => Age::Expired,
        }
    }

    fn index_of(&mut self, name: &str, difference: i64, now_ms: i64) -> usize {
        if self.senders.get(self.last).is_some_and(|sender| *sender.name == *name) {
            return self.last;
        }
        if let Some(&index) = self.by_name.get(name) {
            self.last = index;
            return index;
        }
        let sender = Sender::new(name, difference, now_ms);
        self.last = if self.senders.len() < SENDERS {
            self.senders.push(sender);
            self.senders.len() - 1
        } else {
            let silent_longest =
                self.senders.iter().enumerate().min_by_key(|(_, sender)| sender.seen_ms);
            let index = silent_longest.map_or(0, |(index, _)| index);
            self.by_name.remove(&self.senders[index].name);
            self.senders[index] = sender;
            index
        };
        self.by_name.insert(name.into(), self.last);
        self.last
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

impl Sender {
    fn new(name: &str, difference: i64, now_ms: i64) -> Self {
        Self {
            name: name.into(),
            window_began_ms: now_ms,
            least: difference,
            least_before: difference,
            marked: difference,
            marked_ms: now_ms,
            seen_ms: now_ms,
        }
    }

    fn judge(&mut self, difference: i64, deadline_ms: i64, now_ms: i64) -> Age {
        self.seen_ms = now_ms;
        if now_ms.saturating_sub(self.window_began_ms) >= WINDOW_MS {
            self.least_before = self.least;
            self.least = difference;
            self.window_began_ms = now_ms;
            // So that drift, a few milliseconds a window, never adds up to a marked fall.
            self.marked = self.minimum();
        }
        self.least = self.least.min(difference);
        if difference < self.marked.saturating_sub(JITTER_MS) {
            self.marked = difference;
            self.marked_ms = now_ms;
        }

        let above_minimum = difference.saturating_sub(self.minimum());
        let settling = now_ms.saturating_sub(self.marked_ms) < SETTLE_MS;
        let age_ms = if settling { above_minimum.max(difference) } else { above_minimum };
        if age_ms >= deadline_ms {
            return Age::Expired;
        }
        Age::Fresh { age_ms: u32::try_from(age_ms).unwrap_or(0) }
    }

    fn minimum(&self) -> i64 {
        self.least.min(self.least_before)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Some moment of this century.
    const NOW_MS: u64 = 1_800_000_000_000;
    const REPLY: &str = "_INBOX_apiproxy.session.1";

    /// A sender that has been heard every 10 ms for a second, each message `latency_ms` under way,
    /// its clock `behind_ms` behind ours.
    fn settled(behind_ms: u64, latency_ms: u64) -> Staleness {
        let mut staleness = Staleness::default();
        for step in 0..100 {
            let received = NOW_MS - 1_000 + step * 10;
            staleness.judge(REPLY, received - latency_ms - behind_ms, u32::MAX, received);
        }
        staleness
    }

    #[test]
    fn a_request_that_waited_longer_than_its_budget_does_not_run() {
        for behind_ms in [0, 3_600_000] {
            let mut staleness = settled(behind_ms, 1);
            let sent = NOW_MS - behind_ms - 1 - 2_000;
            assert_eq!(staleness.judge(REPLY, sent, 2_000, NOW_MS), Age::Expired);
            assert_eq!(staleness.judge(REPLY, sent, 2_001, NOW_MS), Age::Fresh { age_ms: 2_000 });
        }
    }

    #[test]
    fn the_first_request_of_a_sender_is_judged_by_the_unix_clocks() {
        assert_eq!(
            Staleness::default().judge(REPLY, NOW_MS - 700, 1_000, NOW_MS),
            Age::Fresh { age_ms: 700 }
        );
        assert_eq!(Staleness::default().judge(REPLY, NOW_MS - 1_001, 1_000, NOW_MS), Age::Expired);
        assert_eq!(
            Staleness::default().judge(REPLY, NOW_MS + 9_000, 1_000, NOW_MS),
            Age::Fresh { age_ms: 0 }
        );
    }

    #[test]
    fn a_stranger_is_judged_by_the_unix_clocks_alone() {
        let judge = |sent, deadline_ms| Staleness::judge_stranger(sent, deadline_ms, NOW_MS);
        assert_eq!(judge(NOW_MS - 700, 1_000), Age::Fresh { age_ms: 700 });
        assert_eq!(judge(NOW_MS - 1_000, 1_000), Age::Expired);
        assert_eq!(judge(NOW_MS + 9_000, 1_000), Age::Fresh { age_ms: 0 });
        assert_eq!((judge(0, 1), judge(0, 0)), (Age::Fresh { age_ms: 0 }, Age::Expired));
        assert_eq!(
            (judge(1, u32::MAX), judge(u64::MAX, 1)),
            (Age::Expired, Age::Fresh { age_ms: 0 })
        );
    }

    #[test]
    fn a_backlog_of_an_unknown_sender_released_at_once_does_not_run() {
        let mut staleness = Staleness::default();
        for step in 0..2_000 {
            // Sent within two seconds, held for three more, delivered within 200 ms.
            let (sent, received) = (NOW_MS + step, NOW_MS + 5_000 + step / 10);
            assert_eq!(staleness.judge(REPLY, sent, 1_000, received), Age::Expired, "{step}");
        }
    }

    #[test]
    fn a_sender_whose_clock_is_an_hour_off_is_served_once_it_has_settled() {
        let mut staleness = Staleness::default();
        let verdict = |staleness: &mut Staleness, at| {
            staleness.judge(REPLY, NOW_MS + at - 3_600_000, 1_000, NOW_MS + at)
        };
        assert_eq!(verdict(&mut staleness, 0), Age::Expired);
        assert_eq!(verdict(&mut staleness, 50), Age::Expired);
        assert_eq!(verdict(&mut staleness, 100), Age::Fresh { age_ms: 0 });
    }

    #[test]
    fn a_path_that_got_slower_for_good_is_learnt_after_two_windows() {
        let mut staleness = settled(0, 1);
        let mut last = Age::Expired;
        for second in 0..130 {
            let received = NOW_MS + second * 1_000;
            last = staleness.judge(REPLY, received - 301, 1_000, received);
            assert_ne!(last, Age::Expired);
        }
        assert_eq!(last, Age::Fresh { age_ms: 0 });
    }

    #[test]
    fn a_request_without_its_sending_time_runs_unless_nothing_is_left() {
        let mut staleness = Staleness::default();
        assert_eq!(staleness.judge(REPLY, 0, 1, NOW_MS), Age::Fresh { age_ms: 0 });
        assert_eq!(staleness.judge(REPLY, 0, 0, NOW_MS), Age::Expired);
    }

    #[test]
    fn senders_are_bounded_and_the_busy_ones_stay() {
        let mut staleness = settled(0, 1);
        for other in 0..2 * SENDERS as u64 {
            staleness.judge(&format!("_INBOX.{other}.1"), NOW_MS, 1_000, NOW_MS + other);
            staleness.judge(REPLY, NOW_MS + other - 1, 1_000, NOW_MS + other);
        }
        assert_eq!((staleness.senders.len(), staleness.by_name.len()), (SENDERS, SENDERS));
        assert!(staleness.by_name.contains_key("_INBOX_apiproxy.session"));
        assert!(!staleness.by_name.contains_key("_INBOX.0"));
    }

    proptest! {
        /// Once a sender is settled, whatever waited longer than its budget is refused and nothing
        /// else is.
        #[test]
        fn settled_senders_are_judged_by_the_time_under_way(
            behind_ms in 0_u64..100_000_000,
            latency_ms in 0_u64..50,
            requests in prop::collection::vec((0_u64..100, 0_u64..10_000, 1_u32..10_000), 1..200),
        ) {
            let mut staleness = settled(behind_ms, latency_ms);
            let mut received = NOW_MS;
            for (pause, waited, deadline_ms) in requests {
                received += pause;
                let sent = received - waited - latency_ms - behind_ms;
                let expected = match u32::try_from(waited).unwrap() {
                    waited if waited >= deadline_ms => Age::Expired,
                    age_ms => Age::Fresh { age_ms },
                };
                prop_assert_eq!(staleness.judge(REPLY, sent, deadline_ms, received), expected);
            }
        }

        /// Before anything is known of a sender, clocks that agree keep whatever is late from
        /// running.
        #[test]
        fn a_new_sender_is_judged_by_the_clocks_until_it_settles(
            requests in prop::collection::vec((0..SETTLE_MS as u64, 0_u64..5_000), 1..100),
            deadline_ms in 1_u32..3_000,
        ) {
            let mut staleness = Staleness::default();
            staleness.judge(REPLY, NOW_MS, u32::MAX, NOW_MS);
            for (arrived_after, waited) in requests {
                let received = NOW_MS + arrived_after;
                let verdict = staleness.judge(REPLY, received - waited, deadline_ms, received);
                prop_assert_eq!(verdict == Age::Expired, waited >= u64::from(deadline_ms));
            }
        }

        #[test]
        fn hostile_figures_do_no_harm(
            figures in prop::collection::vec((any::<u64>(), any::<u32>(), any::<u64>()), 1..50),
        ) {
            let mut staleness = Staleness::default();
            for (sent_ms, deadline_ms, received_ms) in figures {
                staleness.judge(REPLY, sent_ms, deadline_ms, received_ms);
            }
        }
    }
}

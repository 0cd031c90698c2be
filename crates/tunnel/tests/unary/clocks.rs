//! How old a request is, by two clocks that know nothing of each other.

use natsway_tunnel::unary::ClockBounds;
use proptest::prelude::*;

const NOW_MS: u64 = 1_800_000_000_000;

#[test]
fn without_an_exchange_nothing_is_known() {
    assert_eq!(ClockBounds::default().age_ms(NOW_MS, NOW_MS), None);
}

#[test]
fn a_clock_that_was_moved_is_noticed_and_learned_anew() {
    for jump in [3_600_000, 7, -3_600_000, -7_i64] {
        let mut clocks = ClockBounds::default();
        clocks.exchanged(NOW_MS, NOW_MS + 1, NOW_MS + 2);
        // The peer's clock moves.
        let peer = |ms: u64| ms.checked_add_signed(jump).unwrap();
        let age = clocks.age_ms(peer(NOW_MS + 5), NOW_MS + 6);
        match jump {
            // It would seem to come from the future.
            7.. => assert_eq!(age, None, "{jump}"),
            _ => assert!(age.unwrap() >= 7, "{jump}: too old is safe"),
        }
        clocks.exchanged(NOW_MS + 10, peer(NOW_MS + 11), NOW_MS + 12);
        let age = clocks.age_ms(peer(NOW_MS + 15), NOW_MS + 16).unwrap();
        assert!((1..=4).contains(&age), "{jump}: {age}");
    }
}

#[test]
fn drift_does_not_add_up() {
    // A clock that loses 10 ms a minute, an exchange each 5 s.
    let (mut clocks, mut last) = (ClockBounds::default(), 0);
    for step in 0..10_000_u64 {
        let now_ms = NOW_MS + step * 5_000;
        let peer_ms = now_ms - step * 5_000 / 6_000;
        clocks.exchanged(now_ms - 1, peer_ms, now_ms);
        last = clocks.age_ms(peer_ms, now_ms).unwrap();
        assert!(last <= 30, "step {step}: {last} ms");
    }
    assert!(last > 0);
}

proptest! {
    /// Never younger than it is, and older by no more than the best round trip.
    #[test]
    fn an_age_is_at_least_the_true_one(
        offset in -4_000_000_i64..4_000_000,
        exchanges in prop::collection::vec((0_u64..60_000, 0_u64..400, 0_u64..400), 1..20),
        (waited, later) in (0_u64..100_000, 0_u64..3_000),
    ) {
        let peer = |ms: u64| ms.checked_add_signed(offset).unwrap();
        let (mut clocks, mut now_ms, mut best) = (ClockBounds::default(), NOW_MS, u64::MAX);
        for (pause, there, back) in exchanges {
            now_ms += pause;
            let asked_ms = now_ms;
            now_ms += there + back;
            clocks.exchanged(asked_ms, peer(asked_ms + there), now_ms);
            best = there + back;
        }
        let sent_ms = now_ms + later;
        let age_ms = clocks.age_ms(peer(sent_ms), sent_ms + waited).unwrap();
        prop_assert!(age_ms >= waited);
        prop_assert!(age_ms <= waited + best + 2, "{age_ms} ms, waited {waited}, round trip {best}");
    }
}

//! How large the answer to a request may be: learned from those to requests like it. Pure.
//!
//! Like it are those to the same route with the same method and a path that differs in segments
//! with digits only: `/orders/17` and `/orders/18`. For each such kind the largest answer is
//! remembered, and half of that after a while or after many small ones in a row: one large answer
//! must not take room from its like for long.
//!
//! What is expected is never less than the largest of the last `SMALLER_IN_A_ROW` answers, unless
//! time has passed. An answer that is larger than expected is counted at its size as it arrives,
//! and the next ones are expected to be as large.
//!
//! There are a fixed number of places, so that strangers cannot fill the memory with paths; kinds
//! that share one share its figure. Nothing is expected to be larger than the largest message that
//! the broker takes.

use std::cell::Cell;
use std::time::{Duration, Instant};

use http::Method;

use super::Expectation;

/// Places for kinds of requests: a power of two.
const PLACES: usize = 1_024;

/// After this long without an answer as large, half as much is expected.
const HALF_LIFE: Duration = Duration::from_secs(600);

/// After so many answers in a row of half the size or less, half as much is expected: from 1 MiB to
/// 16 KiB in 384. Where one of a hundred is large, half of the time none is among so many, and
/// seldom is less than a quarter expected.
const SMALLER_IN_A_ROW: u16 = 64;

/// What the first answer of its kind is expected to have, unless the broker takes no message as
/// large.
const FIRST_REPLY_BYTES: usize = 1 << 20;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind(usize);

impl Kind {
    /// Returns the kind of a request; `route` is any number that stands for its route.
    pub fn of(route: u64, method: &Method, path: &str) -> Self {
        let method = method.as_str().as_bytes();
        let mut hash = mix(route, u64::from(method[0]) << 8 | method.len() as u64);
        let (mut segment_began, mut has_digit) = (hash, false);
        for byte in path.bytes() {
            if byte == b'/' {
                hash = mix(if has_digit { segment_began } else { hash }, u64::from(byte));
                (segment_began, has_digit) = (hash, false);
            } else {
                has_digit |= byte.is_ascii_digit();
                hash = mix(hash, u64::from(byte));
            }
        }
        let hash = if has_digit { segment_began } else { hash };
        Self((hash >> 32) as usize % PLACES)
    }
}

/// The hash of rustc's tables: quick, and nobody gains by two kinds in one place.
fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
}

/// The sizes of answers, by the kind of their requests.
#[derive(Debug)]
pub struct ReplySizes {
    places: Box<[Cell<Size>]>,
    began: Instant,
}

/// The largest answer of a kind.
#[derive(Clone, Copy, Debug, Default)]
struct Size {
    bytes: u32,
    /// When it came, in half-lives since the beginning and counted from 1; 0 when there was none.
    at: u32,
    /// How many in a row had half of what was expected, or less.
    smaller: u16,
}

impl ReplySizes {
    /// Returns sizes of which nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self { places: vec![Cell::default(); PLACES].into(), began: now }
    }

    /// Returns what the answer to a request of this kind is expected to have.
    pub fn expected(&self, kind: Kind, most_bytes: usize, now: Instant) -> Expectation {
        let size = self.places[kind.0].get();
        match size.at {
            0 => Expectation { bytes: FIRST_REPLY_BYTES.min(most_bytes), is_guess: true },
            _ => {
                let bytes = size.after(self.half_lives(now)) as usize;
                Expectation { bytes: bytes.min(most_bytes), is_guess: false }
            }
        }
    }

    /// Takes note of an answer.
    pub fn record(&self, kind: Kind, bytes: usize, now: Instant) {
        let (place, at) = (&self.places[kind.0], self.half_lives(now));
        place.set(place.get().with(u32::try_from(bytes).unwrap_or(u32::MAX), at));
    }

    fn half_lives(&self, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.began).as_secs() / HALF_LIFE.as_secs();
        u32::try_from(passed).unwrap_or(u32::MAX).saturating_add(1)
    }
}

impl Size {
    /// What it counts for at a later time.
    fn after(self, at: u32) -> u32 {
        self.bytes.checked_shr(at.saturating_sub(self.at)).unwrap_or(0)
    }

    /// Returns what is known once an answer of `bytes` came at a later time.
    fn with(self, bytes: u32, at: u32) -> Self {
        let expected = self.after(at);
        match self.smaller + 1 {
            _ if bytes >= expected => Self { bytes, at, smaller: 0 },
            _ if bytes > expected / 2 => Self { smaller: 0, ..self },
            SMALLER_IN_A_ROW => Self { bytes: expected / 2, at, smaller: 0 },
            smaller => Self { smaller, ..self },
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn kind(path: &str) -> Kind {
        Kind::of(7, &Method::GET, path)
    }

    #[test]
    fn paths_that_differ_in_segments_with_digits_are_of_one_kind() {
        assert_eq!(kind("/orders/17"), kind("/orders/8f3a-22"));
        assert_eq!(kind("/v1/orders/17/lines"), kind("/v2/orders/9/lines"));
        for (one, other) in
            [("/orders/17", "/orders"), ("/orders/17", "/users/17"), ("/a", "/b"), ("/a/1", "/a/b")]
        {
            assert_ne!(kind(one), kind(other), "{one} {other}");
        }
        assert_ne!(kind("/a"), Kind::of(8, &Method::GET, "/a"));
        assert_ne!(kind("/a"), Kind::of(7, &Method::HEAD, "/a"));
    }

    #[test]
    fn the_largest_is_expected_and_half_of_it_after_a_while() {
        let start = Instant::now();
        let (sizes, kind, other) = (ReplySizes::new(start), kind("/a"), kind("/b"));
        let at = |half_lives: u32| start + HALF_LIFE * half_lives;
        let expected = |half_lives| sizes.expected(kind, 1 << 20, at(half_lives));
        assert_eq!(expected(0), Expectation { bytes: 1 << 20, is_guess: true });
        assert_eq!(
            sizes.expected(kind, 5_000, start).bytes,
            5_000,
            "no more than the broker takes"
        );
        sizes.record(kind, 800, at(0));
        sizes.record(kind, 100, at(0));
        let known = |bytes| Expectation { bytes, is_guess: false };
        assert_eq!([0, 1, 3, 40].map(expected), [known(800), known(400), known(100), known(0)]);
        sizes.record(kind, 300, at(1));
        assert_eq!(expected(1), known(400), "it is smaller than what is left");
        sizes.record(kind, 300, at(2));
        assert_eq!(expected(3), known(150));
        assert!(sizes.expected(other, 1 << 20, start).is_guess);
    }

    #[test]
    fn one_large_answer_is_forgotten_after_many_small_ones() {
        let now = Instant::now();
        let (sizes, kind) = (ReplySizes::new(now), kind("/a"));
        let expected = || sizes.expected(kind, 1 << 30, now).bytes;
        sizes.record(kind, 1 << 20, now);
        for _ in 0..6 {
            let before = expected();
            for _ in 1..SMALLER_IN_A_ROW {
                sizes.record(kind, 500, now);
                assert_eq!(expected(), before);
            }
            sizes.record(kind, 500, now);
            assert_eq!(expected(), before / 2);
        }
        assert_eq!(expected(), 16 << 10);
        sizes.record(kind, 1 << 20, now);
        assert_eq!(expected(), 1 << 20, "the first large one is enough");
    }

    proptest! {
        /// No answer of the last ones is larger than what is expected, and what is expected does
        /// not outlive its cause.
        #[test]
        fn no_less_is_expected_than_the_last_answers_had(
            answers in prop::collection::vec(prop_oneof![9 => 0_usize..2_000, 1 => 0_usize..2_000_000], 1..400),
        ) {
            let now = Instant::now();
            let (sizes, kind) = (ReplySizes::new(now), kind("/a"));
            let window = usize::from(SMALLER_IN_A_ROW);
            for (place, bytes) in answers.iter().enumerate() {
                sizes.record(kind, *bytes, now);
                let expected = sizes.expected(kind, usize::MAX, now).bytes;
                let last = &answers[(place + 1).saturating_sub(window)..=place];
                prop_assert!(expected >= *last.iter().max().unwrap(), "{expected} after {last:?}");
                // An answer keeps up what has less than twice its size, and is halved itself after
                // each row from then on.
                let causes = answers[..=place].iter().rev().enumerate();
                let most = causes.map(|(ago, bytes)| bytes >> (ago / window).min(31)).max().unwrap();
                prop_assert!(expected <= 2 * most + 1, "{expected}, caused by {most}");
            }
        }
    }
}

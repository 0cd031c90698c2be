//! Whether a request that got no answer is tried again: pure, time as an argument.

use std::time::{Duration, Instant};

use natsway_routes::table::Retry;

use crate::attempt::{ACCEPTED_WITHIN, AttemptError};

/// The attempts of one request.
#[derive(Clone, Debug)]
pub struct Attempts {
    retry: Retry,
    idempotent: bool,
    started: Instant,
    deadline: Instant,
    made: u32,
    not_accepted: u32,
    may_have_run: bool,
    /// How many connections broke while it was out.
    connections_lost: u32,
}

/// The connections that may break while one request is out, before it is taken for the reason: an
/// answer with headers that the client library cannot read ends the connection on which it comes,
/// and every other request there with it.
const MOST_CONNECTIONS_LOST: u32 = 3;

/// What to do after an attempt that gave no response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again after this pause.
    RetryAfter(Duration),
    /// Answer that it failed.
    GiveUp,
}

impl Attempts {
    /// The attempts of a request that began at `now` and must be answered by `deadline`.
    pub fn new(retry: Retry, idempotent: bool, now: Instant, deadline: Instant) -> Self {
        Self {
            retry,
            idempotent,
            started: now,
            deadline,
            made: 0,
            not_accepted: 0,
            may_have_run: false,
            connections_lost: 0,
        }
    }

    /// When an attempt is given up that begins at `now`: only an idempotent request can use what a
    /// shorter try leaves of the time.
    pub fn until(&self, now: Instant, try_timeout: Duration) -> Instant {
        match self.idempotent {
            true => self.deadline.min(now + try_timeout),
            false => self.deadline,
        }
    }

    /// When an attempt counts as lost that begins at `now` and ends with `until`: neither answered
    /// nor accepted by then, it is better tried elsewhere. `None` where nothing can be won by that.
    /// From the third time on it takes twice as long each time, so that workers that never say what
    /// they accept are asked a few times, and not again and again.
    pub fn accept_by(&self, now: Instant, until: Instant) -> Option<Instant> {
        let moment =
            now + ACCEPTED_WITHIN.saturating_mul(1 << self.not_accepted.saturating_sub(1).min(10));
        let has_another = self.made < self.retry.most && moment + ACCEPTED_WITHIN <= self.deadline;
        (self.idempotent && has_another && moment < until).then_some(moment)
    }

    /// When the request must be answered.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the request may run twice.
    pub fn is_idempotent(&self) -> bool {
        self.idempotent
    }

    /// Whether some attempt may have run.
    pub fn may_have_run(&self) -> bool {
        self.may_have_run
    }

    /// How many attempts gave no response.
    pub fn made(&self) -> u32 {
        self.made
    }

    /// Takes note of an attempt that gave no response.
    pub fn note(&mut self, error: AttemptError) {
        self.made += 1;
        self.not_accepted += u32::from(error == AttemptError::NotAccepted);
        self.may_have_run |= error.may_have_run();
        self.connections_lost += u32::from(error == AttemptError::ConnectionLost);
    }

    /// Decides after an attempt that gave no response. `jitter` is random in 0..=1; `budget` is
    /// asked only when the rules allow a retry.
    pub fn after(
        &mut self,
        error: AttemptError,
        now: Instant,
        jitter: f64,
        budget: &mut Budget,
    ) -> Next {
        self.note(error);
        let unsafe_to_repeat = self.may_have_run && !self.idempotent;
        // An attempt that took long is no reason to stop within the deadline; one that failed fast
        // is, after the window. (The first may have taken long and not run: it waited in a process
        // that was frozen.)
        let is_first = self.made == 1;
        let too_late = !self.may_have_run
            && !is_first
            && now.duration_since(self.started) >= self.retry.window;
        let is_suspect = self.connections_lost >= MOST_CONNECTIONS_LOST;
        if unsafe_to_repeat || too_late || is_suspect || self.made > self.retry.most {
            return Next::GiveUp;
        }
        let pause = self.pause(error, jitter);
        // What was not sent was no load on anybody, and what was given up as lost is paid for.
        let is_free = matches!(error, AttemptError::NotConnected | AttemptError::NotAccepted);
        if now + pause >= self.deadline || !(is_free || budget.withdraw(now)) {
            return Next::GiveUp;
        }
        Next::RetryAfter(pause)
    }

    /// None where another worker can answer at once; else growing, half of it jitter, so that
    /// retries spread out. A fifth of the window at the most: then the default number of attempts
    /// lasts for a window of up to 5 s, however the jitter falls.
    fn pause(&self, error: AttemptError, jitter: f64) -> Duration {
        const FIRST: Duration = Duration::from_millis(5);
        let elsewhere = matches!(
            error,
            AttemptError::Moved
                | AttemptError::Expired
                | AttemptError::InstanceLost
                | AttemptError::NotAccepted
                | AttemptError::TimedOut
                | AttemptError::StreamNotOpened
                | AttemptError::StreamLost
        );
        if elsewhere && self.made == 1 {
            return Duration::ZERO;
        }
        let longest = (self.retry.window / 5).max(FIRST);
        let full = FIRST.saturating_mul(1 << self.made.min(10)).min(longest);
        full / 2 + (full / 2).mul_f64(jitter.clamp(0.0, 1.0))
    }
}

/// Retries that may be spent: a fixed rate and a share of the requests, so that an outage is never
/// multiplied.
///
/// A token bucket: each request puts in [`Budget::SHARE`], each second [`Budget::PER_SECOND`], and
/// each retry takes one. It holds at most [`Budget::CAPACITY`].
#[derive(Clone, Debug)]
pub struct Budget {
    tokens: f64,
    filled: Instant,
}

impl Budget {
    /// Retries earned by a request.
    pub const SHARE: f64 = 0.2;
    /// Retries earned by a second, so that a service with little traffic can retry as well.
    pub const PER_SECOND: f64 = 20.0;
    /// The most retries saved up: what a rolling restart under load may need at once.
    pub const CAPACITY: f64 = 2_000.0;

    /// A budget that starts with ten seconds' worth.
    pub fn new(now: Instant) -> Self {
        Self { tokens: 10.0 * Self::PER_SECOND, filled: now }
    }

    /// A request came in.
    pub fn deposit(&mut self) {
        self.tokens = (self.tokens + Self::SHARE).min(Self::CAPACITY);
    }

    /// Takes one retry, if there is one.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.filled).as_secs_f64();
        self.filled = now;
        self.tokens = (self.tokens + elapsed * Self::PER_SECOND).min(Self::CAPACITY);
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Retry = Retry { most: 8, window: Duration::from_secs(2) };

    fn attempts(idempotent: bool) -> (Attempts, Budget, Instant) {
        let now = Instant::now();
        (
            Attempts::new(RETRY, idempotent, now, now + Duration::from_secs(30)),
            Budget::new(now),
            now,
        )
    }

    #[test]
    fn what_never_ran_is_tried_again_whatever_its_method() {
        for error in [
            AttemptError::NoResponders,
            AttemptError::Overloaded,
            AttemptError::Moved,
            AttemptError::Expired,
        ] {
            let (mut attempts, mut budget, now) = attempts(false);
            assert!(
                matches!(attempts.after(error, now, 0.5, &mut budget), Next::RetryAfter(_)),
                "{error:?}"
            );
        }
    }

    #[test]
    fn what_may_have_run_is_tried_again_only_when_idempotent() {
        for error in [
            AttemptError::InstanceLost,
            AttemptError::ConnectionLost,
            AttemptError::NotAccepted,
            AttemptError::TimedOut,
        ] {
            let (mut unsafe_tries, mut budget, now) = attempts(false);
            assert_eq!(unsafe_tries.after(error, now, 0.5, &mut budget), Next::GiveUp, "{error:?}");
            let (mut safe_tries, mut budget, now) = attempts(true);
            assert!(
                matches!(safe_tries.after(error, now, 0.5, &mut budget), Next::RetryAfter(_)),
                "{error:?}"
            );
        }
    }

    #[test]
    fn what_was_not_sent_is_tried_again_whatever_its_method_and_the_budget() {
        let (mut fresh, mut budget, now) = attempts(false);
        while budget.withdraw(now) {}
        assert!(matches!(
            fresh.after(AttemptError::NotConnected, now, 0.5, &mut budget),
            Next::RetryAfter(_)
        ));
        assert_eq!(fresh.after(AttemptError::NoResponders, now, 0.5, &mut budget), Next::GiveUp);
    }

    #[test]
    fn the_default_tries_last_for_the_window_however_the_jitter_falls() {
        for window in [Duration::from_millis(100), Duration::from_secs(2), Duration::from_secs(5)] {
            let now = Instant::now();
            let retry = Retry { most: 16, window };
            let mut attempts = Attempts::new(retry, false, now, now + Duration::from_secs(60));
            let (mut at, mut budget) = (now, Budget::new(now));
            while let Next::RetryAfter(pause) =
                attempts.after(AttemptError::NoResponders, at, 0.0, &mut budget)
            {
                at += pause;
            }
            assert!(at - now >= window, "{:?} of {window:?}", at - now);
        }
    }

    #[test]
    fn tries_end_with_the_window_the_count_and_the_deadline() {
        let (mut late, mut budget, now) = attempts(true);
        let after_it = now + RETRY.window;
        let first = late.after(AttemptError::NoResponders, after_it, 0.5, &mut budget);
        assert!(
            matches!(first, Next::RetryAfter(_)),
            "it took as long as the window and did not run"
        );
        assert_eq!(
            late.after(AttemptError::NoResponders, after_it, 0.5, &mut budget),
            Next::GiveUp
        );

        let (mut many, mut budget, now) = attempts(true);
        let retried = (0..100)
            .take_while(|_| {
                many.after(AttemptError::NoResponders, now, 0.5, &mut budget) != Next::GiveUp
            })
            .count();
        assert_eq!(retried, RETRY.most as usize);

        let now = Instant::now();
        let mut short = Attempts::new(RETRY, true, now, now + Duration::from_millis(2));
        assert_eq!(
            short.after(AttemptError::NoResponders, now, 0.5, &mut Budget::new(now)),
            Next::GiveUp
        );
    }

    #[test]
    fn what_was_out_on_every_connection_that_broke_is_not_sent_on_a_fourth() {
        let (mut attempts, mut budget, now) = attempts(true);
        for _ in 1..MOST_CONNECTIONS_LOST {
            let next = attempts.after(AttemptError::ConnectionLost, now, 0.5, &mut budget);
            assert!(matches!(next, Next::RetryAfter(_)));
            assert!(matches!(
                attempts.after(AttemptError::TimedOut, now, 0.5, &mut budget),
                Next::RetryAfter(_)
            ));
        }
        assert_eq!(
            attempts.after(AttemptError::ConnectionLost, now, 0.5, &mut budget),
            Next::GiveUp
        );
    }

    #[test]
    fn only_what_is_idempotent_is_given_up_before_its_deadline() {
        let (safe, _, now) = attempts(true);
        assert_eq!(safe.until(now, Duration::from_secs(10)), now + Duration::from_secs(10));
        assert_eq!(safe.until(now, Duration::from_secs(90)), now + Duration::from_secs(30));
        let (unsafe_, _, now) = attempts(false);
        assert_eq!(unsafe_.until(now, Duration::from_secs(10)), now + Duration::from_secs(30));
    }

    #[test]
    fn only_what_may_run_twice_and_has_another_try_has_an_accept_timeout_and_ever_more_rarely() {
        let try_timeout = Duration::from_secs(10);
        let accept_within = |attempts: &Attempts, now| {
            attempts.accept_by(now, attempts.until(now, try_timeout)).map(|at| at - now)
        };
        let (once, _, now) = attempts(false);
        assert_eq!(accept_within(&once, now), None);
        let (mut safe, mut budget, now) = attempts(true);
        while budget.withdraw(now) {}
        for seconds in [1, 1, 2, 4, 8] {
            assert_eq!(accept_within(&safe, now), Some(Duration::from_secs(seconds)));
            let next = safe.after(AttemptError::NotAccepted, now, 0.5, &mut budget);
            assert!(matches!(next, Next::RetryAfter(_)), "it is paid for");
        }
        assert_eq!(accept_within(&safe, now), None, "its try ends before");

        let (safe, _, now) = attempts(true);
        assert!(accept_within(&safe, now + Duration::from_secs(28)).is_some());
        assert_eq!(
            accept_within(&safe, now + Duration::from_millis(28_001)),
            None,
            "no time for another"
        );
        let single =
            Attempts::new(Retry { most: 0, ..RETRY }, true, now, now + Duration::from_secs(30));
        assert_eq!(accept_within(&single, now), None);
    }

    #[test]
    fn pauses_grow_and_stay_bounded() {
        let (mut attempts, mut budget, now) = attempts(true);
        let mut last = Duration::ZERO;
        for _ in 0..RETRY.most {
            let Next::RetryAfter(pause) =
                attempts.after(AttemptError::NoResponders, now, 0.0, &mut budget)
            else {
                panic!("within all bounds")
            };
            assert!(
                pause >= last && pause <= Duration::from_millis(250),
                "{pause:?} after {last:?}"
            );
            last = pause;
        }
    }

    #[test]
    fn a_total_outage_is_not_multiplied() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut retries = 0;
        // 1,000 requests a second for a minute, none of which is answered.
        for request in 0..60_000_u64 {
            let now = start + Duration::from_millis(request);
            budget.deposit();
            let mut attempts = Attempts::new(RETRY, true, now, now + Duration::from_secs(30));
            while attempts.after(AttemptError::NoResponders, now, 0.5, &mut budget) != Next::GiveUp
            {
                retries += 1;
            }
        }
        assert!(retries < 60_000 / 4, "{retries} retries for 60,000 requests");
    }
}

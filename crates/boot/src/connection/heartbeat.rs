//! Whether the other end of a connection still answers.
//!
//! The client library's own pings end a connection after 6 s of silence, for it must not end one
//! that is merely slow. To look for a second connection is harmless, so that is worth knowing
//! sooner: a message to oneself every half second shows it.

use std::time::Duration;

use async_nats::{Client, SubscribeError, Subscriber};
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Between two ticks.
const TICK: Duration = Duration::from_millis(250);

/// A message to oneself at every so many ticks.
const TICKS_PER_ECHO: u32 = 2;

/// Ticks without an answer after which the other end is called silent. Counted in ticks rather than
/// in time, because a process that was not running for a second has not listened either.
const MOST_MISSED: u32 = 4;

/// Messages to oneself on one connection, and what has become of them.
#[derive(Debug)]
pub(crate) struct Heartbeat {
    inbox: String,
    echoes: Subscriber,
    ticks: Interval,
    state: State,
}

/// What a tick found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeartbeatStatus {
    /// Nothing new.
    Steady,
    /// Nothing has come back for a second. Said once.
    Missed,
    /// Something came back after all.
    Back,
}

/// Pure: what was sent and what came back.
#[derive(Debug, Default)]
struct State {
    ticks: u32,
    /// Ticks since the echo that is waited for was sent; `None` when none is out.
    missed: Option<u32>,
    /// Whether anything ever came back: who may not publish to its own inbox hears nothing, and
    /// that means nothing.
    was_heard: bool,
    is_silent: bool,
}

impl Heartbeat {
    pub(crate) async fn start(client: &Client) -> Result<Self, SubscribeError> {
        let inbox = client.new_inbox();
        let echoes = client.subscribe(inbox.clone()).await?;
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { inbox, echoes, ticks, state: State::default() })
    }

    /// Waits for the next tick or the next echo, whichever is first, and says what it means.
    ///
    /// # Cancel safety
    /// Cancelling loses nothing.
    pub(crate) async fn next(&mut self, client: &Client) -> HeartbeatStatus {
        tokio::select! {
            biased;
            // A subscription that has ended is for others to notice.
            Some(_) = self.echoes.next() => self.state.heard(),
            _ = self.ticks.tick() => {
                let (status, sends) = self.state.tick();
                if sends {
                    // It must not wait for a client whose queue is full: then nothing comes back,
                    // which is the point.
                    client.publish(self.inbox.clone(), "".into()).now_or_never();
                }
                status
            }
        }
    }
}

impl State {
    fn heard(&mut self) -> HeartbeatStatus {
        self.missed = None;
        self.was_heard = true;
        match std::mem::take(&mut self.is_silent) {
            true => HeartbeatStatus::Back,
            false => HeartbeatStatus::Steady,
        }
    }

    /// What the tick means, and whether to send an echo.
    fn tick(&mut self) -> (HeartbeatStatus, bool) {
        self.ticks = self.ticks.wrapping_add(1);
        let sends = self.ticks.is_multiple_of(TICKS_PER_ECHO);
        let missed = self.missed.map(|missed| missed + 1);
        self.missed = missed.or(sends.then_some(0));
        if self.was_heard && !self.is_silent && missed.is_some_and(|missed| missed >= MOST_MISSED) {
            self.is_silent = true;
            return (HeartbeatStatus::Missed, sends);
        }
        (HeartbeatStatus::Steady, sends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticks(state: &mut State, count: u32) -> Vec<HeartbeatStatus> {
        (0..count)
            .map(|_| state.tick().0)
            .filter(|status| *status != HeartbeatStatus::Steady)
            .collect()
    }

    #[test]
    fn silence_is_said_once_and_so_is_its_end() {
        let mut state = State::default();
        ticks(&mut state, 2);
        assert_eq!(state.heard(), HeartbeatStatus::Steady);
        assert_eq!(ticks(&mut state, 20), [HeartbeatStatus::Missed]);
        assert_eq!(
            (state.heard(), state.heard()),
            (HeartbeatStatus::Back, HeartbeatStatus::Steady)
        );
        assert_eq!(ticks(&mut state, 20), [HeartbeatStatus::Missed]);
    }

    #[test]
    fn who_answers_in_time_is_never_silent() {
        let mut state = State::default();
        for _ in 0..100 {
            assert_eq!(ticks(&mut state, MOST_MISSED), []);
            state.heard();
        }
    }

    #[test]
    fn who_was_never_heard_may_not_be_allowed_to_speak() {
        assert_eq!(ticks(&mut State::default(), 100), []);
    }
}

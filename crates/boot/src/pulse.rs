//! Whether the other end of a connection still answers.
//!
//! The client library's own pings end a connection after 6 s of silence, for it must not end one that is merely slow.
//! To look for a second connection is harmless, so that is worth knowing sooner: a message to oneself every half second
//! shows it.

use std::time::Duration;

use async_nats::{Client, SubscribeError, Subscriber};
use futures_util::{FutureExt, StreamExt};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// A message to oneself at every so many looks.
const LOOKS_PER_ECHO: u32 = 2;

/// Looks without an answer after which the other end is called silent. Counted in looks rather than in time, because a
/// process that was not running for a second has not listened either.
const MOST_MISSED: u32 = 4;

/// Messages to oneself on one connection, and what has become of them.
#[derive(Debug)]
pub(crate) struct Pulse {
    inbox: String,
    echoes: Subscriber,
    looks: Interval,
    state: State,
}

/// What a look found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Beat {
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
    looks: u32,
    /// Looks since the echo that is waited for was sent; `None` when none is out.
    missed: Option<u32>,
    /// Whether anything ever came back: who may not publish to its own inbox hears nothing, and that means nothing.
    was_heard: bool,
    is_silent: bool,
}

impl Pulse {
    pub(crate) async fn start(client: &Client) -> Result<Pulse, SubscribeError> {
        let inbox = client.new_inbox();
        let echoes = client.subscribe(inbox.clone()).await?;
        let mut looks = interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Pulse { inbox, echoes, looks, state: State::default() })
    }

    /// Waits for the next look or the next echo, whichever is first, and says what it means.
    ///
    /// # Cancel safety
    /// Cancelling loses nothing.
    pub(crate) async fn next(&mut self, client: &Client) -> Beat {
        tokio::select! {
            biased;
            // A subscription that has ended is for others to notice.
            Some(_) = self.echoes.next() => self.state.heard(),
            _ = self.looks.tick() => {
                let (beat, sends) = self.state.look();
                if sends {
                    // It must not wait for a client whose queue is full: then nothing comes back, which is the point.
                    client.publish(self.inbox.clone(), "".into()).now_or_never();
                }
                beat
            }
        }
    }
}

impl State {
    fn heard(&mut self) -> Beat {
        self.missed = None;
        self.was_heard = true;
        match std::mem::take(&mut self.is_silent) {
            true => Beat::Back,
            false => Beat::Steady,
        }
    }

    /// What the look means, and whether to send an echo.
    fn look(&mut self) -> (Beat, bool) {
        self.looks = self.looks.wrapping_add(1);
        let sends = self.looks.is_multiple_of(LOOKS_PER_ECHO);
        let missed = self.missed.map(|missed| missed + 1);
        self.missed = missed.or(sends.then_some(0));
        if self.was_heard && !self.is_silent && missed.is_some_and(|missed| missed >= MOST_MISSED) {
            self.is_silent = true;
            return (Beat::Missed, sends);
        }
        (Beat::Steady, sends)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(state: &mut State, count: u32) -> Vec<Beat> {
        (0..count).map(|_| state.look().0).filter(|beat| *beat != Beat::Steady).collect()
    }

    #[test]
    fn silence_is_said_once_and_so_is_its_end() {
        let mut state = State::default();
        looks(&mut state, 2);
        assert_eq!(state.heard(), Beat::Steady);
        assert_eq!(looks(&mut state, 20), [Beat::Missed]);
        assert_eq!((state.heard(), state.heard()), (Beat::Back, Beat::Steady));
        assert_eq!(looks(&mut state, 20), [Beat::Missed]);
    }

    #[test]
    fn who_answers_in_time_is_never_silent() {
        let mut state = State::default();
        for _ in 0..100 {
            assert_eq!(looks(&mut state, MOST_MISSED), []);
            state.heard();
        }
    }

    #[test]
    fn who_was_never_heard_may_not_be_allowed_to_speak() {
        assert_eq!(looks(&mut State::default(), 100), []);
    }
}

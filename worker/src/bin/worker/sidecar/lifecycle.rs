//! When an app is started and stopped, and when its worker is a member of the queue group: pure,
//! time as an argument.
//!
//! The worker joins once the app is healthy and leaves by the fence when it is not. Told to stop,
//! it leaves first, and the app ends once nothing is in hand any more.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// How often an app may end within [`CRASH_WINDOW`] before it is given up.
const CRASH_LOOP: usize = 5;
const CRASH_WINDOW: Duration = Duration::from_secs(30);

/// The pause before a restart: the first, which doubles, and the longest. One that ran for the
/// longest begins anew.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// What the life cycle goes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Settings {
    /// Whether the app is ours to start.
    pub(crate) is_started_here: bool,
    /// Checks that fail in a row before the app is unhealthy.
    pub(crate) failures: u32,
    /// How long the app may take to become healthy after its start, before that counts as a crash.
    pub(crate) start_timeout: Duration,
    /// Between SIGTERM and SIGKILL.
    pub(crate) grace: Duration,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A check of the app's health.
    Checked { is_healthy: bool },
    /// The app ended, with this exit code; if it was told to, its whole process group did.
    Exited { code: u8 },
    /// The worker has left the queue group, with nothing in hand.
    Left,
    /// The worker cannot serve.
    ServingFailed,
    /// We are told to stop.
    Stop,
    /// Time passed.
    Tick,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start the app.
    Start,
    /// Become a member of the queue group.
    Join,
    /// Leave the queue group by the fence, and say when that is done.
    Leave,
    /// Have no request go to the app, and give up those that another instance may do.
    Suspend,
    /// Have requests go to the app.
    Resume,
    /// SIGTERM to the app's process group, all of which has until [`Action::Kill`].
    Terminate,
    /// SIGKILL to the app's process group.
    Kill,
    /// All is over.
    End(End),
}

/// How all of it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// As we were told; the exit code is the app's, if it was started here.
    Stopped { code: Option<u8> },
    /// The app ended again and again.
    CrashLoop { code: u8 },
    /// The worker could not serve.
    Failed,
}

/// The app, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum App {
    /// It runs, ours since then.
    Up { since: Instant },
    /// It is started again at that time.
    Down { restart_at: Instant },
    /// SIGTERM was sent, SIGKILL follows.
    Terminating { kill_at: Instant },
    /// SIGKILL was sent.
    Killed,
    /// It is not started again.
    Gone { code: u8 },
}

/// The worker's membership of its queue group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Membership {
    Out,
    In,
    Leaving,
}

/// The state of an app and its worker.
#[derive(Clone, Debug)]
pub(crate) struct Lifecycle {
    settings: Settings,
    app: App,
    membership: Membership,
    is_healthy: bool,
    /// Whether it ever was, since its start.
    was_healthy: bool,
    is_suspended: bool,
    failures: u32,
    crashes: VecDeque<Instant>,
    pause: Duration,
    /// Why it comes to an end, once it does.
    ending: Option<Ending>,
    is_over: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Stopped,
    CrashLoop,
    Failed,
}

impl Lifecycle {
    /// An app that has not been started, or has not been looked at.
    pub(crate) fn new(settings: Settings, now: Instant) -> Self {
        let app = match settings.is_started_here {
            true => App::Down { restart_at: now },
            false => App::Up { since: now },
        };
        Self {
            settings,
            app,
            membership: Membership::Out,
            is_healthy: false,
            was_healthy: false,
            is_suspended: false,
            failures: 0,
            crashes: VecDeque::new(),
            pause: FIRST_PAUSE,
            ending: None,
            is_over: false,
        }
    }

    /// Whether the app is to be checked, and whether it has yet to become healthy: then often.
    pub(crate) fn checks(&self) -> Option<Checks> {
        let is_up = matches!(self.app, App::Up { .. });
        let checks = if self.awaits_start() { Checks::Often } else { Checks::Usual };
        (is_up && self.ending.is_none()).then_some(checks)
    }

    /// Whether it comes to an end, so that the app is not started again.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// When the next [`Event::Tick`] is due, if nothing else happens.
    pub(crate) fn wake_at(&self) -> Option<Instant> {
        match self.app {
            App::Down { restart_at } if self.ending.is_none() => Some(restart_at),
            App::Terminating { kill_at } => Some(kill_at),
            App::Up { since } if self.awaits_start() => Some(since + self.settings.start_timeout),
            App::Up { .. } | App::Down { .. } | App::Killed | App::Gone { .. } => None,
        }
    }

    /// Goes on by an event; the actions are to be done in their order.
    pub(crate) fn step(&mut self, event: Event, now: Instant) -> Vec<Action> {
        match event {
            Event::Checked { is_healthy } => self.checked(is_healthy),
            Event::Exited { code } => self.exited(code, now),
            Event::Left => {
                // Not asked to by us: somebody else had the worker leave, for good.
                if self.membership == Membership::In {
                    self.ending.get_or_insert(Ending::Stopped);
                }
                self.membership = Membership::Out;
            }
            Event::ServingFailed => {
                self.membership = Membership::Out;
                self.ending.get_or_insert(Ending::Failed);
            }
            Event::Stop => {
                self.ending.get_or_insert(Ending::Stopped);
            }
            Event::Tick => {}
        }
        let mut actions = Vec::new();
        self.settle(now, &mut actions);
        actions
    }

    fn checked(&mut self, is_healthy: bool) {
        if !matches!(self.app, App::Up { .. }) {
            return;
        }
        if is_healthy {
            self.failures = 0;
            self.is_healthy = true;
            self.was_healthy = true;
            return;
        }
        self.failures = self.failures.saturating_add(1);
        if self.failures >= self.settings.failures {
            self.is_healthy = false;
        }
    }

    fn exited(&mut self, code: u8, now: Instant) {
        let ran_long = match self.app {
            App::Up { since } => self.is_healthy && now - since >= LONGEST_PAUSE,
            _ => false,
        };
        self.is_healthy = false;
        self.was_healthy = false;
        self.failures = 0;
        if self.ending.is_some() {
            self.app = App::Gone { code };
            return;
        }
        self.crashes.push_back(now);
        while self.crashes.front().is_some_and(|crash| now - *crash > CRASH_WINDOW) {
            self.crashes.pop_front();
        }
        if self.crashes.len() >= CRASH_LOOP {
            self.ending = Some(Ending::CrashLoop);
            self.app = App::Gone { code };
            return;
        }
        if ran_long {
            self.pause = FIRST_PAUSE;
        }
        self.app = App::Down { restart_at: now + self.pause };
        self.pause = (2 * self.pause).min(LONGEST_PAUSE);
    }

    /// Whether the app was started here and has yet to become healthy.
    fn awaits_start(&self) -> bool {
        // After a first time it is unhealthy, not slow to start.
        self.settings.is_started_here && !self.was_healthy && self.ending.is_none()
    }

    /// Does what the state wants.
    fn settle(&mut self, now: Instant, actions: &mut Vec<Action>) {
        if self.is_over {
            return;
        }
        let is_up = matches!(self.app, App::Up { .. });
        let is_fit = is_up && self.is_healthy;
        match self.membership {
            // Not on the word of an older check than the last.
            Membership::Out if is_fit && self.failures == 0 && self.ending.is_none() => {
                if std::mem::take(&mut self.is_suspended) {
                    actions.push(Action::Resume);
                }
                actions.push(Action::Join);
                self.membership = Membership::In;
            }
            Membership::In if !is_fit || self.ending.is_some() => {
                actions.push(Action::Leave);
                self.membership = Membership::Leaving;
            }
            _ => {}
        }
        // What the worker still has in hand is of no use to an app that is not there.
        let is_asked = self.membership != Membership::Out;
        if is_asked && !is_fit && !self.is_suspended {
            actions.push(Action::Suspend);
            self.is_suspended = true;
        } else if is_asked && is_fit && self.is_suspended {
            actions.push(Action::Resume);
            self.is_suspended = false;
        }
        match self.app {
            App::Down { restart_at } if self.ending.is_none() && now >= restart_at => {
                actions.push(Action::Start);
                self.app = App::Up { since: now };
            }
            App::Up { since }
                if self.awaits_start() && now >= since + self.settings.start_timeout =>
            {
                self.terminate(now, actions);
            }
            App::Up { .. } if self.may_end() && self.settings.is_started_here => {
                self.terminate(now, actions);
            }
            App::Terminating { kill_at } if now >= kill_at => {
                actions.push(Action::Kill);
                self.app = App::Killed;
            }
            _ => {}
        }
        self.end(actions);
    }

    /// Whether all that was in hand is done, and it comes to an end.
    fn may_end(&self) -> bool {
        self.ending.is_some() && self.membership == Membership::Out
    }

    fn terminate(&mut self, now: Instant, actions: &mut Vec<Action>) {
        actions.push(Action::Terminate);
        self.app = App::Terminating { kill_at: now + self.settings.grace };
    }

    fn end(&mut self, actions: &mut Vec<Action>) {
        let code = match self.app {
            App::Gone { code } => Some(code),
            App::Down { .. } => None,
            App::Up { .. } if !self.settings.is_started_here => None,
            App::Up { .. } | App::Terminating { .. } | App::Killed => return,
        };
        let (Some(ending), true) = (self.ending, self.may_end()) else { return };
        self.is_over = true;
        actions.push(Action::End(match (ending, code) {
            (Ending::CrashLoop, Some(code)) => End::CrashLoop { code },
            (Ending::Failed, _) => End::Failed,
            (Ending::Stopped | Ending::CrashLoop, code) => End::Stopped { code },
        }));
    }
}

/// How often the app's health is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checks {
    /// Until it is healthy.
    Often,
    /// As the settings say.
    Usual,
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;

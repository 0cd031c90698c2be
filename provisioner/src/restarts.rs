//! Holds starts back while they fail, or what is started ends at once. Pure: time is an argument.
//!
//! Instances that were told to stop may go, and one that has worked for a while and dies is
//! replaced at once. One that ends sooner than [`SETTLED_MS`] after it was started has failed to
//! start, so has one that never shows, and so has what the backend could not start at all. After a
//! failure nothing is started for a pause that doubles with each failure in a row, up to
//! [`LONGEST_PAUSE_MS`]; then as many as are wanted are tried again. An instance that was started
//! since and lives long enough ends it.

use std::collections::HashMap;

use crate::instance::{Instance, InstanceState};

/// An instance that lived for so long has started well.
pub const SETTLED_MS: u64 = 10_000;

/// The pause after the first failure: one may be chance.
pub const FIRST_PAUSE_MS: u64 = 1_000;

/// The longest pause: whoever mends the program waits no longer for it to be tried.
pub const LONGEST_PAUSE_MS: u64 = 60_000;

/// What became of the instances that were started.
#[derive(Clone, Debug, Default)]
pub struct Restarts {
    /// Those that were present at the last poll, and since when; `None` before the first poll.
    seen: Option<HashMap<String, Since>>,
    /// Started and told to stop since the last poll.
    started: usize,
    stopped: usize,
    failures: Option<Failures>,
}

/// Since when an instance is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Since {
    /// It was there before anybody looked, so nobody knows.
    Before,
    /// In milliseconds.
    At(u64),
}

/// Failures in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failures {
    /// How many polls in a row found that instances had failed to start, each after the pause of
    /// the one before.
    pub in_a_row: u32,
    /// When the last of them was seen, in milliseconds.
    pub last_ms: u64,
    /// Until when nothing is started, in milliseconds.
    pub pause_until_ms: u64,
}

impl Restarts {
    /// Takes a poll at all instances. Gives the failures so far when there is a new one.
    pub fn observe(&mut self, now_ms: u64, instances: &[Instance]) -> Option<Failures> {
        let (started, stopped) =
            (std::mem::take(&mut self.started), std::mem::take(&mut self.stopped));
        let is_present = |instance: &&Instance| instance.state != InstanceState::Stopping;
        let present = instances.iter().filter(is_present);
        let Some(before) = self.seen.take() else {
            self.seen =
                Some(present.map(|instance| (instance.id.clone(), Since::Before)).collect());
            return None;
        };
        let since = |id: &String| before.get(id).copied().unwrap_or(Since::At(now_ms));
        let seen: HashMap<_, _> =
            present.map(|instance| (instance.id.clone(), since(&instance.id))).collect();

        let appeared = seen.keys().filter(|id| !before.contains_key(*id)).count();
        let never_showed = started.saturating_sub(appeared);
        // Another name for one that was ordered, where names come later than orders.
        let unasked = appeared.saturating_sub(started);
        let leave = instances.iter().filter(|instance| {
            instance.state == InstanceState::Stopping && before.contains_key(&instance.id)
        });
        let left_at_once = stopped.saturating_sub(leave.count());
        let is_young =
            |since: Since| matches!(since, Since::At(at_ms) if now_ms - at_ms < SETTLED_MS);
        let ended_young = before.iter().filter(|(id, since)| {
            is_young(**since) && instances.iter().all(|instance| instance.id != **id)
        });
        let failed = (never_showed + ended_young.count()).saturating_sub(unasked + left_at_once);

        let settled_since = |last_ms: u64| {
            let is_new = |since: &Since| matches!(since, Since::At(at_ms) if *at_ms > last_ms);
            seen.values().any(|since| is_new(since) && !is_young(*since))
        };
        if failed > 0 {
            self.failures = Some(Failures::after(self.failures, now_ms));
        } else if self.failures.is_some_and(|failures| settled_since(failures.last_ms)) {
            self.failures = None;
        }
        self.seen = Some(seen);
        self.failures.filter(|_| failed > 0)
    }

    /// Notes that the present number was changed from one to another.
    pub fn changed(&mut self, from: u32, to: u32) {
        self.started += to.saturating_sub(from) as usize;
        self.stopped += from.saturating_sub(to) as usize;
    }

    /// Notes that the backend could not start what was wanted. Gives the failures so far.
    pub fn refused(&mut self, now_ms: u64) -> Failures {
        *self.failures.insert(Failures::after(self.failures, now_ms))
    }

    /// Why nothing may be started now, if so.
    pub fn pause(&self, now_ms: u64) -> Option<Failures> {
        self.failures.filter(|failures| now_ms < failures.pause_until_ms)
    }
}

impl Failures {
    fn after(before: Option<Self>, now_ms: u64) -> Self {
        let doublings = before.map_or(0, |failures| failures.in_a_row);
        let factor = 1_u64.checked_shl(doublings).unwrap_or(u64::MAX);
        let pause_ms = FIRST_PAUSE_MS.saturating_mul(factor).min(LONGEST_PAUSE_MS);
        Self {
            in_a_row: doublings.saturating_add(1),
            last_ms: now_ms,
            pause_until_ms: now_ms.saturating_add(pause_ms),
        }
    }

    /// A sentence for whoever asks why nothing is started: `error` is the backend's, or else
    /// instances ended.
    pub fn describe(&self, now_ms: u64, error: Option<&str>) -> String {
        let Self { in_a_row, pause_until_ms, .. } = *self;
        let what = match error {
            Some(error) => format!("not started: {error}"),
            None => format!(
                "crash loop: instances ended within {} s of their start",
                SETTLED_MS / 1_000
            ),
        };
        let seconds = pause_until_ms.saturating_sub(now_ms).div_ceil(1_000);
        format!("{what}, {in_a_row} times in a row; the next start is in {seconds} s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backend by a virtual clock: what is started lives for a while and ends.
    #[derive(Default)]
    struct World {
        now_ms: u64,
        restarts: Restarts,
        /// Each with when it was started and how long it lives.
        living: Vec<(Instance, u64, u64)>,
        made: u64,
        starts: Vec<u64>,
    }

    impl World {
        fn instances(&self) -> Vec<Instance> {
            self.living.iter().map(|(instance, ..)| instance.clone()).collect()
        }

        /// A second in which there shall be so many instances, and what is started lives for so
        /// long.
        fn second(&mut self, wanted: usize, lives_ms: u64) {
            self.now_ms += 1_000;
            let now_ms = self.now_ms;
            self.living.retain(|(_, started_ms, lives_ms)| started_ms + lives_ms > now_ms);
            let instances = self.instances();
            self.restarts.observe(now_ms, &instances);
            let from = instances.len();
            if from > wanted {
                self.living.truncate(wanted);
                self.restarts.changed(from as u32, wanted as u32);
            } else if from < wanted && self.restarts.pause(now_ms).is_none() {
                for _ in from..wanted {
                    self.made += 1;
                    let id = format!("{}", self.made);
                    let instance = Instance::new(id, InstanceState::Ready, now_ms);
                    self.living.push((instance, now_ms, lives_ms));
                    self.starts.push(now_ms);
                }
                self.restarts.changed(from as u32, wanted as u32);
            }
        }
    }

    const FOR_EVER: u64 = u64::MAX / 2;

    #[test]
    fn a_command_that_ends_at_once_is_started_ever_more_rarely_and_never_given_up() {
        let mut world = World::default();
        for _ in 0..600 {
            world.second(1, 10);
        }
        let seconds: Vec<u64> = world.starts.iter().map(|at_ms| at_ms / 1_000).collect();
        // Each is missed a second later, and then the pause of 1, 2, 4, .. 60 s begins.
        assert_eq!(seconds[..8], [1, 3, 6, 11, 20, 37, 70, 131]);
        assert!(seconds.windows(2).all(|pair| pair[1] - pair[0] <= 61), "{seconds:?}");
        assert_eq!(seconds.len(), 15, "{seconds:?}");
        let pause = world.restarts.pause(world.now_ms).unwrap().describe(world.now_ms, None);
        assert!(pause.contains("15 times in a row; the next start is in"), "{pause}");
    }

    #[test]
    fn one_that_is_mended_is_tried_within_a_minute_and_forgotten_when_it_lives() {
        let mut world = World::default();
        for _ in 0..300 {
            world.second(3, 10);
        }
        for _ in 0..61 {
            world.second(3, FOR_EVER);
        }
        assert_eq!(world.living.len(), 3);
        for _ in 0..11 {
            world.second(3, FOR_EVER);
        }
        assert_eq!(world.restarts.failures, None);
    }

    #[test]
    fn one_that_worked_and_dies_is_replaced_at_once() {
        let mut world = World::default();
        for _ in 0..10 {
            world.second(4, FOR_EVER);
        }
        for _ in 0..20 {
            world.second(4, FOR_EVER);
            world.living.remove(0);
            world.second(4, FOR_EVER);
            assert_eq!(world.living.len(), 4, "after {} ms", world.now_ms);
            for _ in 0..10 {
                world.second(4, FOR_EVER);
            }
        }
        assert_eq!(world.restarts.failures, None);
    }

    #[test]
    fn what_was_told_to_stop_may_go_however_young() {
        let mut world = World::default();
        for _ in 0..50 {
            world.second(5, FOR_EVER);
            world.second(2, FOR_EVER);
        }
        assert_eq!(world.restarts.failures, None);
        let (mut restarts, mut leaving) = (Restarts::default(), world.instances());
        restarts.observe(0, &[]);
        restarts.changed(0, 2);
        restarts.observe(1_000, &leaving);
        restarts.changed(2, 1);
        leaving[0].state = InstanceState::Stopping;
        assert_eq!(restarts.observe(2_000, &leaving), None, "it finishes what it holds");
        assert_eq!(restarts.observe(3_000, &leaving[1..]), None);
        assert!(restarts.observe(4_000, &[]).is_some(), "nobody told the other one");
    }

    #[test]
    fn what_was_there_before_is_old_and_an_order_is_what_appears_for_it() {
        let instance = |id: &str| Instance::new(id, InstanceState::Starting, 0);
        let mut restarts = Restarts::default();
        assert_eq!(restarts.observe(0, &[instance("adopted")]), None);
        assert_eq!(restarts.observe(1_000, &[]), None, "it may have worked for days");
        restarts.changed(0, 1);
        assert_eq!(restarts.observe(2_000, &[instance("ordered 0")]), None);
        assert_eq!(
            restarts.observe(3_000, &[instance("set-a")]),
            None,
            "the same one by its own name"
        );
        restarts.changed(1, 2);
        assert!(restarts.observe(4_000, &[instance("set-a")]).is_some(), "it never showed");
    }

    #[test]
    fn what_the_backend_cannot_start_is_tried_ever_more_rarely() {
        let mut restarts = Restarts::default();
        let mut tries = Vec::new();
        for second in 0..200_u64 {
            let now_ms = second * 1_000;
            restarts.observe(now_ms, &[]);
            if restarts.pause(now_ms).is_none() {
                restarts.refused(now_ms);
                tries.push(second);
            }
        }
        assert_eq!(tries, [0, 1, 3, 7, 15, 31, 63, 123, 183]);
        let told = restarts.pause(200_000).unwrap().describe(200_000, Some("403"));
        assert_eq!(told, "not started: 403, 9 times in a row; the next start is in 43 s");
    }

    #[test]
    fn those_that_live_do_not_excuse_one_that_ends_again_and_again() {
        let mut world = World::default();
        for _ in 0..20 {
            world.second(3, FOR_EVER);
        }
        world.starts.clear();
        for _ in 0..600 {
            world.second(4, 10);
        }
        assert!(world.starts.len() < 20, "{:?}", world.starts);
    }
}

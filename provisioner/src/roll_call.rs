//! Which instances answer. Pure.
//!
//! An instance that runs and does not answer is no capacity: a stopped or hung process stays in its
//! backend's list for ever. Answers are matched to instances by name: the id that the answer goes
//! by, or what it says that it was started as. Silence is judged only where it means something: an
//! instance must have answered before, or others must whose answers are matched. While nobody says
//! which instance it is, nobody is judged.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::instance::{Instance, InstanceState};
use crate::sample::Fleet;

/// How long an instance may take from its start to its first answer, in milliseconds; until then it
/// counts as starting.
pub const FIRST_ANSWER_WITHIN_MS: u64 = 60_000;

/// A container goes by the first letters of its id; fewer than this are no name.
const LEAST_LETTERS: usize = 12;

/// Who answered at one poll: for each answer the names that it goes by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers(pub Vec<Vec<String>>);

/// What is remembered of each instance.
#[derive(Clone, Debug, Default)]
pub struct RollCall {
    seen: HashMap<String, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    since_ms: u64,
    has_answered: bool,
    /// Polls in a row that it did not answer.
    missed: u32,
}

/// How an instance stands after a poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// As its backend says.
    Good,
    /// It runs, others are known to answer, and whether this one does cannot be told: of some
    /// answers nobody knows whose they are. It counts, and goes before those that are known to
    /// answer.
    Unheard,
    /// It runs and has not answered yet.
    Starting,
    /// It did not answer at so many polls in a row. It counts, and is the first to be stopped.
    Doubted(u32),
    /// It has not answered for so many polls that it counts no more.
    Silent(u32),
}

/// An instance that does not answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Absent {
    /// The instance.
    pub instance: String,
    /// Polls in a row without an answer.
    pub polls: u32,
    /// Whether its backend knows that it does nothing.
    #[serde(default)]
    pub is_frozen: bool,
}

/// What a poll came to, for the explanation.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Attendance {
    /// Answers that came.
    pub answers: u32,
    /// Of these, the ones that are no instance's of the backend.
    pub unmatched: u32,
    /// Instances that did not answer, and count still.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub doubted: Vec<Absent>,
    /// Instances that have not answered for so long that they count no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub silent: Vec<Absent>,
}

impl RollCall {
    /// Takes a poll. `answers` is `None` when nobody could be asked; then only those count as
    /// absent of which the backend knows that they are frozen. After `silent_after` looks in a row
    /// an instance is silent; 0 is never.
    ///
    /// Gives how each instance stands, in the order of `instances`.
    pub fn take(
        &mut self,
        now_ms: u64,
        instances: &[Instance],
        answers: Option<&Answers>,
        silent_after: u32,
    ) -> (Vec<Standing>, Attendance) {
        self.seen.retain(|id, _| instances.iter().any(|instance| instance.id == *id));
        let names = answers.map_or(&[][..], |answers| &answers.0);
        let is_of = |instance: &Instance, names: &Vec<String>| {
            names.iter().any(|name| is_name_of(instance, name))
        };
        let unmatched = names
            .iter()
            .filter(|names| !instances.iter().any(|instance| is_of(instance, names)))
            .count();
        let answered: Vec<bool> = instances
            .iter()
            .map(|instance| names.iter().any(|names| is_of(instance, names)))
            .collect();
        let somebody = answered.contains(&true);
        let mut attendance = Attendance {
            answers: count(names.len()),
            unmatched: count(unmatched),
            ..Attendance::default()
        };
        let mut standings = Vec::with_capacity(instances.len());
        for (instance, answered) in instances.iter().zip(answered) {
            let fresh = Seen { since_ms: now_ms, has_answered: false, missed: 0 };
            let seen = self.seen.entry(instance.id.clone()).or_insert(fresh);
            let standing = if instance.state != InstanceState::Ready {
                Standing::Good
            } else if answered {
                (seen.has_answered, seen.missed) = (true, 0);
                Standing::Good
            } else if instance.is_frozen || (answers.is_some() && seen.has_answered) {
                seen.miss(silent_after)
            } else if somebody && unmatched == 0 {
                let is_young = now_ms.saturating_sub(seen.since_ms) < FIRST_ANSWER_WITHIN_MS;
                let standing = if is_young { Standing::Starting } else { seen.miss(silent_after) };
                match standing {
                    // Who has never answered did not become ready by waiting.
                    Standing::Doubted(_) if silent_after > 0 => Standing::Starting,
                    standing => standing,
                }
            } else {
                // Nobody knows: it keeps the standing that it had.
                match seen.standing(silent_after) {
                    Standing::Good if somebody && !seen.has_answered => Standing::Unheard,
                    standing => standing,
                }
            };
            let (id, is_frozen) = (&instance.id, instance.is_frozen);
            let absent = |polls| Absent { instance: id.clone(), polls, is_frozen };
            match standing {
                Standing::Doubted(polls) => attendance.doubted.push(absent(polls)),
                Standing::Silent(polls) => attendance.silent.push(absent(polls)),
                Standing::Good | Standing::Unheard | Standing::Starting => {}
            }
            standings.push(standing);
        }
        (standings, attendance)
    }
}

impl Seen {
    fn miss(&mut self, silent_after: u32) -> Standing {
        self.missed = self.missed.saturating_add(1);
        self.standing(silent_after)
    }

    fn standing(&self, silent_after: u32) -> Standing {
        match self.missed {
            0 => Standing::Good,
            missed if silent_after > 0 && missed >= silent_after => Standing::Silent(missed),
            missed => Standing::Doubted(missed),
        }
    }
}

impl Attendance {
    /// Whether an instance is known to answer.
    pub fn somebody_answers(&self) -> bool {
        self.answers > self.unmatched
    }

    /// A sentence on those that do not answer, if there are any.
    pub fn describe(&self) -> Option<String> {
        let named = |absent: &[Absent]| {
            let named = absent.iter().map(|Absent { instance, polls, is_frozen }| {
                let why = if *is_frozen { " (frozen)" } else { "" };
                format!("{instance}{why} for {polls} polls")
            });
            named.collect::<Vec<_>>().join(", ")
        };
        let silent = (!self.silent.is_empty()).then(|| {
            let is_stopped = self.somebody_answers() || self.silent.iter().any(|of| of.is_frozen);
            let then = match is_stopped {
                true => "they count no more and are replaced",
                false => {
                    "they count no more; as nobody answers, others are started and none of them is \
                     stopped"
                }
            };
            format!("no answer from {}: {then}", named(&self.silent))
        });
        let doubted = (!self.doubted.is_empty())
            .then(|| format!("no answer from {}: the first to be stopped", named(&self.doubted)));
        let said: Vec<String> = silent.into_iter().chain(doubted).collect();
        (!said.is_empty()).then(|| said.join("; "))
    }
}

/// Counts instances: silent ones are none of the others.
pub fn fleet(instances: &[Instance], standings: &[Standing]) -> Fleet {
    let mut fleet = Fleet::default();
    for (instance, standing) in instances.iter().zip(standings) {
        *match (instance.state, standing) {
            (InstanceState::Stopping, _) => &mut fleet.stopping,
            (_, Standing::Silent(_)) => &mut fleet.silent,
            (InstanceState::Starting, _) | (_, Standing::Starting) => &mut fleet.starting,
            (InstanceState::Ready, _) => &mut fleet.ready,
        } += 1;
    }
    fleet
}

/// Whom to stop so that `wanted` of those that count are left, in this order: who did not answer,
/// longest first; who has not answered yet, or is not known to; who is outdated; the newest, since
/// they hold the least, and a spike's instances go with it.
pub fn surplus(instances: &[Instance], standings: &[Standing], wanted: u32) -> Vec<String> {
    let counts = |(instance, standing): &(&Instance, &Standing)| {
        instance.state != InstanceState::Stopping && !matches!(standing, Standing::Silent(_))
    };
    let mut present: Vec<_> = instances.iter().zip(standings).filter(counts).collect();
    let doubt = |standing: &Standing| match standing {
        Standing::Doubted(polls) => polls.saturating_add(2),
        Standing::Starting => 2,
        Standing::Unheard => 1,
        Standing::Good | Standing::Silent(_) => 0,
    };
    present.sort_by(|(one, of_one), (other, of_other)| {
        let key = |instance: &Instance, standing| {
            (doubt(standing), instance.is_outdated, instance.since_ms, instance.id.clone())
        };
        key(other, of_other).cmp(&key(one, of_one))
    });
    let surplus = present.len().saturating_sub(wanted as usize);
    present[..surplus].iter().map(|(instance, _)| instance.id.clone()).collect()
}

fn is_name_of(instance: &Instance, name: &str) -> bool {
    instance.id == name || (name.len() >= LEAST_LETTERS && instance.id.starts_with(name))
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const AFTER: u32 = 3;

    fn instance(id: &str) -> Instance {
        Instance::new(id, InstanceState::Ready, 0)
    }

    fn answers(names: &[&str]) -> Answers {
        Answers(
            names.iter().map(|name| vec![format!("id-of-{name}"), (*name).to_owned()]).collect(),
        )
    }

    /// Has those look that are named, a second apart, and gives the last standings.
    fn polls(
        roll: &mut RollCall,
        from_s: u64,
        instances: &[Instance],
        names: &[&str],
        times: u64,
    ) -> Vec<Standing> {
        let take = |second| roll.take(second * 1_000, instances, Some(&answers(names)), AFTER).0;
        (from_s..from_s + times).map(take).last().unwrap()
    }

    #[test]
    fn who_answered_and_falls_silent_is_doubted_and_then_counts_no_more() {
        let all = ["a", "b", "c"].map(instance);
        let mut roll = RollCall::default();
        assert_eq!(polls(&mut roll, 0, &all, &["a", "b", "c"], 1), [Standing::Good; 3]);
        let standings = polls(&mut roll, 1, &all, &["b", "c"], 2);
        assert_eq!(standings, [Standing::Doubted(2), Standing::Good, Standing::Good]);
        assert_eq!(fleet(&all, &standings).ready, 3, "a lost answer starts nobody");
        let standings = polls(&mut roll, 3, &all, &["b", "c"], 1);
        assert_eq!(standings[0], Standing::Silent(3));
        assert_eq!(fleet(&all, &standings), Fleet { ready: 2, silent: 1, ..Fleet::default() });
        let standings = polls(&mut roll, 4, &all, &["a", "b", "c"], 1);
        assert_eq!(standings, [Standing::Good; 3], "it woke");
    }

    #[test]
    fn nobody_is_judged_where_answers_say_not_whose_they_are() {
        let all = ["a", "b"].map(instance);
        let standings = polls(&mut RollCall::default(), 0, &all, &["other", "another"], 300);
        assert_eq!(standings, [Standing::Good; 2]);
        // Nor where one may be the other's; but who is known to answer stays when one has to go.
        let standings = polls(&mut RollCall::default(), 0, &all, &["a", "other"], 300);
        assert_eq!(standings, [Standing::Good, Standing::Unheard]);
        assert_eq!(fleet(&all, &standings).ready, 2);
    }

    #[test]
    fn a_new_one_starts_until_it_answers_and_is_silent_when_it_never_does() {
        let all = ["a", "b"].map(instance);
        let mut roll = RollCall::default();
        assert_eq!(polls(&mut roll, 0, &all, &["a"], 60), [Standing::Good, Standing::Starting]);
        assert_eq!(polls(&mut roll, 60, &all, &["a"], 3), [Standing::Good, Standing::Silent(3)]);
    }

    #[test]
    fn after_a_restart_one_that_is_silent_goes_before_a_newer_one_that_answers() {
        let all = [instance("frozen"), Instance { since_ms: 9, ..instance("new") }];
        // Somebody else's instance answers as well, so the silence of the old one proves nothing.
        let names = ["new", "a-stranger"];
        let mut roll = RollCall::default();
        polls(&mut roll, 0, &all, &["frozen", "new", "a-stranger"], 1);
        assert_eq!(surplus(&all, &polls(&mut roll, 1, &all, &names, 1), 1), ["frozen"]);
        let standings = polls(&mut RollCall::default(), 2, &all, &names, 1);
        assert_eq!(
            surplus(&all, &standings, 1),
            ["frozen"],
            "also of a provisioner that never heard it"
        );
    }

    #[test]
    fn when_nobody_can_be_asked_only_the_frozen_are_absent() {
        let frozen = Instance { is_frozen: true, ..instance("b") };
        let all = [instance("a"), frozen];
        let mut roll = RollCall::default();
        let mut standings = Vec::new();
        for second in 0..9 {
            standings = roll.take(second * 1_000, &all, None, AFTER).0;
        }
        assert_eq!(standings, [Standing::Good, Standing::Silent(9)]);
    }

    #[test]
    fn when_nobody_answers_those_that_did_are_silent_and_those_beside_them_count() {
        let mut all = vec![instance("a")];
        let mut roll = RollCall::default();
        polls(&mut roll, 0, &all, &["a"], 1);
        polls(&mut roll, 1, &all, &[], 3);
        all.push(instance("fresh"));
        let standings = polls(&mut roll, 4, &all, &[], 300);
        assert_eq!(
            standings,
            [Standing::Silent(303), Standing::Good],
            "or ever more would be started"
        );
    }

    #[test]
    fn a_container_goes_by_the_first_letters_of_its_id() {
        let all = [instance("0123456789abcdef"), instance("fedcba9876543210")];
        let mut roll = RollCall::default();
        polls(&mut roll, 0, &all, &["0123456789ab", "fedcba987654"], 1);
        let standings = polls(&mut roll, 1, &all, &["0123456789ab", "fed"], 3);
        assert_eq!(standings, [Standing::Good, Standing::Silent(3)]);
    }

    #[test]
    fn who_does_not_answer_is_stopped_first_then_who_is_outdated_then_the_newest() {
        let of =
            |id: &str, since_ms, is_outdated| Instance { since_ms, is_outdated, ..instance(id) };
        let all = [
            of("old", 1, false),
            of("outdated", 2, true),
            of("new", 3, false),
            of("doubted", 0, false),
        ];
        let standings = [Standing::Good, Standing::Good, Standing::Good, Standing::Doubted(1)];
        assert_eq!(surplus(&all, &standings, 1), ["doubted", "outdated", "new"]);
        assert_eq!(surplus(&all, &standings, 9), [""; 0]);
        let standings = [Standing::Good, Standing::Good, Standing::Good, Standing::Silent(9)];
        assert_eq!(
            surplus(&all, &standings, 1),
            ["outdated", "new"],
            "it is none of those that count"
        );
    }

    proptest! {
        /// Instances fall silent and wake, come and go, strangers answer too, the provisioner
        /// starts anew, and numbers are wanted, in every order.
        #[test]
        fn who_answers_is_never_stopped_for_one_who_does_not(
            steps in prop::collection::vec(
                ((0_u32..8, any::<u8>(), any::<u8>(), 1_u32..6), any::<(u8, bool)>()), 1..60,
            ),
        ) {
            let mut roll = RollCall::default();
            let mut living: Vec<Instance> = Vec::new();
            let mut made = 0_u64;
            for (second, ((more, silent, asked, wanted), (restarts, stranger))) in steps.into_iter().enumerate() {
                if restarts < 20 {
                    roll = RollCall::default();
                }
                for _ in 0..more.saturating_sub(living.len() as u32) {
                    made += 1;
                    living.push(Instance::new(format!("i{made}"), InstanceState::Ready, made));
                }
                let answer = |(place, instance): (usize, &Instance)| {
                    (silent >> (place % 8) & 1 == 0).then(|| instance.id.clone())
                };
                let names: Vec<String> = living.iter().enumerate().filter_map(answer).collect();
                let stranger = stranger.then(|| "a-stranger".to_owned());
                let told = Answers(names.iter().chain(&stranger).map(|name| vec![name.clone()]).collect());
                let can_ask = asked > 40;
                let now_ms = second as u64 * 1_000;
                let (standings, attendance) = roll.take(now_ms, &living, can_ask.then_some(&told), AFTER);
                let counted = fleet(&living, &standings);
                prop_assert_eq!(
                    (counted.ready + counted.starting + counted.silent) as usize, living.len()
                );
                prop_assert_eq!(attendance.silent.len() as u32, counted.silent);
                let stopped = surplus(&living, &standings, wanted);
                let is_good = |id: &String| names.contains(id);
                if can_ask {
                    let is_left = |of: &&Instance| !stopped.contains(&of.id);
                    let answering = living.iter().filter(is_left).filter(|of| is_good(&of.id)).count();
                    prop_assert!(
                        answering >= names.len().min(wanted as usize),
                        "one that answers was stopped, and one that does not stays"
                    );
                }
                living.retain(|of| !stopped.contains(&of.id));
            }
        }
    }
}

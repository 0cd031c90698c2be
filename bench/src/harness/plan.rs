//! How much is measured, and how long that takes. Pure.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::load::Amount;
use super::parts::Part;
use crate::scenario::{Contender, Scenario};

/// What starting and stopping a contender takes, and looking whether the machine is quiet: about.
pub const START: Duration = Duration::from_millis(1_300);

/// Between two runs: the look at the machine, and the generator's start.
const BETWEEN: Duration = Duration::from_millis(350);

/// So much of a plan's time may go, besides, into waiting for others to be done and into making disturbed runs again.
const EXTRA: f64 = 0.15;

/// What takes so many times as long as was expected hangs.
const HANGS: u32 = 4;

/// What starts may take its time.
const SLOW_START: Duration = Duration::from_secs(90);

/// How much is measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// The short form.
    pub quick: bool,
    /// Everything is measured, and nothing by another measure than usual: what the repository shows is made of it.
    pub whole: bool,
    /// Rounds of every scenario, whatever it says itself.
    pub rounds: Option<u32>,
    /// How long a run lasts, whatever the scenario says.
    pub seconds: Option<f64>,
    /// Requests of a run, in place of a time.
    pub requests: Option<u64>,
    /// Load before the first run.
    pub warm_up: Duration,
    /// Part of the machine that others may use during a run before it is dropped.
    pub tolerance: f64,
    /// How often a dropped run is made again.
    pub repeats: u32,
    /// How long to wait for others to be done before a run begins regardless.
    pub patience: Duration,
    /// What is measured beside the scenarios.
    pub parts: Vec<Part>,
}

/// The size of a whole run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    scenarios: usize,
    cells: usize,
    runs: u32,
    duration: Duration,
}

/// Runs of a contender's part of a round, with those of a baseline that alternates.
fn runs_of_turn(scenario: &Scenario, contender: &Contender) -> u32 {
    let loads = scenario.loads_of(contender).count() as u32;
    match scenario.beside(contender) {
        Some(_) => 2 * loads,
        None if scenario.has_turns(contender) => loads,
        None => 0,
    }
}

/// How long something may take that is expected to take so long, before it is given up.
pub fn limit(expected: Duration) -> Duration {
    SLOW_START + HANGS * expected
}

impl Settings {
    /// How long a contender's part of a round takes, about: its start and a run under every load.
    pub fn turn(&self, scenario: &Scenario, contender: &Contender) -> Duration {
        let run = match self.amount(Some(scenario)) {
            Amount::For(duration) => duration,
            // A slow contender's rate.
            Amount::Requests(requests) => Duration::from_secs_f64(requests as f64 / 30_000.0),
        };
        let runs = runs_of_turn(scenario, contender);
        // A baseline that alternates is started once a round.
        START + self.warm_up + (run + BETWEEN) * runs
    }

    /// Rounds of a scenario.
    pub fn rounds(&self, scenario: &Scenario) -> u32 {
        self.rounds.or(scenario.rounds.filter(|_| !self.quick)).unwrap_or(if self.quick { 2 } else { 3 })
    }

    /// How much a run of a scenario asks.
    pub fn amount(&self, scenario: Option<&Scenario>) -> Amount {
        if let Some(requests) = self.requests {
            return Amount::Requests(requests);
        }
        let of_scenario =
            scenario.and_then(|scenario| scenario.seconds).filter(|_| !self.quick).map(f64::from);
        let seconds = self.seconds.or(of_scenario).unwrap_or(if self.quick { 1.0 } else { 3.0 });
        Amount::For(Duration::from_secs_f64(seconds.clamp(0.1, 3_600.0)))
    }
}

impl Plan {
    /// Adds up the scenarios and parts.
    pub fn of(scenarios: &[Scenario], settings: &Settings) -> Plan {
        let mut plan = Plan { scenarios: scenarios.len(), cells: 0, runs: 0, duration: Duration::ZERO };
        for scenario in scenarios {
            let rounds = settings.rounds(scenario);
            plan.cells += scenario.contenders.iter().map(|one| scenario.loads_of(one).count()).sum::<usize>();
            plan.runs +=
                rounds * scenario.contenders.iter().map(|one| runs_of_turn(scenario, one)).sum::<u32>();
            plan.duration +=
                rounds * scenario.contenders.iter().map(|one| settings.turn(scenario, one)).sum::<Duration>();
        }
        plan.duration += settings.parts.iter().map(|part| part.expected(settings.quick)).sum::<Duration>();
        plan
    }

    /// How long it takes, about.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// What it may take besides, for waiting and for runs that are made again: a busy machine ends no later than that.
    pub fn extra(&self) -> Duration {
        self.duration.mul_f64(EXTRA).max(Duration::from_secs(10))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let length = |duration: Duration| match duration.as_secs() {
            seconds @ ..100 => format!("{seconds} s"),
            seconds => format!("{:.0} min", seconds as f64 / 60.0),
        };
        let Plan { scenarios, cells, runs, duration } = self;
        write!(
            f,
            "{scenarios} scenarios, {cells} cells, {runs} runs: about {}, up to {} when others use the machine",
            length(*duration),
            length(*duration + self.extra()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings() -> Settings {
        Settings {
            quick: false,
            whole: true,
            rounds: None,
            seconds: None,
            requests: None,
            warm_up: Duration::from_secs(1),
            tolerance: 0.05,
            repeats: 0,
            patience: Duration::ZERO,
            parts: Vec::new(),
        }
    }

    fn scenario() -> Scenario {
        let text = "title = \"t\"\nabout = \"a\"\nbaseline = \"direct\"\nrounds = 4\nseconds = 2\n\
            [[load]]\nname = \"c64\"\nconnections = 64\n\
            [[contender]]\nname = \"direct\"\ntitle = \"d\"\narrangement = { kind = \"direct\" }\n";
        Scenario::parse("t", text).unwrap()
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_short_form_over_both_defaults() {
        let (mut settings, scenario) = (settings(), scenario());
        assert_eq!(settings.rounds(&scenario), 4);
        assert!(matches!(settings.amount(Some(&scenario)), Amount::For(d) if d.as_secs() == 2));
        settings.quick = true;
        assert_eq!(settings.rounds(&scenario), 2);
        settings.rounds = Some(7);
        assert_eq!(settings.rounds(&scenario), 7);
        settings.requests = Some(10);
        assert!(matches!(settings.amount(Some(&scenario)), Amount::Requests(10)));
    }

    #[test]
    fn a_plan_adds_up_rounds_starts_and_runs() {
        let plan = Plan::of(&[scenario()], &settings());
        assert_eq!((plan.cells, plan.runs), (1, 4));
        assert_eq!(plan.duration(), 4 * (START + Duration::from_secs(1) + Duration::from_secs(2) + BETWEEN));
        assert!(plan.to_string().contains("about 18 s, up to 28 s"), "{plan}");
    }
}

//! How long what is asked for takes. Pure.

use std::fmt;
use std::time::Duration;

use crate::scenario::{Contender, Scenario};
use crate::settings::{Amount, Settings};

/// What starting and stopping a contender takes, and looking whether the machine is quiet: about.
pub const START: Duration = Duration::from_millis(1_300);

/// Between two runs: the look at the machine, and the generator's start.
const BETWEEN: Duration = Duration::from_millis(350);

/// So much of a plan's time may go, besides, into waiting for others to be done and into making
/// disturbed runs again.
const EXTRA: f64 = 0.15;

/// What takes so many times as long as was expected hangs.
const HANGS: u32 = 4;

/// What starts may take its time.
const SLOW_START: Duration = Duration::from_secs(90);

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
}

impl Plan {
    /// Adds up the scenarios and parts.
    pub fn of(scenarios: &[Scenario], settings: &Settings) -> Self {
        let mut plan =
            Self { scenarios: scenarios.len(), cells: 0, runs: 0, duration: Duration::ZERO };
        for scenario in scenarios {
            let rounds = settings.rounds(scenario);
            plan.cells +=
                scenario.contenders.iter().map(|one| scenario.loads_of(one).count()).sum::<usize>();
            plan.runs += rounds
                * scenario.contenders.iter().map(|one| runs_of_turn(scenario, one)).sum::<u32>();
            plan.duration += rounds
                * scenario
                    .contenders
                    .iter()
                    .map(|one| settings.turn(scenario, one))
                    .sum::<Duration>();
        }
        plan.duration +=
            settings.parts.iter().map(|part| part.expected(settings.quick)).sum::<Duration>();
        plan
    }

    /// How long it takes, about.
    pub fn duration(&self) -> Duration {
        self.duration
    }

    /// What it may take besides, for waiting and for runs that are made again: a busy machine ends
    /// no later than that.
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
        let Self { scenarios, cells, runs, duration } = self;
        write!(
            f,
            "{scenarios} scenarios, {cells} cells, {runs} runs: about {}, up to {} when others use \
             the machine",
            length(*duration),
            length(*duration + self.extra()),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::tests::{scenario, settings};

    #[test]
    fn a_plan_adds_up_rounds_starts_and_runs() {
        let plan = Plan::of(&[scenario()], &settings());
        assert_eq!((plan.cells, plan.runs), (1, 4));
        assert_eq!(
            plan.duration(),
            4 * (START + Duration::from_secs(1) + Duration::from_secs(2) + BETWEEN)
        );
        assert!(plan.to_string().contains("about 18 s, up to 28 s"), "{plan}");
    }
}

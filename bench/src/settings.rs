//! How much is measured: what a run was asked for, which its results say as well. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::scenario::Scenario;

/// How much is measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    /// The short form.
    pub quick: bool,
    /// Everything is measured, and nothing by another measure than usual: what the repository shows
    /// is made of it.
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

/// How much is asked.
#[derive(Clone, Copy, Debug)]
pub enum Amount {
    /// As much as is answered in that time.
    For(Duration),
    /// So many requests.
    Requests(u64),
}

/// A part of the report with figures of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Consumer groups beside the Go library.
    Groups,
    /// The log shipper beside rsyslog.
    Shipper,
    /// The autoscaler beside others, by a virtual clock.
    Autoscalers,
    /// Instructions of small operations, by valgrind.
    Instructions,
    /// Time of small operations, by criterion.
    Times,
}

impl Settings {
    /// Rounds of a scenario.
    pub fn rounds(&self, scenario: &Scenario) -> u32 {
        self.rounds.or(scenario.rounds.filter(|_| !self.quick)).unwrap_or(if self.quick {
            2
        } else {
            3
        })
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

impl Part {
    /// Every part, in the order of the report.
    pub const ALL: [Self; 5] =
        [Self::Groups, Self::Shipper, Self::Autoscalers, Self::Instructions, Self::Times];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Groups => "groups",
            Self::Shipper => "shipper",
            Self::Autoscalers => "autoscalers",
            Self::Instructions => "instructions",
            Self::Times => "times",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn settings() -> Settings {
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

    pub(crate) fn scenario() -> Scenario {
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
}

//! A change of version under way, as it stands in a route's document: the plan, and how far it has
//! come.
//!
//! All of its state is here, so that whoever drives it can be replaced at any moment, and each step
//! is one write over the revision that it was decided on. This module only says what a sound
//! rollout is; the gateway drives it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The most steps of a canary.
pub const MOST_STEPS: usize = 32;

/// Notes that are kept of what happened; the oldest go first.
pub const MOST_NOTES: usize = 32;

/// The longest hold or patience.
const LONGEST: Duration = Duration::from_secs(7 * 24 * 3_600);

/// One rollout, from one version of a route to another.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Rollout {
    /// Identifies it among others of the same route.
    pub id: String,
    /// The version that serves when it begins.
    pub from: String,
    /// The version that is to serve.
    pub to: String,
    /// All at once, or bit by bit.
    pub strategy: Strategy,
    /// What a canary goes through; empty for blue/green.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<Step>,
    /// When the new version counts as worse.
    #[serde(default)]
    pub criteria: Criteria,
    /// Path of a request that the new version must answer before it gets any traffic; none is made
    /// without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub smoke: Option<String>,
    /// Whether the workers of the old version are asked to leave at the end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub stop_old: bool,
    /// How far it is.
    pub phase: Phase,
    /// The canary's step, counted from 0.
    #[serde(default)]
    pub step: usize,
    /// No step forward while set; back is still possible.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Why it went back, or did not begin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The old version's metrics of the steps in which it had traffic, for the step in which it has
    /// none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control: Option<Control>,
    /// Who has seen the new version.
    #[serde(default)]
    pub exposure: Exposure,
    /// Senders that were not heard of when the last drain was complete.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub behind: Vec<String>,
    /// What happened, newest last.
    #[serde(default)]
    pub history: Vec<Note>,
}

/// How traffic moves.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// All at once.
    BlueGreen,
    /// By steps, each compared with the old version.
    Canary,
}

/// One step of a canary.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// The new version's share of the traffic, 1 to 100.
    pub percent: u32,
    /// How long it is watched at the least.
    #[serde(with = "humantime_serde")]
    pub hold: Duration,
}

/// When the new version counts as worse.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Criteria {
    /// Requests that each version must have had in a step before the next.
    pub min_requests: u64,
    /// How long a step may wait for them, or for a doubt to clear, before the rollout goes back.
    #[serde(with = "humantime_serde")]
    pub patience: Duration,
    /// How much larger the share of errors may be, as a share: 0.002 is two in a thousand.
    pub error_margin: f64,
    /// How many times as long the 95th and 99th percentile of latency may be.
    pub latency_factor: f64,
}

impl Default for Criteria {
    fn default() -> Self {
        Self {
            min_requests: 50,
            patience: Duration::from_secs(600),
            error_margin: 0.002,
            latency_factor: 1.5,
        }
    }
}

/// How far a rollout is.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Is the new version there? No weight has changed yet.
    Checking,
    /// A canary is at one of its steps.
    Canary,
    /// All traffic goes to the new version; the old one finishes what it has.
    Draining,
    /// The old version's workers were asked to leave.
    Stopping,
    /// Done: the old version may be stopped, or has left.
    Promoted,
    /// All traffic goes to the old version again; the new one finishes what it has.
    Reverting,
    /// Done: the new version gets nothing.
    RolledBack,
    /// Done before it began: the check failed.
    Refused,
}

/// The old version's metrics that the new one is compared with.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Control {
    /// Its requests in the last step in which it had traffic.
    pub requests: u64,
    /// Those with errors.
    pub errors: u64,
    /// The 95th percentile of its latency in the worst of these steps, in microseconds.
    pub p95_us: u64,
    /// The 99th.
    pub p99_us: u64,
}

/// Requests of a rollout's steps so far.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Exposure {
    /// All requests to both versions.
    pub requests: u64,
    /// Those to the new version.
    pub new_requests: u64,
    /// Those of them that ended with errors.
    pub new_errors: u64,
}

/// Something that happened.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Note {
    /// When, by the clock of who wrote it.
    pub unix_ms: u64,
    /// What.
    pub what: String,
}

impl Phase {
    /// Whether something is still to be done.
    pub fn is_active(self) -> bool {
        !matches!(self, Self::Promoted | Self::RolledBack | Self::Refused)
    }

    /// Its name, as documents and the command line have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Checking => "checking",
            Self::Canary => "canary",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Promoted => "promoted",
            Self::Reverting => "reverting",
            Self::RolledBack => "rolled-back",
            Self::Refused => "refused",
        }
    }
}

impl Rollout {
    /// The version that is being left, or was: what still comes for it is answered `moved`.
    pub fn retired(&self) -> Option<&str> {
        match self.phase {
            Phase::Draining | Phase::Stopping | Phase::Promoted => Some(&self.from),
            Phase::Reverting | Phase::RolledBack => Some(&self.to),
            Phase::Checking | Phase::Canary | Phase::Refused => None,
        }
    }

    /// The share of the traffic that the new version has now, in percent.
    pub fn percent(&self) -> u32 {
        match self.phase {
            Phase::Canary => self.steps.get(self.step).map_or(0, |step| step.percent),
            Phase::Draining | Phase::Stopping | Phase::Promoted => 100,
            Phase::Checking | Phase::Reverting | Phase::RolledBack | Phase::Refused => 0,
        }
    }

    /// Writes down what happened.
    pub fn note(&mut self, unix_ms: u64, what: impl Into<String>) {
        self.history.push(Note { unix_ms, what: what.into() });
        let surplus = self.history.len().saturating_sub(MOST_NOTES);
        self.history.drain(..surplus);
    }

    /// Everything that is wrong with it in a route of these versions: key, value, expectation.
    pub fn faults(
        &self,
        is_version: impl Fn(&str) -> bool,
    ) -> Vec<(&'static str, String, &'static str)> {
        let mut faults = Vec::new();
        let mut expect = |holds: bool, key, value: String, expected| {
            if !holds {
                faults.push((key, value, expected));
            }
        };
        for (key, version) in [("rollout.from", &self.from), ("rollout.to", &self.to)] {
            expect(
                is_version(version),
                key,
                format!("{version:?}"),
                "expected a version of this route",
            );
        }
        expect(
            self.from != self.to,
            "rollout.to",
            format!("{:?}", self.to),
            "expected another than `from`",
        );
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        let is_id = (1..=64).contains(&self.id.len()) && self.id.bytes().all(plain);
        expect(
            is_id,
            "rollout.id",
            format!("{:?}", self.id),
            "expected 1 to 64 letters, digits, `-` or `_`",
        );
        let count = self.steps.len();
        match self.strategy {
            Strategy::BlueGreen => expect(
                count == 0,
                "rollout.steps",
                count.to_string(),
                "expected none for blue-green",
            ),
            Strategy::Canary => expect(
                (1..=MOST_STEPS).contains(&count) && self.step < count,
                "rollout.steps",
                count.to_string(),
                "expected 1 to 32, and `step` among them",
            ),
        }
        for step in &self.steps {
            let value = step.percent.to_string();
            expect((1..=100).contains(&step.percent), "rollout.percent", value, "expected 1..=100");
            let value = format!("{:?}", step.hold);
            expect(step.hold <= LONGEST, "rollout.hold", value, "expected seven days at the most");
        }
        let is_compared = self.steps.first().is_none_or(|first| first.percent < 100);
        let expected = "expected a first step below 100, or there is nothing to compare with";
        expect(is_compared, "rollout.steps", "[100]".to_owned(), expected);
        let grows = self.steps.windows(2).all(|pair| pair[0].percent < pair[1].percent);
        expect(
            grows,
            "rollout.steps",
            "[..]".to_owned(),
            "expected each larger than the one before",
        );
        let Criteria { min_requests, patience, error_margin, latency_factor } = self.criteria;
        expect(
            min_requests > 0,
            "rollout.min_requests",
            min_requests.to_string(),
            "expected 1 at least",
        );
        expect(
            patience <= LONGEST,
            "rollout.patience",
            format!("{patience:?}"),
            "expected seven days at the most",
        );
        let value = error_margin.to_string();
        expect(
            (0.0..1.0).contains(&error_margin),
            "rollout.error_margin",
            value,
            "expected 0 to 1",
        );
        let value = latency_factor.to_string();
        expect(
            (1.0..=100.0).contains(&latency_factor),
            "rollout.latency_factor",
            value,
            "expected 1 to 100",
        );
        let is_path =
            self.smoke.as_ref().is_none_or(|path| path.starts_with('/') && path.is_ascii());
        expect(is_path, "rollout.smoke", format!("{:?}", self.smoke), "expected a path");
        faults
    }
}

//! What a provisioner is told, checked: valid by construction, every fault named at once.

mod check;
mod document;

pub use document::{
    BackendDocument, Document, InstanceDocument, PolicyDocument, ScaleDocument, SignalDocument,
    StepDocument, TargetDocument,
};

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use self::check::{Faults, check, place};
use crate::controller::ControllerRules;
use crate::policy::{Analysers, Example, Lag, LatencySlo, Policy, Rate, Utilisation};
use crate::scale::{ScaleRules, Step};
use crate::signal::discover::Pattern;
use crate::window::WindowRules;

/// A checked configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// What is scaled.
    pub targets: Vec<TargetConfig>,
}

/// One target, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct TargetConfig {
    document: TargetDocument,
}

/// What is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct ConfigError(pub Vec<String>);

impl Config {
    /// Reads and checks a file's text.
    ///
    /// # Errors
    /// Every fault, each with its target, key, value and what was expected.
    pub fn read(text: &str) -> Result<Self, ConfigError> {
        let document: Document =
            toml::from_str(text).map_err(|error| ConfigError(vec![error.to_string()]))?;
        let mut faults = Vec::new();
        let (mut names, mut places) = (HashSet::new(), HashMap::new());
        for target in &document.targets {
            check(target, &mut faults);
            if !names.insert(&target.name) {
                faults.push(format!(
                    "target {:?}: its name is taken, expected each name once",
                    target.name
                ));
            }
            let (key, place) = place(&target.backend);
            if let Some(other) = places.insert((key, place.clone()), &target.name) {
                let expected = format!(
                    "another one than that of target {other:?}: they would undo each other's work"
                );
                Faults { target: &target.name, faults: &mut faults }
                    .unless(false, key, place, &expected);
            }
        }
        if document.targets.is_empty() {
            faults.push("no [[target]]: expected one at least".to_owned());
        }
        if !faults.is_empty() {
            return Err(ConfigError(faults));
        }
        Ok(Self {
            targets: document
                .targets
                .into_iter()
                .map(|document| TargetConfig { document })
                .collect(),
        })
    }
}

impl TargetConfig {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.document.name
    }

    /// How often it is polled.
    pub fn poll(&self) -> Duration {
        self.document.poll
    }

    /// Where its metrics come from.
    pub fn signal(&self) -> &SignalDocument {
        &self.document.signal
    }

    /// Who starts and stops its instances.
    pub fn backend(&self) -> &BackendDocument {
        &self.document.backend
    }

    /// What it stands for when its signal is a pattern.
    pub fn pattern(&self) -> Option<Pattern> {
        self.document.pattern()
    }

    /// The target of one name that matched the pattern.
    #[must_use]
    pub fn of(&self, matched: &str) -> Self {
        let mut document = self.document.clone();
        document.name = format!("{}-{matched}", document.name);
        match &mut document.signal {
            SignalDocument::Consumer { consumer: name, .. }
            | SignalDocument::Services { service: name, .. } => {
                *name = matched.to_owned();
            }
            _ => {}
        }
        fill(&mut document.backend, matched);
        Self { document }
    }

    /// What its controller is told.
    pub fn rules(&self) -> ControllerRules {
        let TargetDocument { poll, instance, scale, .. } = &self.document;
        let step = |step: Option<StepDocument>| {
            step.map(|step| Step {
                instances: step.instances,
                percent: step.percent,
                period_ms: ms(step.period),
            })
        };
        ControllerRules {
            window: WindowRules {
                span_ms: ms(instance.window),
                stale_after_ms: ms(instance
                    .stale_after
                    .unwrap_or((*poll * 3).max(Duration::from_secs(3)))),
            },
            lead_s: instance.starts_within.as_secs_f64(),
            service_rate: instance.service_rate,
            concurrency: instance.concurrency.unwrap_or(1.0),
            slots: instance.concurrency,
            prefetch: instance.prefetch,
            tolerance: scale.tolerance,
            scale: ScaleRules {
                min: scale.min,
                max: scale.max,
                warm_spares: scale.warm_spares,
                up_window_ms: ms(scale.out_window),
                down_window_ms: ms(scale.in_window),
                up_step: step(scale.out_step),
                down_step: step(scale.in_step),
                cooldown_ms: ms(scale.cooldown),
                hold_ms: ms(scale.hold),
                in_tolerance_percent: (scale.tolerance * 100.0).round() as u32,
                zero_after_ms: ms(scale.zero_after),
            },
        }
    }

    /// Polls in a row without an answer after which an instance counts no more; 0 is never.
    pub fn silent_after(&self) -> u32 {
        self.document.instance.silent_after
    }

    /// Its policies, which have seen nothing yet.
    pub fn policies(&self) -> Vec<Box<dyn Policy>> {
        if self.document.policies.is_empty() {
            return crate::simulate::frozen_policies();
        }
        self.document.policies.iter().map(policy).collect()
    }

    /// Whether QueueWatch's analysers are among its policies.
    pub fn has_analysers(&self) -> bool {
        self.document
            .policies
            .iter()
            .any(|policy| matches!(policy, PolicyDocument::Analysers { .. }))
    }
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The policy that a document describes.
pub fn policy(document: &PolicyDocument) -> Box<dyn Policy> {
    match *document {
        PolicyDocument::Rate { target_utilisation } => Box::new(Rate { target_utilisation }),
        PolicyDocument::Lag { target_utilisation, drain } => {
            Box::new(Lag { target_utilisation, drain_s: drain.as_secs_f64() })
        }
        PolicyDocument::LatencySlo { target_utilisation, wait, beta } => {
            Box::new(LatencySlo { target_utilisation, wait_s: wait.as_secs_f64(), beta })
        }
        PolicyDocument::Utilisation { target_utilisation } => {
            Box::new(Utilisation { target_utilisation })
        }
        PolicyDocument::Analysers { thresholds } => Box::new(Analysers::new(thresholds)),
        PolicyDocument::Example { rate_per_instance, idle } => {
            Box::new(Example { rate_per_instance, idle_ms: ms(idle) })
        }
    }
}

fn fill(backend: &mut BackendDocument, matched: &str) {
    let fill = |text: &mut String| *text = text.replace("{name}", matched);
    match backend {
        BackendDocument::Processes { command, environment, state, .. } => {
            command.iter_mut().chain(environment.values_mut()).for_each(fill);
            *state = state.to_string_lossy().replace("{name}", matched).into();
        }
        BackendDocument::Directives { subject } => fill(subject),
        BackendDocument::Docker { project, service, .. } => {
            fill(project);
            fill(service);
        }
    }
}

#[cfg(test)]
mod tests;

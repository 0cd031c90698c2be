//! What would another setting have done? Recorded polls, decided about once more.

use std::collections::BTreeMap;
use std::io::BufRead;

use crate::config::{Config, TargetConfig};
use crate::controller::Controller;
use crate::decision::Decision;
use crate::sample::{Fault, Fleet};

/// What a replay came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Replayed {
    /// What was decided then.
    pub recorded: Decision,
    /// What would be decided now.
    pub decided: Decision,
}

/// Reads a recording: one [`Decision`] a line.
///
/// # Errors
/// The line that is none, and why.
pub fn read(recording: impl BufRead) -> Result<Vec<Decision>, String> {
    let mut decisions = Vec::new();
    for (number, line) in (1..).zip(recording.lines()) {
        let line = line.map_err(|error| format!("line {number}: {error}"))?;
        if !line.trim().is_empty() {
            decisions.push(
                serde_json::from_str(&line).map_err(|error| format!("line {number}: {error}"))?,
            );
        }
    }
    Ok(decisions)
}

/// A recording by its targets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parts {
    /// Each with the target of the configuration that decides about it.
    pub of: Vec<(TargetConfig, Vec<Decision>)>,
    /// Recorded targets about which nobody decides, and how many decisions about each were
    /// recorded.
    pub left_out: BTreeMap<String, usize>,
}

/// Takes a recording apart: each recorded target is decided about by the one of its name, or whose
/// pattern its name matches. The only target that was recorded is decided about by the only one
/// that there is, whatever its name. With `only`, by that target alone.
pub fn parts(recording: &[Decision], config: &Config, only: Option<&str>) -> Parts {
    let deciding: Vec<&TargetConfig> = config
        .targets
        .iter()
        .filter(|target| only.is_none_or(|name| target.name() == name))
        .collect();
    let mut recorded: BTreeMap<&str, Vec<Decision>> = BTreeMap::new();
    for decision in recording {
        recorded.entry(&decision.target).or_default().push(decision.clone());
    }
    let is_alone = recorded.len() == 1 && deciding.len() == 1;
    let mut parts = Parts::default();
    for (name, decisions) in recorded {
        let of_name = deciding.iter().find_map(|target| concrete(target, name));
        match of_name
            .or_else(|| deciding.first().filter(|_| is_alone).map(|target| (*target).clone()))
        {
            Some(target) => parts.of.push((target, decisions)),
            None => {
                parts.left_out.insert(name.to_owned(), decisions.len());
            }
        }
    }
    parts
}

/// The target itself if that is its name, or the one of its pattern with that name.
fn concrete(target: &TargetConfig, name: &str) -> Option<TargetConfig> {
    let Some(pattern) = target.pattern() else {
        return (target.name() == name).then(|| target.clone());
    };
    let matched = name.strip_prefix(target.name())?.strip_prefix('-')?;
    pattern.matches(matched).then(|| target.of(matched))
}

/// Decides anew, by the rules of `target`, about recorded polls.
///
/// The traffic is as it was; instances are those that the new decisions would have started. What
/// those would have finished sooner or later nobody knows, so the backlog is the recorded one.
pub fn replay(recording: &[Decision], target: &TargetConfig) -> Vec<Replayed> {
    let mut controller = Controller::new(target.name(), target.rules(), target.policies());
    let decide = |recorded: &Decision| {
        let present = controller.decided().unwrap_or(recorded.from);
        let poll = match (&recorded.sample, &recorded.frozen) {
            (Some(sample), _) => Ok(sample.clone()),
            (None, Some(fault)) => Err(fault.clone()),
            (None, None) => Err(Fault::Missing("not recorded".to_owned())),
        };
        let fleet = Fleet { ready: present, ..Fleet::default() };
        Replayed {
            recorded: recorded.clone(),
            decided: controller.decide(recorded.at_ms, fleet, poll),
        }
    };
    recording.iter().map(decide).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sample::Sample;
    use crate::simulate::{frozen_policies, frozen_rules};

    fn target(policy: &str) -> TargetConfig {
        let text = format!(
            "[[target]]\nname = \"orders\"\nsignal = {{ kind = \"consumer\", stream = \"S\", \
             consumer = \"C\" }}\n\
             backend = {{ kind = \"directives\", subject = \"svc.x.y\" }}\ninstance = {{ \
             service_rate = 100.0 }}\n{policy}"
        );
        Config::read(&text).unwrap().targets.remove(0)
    }

    #[test]
    fn a_recording_can_be_decided_by_another_policy() {
        let mut controller = Controller::new("orders", frozen_rules(1, 0), frozen_policies());
        let mut lines = String::new();
        for second in 0..10 {
            let sample = Sample {
                at_ms: second * 1_000,
                arrived: second * 700,
                waiting: Some(0),
                ..Sample::default()
            };
            let decision = controller.decide(
                second * 1_000,
                Fleet { ready: 1, ..Fleet::default() },
                Ok(sample),
            );
            lines.push_str(&format!("{}\n", serde_json::to_string(&decision).unwrap()));
        }
        let recording = read(lines.as_bytes()).unwrap();
        let rate =
            replay(&recording, &target("policy = [{ kind = \"rate\", target_utilisation = 1.0 }]"));
        assert_eq!(rate.last().unwrap().decided.to, 7);
        let example = replay(
            &recording,
            &target("policy = [{ kind = \"example\", rate_per_instance = 200 }]"),
        );
        let trajectory: Vec<u32> = example.iter().map(|replayed| replayed.decided.to).collect();
        assert_eq!(trajectory, [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]);
    }

    #[test]
    fn a_target_that_nobody_decides_about_is_told() {
        let of = |name: &str| {
            let controller = Controller::new(name, frozen_rules(1, 0), frozen_policies());
            controller.freeze(0, Fleet::default(), Fault::WarmingUp)
        };
        let config = |text: &str| Config { targets: vec![target(text)] };
        let names = |parts: &Parts| -> Vec<String> {
            parts.of.iter().map(|(target, _)| target.name().to_owned()).collect()
        };
        let recording = [of("orders"), of("mails"), of("mails")];
        let some = parts(&recording, &config(""), None);
        assert_eq!((names(&some), some.left_out["mails"]), (vec!["orders".to_owned()], 2));
        let alone = parts(&recording[1..], &config(""), None);
        assert_eq!((names(&alone), alone.left_out.len()), (vec!["orders".to_owned()], 0));
        let none = parts(&recording, &config(""), Some("other"));
        assert_eq!((none.of.len(), none.left_out.len()), (0, 2));
    }

    #[test]
    fn a_line_that_is_no_decision_is_named() {
        let error = read("\n{}\n".as_bytes()).unwrap_err();
        assert!(error.starts_with("line 2: "), "{error}");
    }
}

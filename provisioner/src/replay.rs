//! What would another setting have done? Recorded looks, decided about once more.

use std::io::BufRead;

use crate::config::Target;
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
            decisions.push(serde_json::from_str(&line).map_err(|error| format!("line {number}: {error}"))?);
        }
    }
    Ok(decisions)
}

/// Decides anew, by the rules of `target`, about the recorded looks of it or of the only target that was recorded.
///
/// The traffic is as it was; instances are those that the new decisions would have started. What those would have
/// finished sooner or later nobody knows, so the backlog is the recorded one.
pub fn replay(recording: &[Decision], target: &Target) -> Vec<Replayed> {
    let is_of = |decision: &&Decision| decision.target == target.name();
    let named: Vec<&Decision> = recording.iter().filter(is_of).collect();
    let of_target = if named.is_empty() { recording.iter().collect() } else { named };
    let mut controller = Controller::new(target.name(), target.rules(), target.policies());
    let decide = |recorded: &Decision| {
        let present = controller.decided().unwrap_or(recorded.from);
        let look = match (&recorded.sample, &recorded.frozen) {
            (Some(sample), _) => Ok(sample.clone()),
            (None, Some(fault)) => Err(fault.clone()),
            (None, None) => Err(Fault::Missing("not recorded".to_owned())),
        };
        let fleet = Fleet { ready: present, ..Fleet::default() };
        Replayed { recorded: recorded.clone(), decided: controller.decide(recorded.at_ms, fleet, look) }
    };
    of_target.into_iter().map(decide).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::sample::Sample;
    use crate::simulate::{frozen_policies, frozen_rules};

    fn target(policy: &str) -> Target {
        let text = format!(
            "[[target]]\nname = \"orders\"\nsignal = {{ kind = \"consumer\", stream = \"S\", consumer = \"C\" }}\n\
             backend = {{ kind = \"directives\", subject = \"svc.x.y\" }}\ninstance = {{ service_rate = 100.0 }}\n{policy}"
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
            let decision =
                controller.decide(second * 1_000, Fleet { ready: 1, ..Fleet::default() }, Ok(sample));
            lines.push_str(&format!("{}\n", serde_json::to_string(&decision).unwrap()));
        }
        let recording = read(lines.as_bytes()).unwrap();
        let rate = replay(&recording, &target("policy = [{ kind = \"rate\", target_utilisation = 1.0 }]"));
        assert_eq!(rate.last().unwrap().decided.to, 7);
        let example =
            replay(&recording, &target("policy = [{ kind = \"example\", rate_per_instance = 200 }]"));
        let course: Vec<u32> = example.iter().map(|replayed| replayed.decided.to).collect();
        assert_eq!(course, [1, 2, 3, 4, 4, 4, 4, 4, 4, 4]);
    }

    #[test]
    fn a_line_that_is_no_decision_is_named() {
        let error = read("\n{}\n".as_bytes()).unwrap_err();
        assert!(error.starts_with("line 2: "), "{error}");
    }
}

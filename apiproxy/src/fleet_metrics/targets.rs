//! What provisioners see and decide: the status that each leader answers with.

use std::collections::HashMap;

use serde::Deserialize;

use natsway_boot::exposition::Page;

use super::registry::{ANSWER_BYTES, Registry, is_name};

/// A target of a provisioner, as it was decided about last.
#[derive(Debug, Deserialize)]
pub(super) struct TargetStatus {
    target: String,
    /// Instances that there shall be.
    to: u32,
    fleet: Fleet,
    /// Why nothing was decided, if so.
    #[serde(default)]
    frozen: Option<serde_json::Value>,
    /// What stands in the way, if anything does.
    #[serde(default)]
    obstacle: Option<String>,
    #[serde(default)]
    sample: Option<Sample>,
    /// How many decisions there were, where the provisioner counts them.
    #[serde(skip)]
    decided: Option<Decided>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default)]
struct Decided {
    out: u64,
    r#in: u64,
    hold: u64,
    frozen: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Fleet {
    ready: u32,
    starting: u32,
    stopping: u32,
    silent: u32,
}

/// What was seen; passed over where nobody counts it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Sample {
    arrived: u64,
    completed: u64,
    waiting: Option<u64>,
    in_hand: Option<u64>,
    redelivered: Option<u64>,
}

#[derive(Deserialize)]
struct Status {
    targets: Vec<TargetStatus>,
    #[serde(default)]
    decisions: HashMap<String, Decided>,
}

/// The targets of an answer; none where it is not one.
pub(super) fn read(answer: &[u8]) -> Vec<(String, TargetStatus)> {
    if answer.len() > ANSWER_BYTES {
        return Vec::new();
    }
    let Ok(Status { targets, decisions }) = serde_json::from_slice(answer) else {
        return Vec::new();
    };
    let named = targets.into_iter().filter(|target| is_name(&target.target));
    let counted = |target: TargetStatus| TargetStatus {
        decided: decisions.get(&target.target).copied(),
        ..target
    };
    named.map(|target| (target.target.clone(), counted(target))).collect()
}

/// The metrics in the text format of Prometheus; nothing where there is no provisioner.
pub(super) fn page(targets: &Registry<TargetStatus>) -> String {
    let mut page = Page::default();
    if targets.iter().next().is_none() {
        return page.text();
    }
    let name = "natsway_target_instances";
    page.family(name, "gauge", "Instances of what a provisioner scales, by what they are about.");
    for (target, told) in targets.iter() {
        let Fleet { ready, starting, stopping, silent } = told.fleet;
        let states =
            [("ready", ready), ("starting", starting), ("stopping", stopping), ("silent", silent)];
        for (state, count) in states {
            page.sample(name, &format!("target=\"{target}\",state=\"{state}\""), count);
        }
    }
    let name = "natsway_target_decisions_total";
    page.family(name, "counter", "Decisions about a target, by what they were.");
    for (target, told) in targets.iter() {
        let Some(Decided { out, r#in, hold, frozen }) = told.decided else { continue };
        for (direction, count) in [("out", out), ("in", r#in), ("hold", hold), ("frozen", frozen)] {
            page.sample(name, &format!("target=\"{target}\",direction=\"{direction}\""), count);
        }
    }
    let mut family =
        |name: &str, kind: &str, help: &str, metric: fn(&TargetStatus) -> Option<u64>| {
            page.family(name, kind, help);
            for (target, told) in targets.iter() {
                if let Some(value) = metric(told) {
                    page.sample(name, &format!("target=\"{target}\""), value);
                }
            }
        };
    family(
        "natsway_target_wanted_instances",
        "gauge",
        "Instances that were decided on.",
        |target| Some(target.to.into()),
    );
    family(
        "natsway_target_frozen",
        "gauge",
        "1 while what is seen of a target cannot be acted on.",
        |target| Some(target.frozen.is_some().into()),
    );
    family(
        "natsway_target_obstructed",
        "gauge",
        "1 while a decision cannot be carried out.",
        |target| Some(target.obstacle.is_some().into()),
    );
    family(
        "natsway_target_lag_messages",
        "gauge",
        "Messages that no instance has yet.",
        |target| target.sample.as_ref()?.waiting,
    );
    family("natsway_target_in_hand_messages", "gauge", "Messages that instances hold.", |target| {
        target.sample.as_ref()?.in_hand
    });
    family(
        "natsway_target_redelivered_messages",
        "gauge",
        "Unfinished messages that were delivered more than once.",
        |target| target.sample.as_ref()?.redelivered,
    );
    family("natsway_target_arrived_total", "counter", "Messages that came.", |target| {
        Some(target.sample.as_ref()?.arrived)
    });
    family("natsway_target_completed_total", "counter", "Messages that were finished.", |target| {
        Some(target.sample.as_ref()?.completed)
    });
    page.text()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_target_is_told_of_and_what_nobody_counts_is_left_out() {
        let seen =
            json!({ "at_ms": 1, "source": "s", "arrived": 10, "completed": 4, "waiting": 6 });
        let status = json!({ "leader": "l", "since_ms": 1, "targets": [
            { "target": "orders", "at_ms": 1, "from": 1, "to": 3, "fleet": { "ready": 1, "starting": 2, "stopping": 0 },
              "sample": seen },
            { "target": "mails", "at_ms": 1, "from": 0, "to": 0, "fleet": {}, "frozen": { "fault": "warming_up" } },
            { "target": "a\"b", "at_ms": 1, "from": 0, "to": 0, "fleet": {} },
        ], "decisions": { "orders": { "out": 2, "in": 1, "hold": 40, "frozen": 3 } } });
        let mut registry = Registry::default();
        registry.note(read(status.to_string().as_bytes()));
        let page = page(&registry);
        for line in [
            "natsway_target_instances{target=\"orders\",state=\"starting\"} 2",
            "natsway_target_instances{target=\"orders\",state=\"silent\"} 0",
            "natsway_target_wanted_instances{target=\"orders\"} 3",
            "natsway_target_lag_messages{target=\"orders\"} 6",
            "natsway_target_decisions_total{target=\"orders\",direction=\"out\"} 2",
            "natsway_target_decisions_total{target=\"orders\",direction=\"in\"} 1",
            "natsway_target_decisions_total{target=\"orders\",direction=\"frozen\"} 3",
            "natsway_target_frozen{target=\"orders\"} 0",
            "natsway_target_frozen{target=\"mails\"} 1",
            "natsway_target_completed_total{target=\"orders\"} 4",
        ] {
            assert!(page.lines().any(|have| have == line), "{line} is not in:\n{page}");
        }
        assert!(
            !page.contains("decisions_total{target=\"mails\""),
            "an older provisioner's: {page}"
        );
        assert!(
            !page.contains("lag_messages{target=\"mails\"}") && !page.contains("a\"b"),
            "{page}"
        );
    }

    #[test]
    fn without_a_provisioner_nothing_is_told() {
        assert_eq!(page(&Registry::default()), "");
        assert!(read(b"nonsense").is_empty());
    }
}

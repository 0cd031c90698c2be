//! What a provisioner is told, checked: valid by construction, every fault named at once.

mod document;

pub use document::{
    BackendDocument, Document, InstanceDocument, PolicyDocument, ScaleDocument, SignalDocument,
    StepDocument, TargetDocument,
};

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use natsway_wire::Subject;

use crate::controller::ControllerRules;
use crate::policy::{Analysers, Example, Lag, LatencySlo, Policy, Rate, Utilisation};
use crate::scale::{ScaleRules, Step};
use crate::signal::discover::Pattern;
use crate::window::WindowRules;

/// The shortest and the longest pause between two polls.
const POLLS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(300));

/// More instances of one target than anybody means.
const MOST_INSTANCES: u32 = 10_000;

/// The longest pause that is remembered: what was wanted at each poll of it is kept.
const LONGEST_HOLD: Duration = Duration::from_secs(3_600);

/// A checked configuration.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Config {
    /// What is scaled.
    pub targets: Vec<Target>,
}

/// One target, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
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
    pub fn read(text: &str) -> Result<Config, ConfigError> {
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
        Ok(Config {
            targets: document.targets.into_iter().map(|document| Target { document }).collect(),
        })
    }
}

impl Target {
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
        let name = match self.signal() {
            SignalDocument::Consumer { consumer: name, .. }
            | SignalDocument::Services { service: name, .. } => name,
            _ => return None,
        };
        Some(Pattern::new(name.as_str())).filter(Pattern::is_wild)
    }

    /// The target of one name that matched the pattern.
    #[must_use]
    pub fn of(&self, matched: &str) -> Target {
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
        Target { document }
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

    /// Looks in a row without an answer after which an instance counts no more; 0 is never.
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

/// Collects what is wrong with a target.
struct Faults<'f> {
    target: &'f str,
    faults: &'f mut Vec<String>,
}

impl Faults<'_> {
    fn unless(&mut self, holds: bool, key: &str, value: impl std::fmt::Display, expected: &str) {
        if !holds {
            self.faults
                .push(format!("target {:?}: {key} = {value}: expected {expected}", self.target));
        }
    }
}

fn check(target: &TargetDocument, faults: &mut Vec<String>) {
    let mut faults = Faults { target: &target.name, faults };
    let plain = |text: &str| {
        !text.is_empty()
            && text.len() <= 64
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b))
    };
    faults.unless(
        plain(&target.name),
        "name",
        &target.name,
        "up to 64 letters, digits, `-` and `_`",
    );
    let poll = humantime_serde::re::humantime::format_duration(target.poll);
    faults.unless((POLLS.0..=POLLS.1).contains(&target.poll), "poll", poll, "100ms to 5m");
    check_instance(&target.instance, &mut faults);
    for policy in &target.policies {
        check_policy(policy, &mut faults);
    }
    check_learning(target, &mut faults);
    check_scale(target, &mut faults);
    check_signal(&target.signal, &mut faults);
    check_backend(target, &mut faults);
}

fn check_instance(instance: &InstanceDocument, faults: &mut Faults<'_>) {
    let InstanceDocument { concurrency, service_rate, window, .. } = *instance;
    let positive = |value: f64| value.is_finite() && value > 0.0;
    let concurrency = concurrency.unwrap_or(1.0);
    faults.unless(positive(concurrency), "instance.concurrency", concurrency, "a number above 0");
    let rate = service_rate.unwrap_or(1.0);
    faults.unless(positive(rate), "instance.service_rate", rate, "messages a second, above 0");
    let shown = humantime_serde::re::humantime::format_duration(window);
    faults.unless(window >= Duration::from_millis(100), "instance.window", shown, "100ms or more");
}

/// Most policies need to know what an instance can do, and not every signal shows it.
fn check_learning(target: &TargetDocument, faults: &mut Faults<'_>) {
    use PolicyDocument::{Lag, LatencySlo, Rate};
    let shows_it =
        matches!(target.signal, SignalDocument::Consumer { .. } | SignalDocument::Services { .. });
    let needs_it =
        |policy: &PolicyDocument| matches!(policy, Rate { .. } | Lag { .. } | LatencySlo { .. });
    let is_needed = target.policies.is_empty() || target.policies.iter().any(needs_it);
    let is_known = shows_it || !is_needed || target.instance.service_rate.is_some();
    let expected = "messages a second of one instance, which this signal cannot show, or policies \
                    that do without";
    faults.unless(is_known, "instance.service_rate", "nothing", expected);
}

fn check_policy(policy: &PolicyDocument, faults: &mut Faults<'_>) {
    let (utilisation, time) = match *policy {
        PolicyDocument::Rate { target_utilisation }
        | PolicyDocument::Utilisation { target_utilisation } => (target_utilisation, None),
        PolicyDocument::Lag { target_utilisation, drain } => {
            (target_utilisation, Some(("drain", drain)))
        }
        PolicyDocument::LatencySlo { target_utilisation, wait, beta } => {
            faults.unless((0.0..=10.0).contains(&beta), "policy.beta", beta, "0 to 10");
            (target_utilisation, Some(("wait", wait)))
        }
        PolicyDocument::Analysers { thresholds } => {
            let percent = thresholds.difference_percent;
            faults.unless(
                percent > 0.0,
                "policy.thresholds.difference_percent",
                percent,
                "a number above 0",
            );
            return;
        }
        PolicyDocument::Example { rate_per_instance, .. } => {
            let rate = rate_per_instance;
            faults.unless(
                rate > 0.0,
                "policy.rate_per_instance",
                rate,
                "messages a second, above 0",
            );
            return;
        }
    };
    let key = "policy.target_utilisation";
    faults.unless(utilisation > 0.0 && utilisation <= 1.0, key, utilisation, "above 0, up to 1");
    if let Some((key, time)) = time {
        faults.unless(!time.is_zero(), &format!("policy.{key}"), "0s", "a time above 0");
    }
}

fn check_scale(target: &TargetDocument, faults: &mut Faults<'_>) {
    let ScaleDocument { min, max, tolerance, .. } = target.scale;
    faults.unless(max <= MOST_INSTANCES, "scale.max", max, "0 (only watched) to 10000");
    let hold = target.scale.hold;
    let shown = humantime_serde::re::humantime::format_duration(hold);
    faults.unless(hold <= LONGEST_HOLD, "scale.hold", shown, "1h or less");
    faults.unless(min <= max, "scale.min", min, "scale.max or less");
    faults.unless(
        (0.0..1.0).contains(&tolerance),
        "scale.tolerance",
        tolerance,
        "0 or more, below 1",
    );
    let keeps_messages =
        matches!(target.signal, SignalDocument::Consumer { .. } | SignalDocument::Tally { .. });
    let expected = "1 or more: requests to nobody fail at once, only a stream keeps messages until \
                    somebody is there";
    faults.unless(min > 0 || keeps_messages, "scale.min", min, expected);
    let obeys = matches!(target.backend, BackendDocument::Directives { .. });
    let expected = "1 or more: somebody must be there to obey a directive";
    faults.unless(min > 0 || !obeys, "scale.min", min, expected);
}

fn check_signal(signal: &SignalDocument, faults: &mut Faults<'_>) {
    let token = |text: &str| {
        !text.is_empty()
            && !text.contains(['.', '>', '/', '\\'])
            && !text.contains(char::is_whitespace)
    };
    match signal {
        SignalDocument::Consumer { stream, consumer }
        | SignalDocument::Tally { stream, consumer } => {
            faults.unless(
                token(stream) && !stream.contains('*'),
                "signal.stream",
                stream,
                "a stream's name",
            );
            let may_be_wild = matches!(signal, SignalDocument::Consumer { .. });
            let named = token(consumer) && (may_be_wild || !consumer.contains('*'));
            faults.unless(named, "signal.consumer", consumer, "a consumer's name");
        }
        SignalDocument::Services { service, route, version } => {
            faults.unless(token(service), "signal.service", service, "a service's name");
            let both = route.is_some() == version.is_some();
            faults.unless(
                both,
                "signal.route",
                route.as_deref().unwrap_or(""),
                "route and version, both or none",
            );
        }
        SignalDocument::Monitoring { servers, subject, .. } => {
            let is_http = |server: &String| {
                server
                    .parse::<http::Uri>()
                    .is_ok_and(|uri| uri.scheme_str() == Some("http") && uri.host().is_some())
            };
            let all = !servers.is_empty() && servers.iter().all(is_http);
            faults.unless(
                all,
                "signal.servers",
                servers.join(", "),
                "http://host:port, one for each server",
            );
            faults.unless(
                subject.parse::<Subject>().is_ok(),
                "signal.subject",
                subject,
                "a subject",
            );
        }
    }
}

/// Where a backend's instances are: the key that says so, and what it says. Two targets with the
/// same would take each other's instances for their own.
fn place(backend: &BackendDocument) -> (&'static str, String) {
    match backend {
        BackendDocument::Processes { state, .. } => ("backend.state", state.display().to_string()),
        BackendDocument::Directives { subject } => ("backend.subject", subject.clone()),
        BackendDocument::Docker { socket, project, service, .. } => {
            ("backend.service", format!("{service} of {project} at {}", socket.display()))
        }
    }
}

fn check_backend(target: &TargetDocument, faults: &mut Faults<'_>) {
    let is_pattern = Target { document: target.clone() }.pattern().is_some();
    let (key, place) = place(&target.backend);
    let apart = !is_pattern || place.contains("{name}");
    faults.unless(
        apart,
        key,
        place,
        "{name} in it, since the signal is a pattern: one for each match",
    );
    match &target.backend {
        BackendDocument::Processes { command, .. } => {
            faults.unless(
                !command.is_empty(),
                "backend.command",
                "[]",
                "a program and its arguments",
            );
        }
        BackendDocument::Directives { subject } => {
            let filled = subject.replace("{name}", "x");
            faults.unless(
                filled.parse::<Subject>().is_ok(),
                "backend.subject",
                subject,
                "a service's subject",
            );
        }
        BackendDocument::Docker { project, service, .. } => {
            faults.unless(!project.is_empty(), "backend.project", project, "a Compose project");
            faults.unless(!service.is_empty(), "backend.service", service, "a Compose service");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"
        [[target]]
        name = "orders"
        poll = "2s"
        [target.signal]
        kind = "consumer"
        stream = "ORDERS"
        consumer = "work-*"
        [target.instance]
        concurrency = 4
        prefetch = 10
        starts_within = "5s"
        [[target.policy]]
        kind = "lag"
        drain = "10s"
        [[target.policy]]
        kind = "analysers"
        thresholds = { queue_length = 50 }
        [target.scale]
        min = 0
        max = 20
        in_window = "1m"
        out_step = { instances = 4, percent = 100, period = "15s" }
        [target.backend]
        kind = "processes"
        command = ["worker", "--consumer", "{name}"]
        state = "/var/lib/natsway/{name}"
    "#;

    #[test]
    fn a_file_becomes_rules() {
        let config = Config::read(WHOLE).unwrap();
        let target = config.targets[0].of("work-eu");
        assert_eq!(target.name(), "orders-work-eu");
        let rules = target.rules();
        assert_eq!((rules.concurrency, rules.prefetch, rules.lead_s), (4.0, 10, 5.0));
        assert_eq!((rules.scale.min, rules.scale.max, rules.scale.down_window_ms), (0, 20, 60_000));
        assert_eq!(rules.window.stale_after_ms, 6_000);
        let names: Vec<_> = target.policies().iter().map(|policy| policy.name()).collect();
        assert_eq!(names, ["lag", "analysers"]);
        assert!(target.pattern().is_none() && config.targets[0].pattern().is_some());
        let BackendDocument::Processes { command, state, .. } = target.backend() else {
            panic!("processes")
        };
        assert_eq!(
            (command[2].as_str(), state.to_str().unwrap()),
            ("work-eu", "/var/lib/natsway/work-eu")
        );
    }

    #[test]
    fn a_target_may_be_watched_and_never_scaled() {
        let config = Config::read(&WHOLE.replace("max = 20", "max = 0")).unwrap();
        let rules = config.targets[0].of("work-eu").rules();
        assert_eq!((rules.scale.min, rules.scale.max), (0, 0));
    }

    #[test]
    fn every_fault_is_told_at_once_with_its_value() {
        let text = WHOLE
            .replace("\"orders\"", "\"or ders\"")
            .replace("2s", "1ms")
            .replace("max = 20", "max = 10001\ntolerance = 2")
            .replace("drain = \"10s\"", "drain = \"0s\"\ntarget_utilisation = 1.5")
            .replace("natsway/{name}", "natsway");
        let error = Config::read(&text).unwrap_err().to_string();
        for part in [
            "name = or ders",
            "poll = 1ms: expected 100ms to 5m",
            "scale.max = 10001",
            "scale.tolerance = 2",
            "policy.drain = 0s",
            "policy.target_utilisation = 1.5",
            "backend.state = /var/lib/natsway",
        ] {
            assert!(error.contains(part), "{part} in\n{error}");
        }
    }

    #[test]
    fn targets_that_would_undo_each_others_work_are_refused() {
        let target = |name: &str, consumer: &str, backend: &str| {
            format!(
                "[[target]]\nname = \"{name}\"\nbackend = {{ {backend} }}\n\
                 signal = {{ kind = \"consumer\", stream = \"S\", consumer = \"{consumer}\" }}\n"
            )
        };
        let refused = |text: String| Config::read(&text).unwrap_err().to_string();
        for backend in [
            "kind = \"processes\", command = [\"x\"], state = \"/s\"",
            "kind = \"directives\", subject = \"svc.x.y\"",
            "kind = \"docker\", project = \"shop\", service = \"worker\"",
        ] {
            let error = refused(target("a", "c", backend) + &target("b", "d", backend));
            assert!(error.contains("another one than that of target \"a\""), "{error}");
            let error = refused(target("a", "c-*", backend));
            assert!(error.contains("{name} in it"), "{error}");
        }
    }

    #[test]
    fn nobody_scales_to_zero_where_requests_would_fail() {
        let text = WHOLE.replace("kind = \"consumer\"", "kind = \"services\"\nservice = \"x\"");
        let text = text.replace("stream = \"ORDERS\"", "").replace("consumer = \"work-*\"", "");
        let error = Config::read(&text).unwrap_err().to_string();
        assert!(
            error.contains("scale.min = 0: expected 1 or more: requests to nobody fail at once"),
            "{error}"
        );
    }

    #[test]
    fn a_rate_that_nobody_can_learn_must_be_said() {
        let text = |more: &str| {
            format!(
                "[[target]]\nname = \"a\"\nsignal = {{ kind = \"tally\", stream = \"S\", consumer \
                 = \"C\" }}\n\
                 backend = {{ kind = \"directives\", subject = \"svc.x.y\" }}\n{more}"
            )
        };
        let error = Config::read(&text("")).unwrap_err().to_string();
        assert!(
            error.contains("instance.service_rate = nothing: expected messages a second"),
            "{error}"
        );
        Config::read(&text("instance = { service_rate = 500 }")).unwrap();
        Config::read(&text("policy = [{ kind = \"example\" }]")).unwrap();
    }

    #[test]
    fn what_we_ship_and_show_is_sound() {
        let readme = include_str!("../../../README.md");
        let guide = include_str!("../../../docs/provisioner.md");
        let shown = [readme, guide].into_iter().flat_map(|text| text.split("```toml\n").skip(1));
        let shown = shown
            .filter_map(|rest| rest.split("```").next())
            .filter(|toml| toml.contains("[[target]]"));
        let files: Vec<&str> =
            shown.chain([include_str!("../../../deploy/provisioner.toml")]).collect();
        assert_eq!(files.len(), 4, "one in the README, two in the guide, one for Compose");
        for file in files {
            Config::read(file).unwrap_or_else(|error| panic!("{error}\n{file}"));
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let error = Config::read(&WHOLE.replace("min = 0", "minimum = 0")).unwrap_err().to_string();
        assert!(error.contains("minimum"), "{error}");
        assert!(Config::read("").unwrap_err().to_string().contains("[[target]]"));
    }
}

//! What is wrong with a target, every fault at once: each with its key, its value and what was
//! expected.

use std::time::Duration;

use natsway_wire::Subject;

use super::document::{
    BackendDocument, InstanceDocument, PolicyDocument, ScaleDocument, SignalDocument,
    TargetDocument,
};

/// The shortest and the longest pause between two polls.
const POLLS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(300));

/// More instances of one target than anybody means.
const MOST_INSTANCES: u32 = 10_000;

/// The longest pause that is remembered: what was wanted at each poll of it is kept.
const LONGEST_HOLD: Duration = Duration::from_secs(3_600);

/// Collects what is wrong with a target.
pub(super) struct Faults<'f> {
    pub(super) target: &'f str,
    pub(super) faults: &'f mut Vec<String>,
}

impl Faults<'_> {
    pub(super) fn unless(
        &mut self,
        holds: bool,
        key: &str,
        value: impl std::fmt::Display,
        expected: &str,
    ) {
        if !holds {
            self.faults
                .push(format!("target {:?}: {key} = {value}: expected {expected}", self.target));
        }
    }
}

/// Checks one target; that its name and its place are its own is for its file to say.
pub(super) fn check(target: &TargetDocument, faults: &mut Vec<String>) {
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
pub(super) fn place(backend: &BackendDocument) -> (&'static str, String) {
    match backend {
        BackendDocument::Processes { state, .. } => ("backend.state", state.display().to_string()),
        BackendDocument::Directives { subject } => ("backend.subject", subject.clone()),
        BackendDocument::Docker { socket, project, service, .. } => {
            ("backend.service", format!("{service} of {project} at {}", socket.display()))
        }
    }
}

fn check_backend(target: &TargetDocument, faults: &mut Faults<'_>) {
    let is_pattern = target.pattern().is_some();
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

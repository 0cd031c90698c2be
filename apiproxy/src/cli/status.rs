//! How far a rollout is, for people and for scripts.

use std::collections::HashMap;
use std::fmt::Write;
use std::time::Duration;

use async_nats::Client;
use futures_util::StreamExt;
use natsway_routes::document::RouteDocument;
use natsway_routes::metrics::AttemptMetrics;
use natsway_routes::peers::attributed;
use natsway_routes::report::{Parts, Progress, Report, Role};
use natsway_routes::rollout::Rollout;
use natsway_wire::control;
use serde_json::{Value, json};

use super::columns::columns;

/// How long senders may take to tell their metrics: they answer all who ask within [`ANSWER_GAP`]
/// at once.
///
/// [`ANSWER_GAP`]: natsway_routes::report::ANSWER_GAP
const REPORT_LIMIT: Duration = Duration::from_millis(600);

/// The most senders that are shown.
const MOST_REPORTS: usize = 1_024;

/// The reports of everybody who sends requests and answers in time.
pub(super) async fn ask(client: &Client) -> anyhow::Result<Vec<Report>> {
    let mut answers = client.subscribe(control::metrics_subject("*", "*")).await?;
    client.publish(control::report_subject(), "".into()).await?;
    let mut parts = HashMap::<String, Parts>::new();
    let mut reports: Vec<Report> = Vec::new();
    let until = tokio::time::Instant::now() + REPORT_LIMIT;
    while let Ok(Some(answer)) = tokio::time::timeout_at(until, answers.next()).await {
        let Some((source, part)) = attributed(&answer.subject, &answer.payload) else { continue };
        let key = format!("{source}.{}", part.id);
        if !parts.contains_key(&key) && parts.len() >= MOST_REPORTS {
            continue;
        }
        let Some(report) = parts.entry(key).or_default().take(part) else { continue };
        if !report.whole || report.leaving {
            continue;
        }
        match reports.iter_mut().find(|known| known.id == report.id && known.role == report.role) {
            Some(known) => *known = report,
            None => reports.push(report),
        }
    }
    reports.sort_by(|one, other| one.host.cmp(&other.host));
    Ok(reports)
}

/// What a route's rollout is doing, with the step where it has steps.
pub(super) fn phase(rollout: &Rollout) -> String {
    let mut text = rollout.phase.as_str().to_owned();
    if !rollout.steps.is_empty() && rollout.phase.is_active() {
        write!(text, ", step {} of {}", rollout.step + 1, rollout.steps.len())
            .expect("a string takes all");
    }
    if rollout.paused {
        text.push_str(", paused");
    }
    text
}

/// A time of day in UTC.
pub(super) fn time_of_day(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000 % 86_400;
    format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60)
}

/// Everything about it as a document.
pub(super) fn json(document: &RouteDocument, revision: u64, reports: &[Report]) -> Value {
    let versions = |(version, weight): (&str, u32)| {
        let metrics = sum(document, version, reports);
        let mut value = figures_json(&metrics);
        value["version"] = json!(version);
        value["weight"] = json!(weight);
        value["in_flight"] = json!(metrics.in_flight);
        value["streams"] = json!(metrics.streams);
        value
    };
    let senders = |report: &Report| {
        json!({
            "id": report.id, "host": report.host, "role": report.role, "revision": report.revision,
            "behind": report.revision < revision, "refuses": refuses(report, document),
        })
    };
    let step = progress(document, reports).map(|progress| {
        json!({
            "driven": progress.driving, "seconds": progress.in_phase_ms / 1_000, "verdict": progress.verdict,
            "old": figures_json(&progress.old), "new": figures_json(&progress.new),
            "behind": progress.behind,
        })
    });
    json!({
        "route": document.name, "revision": revision, "rollout": document.rollout, "step": step,
        "versions": document.weights().map(versions).collect::<Vec<_>>(),
        "senders": reports.iter().map(senders).collect::<Vec<_>>(),
    })
}

fn figures_json(metrics: &AttemptMetrics) -> Value {
    let quantile = |quantile| metrics.latency.quantile(quantile);
    json!({
        "requests": metrics.requests(), "errors": metrics.errors,
        "p50_us": quantile(0.5), "p95_us": quantile(0.95), "p99_us": quantile(0.99),
    })
}

/// The same for people.
pub(super) fn text(document: &RouteDocument, revision: u64, reports: &[Report]) -> String {
    let mut text = format!("route     {} at revision {revision}\n", document.name);
    match &document.rollout {
        None => text.push_str("rollout   none\n"),
        Some(rollout) => text.push_str(&rollout_text(document, rollout, reports)),
    }
    text.push_str("\nsince the senders started:\n");
    let rows: Vec<_> = document
        .weights()
        .map(|(version, weight)| {
            row(version, &format!("{weight}"), &sum(document, version, reports))
        })
        .collect();
    text.push_str(&columns(
        ["VERSION", "WEIGHT", "REQUESTS", "ERRORS", "IN FLIGHT", "STREAMS", "P50", "P95", "P99"],
        &rows,
    ));
    text.push('\n');
    let rows: Vec<_> =
        reports.iter().map(|report| sender_row(report, document, revision)).collect();
    text.push_str(&columns(["SENDER", "ROLE", "REVISION", "STATE"], &rows));
    text
}

fn rollout_text(document: &RouteDocument, rollout: &Rollout, reports: &[Report]) -> String {
    let mut lines = vec![
        format!(
            "rollout   {} -> {}, {} % to {}",
            rollout.from,
            rollout.to,
            rollout.percent(),
            rollout.to
        ),
        format!("phase     {}", phase(rollout)),
    ];
    lines.extend(rollout.reason.iter().map(|reason| format!("reason    {reason}")));
    let exposure = rollout.exposure;
    if exposure.requests > 0 {
        let share = 100.0 * exposure.new_requests as f64 / exposure.requests as f64;
        let (new, errors) = (exposure.new_requests, exposure.new_errors);
        lines.push(format!(
            "exposed   {new} requests ({share:.2} %) went to {}, {errors} of them failed",
            rollout.to
        ));
    }
    lines.extend(rollout.behind.iter().map(|behind| format!("behind    {behind}")));
    match progress(document, reports) {
        Some(progress) => {
            lines.extend(progress.behind.iter().map(|behind| format!("behind    {behind}")));
            lines.extend(progress.verdict.iter().map(|verdict| format!("verdict   {verdict}")));
            let seconds = progress.in_phase_ms / 1_000;
            lines.push(String::new());
            lines.push(format!("in this phase and step, {seconds} s:"));
            let rows =
                [row(&rollout.from, "old", &progress.old), row(&rollout.to, "new", &progress.new)];
            let titles = [
                "VERSION",
                "SIDE",
                "REQUESTS",
                "ERRORS",
                "IN FLIGHT",
                "STREAMS",
                "P50",
                "P95",
                "P99",
            ];
            lines.push(columns(titles, &rows).trim_end().to_owned());
        }
        None if rollout.phase.is_active() => {
            lines.push("driven    by nobody: no gateway answers".to_owned())
        }
        None => {}
    }
    lines.push(String::new());
    lines.extend(
        rollout.history.iter().map(|note| format!("{}  {}", time_of_day(note.unix_ms), note.what)),
    );
    lines.join("\n") + "\n"
}

/// What the gateway that drives has seen, or any other.
fn progress<'r>(document: &RouteDocument, reports: &'r [Report]) -> Option<&'r Progress> {
    let all = || {
        reports.iter().flat_map(|report| &report.rollouts).filter(|of| of.route == document.name)
    };
    all().find(|progress| progress.driving).or_else(|| all().next())
}

fn sum(document: &RouteDocument, version: &str, reports: &[Report]) -> AttemptMetrics {
    let mut sum = AttemptMetrics::default();
    for of in reports.iter().flat_map(|report| &report.versions) {
        if of.route == document.name && of.version == version {
            sum += &of.metrics;
        }
    }
    sum
}

fn row(version: &str, label: &str, metrics: &AttemptMetrics) -> [String; 9] {
    let quantile = |quantile| match metrics.latency.quantile(quantile) {
        Some(us) => format!("{:.1} ms", us as f64 / 1_000.0),
        None => "-".to_owned(),
    };
    [
        version.to_owned(),
        label.to_owned(),
        metrics.requests().to_string(),
        metrics.errors.to_string(),
        metrics.in_flight.to_string(),
        metrics.streams.to_string(),
        quantile(0.5),
        quantile(0.95),
        quantile(0.99),
    ]
}

/// Whether it goes by an earlier document, because it refuses the newest.
fn refuses(report: &Report, document: &RouteDocument) -> bool {
    report.refused.contains(&document.name)
}

fn sender_row(report: &Report, document: &RouteDocument, revision: u64) -> [String; 4] {
    let role = match report.role {
        Role::Gateway => "gateway",
        Role::Caller => "caller",
        Role::Other => "other",
    };
    let drives = report.rollouts.iter().any(|progress| progress.driving);
    let state = match drives {
        _ if refuses(report, document) => "behind, refuses the document",
        _ if report.revision == 0 => "has read no routes yet",
        _ if report.revision < revision => "behind",
        true => "current, drives",
        false => "current",
    };
    let its = if report.revision == 0 { "-".to_owned() } else { report.revision.to_string() };
    [report.host.clone(), role.to_owned(), its, state.to_owned()]
}

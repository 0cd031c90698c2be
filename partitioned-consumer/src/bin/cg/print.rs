//! What the commands say, as text for people and as JSON for scripts.

use std::io::Write;

use anyhow::Result;
use natsway_partitioned_consumer::{
    Finding, Generation, GroupKind, GroupName, GroupReport, MemberMapping, Repartitioned,
    ResetReport,
};
use serde_json::json;

use crate::session::Session;

/// Prints a line. A reader that has gone (`cg … | head`) has seen enough: that ends the program,
/// and is no failure.
pub(crate) fn line(text: std::fmt::Arguments<'_>) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

macro_rules! say {
    ($($text:tt)*) => { line(format_args!($($text)*)) };
}

fn list(names: &[String]) -> String {
    format!("[{}]", names.join(" "))
}

fn numbers(numbers: &[u32]) -> String {
    numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(" ")
}

pub(crate) fn groups(session: &Session, kind: GroupKind, groups: &[String]) {
    if session.json {
        say!("{}", json!({ "kind": kind.as_str(), "groups": groups }));
    } else {
        say!("{} consumer groups: {}", kind.as_str(), list(groups));
    }
}

/// The groups of all streams, each as `stream/group`.
pub(crate) fn groups_of_all(session: &Session, kind: GroupKind, groups: &[GroupName]) {
    if session.json {
        let groups: Vec<_> = groups
            .iter()
            .map(|name| json!({ "stream": name.stream(), "group": name.group() }))
            .collect();
        say!("{}", json!({ "kind": kind.as_str(), "groups": groups }));
    } else {
        let names: Vec<String> = groups.iter().map(ToString::to_string).collect();
        say!("{} consumer groups: {}", kind.as_str(), list(&names));
    }
}

pub(crate) fn reset(session: &Session, report: &ResetReport, dry_run: bool) -> Result<()> {
    if session.json {
        say!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    let known =
        |count: Option<u64>| count.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
    let would = if dry_run { "would go" } else { "goes" };
    say!(
        "the group {would} on with sequence {}; messages from there: {}",
        report.sequence,
        known(report.messages)
    );
    if let Some(dropped) = report.dropped_from_queue {
        say!("messages that wait in the work queue, and leave it: {dropped}");
    }
    for member in &report.members {
        say!(
            "member {}: acknowledged up to {}; handled again: {}, passed over: {}",
            member.member,
            member.acknowledged_to,
            known(member.again_messages),
            known(member.skipped_messages)
        );
    }
    if report.dropped_from_queue.is_none() && report.members.is_empty() {
        say!("no member has a consumer: members that join begin by their delivery policy");
    }
    Ok(())
}

pub(crate) fn members(session: &Session, what: &str, members: &[String]) {
    if session.json {
        say!("{}", json!({ "members": members }));
    } else {
        say!("{what}; members now: {}", list(members));
    }
}

fn mapping_text(mappings: &[MemberMapping]) -> String {
    let one = |m: &MemberMapping| {
        format!("{{Member:{} Partitions:[{}]}}", m.member, numbers(&m.partitions))
    };
    format!("[{}]", mappings.iter().map(one).collect::<Vec<_>>().join(" "))
}

pub(crate) fn mappings(session: &Session, mappings: &[MemberMapping]) {
    if session.json {
        say!("{}", json!({ "member_mappings": mappings }));
    } else {
        say!("member mappings: {}", mapping_text(mappings));
    }
}

pub(crate) fn repartitioned(session: &Session, done: &Repartitioned) {
    if session.json {
        say!("{}", json!({ "from": done.from, "to": done.to, "cut_sequence": done.cut }));
    } else {
        say!(
            "{} partitions now, {} before; sequence {} was the last under the old number",
            done.to,
            done.from,
            done.cut
        );
    }
}

pub(crate) fn member(session: &Session, name: &str, included: bool, active: bool) {
    if session.json {
        say!("{}", json!({ "member": name, "in_membership": included, "active": active }));
        return;
    }
    say!("member {name} is {} the membership", if included { "in" } else { "not in" });
    say!("{}", if active { "an instance is active" } else { "*** no instance is active ***" });
}

pub(crate) fn findings(session: &Session, findings: &[Finding]) -> Result<()> {
    if session.json {
        say!("{}", serde_json::to_string(findings)?);
    } else if findings.is_empty() {
        say!("nothing is wrong");
    }
    for finding in findings.iter().filter(|_| !session.json) {
        say!("{}: {}", finding.code, finding.text);
    }
    Ok(())
}

pub(crate) fn report(session: &Session, report: &GroupReport) -> Result<()> {
    if session.json {
        say!("{}", serde_json::to_string(report)?);
        return Ok(());
    }
    let filters: Vec<String> = report.filters.iter().map(|f| f.filter.clone()).collect();
    if report.kind == "static" {
        say!("partitions: {}, filters: {}", report.partitions, list(&filters));
    } else {
        say!(
            "partitions: {}, max buffered messages: {}, max buffered bytes: {}",
            report.partitions,
            report.max_buffered_messages,
            report.max_buffered_bytes
        );
        for filter in &report.filters {
            say!("filter: {}, key wildcards: [{}]", filter.filter, numbers(&filter.wildcards));
        }
        if filters.is_empty() {
            say!("the whole subject is the key");
        }
    }
    match (report.balanced.is_empty(), report.mappings.is_empty()) {
        (false, _) => say!("members: {}", list(&report.balanced)),
        (_, false) => say!("member mappings: {}", mapping_text(&report.mappings)),
        _ => say!("no members or mappings"),
    }
    let active: Vec<String> =
        report.members.iter().filter(|m| m.active).map(|m| m.member.clone()).collect();
    say!("active members: {}", list(&active));
    extras(report);
    Ok(())
}

/// What only this implementation shows.
fn extras(report: &GroupReport) {
    if report.generation == Generation::First {
        say!("written by the older generation");
    }
    if report.settings.paused {
        say!("PAUSED");
    }
    if let Some(subject) = &report.settings.dead_letter_subject {
        say!("dead letters: {subject}, after {} deliveries", report.settings.dead_letter_after);
    }
    if let Some(uncopied) = report.uncopied_messages.filter(|n| *n > 0) {
        say!("not copied yet: {uncopied} messages");
    }
    if let Some(loss) = report.source_loss.filter(|loss| loss.messages > 0) {
        let about = if loss.exact { "" } else { "about " };
        say!(
            "LOST: {about}{} messages, dropped by the stream before they were copied",
            loss.messages
        );
    }
    if !report.members.is_empty() {
        say!(
            "\n{:<20} {:>6} {:>10} {:>10} {:<14} partitions",
            "member",
            "active",
            "lag",
            "unacked",
            "last active"
        );
    }
    for member in &report.members {
        say!(
            "{:<20} {:>6} {:>10} {:>10} {:<14} {}",
            member.member,
            if member.active { "yes" } else { "no" },
            member.lag_messages,
            member.unacknowledged_messages,
            ago(member.last_active_unix_s),
            numbers(&member.partitions)
        );
    }
    say!("\n{:<20} {:<20} {:>10} {:<14}", "partition", "owner", "lag", "newest message");
    for partition in &report.by_partition {
        let owner = partition.owner.as_deref().unwrap_or("-");
        say!(
            "{:<20} {:<20} {:>10} {:<14}",
            partition.partition,
            owner,
            partition.lag_messages,
            ago(partition.last_active_unix_s)
        );
    }
}

fn ago(unix_s: Option<i64>) -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    unix_s.map_or_else(
        || "-".into(),
        |at| format!("{} s ago", now.saturating_sub(u64::try_from(at).unwrap_or(0))),
    )
}

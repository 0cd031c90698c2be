//! Results as a report: tables and pictures for people.

mod curves;
pub mod document;
mod headroom;
mod parts;
mod readme;
mod scenarios;
pub mod svg;
mod targets;

use std::fs;
use std::path::Path;

use anyhow::Context;

use self::document::{Block, Table, html, markdown};
use crate::autoscalers::Comparison;
use crate::results::Results;

/// Everything that the report says. Pure.
pub fn blocks(results: &Results) -> Vec<Block> {
    let mut blocks = vec![Block::Heading(1, "What a request costs".to_owned())];
    blocks.extend(preamble(results));
    blocks.push(Block::Contents);
    blocks.extend(readme::summary(results));
    blocks.extend(targets::blocks(results));
    for scenario in &results.scenarios {
        blocks.extend(scenarios::blocks(results, scenario));
    }
    blocks.extend(headroom::blocks(results));
    blocks.extend(parts::blocks(results));
    for (heading, list) in [("Failed", &results.failed), ("Not measured", &results.skipped)] {
        if list.is_empty() {
            continue;
        }
        blocks.push(Block::Heading(2, heading.to_owned()));
        let points = list.iter().map(|skipped| format!("`{}`: {}", skipped.what, skipped.why));
        blocks.push(Block::List(points.collect()));
    }
    blocks
}

/// Writes `report.html`, `RESULTS.md` and `plots/*.svg` into a directory.
///
/// # Errors
/// A file cannot be written.
pub fn write(results: &Results, directory: &Path) -> anyhow::Result<()> {
    let blocks = blocks(results);
    let plots = directory.join("plots");
    if plots.exists() {
        // Pictures of an earlier report would stay beside those of this one.
        fs::remove_dir_all(&plots).with_context(|| format!("cannot empty {}", plots.display()))?;
    }
    fs::create_dir_all(&plots).with_context(|| format!("cannot make {}", plots.display()))?;
    for block in &blocks {
        if let Block::Figure(figure) = block {
            put(&plots.join(format!("{}.svg", figure.name)), &figure.svg)?;
        }
    }
    put(&directory.join("report.html"), &html("What a request costs", &blocks))?;
    put(&directory.join("RESULTS.md"), &markdown(&blocks, "plots"))
}

/// Puts the figures into what the repository shows: the README's table between its markers, and the
/// autoscalers' in `docs/`. What it leaves as it was, and why, comes back, a sentence each.
///
/// # Errors
/// The README has no markers, or a file cannot be written.
pub fn publish(results: &Results, repository: &Path) -> anyhow::Result<Vec<String>> {
    let path = repository.join("README.md");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut left = Vec::new();
    match readme::markdown(results) {
        Some(table) => put(&path, &readme::between_markers(&text, &table)?)?,
        None => left.push("README.md is left as it is: the peers were not measured".to_owned()),
    }
    if let Some(part) = results.parts.get("autoscalers") {
        let comparison: Comparison = serde_json::from_value(part.clone())?;
        if comparison.is_whole() {
            comparison.write(&repository.join("docs"))?;
        } else {
            left.push(
                "docs/autoscalers.md and .svg are left as they are: this is the short form; `make \
                 bench-autoscalers` writes them"
                    .to_owned(),
            );
        }
    }
    Ok(left)
}

fn put(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

const ALTERNATE: &str = " In *what people would use instead*, *other payloads* and *more* workers, \
                         routes and services, a run of the baseline comes right before each run of \
                         the others, and ratios are of such neighbours: a shared machine gets \
                         slower for seconds at a time, which meets both. The baseline's own \
                         figures are of all these runs.";

fn preamble(results: &Results) -> Vec<Block> {
    let versions: Vec<String> =
        results.versions.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let counted = || results.samples.iter().filter(|sample| !sample.disturbed);
    let requests: u64 = counted().map(|sample| sample.requests).sum();
    let errors: u64 = counted().map(|sample| sample.errors).sum();
    let date = results.began.split('T').next().unwrap_or_default();
    let form = if results.quick {
        "**The short form, so these figures are rough.** `make bench` makes the whole ones"
    } else {
        "Made by `make bench`"
    };
    let minutes = (results.took_s / 60.0).max(1.0);
    let alternate = results.samples.iter().any(|sample| sample.beside.is_some());
    let side_by_side = if alternate { ALTERNATE } else { "" };
    vec![
        Block::Paragraph(format!("{form}; {date}, in {minutes:.0} minutes; {}.", length(results))),
        Block::List(vec![
            format!(
                "Machine: {}. Everything runs on it, the load generator included.",
                results.machine
            ),
            format!("Versions: {}.", versions.join(", ")),
            "Keep-alive connections over the loopback; what is asked is said above each table."
                .to_owned(),
            format!(
                "Medians of the rounds; behind ± half of the distance from the least to the most. \
                 Each round starts all processes afresh, in another order. Ratios are medians of \
                 those within a round, with the interval of a bootstrap over the rounds: three \
                 rounds give little more than their range.{side_by_side}"
            ),
            "µs are processor time per request, by what the processes are for; *switches* are \
             context switches per request of everything but the load; *memory* is the peak of \
             everything but the load during the run; *idle* is the part of the machine that was."
                .to_owned(),
            format!(
                "A run is dropped when others used more than 5 % of the machine, and made again: \
                 {} of {} were.",
                results.dropped(),
                results.samples.len()
            ),
            format!(
                "{errors} of {requests} requests failed. A wrong status is a failure; bodies are \
                 compared byte for byte before, after, and ten times a second during a run, and by \
                 length for all requests of oha."
            ),
        ]),
    ]
}

/// How many rounds there were, and how long a run was.
fn length(results: &Results) -> String {
    let rounds = results.samples.iter().map(|run| run.round + 1).max().unwrap_or(0);
    let seconds = results.samples.iter().map(|run| run.seconds.round());
    let (least, most) = seconds
        .fold((f64::INFINITY, 0.0), |(least, most), run| (least.min(run), f64::max(most, run)));
    let rounds =
        if rounds == 1 { "one round".to_owned() } else { format!("up to {rounds} rounds") };
    match (least, most) {
        _ if results.samples.is_empty() => "no runs".to_owned(),
        _ if least == most => format!("{rounds}, runs of {most:.0} s"),
        _ => format!("{rounds}, runs of {least:.0} to {most:.0} s"),
    }
}

/// A number of requests per second: `58.1K`.
fn rate(per_second: f64) -> String {
    if per_second < 1_000.0 {
        format!("{per_second:.0}")
    } else {
        format!("{:.1}K", per_second / 1_000.0)
    }
}

fn microseconds(us: f64) -> String {
    format!("{us:.1}")
}

fn milliseconds(ms: f64) -> String {
    match ms {
        ..0.995 => format!("{ms:.2}"),
        ..9.95 => format!("{ms:.1}"),
        _ => format!("{ms:.0}"),
    }
}

fn or_dash(text: Option<String>) -> String {
    text.unwrap_or_else(|| "-".to_owned())
}

/// A table with a row for each item that has one.
fn table<const N: usize>(head: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Table {
    let mut table = Table::new(head);
    table.rows.extend(rows.into_iter().map(Vec::from));
    table
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::results::tests::{results, sample};
    use crate::scenario::Scenario;

    pub(crate) const PEERS: &str = r#"
        title = "Peers"
        about = "What others do."
        baseline = "direct"
        [[load]]
        name = "c64"
        connections = 64
        [[load]]
        name = "c255"
        connections = 255
        [[contender]]
        name = "direct"
        title = "axum, no gateway"
        arrangement = { kind = "direct" }
        [[contender]]
        name = "natsway-1"
        title = "Natsway, 1 worker"
        arrangement = { kind = "natsway" }
        article = { per_second = 100461, of = 232449 }
        [[contender]]
        name = "nginx"
        title = "nginx"
        arrangement = { kind = "proxy", program = "nginx" }
    "#;

    pub(crate) fn measured() -> Results {
        let mut samples = Vec::new();
        for round in 0..3 {
            for (contender, rate) in
                [("direct", 100_000.0), ("natsway-1", 50_000.0), ("nginx", 40_000.0)]
            {
                for load in ["c64", "c255"] {
                    samples.push(sample(contender, load, round, rate + f64::from(round) * 100.0));
                }
            }
        }
        let mut results = results(samples);
        results.scenarios = vec![Scenario::parse("peers", PEERS).unwrap()];
        results
    }

    #[test]
    fn a_report_is_written_whole() {
        let directory = tempfile::tempdir().unwrap();
        write(&measured(), directory.path()).unwrap();
        let page = fs::read_to_string(directory.path().join("report.html")).unwrap();
        let text = fs::read_to_string(directory.path().join("RESULTS.md")).unwrap();
        for part in ["Natsway, 1 worker", "0.50", "50.1K"] {
            assert!(page.contains(part) && text.contains(part), "{part} is missing in {text}");
        }
        let plots = fs::read_dir(directory.path().join("plots")).unwrap().count();
        assert_eq!(plots, page.matches("<svg").count());
        assert!(plots >= 4, "rates and processor time for each load");
    }

    #[test]
    fn a_short_form_leaves_the_autoscalers_of_the_documentation_as_they_are() {
        let repository = tempfile::tempdir().unwrap();
        let at = |name: &str| repository.path().join(name);
        fs::create_dir(at("docs")).unwrap();
        fs::write(at("docs/autoscalers.md"), "of ten seeds").unwrap();
        fs::write(at("README.md"), readme::bare_markers()).unwrap();
        let publish_with = |seeds: usize| {
            let comparison =
                Comparison { table: "anew".to_owned(), plot: "<svg></svg>".to_owned(), seeds };
            let mut results = measured();
            results
                .parts
                .insert("autoscalers".to_owned(), serde_json::to_value(comparison).unwrap());
            let left = publish(&results, repository.path()).unwrap();
            (left.join("; "), fs::read_to_string(at("docs/autoscalers.md")).unwrap())
        };
        let (left, table) = publish_with(1);
        assert!(left.contains("`make bench-autoscalers` writes them"), "{left}");
        assert_eq!(table, "of ten seeds");
        assert_eq!(publish_with(10), (String::new(), "anew".to_owned()));
        let readme = fs::read_to_string(at("README.md")).unwrap();
        assert!(
            readme.contains("2026-11-21, natsway") && readme.contains("Natsway, 1 worker"),
            "{readme}"
        );
    }

    #[test]
    fn what_was_not_measured_is_said() {
        let mut results = measured();
        let skipped =
            crate::results::Skipped { what: "peers/haproxy".into(), why: "not installed".into() };
        results.skipped.push(skipped);
        let text = markdown(&blocks(&results), "plots");
        assert!(text.contains("- `peers/haproxy`: not installed"), "{text}");
    }

    #[test]
    fn a_run_that_nothing_is_left_of_still_has_a_report() {
        let mut results = measured();
        results.samples.clear();
        assert!(markdown(&blocks(&results), "plots").contains("no undisturbed run"));
    }
}

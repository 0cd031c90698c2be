//! The few figures that README shows, and the report begins with.

use anyhow::{Context, ensure};

use super::document::{Block, Table, markdown as render};
use super::scenarios::cpu;
use super::{length, microseconds, milliseconds, or_dash, rate};
use crate::results::{Cell, Results, Role};

const BEGIN: &str = "<!-- figures of `make bench`: begin -->";
const END: &str = "<!-- figures of `make bench`: end -->";

const SCENARIO: &str = "peers";

/// The table with where and when it was made, if the peers were measured.
pub(super) fn markdown(results: &Results) -> Option<String> {
    let table = table(results)?;
    let (date, _) = results.began.split_once('T')?;
    let version = |name: &str| results.versions.get(name).map_or("?", String::as_str);
    let short = if results.quick { " (the short form, rough)" } else { "" };
    let about = format!(
        "{date}{short}, natsway {}, nats-server {}, {}; everything on this one machine, the load \
         generator too; {}; `GET /` answered with 39 bytes; medians. CPU is in µs for each request \
         at 255 connections.",
        version("natsway"),
        version("nats-server"),
        results.machine,
        length(results),
    );
    Some(render(&[Block::Paragraph(about), Block::Table(table)], ""))
}

/// The same table as the beginning of the report.
pub(super) fn summary(results: &Results) -> Vec<Block> {
    let Some(table) = table(results) else { return Vec::new() };
    let about = "`GET /` answered with 39 bytes; CPU in µs for each request at 255 connections. \
                 Spreads, other loads and pictures are below.";
    vec![
        Block::Heading(2, "In short".to_owned()),
        Block::Paragraph(about.to_owned()),
        Block::Table(table),
    ]
}

/// The peers at 64 and 255 connections.
fn table(results: &Results) -> Option<Table> {
    let scenario = results.scenario(SCENARIO)?;
    let mut table = Table::new([
        "",
        "requests/s at 64 connections (of direct)",
        "at 255",
        "p50 / p99 ms at 255",
        "gateway µs",
        "broker µs",
        "service µs",
    ]);
    for contender in &scenario.contenders {
        let at = |load| Cell { scenario: SCENARIO, contender: &contender.name, load };
        let (c64, c255) = (at("c64"), at("c255"));
        let with_ratio = |at: Cell<'_>| {
            let spread = results.spread(at, |run| Some(run.per_second))?;
            let ratio = results.ratio(at, Cell { contender: &scenario.baseline, ..at })?;
            Some(format!("{} ({:.2})", rate(spread.median), ratio.value))
        };
        let Some(first) = with_ratio(c64) else { continue };
        let latency = |name| {
            or_dash(
                results
                    .spread(c255, |run| run.latency(name))
                    .map(|spread| milliseconds(spread.median)),
            )
        };
        let of_role = |role| or_dash(cpu(results, c255, role).map(microseconds));
        table.rows.push(vec![
            contender.title.clone(),
            first,
            or_dash(with_ratio(c255)),
            format!("{} / {}", latency("p50"), latency("p99")),
            of_role(Role::Gateway),
            of_role(Role::Broker),
            of_role(Role::Service),
        ]);
    }
    (!table.rows.is_empty()).then_some(table)
}

/// The text with everything between the markers replaced.
pub(super) fn between_markers(text: &str, table: &str) -> anyhow::Result<String> {
    let (before, rest) =
        text.split_once(BEGIN).with_context(|| format!("README.md has no line {BEGIN}"))?;
    let (_, after) =
        rest.split_once(END).with_context(|| format!("README.md has no line {END}"))?;
    ensure!(!after.contains(BEGIN), "README.md has the line {BEGIN} twice");
    Ok(format!("{before}{BEGIN}\n{}\n{END}{after}", table.trim()))
}

/// A text with the markers and nothing between them.
#[cfg(test)]
pub(super) fn bare_markers() -> String {
    format!("{BEGIN}\n{END}\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests::measured;
    use super::*;

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nz\n");
        let new = between_markers(&text, "new\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n{END}\nz\n"));
        assert_eq!(between_markers(&new, "new").unwrap(), new, "twice is as once");
        assert!(between_markers("nothing", "new").is_err());
    }

    #[test]
    fn the_table_has_date_versions_and_machine() {
        let text = markdown(&measured()).unwrap();
        assert!(
            text.starts_with("2026-11-21, natsway ?, nats-server ?, 2 processors; everything"),
            "{text}"
        );
        assert!(
            text.contains(
                "| Natsway, 1 worker | 50.1K (0.50) | 50.1K (0.50) | 1.0 / 5.0 | - | - | 10.0 |"
            ),
            "{text}"
        );
    }
}

//! What the request path should reach, beside what it does.
//!
//! The targets were set from measurements of the parts on 2 shared cores, the load generator on them too; on another
//! machine the ratios mean something, the microseconds less.

use super::document::{Block, Table};
use super::scenarios::cpu;
use crate::results::{Cell, Results, Role};

const SCENARIO: &str = "peers";
const LOADS: [&str; 2] = ["c64", "c255"];
const BASELINE: &str = "direct";
const DEFAULT_FORM: &str = "natsway-1";
const PER_CORE: &str = "natsway-1reader";

/// A figure, what it should be at 64 and at 255 connections, and which way is better.
struct Target {
    what: &'static str,
    at: [f64; 2],
    better: Better,
    figure: Measure,
}

#[derive(Clone, Copy)]
enum Better {
    More,
    Less,
}

#[derive(Clone, Copy)]
enum Measure {
    /// Requests per second over those of another contender.
    Over(&'static str, &'static str),
    /// Microseconds per request.
    Cpu(&'static str, Role),
    /// The least over the most of 1, 2 and 4 workers.
    Evenness,
}

const TARGETS: &[Target] = &[
    more("of direct axum, default form", [0.50, 0.65], Measure::Over(DEFAULT_FORM, BASELINE)),
    more("of direct axum, per core", [0.50, 0.65], Measure::Over(PER_CORE, BASELINE)),
    more("over the article's Go gateway, default form", [1.7, 1.7], Measure::Over(DEFAULT_FORM, "go-1")),
    more("over the article's Go gateway, per core", [1.7, 1.7], Measure::Over(PER_CORE, "go-1")),
    more("over nginx, default form", [1.1, 1.5], Measure::Over(DEFAULT_FORM, "nginx")),
    more("over Traefik, default form", [3.0, 3.5], Measure::Over(DEFAULT_FORM, "traefik")),
    less("gateway µs", [11.0, 10.0], Measure::Cpu(DEFAULT_FORM, Role::Gateway)),
    less("worker µs, default form", [5.0, 4.0], Measure::Cpu(DEFAULT_FORM, Role::Service)),
    less("worker µs, per core", [1.5, 1.2], Measure::Cpu(PER_CORE, Role::Service)),
    more("1, 2 and 4 workers: least over most", [0.9, 0.9], Measure::Evenness),
];

const fn more(what: &'static str, at: [f64; 2], figure: Measure) -> Target {
    Target { what, at, better: Better::More, figure }
}

const fn less(what: &'static str, at: [f64; 2], figure: Measure) -> Target {
    Target { what, at, better: Better::Less, figure }
}

impl Measure {
    fn of(self, results: &Results, load: &str) -> Option<f64> {
        let cell = |contender| Cell { scenario: SCENARIO, contender, load };
        match self {
            Measure::Over(contender, other) => {
                results.ratio(cell(contender), cell(other)).map(|ratio| ratio.value)
            }
            Measure::Cpu(contender, role) => cpu(results, cell(contender), role),
            Measure::Evenness => {
                let rate = |contender| {
                    results.spread(cell(contender), |run| Some(run.per_second)).map(|spread| spread.median)
                };
                let rates = [rate(DEFAULT_FORM)?, rate("natsway-2")?, rate("natsway-4")?];
                Some(rates.into_iter().fold(f64::INFINITY, f64::min) / rates.into_iter().fold(0.0, f64::max))
            }
        }
    }
}

/// The table, when the scenario was measured.
pub(super) fn blocks(results: &Results) -> Vec<Block> {
    if results.scenario(SCENARIO).is_none() {
        return Vec::new();
    }
    let mut table = Table::new(["", "64 connections", "255 connections"]);
    for Target { what, at, better, figure } in TARGETS {
        let verdicts = LOADS.iter().zip(at);
        let verdicts = verdicts.map(|(load, wanted)| verdict(figure.of(results, load), *wanted, *better));
        table.rows.push(std::iter::once((*what).to_owned()).chain(verdicts).collect());
    }
    let about = "Set from measurements of the parts on 2 shared cores. *Per core* is the form whose handlers run on the thread that \
                 reads requests, with one reader.";
    vec![Block::Heading(2, "Targets".to_owned()), Block::Paragraph(about.to_owned()), Block::Table(table)]
}

fn verdict(seen: Option<f64>, wanted: f64, better: Better) -> String {
    let Some(seen) = seen else { return "not measured".to_owned() };
    let (sign, reached) = match better {
        Better::More => ('≥', seen >= wanted),
        Better::Less => ('≤', seen <= wanted),
    };
    format!("{seen:.2} ({sign} {wanted}{})", if reached { "" } else { ", **missed**" })
}

#[cfg(test)]
mod tests {
    use super::super::tests::measured;
    use super::*;

    #[test]
    fn verdicts_say_what_was_missed() {
        assert_eq!(verdict(Some(0.61), 0.5, Better::More), "0.61 (≥ 0.5)");
        assert_eq!(verdict(Some(0.41), 0.5, Better::More), "0.41 (≥ 0.5, **missed**)");
        assert_eq!(verdict(Some(12.0), 11.0, Better::Less), "12.00 (≤ 11, **missed**)");
        assert_eq!(verdict(None, 1.0, Better::More), "not measured");
    }

    #[test]
    fn the_table_takes_its_figures_from_the_peers() {
        let blocks = blocks(&measured());
        let Some(Block::Table(table)) = blocks.last() else { panic!("{blocks:?}") };
        assert_eq!(table.rows[0][1], "0.50 (≥ 0.5)");
        assert_eq!(table.rows[0][2], "0.50 (≥ 0.65, **missed**)");
        assert_eq!(table.rows[5][1], "not measured");
    }
}

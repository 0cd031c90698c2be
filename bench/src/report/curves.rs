//! Figures over what grows: routes, workers, services, connections, the rate that is asked for.

use super::document::{Block, Figure, Table};
use super::svg::{self, Axes, Line, Point, thousands};
use super::{microseconds, milliseconds, or_dash, rate};
use crate::results::statistics::Spread;
use crate::results::{Cell, Results, Role, Sample};
use crate::scenario::{Load, Scenario};

/// One figure of a run.
type Measure = fn(&Sample) -> Option<f64>;

/// One with the name of its line.
type Named<'a> = (&'a str, Measure);

/// Rates, processor time and memory, over what the contenders differ in. Where there is one series,
/// each kind of process has a line.
pub(super) fn over_contenders(
    results: &Results,
    scenario: &Scenario,
    load: &Load,
    x: &str,
) -> Vec<Block> {
    if load.idle {
        return Vec::new();
    }
    let lines = |measures: &[Named<'_>]| -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        for (name, measure) in measures {
            for contender in scenario.contenders_of(load) {
                let Some(at) = contender.x else { continue };
                let Some(spread) = results.spread(Cell::at(scenario, contender, load), measure)
                else {
                    continue;
                };
                let label = contender.series.as_deref().unwrap_or(name).to_owned();
                match lines.iter_mut().find(|line| line.label == label) {
                    Some(line) => line.points.push(point(at, &spread)),
                    None => lines.push(Line { label, points: vec![point(at, &spread)] }),
                }
            }
        }
        lines
    };
    let has_series = scenario.contenders_of(load).any(|contender| contender.series.is_some());
    let of_roles = if has_series { 1 } else { CPU.len() };
    let pictures = [
        ("rates", "requests/s", lines(&[("requests", |run| Some(run.per_second))])),
        ("cpu", "CPU µs per request, without the load's", lines(&CPU[..of_roles])),
        ("memory", "memory in MiB, at its peak", lines(&MEMORY[..of_roles])),
    ];
    let pictures =
        pictures.into_iter().filter(|(_, _, lines)| lines.iter().any(|line| line.points.len() > 1));
    let picture = |(kind, y, lines): (&str, &str, Vec<Line>)| {
        let caption = format!("{}, {}: {y}", scenario.title, load.describe());
        let axes = Axes { x, y, log_x: true, log_y: false };
        Block::figure(
            [&scenario.name, &load.name, kind],
            &caption,
            svg::lines(&caption, axes, &lines, thousands),
        )
    };
    pictures.map(picture).collect()
}

const ALL_CPU: Named<'_> =
    ("all", |run| Some(run.total_cpu_us() - run.cpu_us(Role::Load).unwrap_or_default()));

const ALL_MEMORY: Named<'_> = ("all", |run| Some(run.peak_mib()));

const CPU: [Named<'_>; 4] = [
    ALL_CPU,
    ("gateway", |run| run.cpu_us(Role::Gateway)),
    ("broker", |run| run.cpu_us(Role::Broker)),
    ("service", |run| run.cpu_us(Role::Service)),
];

const MEMORY: [Named<'_>; 4] = [
    ALL_MEMORY,
    ("gateway", |run| run.sum_of(Role::Gateway, |process| process.peak_mib)),
    ("broker", |run| run.sum_of(Role::Broker, |process| process.peak_mib)),
    ("service", |run| run.sum_of(Role::Service, |process| process.peak_mib)),
];

fn point(x: f64, spread: &Spread) -> Point {
    Point { x, y: spread.median, ends: (spread.least, spread.most) }
}

/// What a table and a picture over several loads show.
struct Curve {
    /// The end of the picture's name.
    kind: &'static str,
    /// What it is.
    y: &'static str,
    measure: Measure,
    show: fn(f64) -> String,
}

const RATE: Curve =
    Curve { kind: "rates", y: "requests/s", measure: |run| Some(run.per_second), show: rate };
const P50: Curve =
    Curve { kind: "p50", y: "p50 ms", measure: |run| run.latency("p50"), show: milliseconds };
const P99: Curve =
    Curve { kind: "p99", y: "p99 ms", measure: |run| run.latency("p99"), show: milliseconds };
const P999: Curve =
    Curve { kind: "p999", y: "p99.9 ms", measure: |run| run.latency("p99.9"), show: milliseconds };
const ALL: Curve = Curve {
    kind: "cpu",
    y: "CPU µs per request of everything but the load",
    measure: ALL_CPU.1,
    show: microseconds,
};
const GATEWAY: Curve = Curve {
    kind: "gateway",
    y: "gateway CPU µs per request",
    measure: |run| run.cpu_us(Role::Gateway),
    show: microseconds,
};
const GATEWAY_MEMORY: Curve = Curve {
    kind: "memory",
    y: "gateway MiB",
    measure: |run| run.sum_of(Role::Gateway, |process| process.resident_mib),
    show: microseconds,
};

pub(super) fn over_connections(results: &Results, scenario: &Scenario) -> Vec<Block> {
    let axes = Axes { x: "connections", y: "", log_x: true, log_y: false };
    let x_of = |load: &Load| f64::from(load.connections);
    let curves = [RATE, P99, ALL, GATEWAY, GATEWAY_MEMORY].into_iter();
    curves.flat_map(|curve| grid(results, scenario, &curve, x_of, axes)).collect()
}

pub(super) fn over_rates(results: &Results, scenario: &Scenario) -> Vec<Block> {
    let axes = Axes { x: "requests/s asked for", y: "", log_x: false, log_y: true };
    let x_of = |load: &Load| f64::from(load.rate.unwrap_or(0));
    let curves = [P50, P99, P999, RATE].into_iter();
    curves.flat_map(|curve| grid(results, scenario, &curve, x_of, axes)).collect()
}

/// The gateway's memory over connections that ask nothing: the tables are there already.
pub(super) fn memory(results: &Results, scenario: &Scenario) -> Option<Block> {
    let axes = Axes { x: "idle connections", y: "", log_x: false, log_y: false };
    let x_of = |load: &Load| f64::from(load.connections);
    grid(results, scenario, &GATEWAY_MEMORY, x_of, axes)
        .into_iter()
        .find(|block| matches!(block, Block::Figure(_)))
}

/// A table with a column for each load, and, when there are several, a picture with a line for each
/// contender.
fn grid(
    results: &Results,
    scenario: &Scenario,
    &Curve { kind, y, measure, show }: &Curve,
    x_of: impl Fn(&Load) -> f64,
    axes: Axes<'_>,
) -> Vec<Block> {
    let loads = &scenario.loads;
    let head = std::iter::once(String::new()).chain(loads.iter().map(|load| thousands(x_of(load))));
    let mut table = Table { head: head.collect(), rows: Vec::new() };
    let mut lines = Vec::new();
    for contender in &scenario.contenders {
        let spread = |load: &Load| results.spread(Cell::at(scenario, contender, load), measure);
        let mut row = vec![contender.title.clone()];
        row.extend(
            loads.iter().map(|load| or_dash(spread(load).map(|spread| show(spread.median)))),
        );
        if row.iter().skip(1).all(|cell| cell == "-") {
            continue;
        }
        table.rows.push(row);
        let points = loads.iter().filter_map(|load| Some(point(x_of(load), &spread(load)?)));
        lines.push(Line { label: contender.title.clone(), points: points.collect() });
    }
    let mut blocks = vec![Block::Heading(3, format!("{y}, by {}", axes.x)), Block::Table(table)];
    if lines.iter().any(|line| line.points.len() > 1) {
        let caption = format!("{}: {y}, by {}", scenario.title, axes.x);
        let svg = svg::lines(&caption, Axes { y, ..axes }, &lines, thousands);
        blocks.push(Block::Figure(Figure {
            name: format!("{}-{kind}", scenario.name),
            caption,
            svg,
        }));
    }
    blocks
}

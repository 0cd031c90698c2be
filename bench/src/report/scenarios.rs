//! A scenario's tables and pictures.

use super::document::{Block, Figure, Table};
use super::svg::{self, Axes, Bar, Line, Stack, thousands};
use super::{microseconds, milliseconds, or_dash, rate};
use crate::results::{Cell, Results, Role, Sample};
use crate::scenario::{Arrangement, Chart, Contender, Load, Scenario};

/// Everything about a scenario.
pub(super) fn blocks(results: &Results, scenario: &Scenario) -> Vec<Block> {
    let mut blocks =
        vec![Block::Heading(2, scenario.title.clone()), Block::Paragraph(scenario.about.trim().to_owned())];
    match &scenario.chart {
        Chart::Bars => {
            for load in &scenario.loads {
                blocks.extend(of_load(results, scenario, load));
            }
        }
        Chart::Curve { x } => {
            for load in &scenario.loads {
                blocks.extend(of_load_without_pictures(results, scenario, load));
                blocks.extend(curves(results, scenario, load, x));
            }
        }
        Chart::Connections => blocks.extend(over_connections(results, scenario)),
        Chart::Rates => blocks.extend(over_rates(results, scenario)),
    }
    blocks
}

fn cell<'a>(scenario: &'a Scenario, contender: &'a Contender, load: &'a Load) -> Cell<'a> {
    Cell { scenario: &scenario.name, contender: &contender.name, load: &load.name }
}

fn meets<'a>(scenario: &'a Scenario, load: &'a Load) -> impl Iterator<Item = &'a Contender> {
    scenario
        .contenders
        .iter()
        .filter(|contender| contender.loads.is_empty() || contender.loads.contains(&load.name))
}

fn of_load(results: &Results, scenario: &Scenario, load: &Load) -> Vec<Block> {
    let mut blocks = of_load_without_pictures(results, scenario, load);
    if load.idle {
        return blocks;
    }
    let rates = meets(scenario, load).filter_map(|contender| {
        let spread = results.spread(cell(scenario, contender, load), |run| Some(run.per_second))?;
        let ours = matches!(contender.arrangement, Arrangement::Natsway(_));
        let ends = (spread.least, spread.most);
        Some(Bar { label: contender.title.clone(), value: spread.median, ends, ours })
    });
    let rates: Vec<Bar> = rates.collect();
    let stacks: Vec<Stack> = meets(scenario, load)
        .filter(|contender| results.runs(cell(scenario, contender, load)).next().is_some())
        .map(|contender| {
            let parts =
                Role::ALL.map(|role| cpu(results, cell(scenario, contender, load), role).unwrap_or(0.0));
            Stack { label: contender.title.clone(), parts: parts.to_vec() }
        })
        .collect();
    if rates.is_empty() {
        return blocks;
    }
    let what = format!("{}: {}", scenario.title, load.describe());
    let (first, second) = (format!("{what}, requests/s"), format!("{what}, CPU µs per request"));
    blocks.push(figure(scenario, load, "rates", &first, svg::bars(&first, &rates, rate)));
    let stacks = svg::stacks(&second, &Role::ALL.map(Role::name), &stacks, microseconds);
    blocks.push(figure(scenario, load, "cpu", &second, stacks));
    blocks
}

fn figure(scenario: &Scenario, load: &Load, kind: &str, caption: &str, svg: String) -> Block {
    let name = format!("{}-{}-{kind}", scenario.name, load.name);
    Block::Figure(Figure { name, caption: caption.to_owned(), svg })
}

fn of_load_without_pictures(results: &Results, scenario: &Scenario, load: &Load) -> Vec<Block> {
    let tool = results.samples.iter().find(|run| run.scenario == scenario.name && run.load == load.name);
    let tool = tool.map_or(String::new(), |run| format!(" ({})", run.tool));
    let heading = Block::Heading(3, format!("{}{tool}", load.describe()));
    let table =
        if load.idle { idle_table(results, scenario, load) } else { rate_table(results, scenario, load) };
    vec![heading, Block::Table(table)]
}

fn rate_table(results: &Results, scenario: &Scenario, load: &Load) -> Table {
    let has_article = meets(scenario, load).any(|contender| contender.article.is_some());
    let mut head = vec![
        "",
        "requests/s",
        "of the baseline",
        "p50 / p90 / p99 / p99.9 ms",
        "load",
        "gateway",
        "broker",
        "service",
        "total µs",
        "switches",
        "memory",
        "idle",
    ];
    if has_article {
        head.splice(3..3, ["the article's requests/s", "the article's ratio"]);
    }
    let mut table = Table { head: head.into_iter().map(str::to_owned).collect(), rows: Vec::new() };
    for contender in meets(scenario, load) {
        let mut row = rate_row(results, scenario, contender, load);
        if has_article {
            let published = contender.article;
            let cells = [
                or_dash(published.map(|article| rate(article.per_second))),
                or_dash(published.map(|article| format!("{:.2}", article.per_second / article.of))),
            ];
            row.splice(3..3, cells);
        }
        table.rows.push(row);
    }
    table
}

fn rate_row(results: &Results, scenario: &Scenario, contender: &Contender, load: &Load) -> Vec<String> {
    let at = cell(scenario, contender, load);
    let Some(rates) = results.spread(at, |run| Some(run.per_second)) else {
        let mut row = vec!["-".to_owned(); 12];
        (row[0], row[1]) = (contender.title.clone(), "no undisturbed run".to_owned());
        return row;
    };
    let failed: u64 = results.runs(at).map(|run| run.errors).sum();
    let failures = if failed == 0 { String::new() } else { format!(" (**{failed} failed**)") };
    let spread = match rates.runs {
        1 => rate(rates.median),
        _ => format!("{} ± {:.0} %", rate(rates.median), rates.half_range() * 100.0),
    };
    let to = Cell { contender: &scenario.baseline, ..at };
    let ratio = results.ratio(at, to).map(|ratio| match rates.runs {
        _ if contender.name == scenario.baseline => "1".to_owned(),
        1 => format!("{:.2}", ratio.value),
        _ => format!("{:.2} ({:.2} to {:.2})", ratio.value, ratio.low, ratio.high),
    });
    let percentiles = ["p50", "p90", "p99", "p99.9"].map(|name| {
        or_dash(results.spread(at, |run| run.latency(name)).map(|spread| milliseconds(spread.median)))
    });
    let of_roles = Role::ALL.map(|role| or_dash(cpu(results, at, role).map(microseconds)));
    let median = |figure: fn(&Sample) -> f64| {
        results.spread(at, |run| Some(figure(run))).map_or(0.0, |spread| spread.median)
    };
    let mut row = vec![contender.title.clone(), spread + &failures, or_dash(ratio), percentiles.join(" / ")];
    row.extend(of_roles);
    row.push(microseconds(median(Sample::total_cpu_us)));
    row.push(format!("{:.2}", median(switches)));
    row.push(format!("{:.0}", median(peak_mib)));
    row.push(format!("{:.0} %", median(|run| run.machine.idle * 100.0)));
    row
}

/// What was there without any request: memory by role, and the processor's time in a second.
fn idle_table(results: &Results, scenario: &Scenario, load: &Load) -> Table {
    let mut table = Table::new(["", "gateway MiB", "broker MiB", "service MiB", "gateway CPU, ms a second"]);
    for contender in meets(scenario, load) {
        let at = cell(scenario, contender, load);
        let of_role = |role: Role, figure: fn(&crate::results::ProcessUse) -> f64| {
            results.spread(at, |run| {
                let mut processes = run.processes.iter().filter(|process| process.role == role).peekable();
                processes.peek()?;
                Some(processes.map(figure).sum())
            })
        };
        let mib = |role| {
            or_dash(of_role(role, |process| process.resident_mib).map(|mib| format!("{:.1}", mib.median)))
        };
        let seconds = results.spread(at, |run| Some(run.seconds)).map_or(1.0, |seconds| seconds.median);
        let cpu = of_role(Role::Gateway, |process| process.cpu_s * 1e3);
        let cpu = or_dash(cpu.map(|cpu| format!("{:.1}", cpu.median / seconds)));
        table.rows.push(vec![
            contender.title.clone(),
            mib(Role::Gateway),
            mib(Role::Broker),
            mib(Role::Service),
            cpu,
        ]);
    }
    table
}

fn switches(run: &Sample) -> f64 {
    let processes = run.processes.iter().filter(|process| process.role != Role::Load);
    processes.map(|process| process.waits + process.preemptions).sum()
}

fn peak_mib(run: &Sample) -> f64 {
    run.processes.iter().map(|process| process.peak_mib).sum()
}

/// The median of a role's microseconds per request.
pub(super) fn cpu(results: &Results, at: Cell<'_>, role: Role) -> Option<f64> {
    results.spread(at, |run| run.cpu_us(role)).map(|spread| spread.median)
}

/// Rates, and processor time, over what the contenders differ in.
fn curves(results: &Results, scenario: &Scenario, load: &Load, x: &str) -> Vec<Block> {
    if load.idle {
        return Vec::new();
    }
    let of = |figure: fn(&Sample) -> Option<f64>| -> Vec<Line> {
        let mut lines: Vec<Line> = Vec::new();
        for contender in meets(scenario, load) {
            let Some(at) = contender.x else { continue };
            let Some(spread) = results.spread(cell(scenario, contender, load), figure) else { continue };
            let label = contender.series.clone().unwrap_or_else(|| "requests".to_owned());
            match lines.iter_mut().find(|line| line.label == label) {
                Some(line) => line.points.push((at, spread.median)),
                None => lines.push(Line { label, points: vec![(at, spread.median)] }),
            }
        }
        lines
    };
    let without_load = |run: &Sample| Some(run.total_cpu_us() - run.cpu_us(Role::Load).unwrap_or(0.0));
    let picture = |kind: &str, y: &str, lines: Vec<Line>| {
        let caption = format!("{}, {}: {y}", scenario.title, load.describe());
        let axes = Axes { x, y, log_x: true, log_y: false };
        self::figure(scenario, load, kind, &caption, svg::lines(&caption, axes, &lines, thousands))
    };
    vec![
        picture("rates", "requests/s", of(|run| Some(run.per_second))),
        picture("cpu", "CPU µs per request, without the load's", of(without_load)),
    ]
}

/// What a table and a picture over several loads show.
struct Course {
    /// The end of the picture's name.
    kind: &'static str,
    /// What it is.
    y: &'static str,
    figure: fn(&Sample) -> Option<f64>,
    show: fn(f64) -> String,
}

const RATE: Course =
    Course { kind: "rates", y: "requests/s", figure: |run| Some(run.per_second), show: rate };
const P50: Course = Course { kind: "p50", y: "p50 ms", figure: |run| run.latency("p50"), show: milliseconds };
const P99: Course = Course { kind: "p99", y: "p99 ms", figure: |run| run.latency("p99"), show: milliseconds };
const P999: Course =
    Course { kind: "p999", y: "p99.9 ms", figure: |run| run.latency("p99.9"), show: milliseconds };
const GATEWAY: Course = Course {
    kind: "gateway",
    y: "gateway CPU µs per request",
    figure: |run| run.cpu_us(Role::Gateway),
    show: microseconds,
};

fn over_connections(results: &Results, scenario: &Scenario) -> Vec<Block> {
    let axes = Axes { x: "connections", y: "", log_x: true, log_y: false };
    let x_of = |load: &Load| f64::from(load.connections);
    let courses = [RATE, P99, GATEWAY].into_iter();
    courses.flat_map(|course| grid(results, scenario, &course, x_of, axes)).collect()
}

fn over_rates(results: &Results, scenario: &Scenario) -> Vec<Block> {
    let axes = Axes { x: "requests/s asked for", y: "", log_x: false, log_y: true };
    let x_of = |load: &Load| f64::from(load.rate.unwrap_or(0));
    let courses = [P50, P99, P999, RATE].into_iter();
    courses.flat_map(|course| grid(results, scenario, &course, x_of, axes)).collect()
}

/// A table with a column for each load, and a line for each contender.
fn grid(
    results: &Results,
    scenario: &Scenario,
    &Course { kind, y, figure, show }: &Course,
    x_of: impl Fn(&Load) -> f64,
    axes: Axes<'_>,
) -> Vec<Block> {
    let loads: Vec<&Load> = scenario.loads.iter().filter(|load| !load.idle).collect();
    let head = std::iter::once(String::new()).chain(loads.iter().map(|load| thousands(x_of(load))));
    let mut table = Table { head: head.collect(), rows: Vec::new() };
    let mut lines = Vec::new();
    for contender in &scenario.contenders {
        let value =
            |load: &Load| results.spread(cell(scenario, contender, load), figure).map(|spread| spread.median);
        let mut row = vec![contender.title.clone()];
        row.extend(loads.iter().map(|load| or_dash(value(load).map(show))));
        table.rows.push(row);
        let points = loads.iter().filter_map(|load| Some((x_of(load), value(load)?)));
        lines.push(Line { label: contender.title.clone(), points: points.collect() });
    }
    lines.retain(|line| !line.points.is_empty());
    let caption = format!("{}: {y}, by {}", scenario.title, axes.x);
    let svg = svg::lines(&caption, Axes { y, ..axes }, &lines, show);
    vec![
        Block::Heading(3, format!("{y}, by {}", axes.x)),
        Block::Table(table),
        Block::Figure(Figure { name: format!("{}-{kind}", scenario.name), caption, svg }),
    ]
}

//! A scenario's tables, and the pictures of bars; the curves are in [`curves`].

use super::curves;
use super::document::{Block, Table};
use super::svg::{self, Bar, Stack};
use super::{microseconds, milliseconds, or_dash, rate};
use crate::results::{Cell, ProcessUse, Results, Role, Sample};
use crate::scenario::{Arrangement, Chart, Contender, Load, Scenario};

/// Everything about a scenario.
pub(super) fn blocks(results: &Results, scenario: &Scenario) -> Vec<Block> {
    let mut blocks = vec![
        Block::Heading(2, scenario.title.clone()),
        Block::Paragraph(scenario.about.trim().to_owned()),
    ];
    match &scenario.chart {
        Chart::Bars => {
            for load in &scenario.loads {
                blocks.extend(of_load(results, scenario, load));
            }
        }
        Chart::Curve { x } => {
            for load in &scenario.loads {
                blocks.extend(of_load_without_pictures(results, scenario, load));
                blocks.extend(curves::over_contenders(results, scenario, load, x));
            }
        }
        Chart::Connections => blocks.extend(curves::over_connections(results, scenario)),
        Chart::Rates => blocks.extend(curves::over_rates(results, scenario)),
        Chart::Memory => {
            for load in &scenario.loads {
                blocks.extend(of_load_without_pictures(results, scenario, load));
            }
            blocks.extend(curves::memory(results, scenario));
        }
    }
    blocks
}

fn of_load(results: &Results, scenario: &Scenario, load: &Load) -> Vec<Block> {
    let mut blocks = of_load_without_pictures(results, scenario, load);
    if load.idle {
        return blocks;
    }
    let rates = scenario.contenders_of(load).filter_map(|contender| {
        let spread =
            results.spread(Cell::at(scenario, contender, load), |run| Some(run.per_second))?;
        let ours = matches!(contender.arrangement, Arrangement::Natsway(_));
        let ends = (spread.least, spread.most);
        let to = Cell { contender: &scenario.baseline, ..Cell::at(scenario, contender, load) };
        let ratio = results.ratio(Cell::at(scenario, contender, load), to);
        let ratio = ratio.map_or(String::new(), |ratio| format!(" ({:.2})", ratio.value));
        let shown = rate(spread.median) + &ratio;
        Some(Bar { label: contender.title.clone(), value: spread.median, ends, shown, ours })
    });
    let rates: Vec<Bar> = rates.collect();
    let stacks: Vec<Stack> = scenario
        .contenders_of(load)
        .filter(|contender| results.runs(Cell::at(scenario, contender, load)).next().is_some())
        .map(|contender| {
            let parts = Role::ALL
                .map(|role| cpu(results, Cell::at(scenario, contender, load), role).unwrap_or(0.0));
            Stack { label: contender.title.clone(), parts: parts.to_vec() }
        })
        .collect();
    if rates.is_empty() {
        return blocks;
    }
    let what = format!("{}: {}", scenario.title, load.describe());
    let first =
        format!("{what}, requests/s (of the baseline); whiskers from the least to the most");
    let second = format!("{what}, CPU µs per request");
    blocks.push(Block::figure(
        [&scenario.name, &load.name, "rates"],
        &first,
        svg::bars(&format!("{what}, requests/s"), &rates),
    ));
    let stacks = svg::stacks(&second, &Role::ALL.map(Role::name), &stacks, microseconds);
    blocks.push(Block::figure([&scenario.name, &load.name, "cpu"], &second, stacks));
    blocks
}

fn of_load_without_pictures(results: &Results, scenario: &Scenario, load: &Load) -> Vec<Block> {
    let tool =
        results.samples.iter().find(|run| run.scenario == scenario.name && run.load == load.name);
    let tool = tool.map_or(String::new(), |run| format!(" ({})", run.tool));
    let heading = Block::Heading(3, format!("{}{tool}", load.describe()));
    let table = if load.idle {
        idle_table(results, scenario, load)
    } else {
        rate_table(results, scenario, load)
    };
    vec![heading, Block::Table(table)]
}

fn rate_table(results: &Results, scenario: &Scenario, load: &Load) -> Table {
    let has_article = scenario.contenders_of(load).any(|contender| contender.article.is_some());
    let mut head = vec![
        "",
        "requests/s",
        "of the baseline",
        "p50 / p90 / p99 / p99.9 ms",
        "load µs",
        "gateway µs",
        "broker µs",
        "service µs",
        "total µs",
        "switches",
        "memory MiB",
        "idle",
    ];
    if has_article {
        head.splice(3..3, ["the article's requests/s", "the article's ratio"]);
    }
    let mut table = Table { head: head.into_iter().map(str::to_owned).collect(), rows: Vec::new() };
    for contender in scenario.contenders_of(load) {
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

fn rate_row(
    results: &Results,
    scenario: &Scenario,
    contender: &Contender,
    load: &Load,
) -> Vec<String> {
    let at = Cell::at(scenario, contender, load);
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
        or_dash(
            results.spread(at, |run| run.latency(name)).map(|spread| milliseconds(spread.median)),
        )
    });
    let of_roles = Role::ALL.map(|role| or_dash(cpu(results, at, role).map(microseconds)));
    let median = |figure: fn(&Sample) -> f64| {
        results.spread(at, |run| Some(figure(run))).map_or(0.0, |spread| spread.median)
    };
    let mut row =
        vec![contender.title.clone(), spread + &failures, or_dash(ratio), percentiles.join(" / ")];
    row.extend(of_roles);
    row.push(microseconds(median(Sample::total_cpu_us)));
    row.push(format!("{:.2}", median(switches)));
    row.push(format!("{:.0}", median(Sample::peak_mib)));
    row.push(format!("{:.0} %", median(|run| run.machine.idle * 100.0)));
    row
}

/// What was there without any request: memory by role, and the processor's time in a second.
fn idle_table(results: &Results, scenario: &Scenario, load: &Load) -> Table {
    let mut table =
        Table::new(["", "gateway MiB", "broker MiB", "service MiB", "gateway CPU, ms a second"]);
    for contender in scenario.contenders_of(load) {
        let at = Cell::at(scenario, contender, load);
        let of_role = |role, figure: fn(&ProcessUse) -> f64| {
            results.spread(at, |run| run.sum_of(role, figure))
        };
        let mib = |role| {
            or_dash(
                of_role(role, |process| process.resident_mib)
                    .map(|mib| format!("{:.1}", mib.median)),
            )
        };
        let seconds =
            results.spread(at, |run| Some(run.seconds)).map_or(1.0, |seconds| seconds.median);
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

/// The median of a role's microseconds per request.
pub(super) fn cpu(results: &Results, at: Cell<'_>, role: Role) -> Option<f64> {
    results.spread(at, |run| run.cpu_us(role)).map(|spread| spread.median)
}

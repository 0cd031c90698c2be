//! What the request path should reach, beside what it does.
//!
//! The targets were set from measurements of the parts on 2 shared cores, the load generator on them too; on another
//! machine the ratios mean something, the microseconds less.

use super::contender::BASELINE;
use super::load::Load;
use super::processes::Role;
use super::report::Report;

const GATEWAY: &str = "natsway-1";
const PER_CORE: &str = "natsway-percore";

/// A figure, what it should be at 64 and at 255 connections, and which way is better.
struct Target {
    what: &'static str,
    at: [f64; 2],
    better: Better,
    figure: Figure,
}

#[derive(Clone, Copy)]
enum Better {
    More,
    Less,
}

enum Figure {
    /// Requests per second over those of another contender.
    Over(&'static str, &'static str),
    /// Microseconds per request.
    Cpu(&'static str, Role),
    /// The least over the most of 1, 2 and 4 workers.
    Evenness,
}

const TARGETS: &[Target] = &[
    target("of direct axum (1 worker)", [0.50, 0.65], Better::More, Figure::Over(GATEWAY, BASELINE)),
    target(
        "of direct axum (1 worker, per core)",
        [0.50, 0.65],
        Better::More,
        Figure::Over(PER_CORE, BASELINE),
    ),
    target(
        "over the article's Go gateway (1 worker)",
        [1.7, 1.7],
        Better::More,
        Figure::Over(GATEWAY, "go-1"),
    ),
    target("over nginx (1 worker)", [1.1, 1.5], Better::More, Figure::Over(GATEWAY, "nginx")),
    target("gateway µs", [11.0, 10.0], Better::Less, Figure::Cpu(GATEWAY, Role::Gateway)),
    target("worker µs, default form", [5.0, 4.0], Better::Less, Figure::Cpu(GATEWAY, Role::Service)),
    target("worker µs, per core", [1.5, 1.2], Better::Less, Figure::Cpu(PER_CORE, Role::Service)),
    target("1, 2 and 4 workers: least over most", [0.9, 0.9], Better::More, Figure::Evenness),
];

const fn target(what: &'static str, at: [f64; 2], better: Better, figure: Figure) -> Target {
    Target { what, at, better, figure }
}

impl Figure {
    fn of(&self, report: &Report<'_>, load: &Load, connections: u32) -> Option<f64> {
        match *self {
            Figure::Over(contender, other) => {
                report.ratio(contender, other, load.tool, connections).map(|ratio| ratio.median)
            }
            Figure::Cpu(contender, role) => report.cpu(contender, load.tool, connections, role),
            Figure::Evenness => {
                let rate = |contender| {
                    let rate =
                        report.figure(contender, load.tool, connections, |sample| Some(sample.per_second));
                    rate.map(|rate| rate.median)
                };
                let rates = [rate(GATEWAY)?, rate("natsway-2")?, rate("natsway-4")?];
                let least = rates.into_iter().fold(f64::INFINITY, f64::min);
                Some(least / rates.into_iter().fold(0.0, f64::max))
            }
        }
    }
}

/// The table of targets, for the first tool.
pub fn markdown(report: &Report<'_>, loads: &[Load], connections: &[u32]) -> String {
    let (Some(load), true) = (loads.first(), connections.contains(&64) || connections.contains(&255)) else {
        return String::new();
    };
    let mut out = format!(
        "## Targets, {}\n\n| | 64 connections | 255 connections |\n|---|---|---|\n",
        load.tool.name()
    );
    for Target { what, at, better, figure } in TARGETS {
        let cells: Vec<String> = [64, 255]
            .into_iter()
            .zip(at)
            .map(|(connections, &wanted)| verdict(figure.of(report, load, connections), wanted, *better))
            .collect();
        out += &format!("| {what} | {} |\n", cells.join(" | "));
    }
    out
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
    use super::*;

    #[test]
    fn verdicts_say_what_was_missed() {
        assert_eq!(verdict(Some(0.61), 0.5, Better::More), "0.61 (≥ 0.5)");
        assert_eq!(verdict(Some(0.41), 0.5, Better::More), "0.41 (≥ 0.5, **missed**)");
        assert_eq!(verdict(Some(12.0), 11.0, Better::Less), "12.00 (≤ 11, **missed**)");
        assert_eq!(verdict(None, 1.0, Better::More), "not measured");
    }
}

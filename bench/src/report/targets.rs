//! What the request path should reach, beside what it does.
//!
//! The targets were set from measurements of the parts on 2 shared cores, the load generator on
//! them too; on another machine the ratios mean something, the microseconds less.

use super::document::{Block, Table};
use super::scenarios::cpu;
use super::{microseconds, or_dash, rate};
use crate::results::statistics::Spread;
use crate::results::{Cell, Results, Role};

const SCENARIO: &str = "peers";
const LOADS: [&str; 2] = ["c64", "c255"];
const BASELINE: &str = "direct";
const DEFAULT_FORM: &str = "natsway-1";
const PER_CORE: &str = "natsway-1reader";

/// A figure, what it should be at 64 and at 255 connections, and what to read with it.
struct Goal {
    what: &'static str,
    at: [f64; 2],
    better: Better,
    figure: Measure,
    /// The same figure of others, measured in the same run.
    beside: &'static [(&'static str, Measure)],
    /// Why it is missed, when it is.
    cause: &'static str,
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

const PROXIES_OF_DIRECT: &[(&str, Measure)] = &[
    ("nginx", Measure::Over("nginx", BASELINE)),
    ("HAProxy", Measure::Over("haproxy", BASELINE)),
    ("Traefik", Measure::Over("traefik", BASELINE)),
    ("the article's Go", Measure::Over("go-1", BASELINE)),
];

const OF_DIRECT: &str = "a request to axum alone crosses the kernel once and back; through the \
                         gateway it does so three times (client, broker, worker), and everything \
                         shares the processors. The more requests are out, the more of them share \
                         a crossing: compare the broker's µs at 64 and at 255 connections";

const OVER_GO: &str = "the article's gateway passes method, path and body as text and nothing \
                       else; ours carries all headers both ways, with a deadline, a request id, \
                       routes, a limit on what is out, metrics, and a reply that is checked. Its \
                       worker calls one function; ours an axum `Router`";

const TARGETS: &[Goal] = &[
    Goal {
        what: "of direct axum, default form",
        at: [0.50, 0.65],
        better: Better::More,
        figure: Measure::Over(DEFAULT_FORM, BASELINE),
        beside: PROXIES_OF_DIRECT,
        cause: OF_DIRECT,
    },
    Goal {
        what: "of direct axum, per core",
        at: [0.50, 0.65],
        better: Better::More,
        figure: Measure::Over(PER_CORE, BASELINE),
        beside: PROXIES_OF_DIRECT,
        cause: OF_DIRECT,
    },
    Goal {
        what: "over the article's Go, default form",
        at: [1.7, 1.7],
        better: Better::More,
        figure: Measure::Over(DEFAULT_FORM, "go-1"),
        beside: &[
            ("nginx", Measure::Over("nginx", "go-1")),
            ("axum alone", Measure::Over(BASELINE, "go-1")),
        ],
        cause: OVER_GO,
    },
    Goal {
        what: "over the article's Go, per core",
        at: [1.7, 1.7],
        better: Better::More,
        figure: Measure::Over(PER_CORE, "go-1"),
        beside: &[
            ("nginx", Measure::Over("nginx", "go-1")),
            ("axum alone", Measure::Over(BASELINE, "go-1")),
        ],
        cause: OVER_GO,
    },
    Goal {
        what: "over nginx, default form",
        at: [1.1, 1.5],
        better: Better::More,
        figure: Measure::Over(DEFAULT_FORM, "nginx"),
        beside: &[
            ("per core", Measure::Over(PER_CORE, "nginx")),
            ("HAProxy", Measure::Over("haproxy", "nginx")),
            ("the article's Go", Measure::Over("go-1", "nginx")),
        ],
        cause: "nginx makes one hop, NATS two; the fewer requests are out, the less batching makes \
                up for the second: compare the broker's µs",
    },
    Goal {
        what: "over Traefik, default form",
        at: [3.0, 3.5],
        better: Better::More,
        figure: Measure::Over(DEFAULT_FORM, "traefik"),
        beside: &[
            ("nginx", Measure::Over("nginx", "traefik")),
            ("HAProxy", Measure::Over("haproxy", "traefik")),
        ],
        cause: "compare what Traefik does itself, then and now, in the table below",
    },
    Goal {
        what: "gateway µs",
        at: [11.0, 10.0],
        better: Better::Less,
        figure: Measure::Cpu(DEFAULT_FORM, Role::Gateway),
        beside: &[
            ("nginx", Measure::Cpu("nginx", Role::Gateway)),
            ("HAProxy", Measure::Cpu("haproxy", Role::Gateway)),
            ("the article's Go", Measure::Cpu("go-1", Role::Gateway)),
        ],
        cause: "60 % of it is the kernel's (perf), at the floor in system calls: by strace 1.00 \
                writes, 1.00 reads and 0.04 waits a request at 255 connections. The rest is 27,600 \
                instructions (callgrind), spread thin. Where they are tells a build without \
                optimization across crates: of its 29,300 are 8,700 hyper's, 10,900 ours (2,500 \
                encoding, 2,600 decoding), 4,200 the NATS client's, and the others the runtime's",
    },
    Goal {
        what: "worker µs, default form",
        at: [5.0, 4.0],
        better: Better::Less,
        figure: Measure::Cpu(DEFAULT_FORM, Role::Service),
        beside: &[
            ("axum alone", Measure::Cpu(BASELINE, Role::Service)),
            ("the article's Go", Measure::Cpu("go-1", Role::Service)),
        ],
        cause: "each request is handed to a thread of the handlers' runtime and its answer back to \
                the reader's: a wake each way, which a busy machine shares among several requests \
                and an idle one does not",
    },
    Goal {
        what: "worker µs, per core",
        at: [1.5, 1.2],
        better: Better::Less,
        figure: Measure::Cpu(PER_CORE, Role::Service),
        beside: &[
            ("axum alone", Measure::Cpu(BASELINE, Role::Service)),
            ("the article's Go", Measure::Cpu("go-1", Role::Service)),
        ],
        cause: "the target is of a prototype whose loop answered a constant. A request here is \
                decoded into header maps, routed by axum, run with a deadline and a limit, and \
                counted: 22,000 instructions (callgrind); of the 23,900 without optimization \
                across crates are 7,000 axum's and the handler's, 5,700 decoding, 4,200 the NATS \
                client's; its reads and writes hold many requests each",
    },
    Goal {
        what: "1, 2 and 4 workers: least over most",
        at: [0.9, 0.9],
        better: Better::More,
        figure: Measure::Evenness,
        beside: &[],
        cause: "each worker more is a process more on the same processors, with a connection of \
                its own: the broker's writes hold fewer requests each",
    },
];

/// What others did on the day when the targets were set, on this kind of machine: requests per
/// second at 64 and 255 connections, and microseconds per request of the part that is theirs.
struct Calibration {
    what: &'static str,
    contender: &'static str,
    then: [f64; 2],
    role: Role,
    then_us: f64,
}

const CALIBRATIONS: [Calibration; 5] = [
    calibration("axum alone", BASELINE, [129_400.0, 126_000.0], Role::Service, 7.8),
    calibration("nginx", "nginx", [59_000.0, 53_000.0], Role::Gateway, 17.9),
    calibration("HAProxy", "haproxy", [56_500.0, 52_500.0], Role::Gateway, 19.1),
    calibration("Traefik", "traefik", [20_200.0, 19_700.0], Role::Gateway, 66.6),
    calibration("the article's Go", "go-1", [36_300.0, 46_100.0], Role::Gateway, 21.0),
];

const fn calibration(
    what: &'static str,
    contender: &'static str,
    then: [f64; 2],
    role: Role,
    then_us: f64,
) -> Calibration {
    Calibration { what, contender, then, role, then_us }
}

impl Measure {
    fn of(self, results: &Results, load: &str) -> Option<f64> {
        let cell = |contender| Cell { scenario: SCENARIO, contender, load };
        match self {
            Self::Over(contender, other) => {
                results.ratio(cell(contender), cell(other)).map(|ratio| ratio.value)
            }
            Self::Cpu(contender, role) => cpu(results, cell(contender), role),
            Self::Evenness => {
                let rate = |contender| {
                    results
                        .spread(cell(contender), |run| Some(run.per_second))
                        .map(|spread| spread.median)
                };
                let rates = [rate(DEFAULT_FORM)?, rate("natsway-2")?, rate("natsway-4")?];
                Some(
                    rates.into_iter().fold(f64::INFINITY, f64::min)
                        / rates.into_iter().fold(0.0, f64::max),
                )
            }
        }
    }
}

/// The tables, when the scenario was measured.
pub(super) fn blocks(results: &Results) -> Vec<Block> {
    if results.scenario(SCENARIO).is_none() {
        return Vec::new();
    }
    let mut table = Table::new([
        "",
        "64 connections",
        "255 connections",
        "others by the same measure in this run (64 / 255)",
    ]);
    let mut missed: Vec<(&str, Vec<&str>)> = Vec::new();
    for target in TARGETS {
        let seen = LOADS.map(|load| target.figure.of(results, load));
        let verdicts = [0, 1].map(|at| verdict(seen[at], target.at[at], target.better));
        let [first, second] = verdicts.clone();
        table.rows.push(vec![target.what.to_owned(), first, second, beside(results, target)]);
        if verdicts.iter().any(|verdict| verdict.contains("missed")) {
            match missed.last_mut().filter(|(cause, _)| *cause == target.cause) {
                Some((_, whats)) => whats.push(target.what),
                None => missed.push((target.cause, vec![target.what])),
            }
        }
    }
    let about = "Set from measurements of the parts on 2 shared cores, on a faster day of such a \
                 machine: the second table tells the machine from the software. *Per core* is the \
                 form whose handlers run on the thread that reads requests, with one reader.";
    let mut blocks = vec![
        Block::Heading(2, "Targets".to_owned()),
        Block::Paragraph(about.to_owned()),
        Block::Table(table),
    ];
    if !missed.is_empty() {
        blocks.push(Block::Heading(3, "What is missed, and why".to_owned()));
        let points =
            missed.iter().map(|(cause, whats)| format!("*{}*: {cause}.", whats.join("; ")));
        blocks.push(Block::List(points.collect()));
    }
    blocks.extend(calibrations(results));
    blocks
}

fn beside(results: &Results, target: &Goal) -> String {
    let shown =
        |measure: Measure, load| measure.of(results, load).map(|value| format!("{value:.2}"));
    let other = |(name, measure): &(&str, Measure)| {
        let [first, second] = LOADS.map(|load| shown(*measure, load));
        (first.is_some() || second.is_some())
            .then(|| format!("{name} {} / {}", or_dash(first), or_dash(second)))
    };
    let others: Vec<String> = target.beside.iter().filter_map(other).collect();
    if others.is_empty() { "-".to_owned() } else { others.join("; ") }
}

/// Others then and now.
fn calibrations(results: &Results) -> Vec<Block> {
    let mut table = Table::new([
        "",
        "64 connections: then",
        "now",
        "now over then",
        "255 connections: then",
        "now",
        "now over then",
        "its own µs at 255: then",
        "now",
    ]);
    let mut shares: Vec<f64> = Vec::new();
    for Calibration { what, contender, then, role, then_us } in CALIBRATIONS {
        let cell = |load| Cell { scenario: SCENARIO, contender, load };
        let now = LOADS.map(|load| {
            results.spread(cell(load), |run| Some(run.per_second)).map(|rates| rates.median)
        });
        if now == [None, None] {
            continue;
        }
        let mut row = vec![what.to_owned()];
        for (then, now) in then.into_iter().zip(now) {
            let share = now.map(|now| now / then);
            shares.extend(share);
            row.extend([
                rate(then),
                or_dash(now.map(rate)),
                or_dash(share.map(|share| format!("{share:.2}"))),
            ]);
        }
        row.extend([
            microseconds(then_us),
            or_dash(cpu(results, cell(LOADS[1]), role).map(microseconds)),
        ]);
        table.rows.push(row);
    }
    let Some(spread) = Spread::of(shares) else { return Vec::new() };
    let about = format!(
        "The same programs of others, by the same load, give {:.2} to {:.2} of the requests per \
         second that they gave when the targets were set. *Its own µs* are the proxy's or \
         gateway's, and of axum alone the service's.",
        spread.least, spread.most
    );
    vec![
        Block::Heading(3, "The machine, then and now".to_owned()),
        Block::Paragraph(about),
        Block::Table(table),
    ]
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
    fn the_table_takes_its_figures_from_the_peers_and_says_why_it_is_missed() {
        let blocks = blocks(&measured());
        let tables: Vec<&Table> = blocks
            .iter()
            .filter_map(|block| match block {
                Block::Table(table) => Some(table),
                _ => None,
            })
            .collect();
        let rows = &tables[0].rows;
        assert_eq!(
            rows[0][1..],
            ["0.50 (≥ 0.5)", "0.50 (≥ 0.65, **missed**)", "nginx 0.40 / 0.40"]
        );
        assert_eq!(rows[5][1..], ["not measured", "not measured", "-"]);
        let Some(Block::List(missed)) = blocks.iter().find(|block| matches!(block, Block::List(_)))
        else {
            panic!("{blocks:?}")
        };
        assert!(
            missed[0].starts_with("*of direct axum, default form*: a request to axum alone"),
            "{missed:?}"
        );
        assert!(
            !missed.iter().any(|missed| missed.contains("Traefik")),
            "what was not measured is not missed"
        );
        assert_eq!(tables[1].rows[0][1..4], ["129.4K", "100.1K", "0.77"]);
    }
}

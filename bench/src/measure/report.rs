//! Medians, spreads and ratios, as Markdown.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::time::Duration;

use natsway_testkit::repository_root;

use super::contender::{BASELINE, Contender};
use super::load::{Load, Tool};
use super::processes::Role;
use super::sample::Sample;
use super::{peers, targets};

/// The runs that count, by contender, tool and connections.
pub struct Report<'a> {
    contenders: &'a [Contender],
    loads: &'a [Load],
    connections: &'a [u32],
    duration: Duration,
    cells: BTreeMap<(&'a str, &'static str, u32), Vec<&'a Sample>>,
    dropped: usize,
}

/// One cell of the table's figures.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spread {
    /// The middle one.
    pub median: f64,
    /// Half of the distance from the least to the most, as a part of the median.
    pub half_range: f64,
}

impl<'a> Report<'a> {
    /// Sorts the runs; those that were disturbed are only counted.
    pub fn new(
        contenders: &'a [Contender],
        loads: &'a [Load],
        connections: &'a [u32],
        duration: Duration,
        samples: &'a [Sample],
    ) -> Report<'a> {
        let mut cells: BTreeMap<_, Vec<&Sample>> = BTreeMap::new();
        for sample in samples.iter().filter(|sample| !sample.disturbed) {
            let key = (sample.contender.as_str(), sample.tool.name(), sample.connections);
            cells.entry(key).or_default().push(sample);
        }
        let dropped = samples.iter().filter(|sample| sample.disturbed).count();
        Report { contenders, loads, connections, duration, cells, dropped }
    }

    fn cell(&self, contender: &'a str, tool: Tool, connections: u32) -> &[&'a Sample] {
        self.cells.get(&(contender, tool.name(), connections)).map_or(&[], Vec::as_slice)
    }

    /// The median of a figure of the runs that have it.
    pub fn figure(
        &self,
        contender: &'a str,
        tool: Tool,
        connections: u32,
        figure: impl Fn(&Sample) -> Option<f64>,
    ) -> Option<Spread> {
        let samples = self.cell(contender, tool, connections).iter();
        Spread::of(samples.filter_map(|sample| figure(sample)).collect())
    }

    /// Requests per second of one contender over those of another, each pair from one round.
    pub fn ratio(&self, contender: &'a str, to: &'a str, tool: Tool, connections: u32) -> Option<Spread> {
        let others = self.cell(to, tool, connections);
        let pair = |sample: &&Sample| {
            let other = others.iter().find(|other| other.round == sample.round)?;
            Some(sample.per_second / other.per_second)
        };
        Spread::of(self.cell(contender, tool, connections).iter().filter_map(pair).collect())
    }

    /// Microseconds of processor time per request that one role took.
    pub fn cpu(&self, contender: &'a str, tool: Tool, connections: u32, role: Role) -> Option<f64> {
        let spread = self.figure(contender, tool, connections, |sample| sample.cpu_us.get(&role).copied());
        spread.map(|spread| spread.median)
    }

    /// The whole report.
    pub fn markdown(&self) -> String {
        let mut out = String::from("# What a request costs\n\n");
        out += &self.preamble();
        for load in self.loads {
            for &connections in self.connections {
                out += &self.table(load, connections);
            }
        }
        out += &targets::markdown(self, self.loads, self.connections);
        out
    }

    fn preamble(&self) -> String {
        let rounds = self.cells.values().map(Vec::len).max().unwrap_or(0);
        let errors: u64 = self.cells.values().flatten().map(|sample| sample.errors).sum();
        let requests: u64 = self.cells.values().flatten().map(|sample| sample.requests).sum();
        format!(
            "Made by `make bench`; {}.\n\n\
             - Machine: {}.\n\
             - Versions: {}.\n\
             - Everything runs on this machine, the load generator included, over keep-alive connections: `GET /`, answered \
             with 39 bytes of JSON.\n\
             - Medians of up to {rounds} runs of {} s, each on processes of its own; behind ± half of the distance from \
             the least to the most. *Of direct* is the median of the ratios within a round.\n\
             - *Per core* is the form of the worker that runs handlers on the threads that read requests.\n\
             - CPU in µs per request, by process. *Idle* and *foreign* are parts of the machine's time; {} runs were \
             dropped because others used the machine.\n\
             - {errors} of {requests} requests failed; the answer is compared byte for byte before and after each run.\n\n",
            date(),
            machine(),
            self.versions(),
            self.duration.as_secs(),
            self.dropped,
        )
    }

    fn versions(&self) -> String {
        let mut versions = vec![format!("natsway {}", commit())];
        versions.extend(nats_server());
        versions.extend(self.loads.iter().map(|load| load.version.clone()));
        let has = |part: &str| self.contenders.iter().any(|contender| contender.name.contains(part));
        if has("nginx") {
            versions.extend(peers::find_nginx().map(|(_, version)| version));
        }
        if has("go-") {
            versions.extend(peers::build_go().map(|(_, version)| version));
        }
        versions.join(", ")
    }

    fn table(&self, load: &Load, connections: u32) -> String {
        let mut out = format!("## {connections} connections, {}\n\n", load.tool.name());
        out += "| | requests/s | of direct | p50 / p99 ms | load | gateway | broker | service | total µs | idle | foreign |\n";
        out += "|---|---|---|---|---|---|---|---|---|---|---|\n";
        for contender in self.contenders {
            out += &self.row(contender, load.tool, connections);
        }
        out + "\n"
    }

    fn row(&self, contender: &'a Contender, tool: Tool, connections: u32) -> String {
        let name = contender.name;
        let Some(rate) = self.figure(name, tool, connections, |sample| Some(sample.per_second)) else {
            return format!("| {} | no undisturbed run | | | | | | | | | |\n", contender.title);
        };
        let latency = |percentile: &str| {
            let spread =
                self.figure(name, tool, connections, |sample| sample.latency_ms.get(percentile).copied());
            spread.map_or("-".to_owned(), |spread| milliseconds(spread.median))
        };
        let cpu = |role| self.cpu(name, tool, connections, role);
        let roles = [Role::Load, Role::Gateway, Role::Broker, Role::Service];
        let cells: Vec<String> = roles.map(|role| cpu(role).map_or("-".to_owned(), microseconds)).into();
        let total: f64 = roles.into_iter().filter_map(cpu).sum();
        let share = |part: fn(&Sample) -> f64| {
            let spread = self.figure(name, tool, connections, |sample| Some(part(sample)));
            spread.map_or(0.0, |spread| spread.median * 100.0)
        };
        let of_direct = self.ratio(name, BASELINE, tool, connections);
        format!(
            "| {} | {} | {} | {} / {} | {} | {} | {:.0} % | {:.1} % |\n",
            contender.title,
            rate.thousands(),
            of_direct.map_or("-".to_owned(), |ratio| format!("{:.2}", ratio.median)),
            latency("p50"),
            latency("p99"),
            cells.join(" | "),
            microseconds(total),
            share(|sample| sample.machine.idle),
            share(|sample| sample.machine.foreign),
        )
    }
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Option<Spread> {
        values.sort_by(f64::total_cmp);
        let (least, most) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = match values.len() % 2 {
            1 => values[middle],
            _ => (values[middle - 1] + values[middle]) / 2.0,
        };
        Some(Spread { median, half_range: (most - least) / 2.0 / median })
    }

    fn thousands(self) -> String {
        let median = format!("{:.1}K", self.median / 1_000.0);
        if self.half_range == 0.0 { median } else { format!("{median} ± {:.0} %", self.half_range * 100.0) }
    }
}

fn microseconds(us: f64) -> String {
    format!("{us:.1}")
}

fn milliseconds(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.2}") } else { format!("{ms:.0}") }
}

/// The first line that a program prints, if it runs.
fn line_of(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).current_dir(repository_root()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Some(text.lines().next()?.trim().to_owned()).filter(|line| !line.is_empty())
}

fn date() -> String {
    line_of("date", &["-u", "+%Y-%m-%d"]).unwrap_or_default()
}

fn commit() -> String {
    line_of("git", &["describe", "--always", "--dirty"])
        .unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned())
}

fn nats_server() -> Option<String> {
    let finder = repository_root().join("scripts/find_broker.py");
    let path = line_of("python3", &[&finder.display().to_string()])?;
    let version = line_of(&path, &["--version"])?;
    Some(version.replace(": v", " "))
}

fn machine() -> String {
    let mut text = String::new();
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let value = |file: &str, name: &str| {
        let line = file.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let model =
        value(&read("/proc/cpuinfo"), "model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    // Writing to a string does not fail.
    write!(text, "{processors} processors ({model})").ok();
    if let Some(kib) = value(&read("/proc/meminfo"), "MemTotal")
        && let Some(kib) = kib.split(' ').next().and_then(|kib| kib.parse::<f64>().ok())
    {
        write!(text, ", {:.0} GiB", kib / 1024.0 / 1024.0).ok();
    }
    if let Some(release) = read("/proc/sys/kernel/osrelease").split('-').next() {
        write!(text, ", Linux {}", release.trim()).ok();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_spreads() {
        let spread = Spread::of(vec![110.0, 90.0, 100.0]).unwrap();
        assert_eq!(spread, Spread { median: 100.0, half_range: 0.1 });
        assert_eq!(Spread::of(vec![1.0, 3.0]).unwrap().median, 2.0);
        assert!(Spread::of(Vec::new()).is_none());
    }
}

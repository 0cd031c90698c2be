//! What was measured, as data: the schema of `results.json`, and the questions that tables and
//! comparisons ask of it.

pub mod compare;
pub mod statistics;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::micro::time::Nanoseconds;
use crate::scenario::{Contender, Load, Scenario};
use crate::settings::Settings;
use statistics::{Estimate, Spread};

/// The version of the schema that is written, and the only one that is read.
pub const SCHEMA: u32 = 2;

/// Where the runs go in the JSON of everything else.
const SAMPLES: &str = "@samples@";

/// Everything of one `bench run`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: u32,
    /// When it began, RFC 3339 in UTC.
    pub began: String,
    /// How long it took, in seconds.
    pub took_s: f64,
    /// Whether it is the short form, whose figures are rough.
    pub quick: bool,
    /// How much was asked for, so that a run that was broken off can go on.
    #[serde(default)]
    pub settings: Option<Settings>,
    /// Processors, memory, kernel.
    pub machine: String,
    /// Processors that everything shared.
    pub processors: usize,
    /// What took part, by name.
    pub versions: BTreeMap<String, String>,
    /// What was asked.
    pub scenarios: Vec<Scenario>,
    /// What could not be measured.
    pub skipped: Vec<Skipped>,
    /// What was begun and went wrong.
    #[serde(default)]
    pub failed: Vec<Skipped>,
    /// Every run, disturbed ones too.
    pub samples: Vec<Sample>,
    /// Instructions of small operations, by name.
    #[serde(default)]
    pub instructions: BTreeMap<String, f64>,
    /// Time of small operations, by name.
    #[serde(default)]
    pub times: BTreeMap<String, Nanoseconds>,
    /// Figures of the other parts, as their own programs gave them.
    #[serde(default)]
    pub parts: BTreeMap<String, serde_json::Value>,
}

/// A contender or a part that was left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Skipped {
    /// The scenario and the contender, or the part.
    pub what: String,
    /// Why, and what can be done.
    pub why: String,
}

/// One run: a contender under one load.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// The scenario's name.
    pub scenario: String,
    /// The contender's name.
    pub contender: String,
    /// The load's name.
    pub load: String,
    /// What made the load, with its version.
    pub tool: String,
    /// The round, from 0; ratios are taken within one.
    pub round: u32,
    /// Of a baseline that alternates with the others: the contender whose run came next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beside: Option<String>,
    /// Requests that were answered, rightly or wrongly.
    pub requests: u64,
    /// Requests answered wrongly or not at all.
    pub errors: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Requests answered per second.
    pub per_second: f64,
    /// Latency in milliseconds: `p50`, `p90`, `p99`, `p99.9`.
    pub latency_ms: BTreeMap<String, f64>,
    /// What each process took, the load generator among them.
    pub processes: Vec<ProcessUse>,
    /// What the machine did meanwhile.
    pub machine: Machine,
    /// Whether others used too much of the machine: it does not count.
    pub disturbed: bool,
}

/// What one process took during a run, with what it started itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ProcessUse {
    /// Such as `worker 2`.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Processor time for each request, in microseconds.
    pub cpu_us: f64,
    /// Processor time in all, in seconds: what an idle process takes shows here.
    pub cpu_s: f64,
    /// Context switches for each request: it had to wait.
    pub waits: f64,
    /// Context switches for each request: its time was up.
    pub preemptions: f64,
    /// The most memory that it had during the run, in MiB.
    pub peak_mib: f64,
    /// The memory that it had at the end, in MiB.
    pub resident_mib: f64,
}

/// What a process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The load generator.
    Load,
    /// What clients connect to, when it is not the service itself.
    Gateway,
    /// What carries messages or knows the services: nats-server, Consul.
    Broker,
    /// What answers.
    Service,
}

impl Role {
    /// Every role, from the client inwards.
    pub const ALL: [Self; 4] = [Self::Load, Self::Gateway, Self::Broker, Self::Service];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::Gateway => "gateway",
            Self::Broker => "broker",
            Self::Service => "service",
        }
    }
}

/// Parts of the machine's time during a run, 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Nothing to do.
    pub idle: f64,
    /// Taken by the hypervisor.
    pub steal: f64,
    /// Used by processes that are not part of the run.
    pub foreign: f64,
}

/// Which runs: those of one contender under one load of a scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Cell<'a> {
    /// The scenario's name.
    pub scenario: &'a str,
    /// The contender's name.
    pub contender: &'a str,
    /// The load's name.
    pub load: &'a str,
}

impl Skipped {
    /// Something that could not be measured, with its error.
    pub fn new(what: &str, error: &anyhow::Error) -> Self {
        Self { what: what.to_owned(), why: format!("{error:#}") }
    }
}

impl Sample {
    /// Processor time for each request of all processes of a role, in microseconds; `None` where
    /// there are none.
    pub fn cpu_us(&self, role: Role) -> Option<f64> {
        self.sum_of(role, |process| process.cpu_us)
    }

    /// A figure of all processes of a role together; `None` where there are none.
    pub fn sum_of(&self, role: Role, figure: impl Fn(&ProcessUse) -> f64) -> Option<f64> {
        let mut of_role = self.processes.iter().filter(|process| process.role == role).peekable();
        of_role.peek()?;
        Some(of_role.map(figure).sum())
    }

    /// Processor time for each request of everything, the load generator too, in microseconds.
    pub fn total_cpu_us(&self) -> f64 {
        self.processes.iter().map(|process| process.cpu_us).sum()
    }

    /// The most memory that the processes ever had, added up, in MiB.
    pub fn peak_mib(&self) -> f64 {
        self.processes.iter().map(|process| process.peak_mib).sum()
    }

    /// A percentile of the latency in milliseconds.
    pub fn latency(&self, percentile: &str) -> Option<f64> {
        self.latency_ms.get(percentile).copied()
    }
}

impl<'a> Cell<'a> {
    /// Of a run.
    pub fn of(sample: &'a Sample) -> Self {
        Cell { scenario: &sample.scenario, contender: &sample.contender, load: &sample.load }
    }

    /// Of a contender under a load.
    pub fn at(scenario: &'a Scenario, contender: &'a Contender, load: &'a Load) -> Self {
        Cell { scenario: &scenario.name, contender: &contender.name, load: &load.name }
    }
}

impl Results {
    /// Reads a file that [`save`](Results::save) wrote.
    ///
    /// # Errors
    /// It cannot be read, or is of another schema.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let Version { schema } = serde_json::from_str(&text)
            .with_context(|| format!("{} is no results.json of `bench run`", path.display()))?;
        ensure!(
            schema == SCHEMA,
            "{} has schema {schema}, this program reads {SCHEMA}: measure again, or use the \
             program that wrote it",
            path.display()
        );
        serde_json::from_str(&text).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Writes everything as JSON, a line for each run. Who reads meanwhile finds the file of before
    /// or the new one, and a crash leaves one of them.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let samples =
            self.samples.iter().map(serde_json::to_string).collect::<Result<Vec<_>, _>>()?;
        let mut rest = serde_json::to_value(self)?;
        rest["samples"] = SAMPLES.into();
        let list = format!("[\n{}\n  ]", samples.join(",\n"));
        let text =
            serde_json::to_string_pretty(&rest)?.replacen(&format!("\"{SAMPLES}\""), &list, 1);
        let beside = path.with_extension("json.new");
        fs::write(&beside, text + "\n")
            .with_context(|| format!("cannot write {}", beside.display()))?;
        fs::rename(&beside, path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Whether a cell was measured in a round, disturbed or not.
    pub fn has(&self, cell: Cell<'_>, round: u32) -> bool {
        self.samples.iter().any(|run| run.round == round && Cell::of(run) == cell)
    }

    /// The runs of a cell that count.
    pub fn runs<'a>(&'a self, cell: Cell<'a>) -> impl Iterator<Item = &'a Sample> {
        self.samples.iter().filter(move |sample| !sample.disturbed && Cell::of(sample) == cell)
    }

    /// The spread of a figure over the runs that have it.
    pub fn spread(
        &self,
        cell: Cell<'_>,
        figure: impl Fn(&Sample) -> Option<f64>,
    ) -> Option<Spread> {
        Spread::of(self.runs(cell).filter_map(figure))
    }

    /// Requests per second of one cell over those of another, each pair from one round. Where the
    /// baseline's runs alternate with the others', both are taken as parts of the baseline's run
    /// right before them.
    pub fn ratio(&self, cell: Cell<'_>, to: Cell<'_>) -> Option<Estimate> {
        let rounds: BTreeSet<u32> = self.runs(cell).map(|run| run.round).collect();
        let ratio = |round| {
            let (own, other) = (self.run_of(cell, round, to)?, self.run_of(to, round, cell)?);
            let before = self.before(own).zip(self.before(other)).filter(|_| cell != to);
            let of_machine = before.map_or(1.0, |(own, other)| own / other);
            (other.per_second > 0.0).then_some(own.per_second / other.per_second / of_machine)
        };
        let ratios: Vec<f64> = rounds.into_iter().filter_map(ratio).collect();
        Estimate::of_ratios(&ratios)
    }

    /// A cell's run of a round, to be set beside one of another cell: of a baseline the one before
    /// that.
    fn run_of<'a>(&'a self, cell: Cell<'a>, round: u32, other: Cell<'_>) -> Option<&'a Sample> {
        let fits = |run: &&Sample| {
            run.beside.as_deref().is_none_or(|next| cell == other || next == other.contender)
        };
        self.runs(cell).filter(|run| run.round == round).filter(fits).last()
    }

    /// Requests per second of the baseline right before a run.
    fn before(&self, run: &Sample) -> Option<f64> {
        let is_before = |other: &&Sample| {
            let same = (&other.scenario, &other.load, other.round)
                == (&run.scenario, &run.load, run.round);
            same && !other.disturbed && other.beside.as_deref() == Some(&run.contender)
        };
        self.samples
            .iter()
            .rfind(is_before)
            .map(|before| before.per_second)
            .filter(|rate| *rate > 0.0)
    }

    /// The scenario of that name, if it was measured.
    pub fn scenario(&self, name: &str) -> Option<&Scenario> {
        self.scenarios.iter().find(|scenario| scenario.name == name)
    }

    /// How many runs were dropped because others used the machine.
    pub fn dropped(&self) -> usize {
        self.samples.iter().filter(|sample| sample.disturbed).count()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample(contender: &str, load: &str, round: u32, per_second: f64) -> Sample {
        let process = |role: Role, cpu_us| ProcessUse {
            name: role.name().to_owned(),
            role,
            cpu_us,
            cpu_s: 1.0,
            waits: 0.5,
            preemptions: 0.1,
            peak_mib: 20.0,
            resident_mib: 18.0,
        };
        Sample {
            scenario: "peers".to_owned(),
            contender: contender.to_owned(),
            load: load.to_owned(),
            tool: "wrk 4.1.0".to_owned(),
            round,
            beside: None,
            requests: per_second as u64,
            errors: 0,
            seconds: 1.0,
            per_second,
            latency_ms: BTreeMap::from([("p50".to_owned(), 1.0), ("p99".to_owned(), 5.0)]),
            processes: vec![
                process(Role::Load, 8.0),
                process(Role::Service, 9.0),
                process(Role::Service, 1.0),
            ],
            machine: Machine::default(),
            disturbed: false,
        }
    }

    pub(crate) fn results(samples: Vec<Sample>) -> Results {
        Results {
            schema: SCHEMA,
            began: "2026-11-21T12:00:00Z".to_owned(),
            took_s: 60.0,
            quick: false,
            settings: None,
            machine: "2 processors".to_owned(),
            processors: 2,
            versions: BTreeMap::new(),
            scenarios: Vec::new(),
            skipped: Vec::new(),
            failed: Vec::new(),
            samples,
            instructions: BTreeMap::new(),
            times: BTreeMap::new(),
            parts: BTreeMap::new(),
        }
    }

    fn cell<'a>(contender: &'a str, load: &'a str) -> Cell<'a> {
        Cell { scenario: "peers", contender, load }
    }

    #[test]
    fn ratios_are_of_pairs_of_one_round_and_disturbed_runs_do_not_count() {
        let mut stray = sample("nginx", "c64", 0, 1.0);
        stray.disturbed = true;
        let results = results(vec![
            sample("direct", "c64", 0, 100.0),
            sample("direct", "c64", 1, 200.0),
            stray,
            sample("nginx", "c64", 0, 50.0),
            sample("nginx", "c64", 1, 100.0),
            sample("nginx", "c64", 2, 7.0),
            sample("nginx", "c255", 0, 9.0),
        ]);
        let ratio = results.ratio(cell("nginx", "c64"), cell("direct", "c64")).unwrap();
        assert_eq!((ratio.value, ratio.low, ratio.high), (0.5, 0.5, 0.5));
        assert_eq!(
            results.spread(cell("nginx", "c64"), |run| Some(run.per_second)).unwrap().runs,
            3
        );
        assert_eq!(results.dropped(), 1);
        assert!(results.ratio(cell("nginx", "c255"), cell("direct", "c255")).is_none());
    }

    #[test]
    fn ratios_are_of_neighbours_in_time_where_the_baseline_alternates() {
        let before = |contender: &str, rate| {
            let beside = Some(contender.to_owned());
            Sample { beside, ..sample("direct", "c64", 0, rate) }
        };
        // The machine was half as fast when nginx had its turn.
        let results = results(vec![
            before("natsway", 100.0),
            sample("natsway", "c64", 0, 60.0),
            before("nginx", 50.0),
            sample("nginx", "c64", 0, 25.0),
        ]);
        let ratio = |one, other| {
            results.ratio(cell(one, "c64"), cell(other, "c64")).map(|ratio| ratio.value)
        };
        assert_eq!(ratio("natsway", "direct"), Some(0.6));
        assert_eq!(ratio("nginx", "direct"), Some(0.5));
        assert_eq!(ratio("natsway", "nginx"), Some(1.2));
        assert_eq!(ratio("direct", "nginx"), Some(2.0));
        assert_eq!(ratio("direct", "direct"), Some(1.0));
        assert_eq!(
            results.spread(cell("direct", "c64"), |run| Some(run.per_second)).unwrap().runs,
            2
        );
    }

    #[test]
    fn processes_of_a_role_are_added_up() {
        let sample = sample("direct", "c64", 0, 100.0);
        assert_eq!(sample.cpu_us(Role::Service), Some(10.0));
        assert_eq!(sample.cpu_us(Role::Broker), None);
        assert_eq!(sample.total_cpu_us(), 18.0);
    }

    #[test]
    fn a_file_is_read_back_and_one_of_another_schema_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("results.json");
        let written = results(vec![sample("direct", "c64", 0, 100.0)]);
        written.save(&path).unwrap();
        let read = Results::load(&path).unwrap();
        assert_eq!(serde_json::to_value(&read).unwrap(), serde_json::to_value(&written).unwrap());
        assert!(read.has(cell("direct", "c64"), 0) && !read.has(cell("direct", "c64"), 1));
        Results { schema: 1, ..written }.save(&path).unwrap();
        let refused = Results::load(&path).unwrap_err().to_string();
        assert!(refused.contains("has schema 1"), "{refused}");
        fs::write(&path, "{}").unwrap();
        assert!(Results::load(&path).unwrap_err().to_string().contains("no results.json"));
    }
}

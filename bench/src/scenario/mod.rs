//! What is measured, as data: one TOML file for each scenario. Pure, but for reading the directory.
//!
//! A scenario has contenders (ways to get the same answer) and loads (ways to ask for it). Every
//! contender meets every load that it does not exclude; each of these pairs is a cell of the
//! report.

pub mod arrangement;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

pub use arrangement::Arrangement;

/// One question and all that is compared to answer it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// The file's name without its number and ending.
    #[serde(default)]
    pub name: String,
    /// A heading of the report.
    pub title: String,
    /// A paragraph below it.
    pub about: String,
    /// The contender that all others are compared with.
    pub baseline: String,
    /// Before each run of a contender there is one of the baseline, of the same length: what makes
    /// a machine slower for seconds then meets both.
    #[serde(default)]
    pub alternate: bool,
    /// How the report draws it.
    #[serde(default)]
    pub chart: Chart,
    /// Rounds, when they are not those of the command line.
    #[serde(default)]
    pub rounds: Option<u32>,
    /// Seconds of a run, when they are not those of the command line.
    #[serde(default)]
    pub seconds: Option<u32>,
    /// How the answer is asked for.
    #[serde(rename = "load")]
    pub loads: Vec<Load>,
    /// Who answers.
    #[serde(rename = "contender")]
    pub contenders: Vec<Contender>,
}

/// How a scenario is drawn.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Chart {
    /// Bars of requests per second and of processor time, a picture for each load.
    #[default]
    Bars,
    /// Requests per second over the contenders' `x`, a line for each `series`.
    Curve {
        /// What `x` is.
        x: String,
    },
    /// Requests per second over the loads' connections, a line for each contender.
    Connections,
    /// Latency over the loads' rates, a line for each contender.
    Rates,
    /// The gateway's memory over the loads' connections, a line for each contender.
    Memory,
}

/// One way to get the answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contender {
    /// Short, for data and the command line.
    pub name: String,
    /// What it is, for people.
    pub title: String,
    /// What is started.
    pub arrangement: Arrangement,
    /// Its place on the curve.
    #[serde(default)]
    pub x: Option<f64>,
    /// Its line on the curve.
    #[serde(default)]
    pub series: Option<String>,
    /// What the article measured for the same, on its machine.
    #[serde(default)]
    pub article: Option<Published>,
    /// Processors that its processes are pinned to.
    #[serde(default)]
    pub cpus: Cpus,
    /// The loads that it meets; all of them when none is named.
    #[serde(default)]
    pub loads: Vec<String>,
    /// Whether the short form has it.
    #[serde(default)]
    pub quick: bool,
}

/// Requests per second as somebody published them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Published {
    /// With this arrangement.
    pub per_second: f64,
    /// Without anything in between, on the same machine.
    pub of: f64,
}

/// Processors by role, from 0; empty is all of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpus {
    /// Of the gateway or proxy.
    #[serde(default)]
    pub gateway: Vec<usize>,
    /// Of the broker.
    #[serde(default)]
    pub broker: Vec<usize>,
    /// Of the services.
    #[serde(default)]
    pub service: Vec<usize>,
    /// Of the load generator.
    #[serde(default)]
    pub load: Vec<usize>,
}

/// One way to ask.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Load {
    /// Short, for data and the command line.
    pub name: String,
    /// Connections, kept open.
    pub connections: u32,
    /// Requests per second, whatever the answers do (an open loop); without, each connection asks
    /// again as soon as it is answered.
    #[serde(default)]
    pub rate: Option<u32>,
    /// Connections are opened and nothing is asked: what idle ones cost.
    #[serde(default)]
    pub idle: bool,
    /// The path; `/` answers with 39 bytes, `/bytes/N` with N.
    #[serde(default = "root")]
    pub path: String,
    /// POST so many bytes of JSON to the path, which should be `/echo`, in place of GET.
    #[serde(default)]
    pub post_bytes: Option<usize>,
    /// The generator, when it matters which.
    #[serde(default)]
    pub tool: Option<Tool>,
    /// Whether the short form has it.
    #[serde(default)]
    pub quick: bool,
}

/// A program that makes load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Tool {
    /// <https://github.com/wg/wrk>: the cheapest, so that most of the machine is left to what is
    /// measured.
    Wrk,
    /// <https://github.com/hatoo/oha>: dearer, knows open loops, and `make tools` has it on any
    /// machine.
    Oha,
}

fn root() -> String {
    "/".to_owned()
}

impl Scenario {
    /// Reads and checks one file's text; its name is the scenario's when a leading number is taken
    /// off.
    ///
    /// # Errors
    /// It is no TOML of this shape, or contradicts itself: every fault, a line each.
    pub fn parse(file_stem: &str, text: &str) -> anyhow::Result<Self> {
        let mut scenario: Self = toml::from_str(text)?;
        scenario.name =
            file_stem.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-').to_owned();
        let faults = scenario.faults();
        ensure!(faults.is_empty(), "{}", faults.join("\n"));
        Ok(scenario)
    }

    /// Reads every `*.toml` of a directory, in the order of their names.
    ///
    /// # Errors
    /// A file cannot be read, or is refused by [`parse`](Scenario::parse); the error names the
    /// file.
    pub fn read_all(directory: &Path) -> anyhow::Result<Vec<Self>> {
        let entries = fs::read_dir(directory)
            .with_context(|| format!("cannot read {}", directory.display()))?;
        let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|ending| ending == "toml"));
        paths.sort();
        ensure!(!paths.is_empty(), "{} has no scenario: expected *.toml", directory.display());
        let mut names = BTreeSet::new();
        let read = |path: &std::path::PathBuf| {
            let text = fs::read_to_string(path)?;
            let stem = path.file_stem().unwrap_or_default().to_string_lossy();
            let scenario = Self::parse(&stem, &text)?;
            ensure!(
                names.insert(scenario.name.clone()),
                "another file is named {} too",
                scenario.name
            );
            Ok(scenario)
        };
        let mut read = read;
        paths.iter().map(|path| read(path).with_context(|| path.display().to_string())).collect()
    }

    /// The loads that a contender meets.
    pub fn loads_of<'a>(&'a self, contender: &'a Contender) -> impl Iterator<Item = &'a Load> {
        self.loads
            .iter()
            .filter(|load| contender.loads.is_empty() || contender.loads.contains(&load.name))
    }

    /// The contenders that meet a load.
    pub fn contenders_of<'a>(&'a self, load: &'a Load) -> impl Iterator<Item = &'a Contender> {
        self.contenders
            .iter()
            .filter(|contender| contender.loads.is_empty() || contender.loads.contains(&load.name))
    }

    /// The baseline, when its runs alternate with those of this contender; it has no turn of its
    /// own then.
    pub fn beside(&self, contender: &Contender) -> Option<&Contender> {
        let baseline = self.contenders.iter().find(|one| one.name == self.baseline)?;
        (self.alternate && contender.name != self.baseline).then_some(baseline)
    }

    /// Whether a contender has turns of its own: all have, but a baseline that is measured beside
    /// others.
    pub fn has_turns(&self, contender: &Contender) -> bool {
        !self.alternate || contender.name != self.baseline || self.contenders.len() == 1
    }

    /// What is left of it in the short form, if anything is.
    pub fn quick(mut self) -> Option<Self> {
        let baseline = self.baseline.clone();
        self.loads.retain(|load| load.quick);
        self.contenders.retain(|contender| contender.quick || contender.name == baseline);
        (!self.loads.is_empty() && self.contenders.len() > 1).then_some(self)
    }

    /// What is left of it when only some cells are wanted: `article`, `article/go-1` or
    /// `article/go-1/c255`; each part matches the beginning of a name. The baseline stays with any
    /// of its scenario.
    pub fn only(mut self, wanted: &[String]) -> Option<Self> {
        if wanted.is_empty() {
            return Some(self);
        }
        let wanted: Vec<Vec<&str>> =
            wanted.iter().map(|pattern| pattern.split('/').collect()).collect();
        let begins = |parts: &Vec<&str>, place: usize, name: &str| {
            parts.get(place).is_none_or(|part| name.starts_with(part))
        };
        let wanted: Vec<Vec<&str>> =
            wanted.into_iter().filter(|parts| begins(parts, 0, &self.name)).collect();
        let baseline = self.baseline.clone();
        self.contenders.retain(|contender| {
            contender.name == baseline
                || wanted.iter().any(|parts| begins(parts, 1, &contender.name))
        });
        self.loads.retain(|load| wanted.iter().any(|parts| begins(parts, 2, &load.name)));
        (!wanted.is_empty() && !self.loads.is_empty()).then_some(self)
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let mut fault = |text: String| faults.push(text);
        for (kind, names) in [
            ("load", self.loads.iter().map(|load| &load.name).collect::<Vec<_>>()),
            ("contender", self.contenders.iter().map(|contender| &contender.name).collect()),
        ] {
            let mut seen = BTreeSet::new();
            for name in names {
                if !seen.insert(name) {
                    fault(format!("{kind} {name}: named twice"));
                }
                if name.is_empty() || name.contains(['/', ' ']) {
                    fault(format!("{kind} {name:?}: expected a name without spaces and slashes"));
                }
            }
            if seen.is_empty() {
                fault(format!("no [[{kind}]]: expected one at least"));
            }
        }
        if !self.contenders.iter().any(|contender| contender.name == self.baseline) {
            fault(format!("baseline = {:?}: expected the name of a contender", self.baseline));
        }
        for load in &self.loads {
            load.faults().into_iter().for_each(&mut fault);
        }
        if let Some(load) = self.loads.iter().find(|load| load.idle).filter(|_| self.alternate) {
            fault(format!("load {}: idle asks nothing: leave out alternate", load.name));
        }
        let baseline = self.contenders.iter().find(|one| one.name == self.baseline);
        if self.alternate && baseline.is_some_and(|baseline| !baseline.loads.is_empty()) {
            fault(format!(
                "contender {}: it runs beside all others: leave out loads",
                self.baseline
            ));
        }
        for contender in &self.contenders {
            for name in contender
                .loads
                .iter()
                .filter(|name| !self.loads.iter().any(|load| load.name == **name))
            {
                fault(format!(
                    "contender {}: loads has {name:?}, which is no [[load]]",
                    contender.name
                ));
            }
            if matches!(self.chart, Chart::Curve { .. })
                && contender.x.is_none()
                && contender.name != self.baseline
            {
                fault(format!("contender {}: x is missing, the chart is a curve", contender.name));
            }
            let asked = self
                .loads_of(contender)
                .find(|load| !load.idle && load.tool != Some(Tool::Oha) && load.rate.is_none());
            if let Some(load) = asked.filter(|_| contender.arrangement.services() > 1) {
                fault(format!(
                    "contender {}: only oha asks for services at random: tool = \"oha\" in load {}",
                    contender.name, load.name
                ));
            }
            let mistakes = contender.arrangement.faults();
            mistakes
                .iter()
                .for_each(|mistake| fault(format!("contender {}: {mistake}", contender.name)));
        }
        faults
    }
}

impl Load {
    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let name = &self.name;
        if self.connections == 0 {
            faults.push(format!("load {name}: connections = 0: expected 1 or more"));
        }
        if self.rate == Some(0) {
            faults.push(format!("load {name}: rate = 0: expected 1 or more, or no rate at all"));
        }
        if self.rate.is_some() && self.tool == Some(Tool::Wrk) {
            faults.push(format!("load {name}: wrk knows no rate: leave out tool or rate"));
        }
        if self.idle && (self.rate.is_some() || self.post_bytes.is_some()) {
            faults.push(format!("load {name}: idle asks nothing: leave out rate and post_bytes"));
        }
        if self.expected_body().is_none() {
            faults.push(format!(
                "load {name}: path = {:?}: expected \"/\", \"/bytes/N\", or \"/echo\" with \
                 post_bytes of 2 or more",
                self.path
            ));
        }
        faults
    }

    /// The body that is posted, if one is.
    pub fn body(&self) -> Option<String> {
        let filler = self.post_bytes?.saturating_sub(2);
        Some(format!("\"{}\"", "x".repeat(filler)))
    }

    /// The answer, byte for byte; `None` for a path that nobody serves.
    pub fn expected_body(&self) -> Option<String> {
        match (self.path.as_str(), self.post_bytes) {
            ("/", None) => Some(crate::service::GREETING.to_owned()),
            ("/echo", Some(2..)) => self.body(),
            (path, None) => {
                let count: usize = path.strip_prefix("/bytes/")?.parse().ok()?;
                Some("x".repeat(count))
            }
            _ => None,
        }
    }

    /// What is asked, for people.
    pub fn describe(&self) -> String {
        let what = match self.post_bytes {
            Some(bytes) => format!("POST of {bytes} bytes of JSON, which come back"),
            None if self.path == "/" => "GET of 39 bytes".to_owned(),
            None => format!("GET of {} bytes", self.path.trim_start_matches("/bytes/")),
        };
        let connections = match self.connections {
            1 => "1 connection".to_owned(),
            count => format!("{count} connections"),
        };
        match self.rate {
            _ if self.idle => format!("{connections}, idle"),
            Some(rate) => format!("{connections}, {rate} requests/s, {what}"),
            None => format!("{connections}, {what}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOUND: &str = r#"
        title = "Peers"
        about = "Others."
        baseline = "direct"
        [[load]]
        name = "c64"
        connections = 64
        quick = true
        [[load]]
        name = "post"
        connections = 64
        path = "/echo"
        post_bytes = 1024
        [[contender]]
        name = "direct"
        title = "axum"
        arrangement = { kind = "direct" }
        [[contender]]
        name = "nginx"
        title = "nginx"
        arrangement = { kind = "proxy", program = "nginx" }
        quick = true
        [[contender]]
        name = "natsway-1"
        title = "gateway"
        arrangement = { kind = "natsway", workers = 2 }
        loads = ["c64"]
    "#;

    fn faults(text: &str) -> String {
        format!("{:#}", Scenario::parse("10-peers", text).unwrap_err())
    }

    #[test]
    fn a_file_is_read_and_named_after_itself() {
        let scenario = Scenario::parse("10-peers", SOUND).unwrap();
        assert_eq!(
            (scenario.name.as_str(), scenario.loads.len(), scenario.contenders.len()),
            ("peers", 2, 3)
        );
        assert_eq!(scenario.loads_of(&scenario.contenders[2]).count(), 1);
        assert_eq!(scenario.loads[1].expected_body().unwrap().len(), 1024);
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let broken = SOUND
            .replace("baseline = \"direct\"", "baseline = \"dirct\"")
            .replace("loads = [\"c64\"]", "loads = [\"c65\"]")
            .replace("connections = 64\n        quick", "connections = 0\n        quick")
            .replace("workers = 2", "workers = 0");
        let faults = faults(&broken);
        for part in [
            "baseline = \"dirct\"",
            "loads has \"c65\"",
            "connections = 0: expected",
            "workers = 0: expected",
        ] {
            assert!(faults.contains(part), "{part} is not in {faults}");
        }
    }

    #[test]
    fn a_key_that_nobody_knows_is_a_fault() {
        assert!(faults(&SOUND.replace("quick = true", "quik = true")).contains("quik"));
        assert!(faults(&SOUND.replace("workers", "wrokers")).contains("wrokers"));
        assert!(faults(&SOUND.replace("/echo", "/nowhere")).contains("expected \"/\""));
    }

    #[test]
    fn the_short_form_keeps_the_baseline() {
        let quick = Scenario::parse("10-peers", SOUND).unwrap().quick().unwrap();
        let names: Vec<&str> =
            quick.contenders.iter().map(|contender| contender.name.as_str()).collect();
        assert_eq!((names, quick.loads.len()), (vec!["direct", "nginx"], 1));
    }

    #[test]
    fn patterns_pick_scenarios_contenders_and_loads() {
        let only =
            |pattern: &str| Scenario::parse("peers", SOUND).unwrap().only(&[pattern.to_owned()]);
        assert!(only("article").is_none());
        assert_eq!(only("peers").unwrap().contenders.len(), 3);
        assert_eq!(only("peers/natsway").unwrap().contenders.len(), 2);
        let cell = only("peers/nginx/post").unwrap();
        assert_eq!((cell.contenders.len(), cell.loads.len()), (2, 1));
    }

    #[test]
    fn the_scenarios_of_this_repository_are_sound() {
        let all =
            Scenario::read_all(&Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios")).unwrap();
        assert!(all.len() > 4);
        assert!(
            all.into_iter().filter_map(Scenario::quick).count() > 1,
            "the short form has something"
        );
    }
}

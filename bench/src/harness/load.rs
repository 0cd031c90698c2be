//! Load generators, as child processes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use natsway_testkit::{Process, ProcessBuilder, repository_root};
use serde::Deserialize;

use super::pin::pin;
use crate::scenario::{Load, Tool};
use crate::settings::Amount;

/// The generators that are installed.
#[derive(Clone, Debug)]
pub struct Generators(Vec<Generator>);

/// A generator that is installed.
#[derive(Clone, Debug)]
pub struct Generator {
    /// Which it is.
    pub tool: Tool,
    /// What it says of itself.
    pub version: String,
    program: PathBuf,
}

/// Where is asked, and from where.
#[derive(Clone, Copy, Debug)]
pub struct LoadTarget<'a> {
    /// A port on 127.0.0.1.
    pub port: u16,
    /// What paths begin with; one at least, which may be empty.
    pub prefixes: &'a [String],
    /// Processors of the generator; none is all of them.
    pub processors: &'a [usize],
}

/// What a generator saw.
#[derive(Clone, Debug)]
pub struct LoadRun {
    /// Requests that were answered, rightly or wrongly.
    pub requests: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Requests that were answered wrongly or not at all.
    pub errors: u64,
    /// Latency in milliseconds by percentile: `p50`, `p90`, `p99`, `p99.9`.
    pub latency_ms: BTreeMap<String, f64>,
}

/// Has wrk ask as told and print its figures as JSON. No function is called for each request, which
/// would cost.
const WRK_SCRIPT: &str = r#"
wrk.method = "@method@"
@body@
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"elapsed_us":%d,"errors":%d,"p50":%d,"p90":%d,"p99":%d,"p99.9":%d}\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9)))
end
"#;

/// Longer than any run: for a generator that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

impl Tool {
    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wrk => "wrk",
            Self::Oha => "oha",
        }
    }

    fn how_to_get_it(self) -> &'static str {
        match self {
            Self::Wrk => "install the package wrk",
            Self::Oha => "`make tools` installs it",
        }
    }
}

impl Generators {
    /// Finds what is installed.
    ///
    /// # Errors
    /// Nothing is.
    pub fn find() -> anyhow::Result<Self> {
        let found: Vec<Generator> = [Tool::Wrk, Tool::Oha]
            .into_iter()
            .filter_map(|tool| Generator::find(tool).ok())
            .collect();
        ensure!(
            !found.is_empty(),
            "no load generator is installed: `make tools` installs oha, the package wrk has wrk"
        );
        Ok(Self(found))
    }

    /// Every one of them.
    pub fn all(&self) -> &[Generator] {
        &self.0
    }

    /// The cheapest that can make a load.
    ///
    /// # Errors
    /// The one that it needs is not installed.
    pub fn for_load(&self, load: &Load, amount: Amount) -> anyhow::Result<&Generator> {
        let needs_oha = load.rate.is_some() || matches!(amount, Amount::Requests(_));
        let wanted = load.tool.or(needs_oha.then_some(Tool::Oha));
        match wanted {
            None => Ok(&self.0[0]),
            Some(tool) => {
                let found = self.0.iter().find(|generator| generator.tool == tool);
                found.with_context(|| {
                    format!("{} is not installed: {}", tool.name(), tool.how_to_get_it())
                })
            }
        }
    }
}

impl Generator {
    fn find(tool: Tool) -> anyhow::Result<Self> {
        let name = tool.name();
        let installed = repository_root().join("target/tools/bin").join(name);
        let program = if installed.exists() { installed } else { PathBuf::from(name) };
        // wrk says its version with its usage, and fails.
        let output = Command::new(&program)
            .arg(if tool == Tool::Wrk { "-v" } else { "--version" })
            .output()?;
        let text = String::from_utf8_lossy(if output.stdout.is_empty() {
            &output.stderr
        } else {
            &output.stdout
        });
        let version = text.split_whitespace().nth(1).unwrap_or("?").to_owned();
        Ok(Self { tool, version, program })
    }

    /// Its name and version.
    pub fn label(&self) -> String {
        format!("{} {}", self.tool.name(), self.version)
    }

    /// Asks `127.0.0.1:<port>` for the load's path, below each of the prefixes at random.
    ///
    /// # Errors
    /// The generator fails, or says something that cannot be read.
    pub async fn run(
        &self,
        load: &Load,
        target: LoadTarget<'_>,
        amount: Amount,
        directory: &Path,
    ) -> anyhow::Result<LoadRun> {
        let url =
            |prefix: &String| format!("http://127.0.0.1:{}{prefix}{}", target.port, load.path);
        let urls: Vec<String> = target.prefixes.iter().map(url).collect();
        let first = urls.first().context("a target has one prefix at least")?;
        let command = match self.tool {
            Tool::Wrk => self.wrk(load, amount, directory)?.arg(first),
            Tool::Oha if urls.len() == 1 => self.oha(load, amount, directory)?.arg(first),
            Tool::Oha => {
                let path = directory.join("urls.txt");
                write(&path, &urls.join("\n"))?;
                self.oha(load, amount, directory)?.arg("--urls-from-file").arg(path)
            }
        };
        let mut process = command.start();
        pin(process.pid(), target.processors)?;
        let patience = match amount {
            Amount::For(duration) => duration + PATIENCE,
            // A thousand a second is slower than anything that is measured here.
            Amount::Requests(requests) => Duration::from_millis(requests) + PATIENCE,
        };
        let status = process.wait_exit(patience).await;
        ensure!(status.success(), "{} failed ({status}): {}", self.tool.name(), process.stderr());
        let output = process.stdout();
        let outcome = match self.tool {
            Tool::Wrk => read_wrk(&output),
            Tool::Oha => {
                read_oha(&output, load.expected_body().map_or(0, |body| body.len() as u64))
            }
        };
        outcome.with_context(|| format!("{} printed {output:?}", self.tool.name()))
    }

    fn wrk(&self, load: &Load, amount: Amount, directory: &Path) -> anyhow::Result<ProcessBuilder> {
        let Amount::For(duration) = amount else { bail!("wrk counts time, not requests") };
        let script = directory.join("wrk.lua");
        let body = match load.body() {
            Some(body) => {
                format!("wrk.body = '{body}'\nwrk.headers[\"Content-Type\"] = \"application/json\"")
            }
            None => String::new(),
        };
        let method = if load.post_bytes.is_some() { "POST" } else { "GET" };
        write(&script, &WRK_SCRIPT.replace("@method@", method).replace("@body@", &body))?;
        // One for each processor, and never more than connections, which wrk refuses.
        let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
        let threads = processors.min(load.connections);
        let command = Process::builder(&self.program).args(["-t", &threads.to_string()]);
        let command = command.args(["-c", &load.connections.to_string(), "--timeout", "10s"]);
        Ok(command.args(["-d", &format!("{}s", duration.as_secs().max(1)), "-s"]).arg(script))
    }

    fn oha(&self, load: &Load, amount: Amount, directory: &Path) -> anyhow::Result<ProcessBuilder> {
        let command = Process::builder(&self.program);
        let mut command =
            command.args(["--no-tui", "--output-format", "json", "--redirect", "0", "-t", "10s"]);
        command = command.args(["-c", &load.connections.to_string()]);
        command = match amount {
            Amount::For(duration) => command.args(["-z", &format!("{}ms", duration.as_millis())]),
            Amount::Requests(requests) => command.args(["-n", &requests.to_string()]),
        };
        if let Some(rate) = load.rate {
            // Latency counts from when a request was due, not from when a connection was free for
            // it.
            command = command.args(["-q", &rate.to_string(), "--latency-correction"]);
        }
        if let Some(body) = load.body() {
            let path = directory.join("body.json");
            write(&path, &body)?;
            command = command.args(["-m", "POST", "-T", "application/json", "-D"]).arg(path);
        }
        Ok(command)
    }
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

#[derive(Deserialize)]
struct WrkFigures {
    requests: u64,
    elapsed_us: u64,
    errors: u64,
    #[serde(flatten)]
    latency_us: BTreeMap<String, f64>,
}

fn read_wrk(output: &str) -> anyhow::Result<LoadRun> {
    let line = output.lines().find(|line| line.starts_with('{')).context("no line of figures")?;
    let WrkFigures { requests, elapsed_us, errors, latency_us } = serde_json::from_str(line)?;
    let latency_ms = latency_us.into_iter().map(|(name, us)| (name, us / 1_000.0)).collect();
    Ok(LoadRun { requests, elapsed: Duration::from_micros(elapsed_us), errors, latency_ms })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OhaFigures {
    summary: OhaSummary,
    latency_percentiles: BTreeMap<String, Option<f64>>,
    status_code_distribution: BTreeMap<String, u64>,
    error_distribution: BTreeMap<String, u64>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OhaSummary {
    total: f64,
    size_per_request: Option<u64>,
}

fn read_oha(output: &str, body_bytes: u64) -> anyhow::Result<LoadRun> {
    let figures: OhaFigures = serde_json::from_str(output)?;
    let requests: u64 = figures.status_code_distribution.values().sum();
    let good = figures.status_code_distribution.get("200").copied().unwrap_or(0);
    // What is out when the time is up is given up: nobody's failure.
    let failed = figures.error_distribution.iter().filter(|(error, _)| !error.contains("deadline"));
    let failed: u64 = failed.map(|(_, count)| count).sum();
    if figures.summary.size_per_request.is_some_and(|bytes| good == requests && bytes != body_bytes)
    {
        bail!("bodies are not of {body_bytes} bytes");
    }
    let percentile = |name: &String, seconds: Option<f64>| Some((name.clone(), seconds? * 1_000.0));
    let wanted = ["p50", "p90", "p99", "p99.9"];
    let percentiles =
        figures.latency_percentiles.iter().filter(|(name, _)| wanted.contains(&name.as_str()));
    Ok(LoadRun {
        requests,
        elapsed: Duration::from_secs_f64(figures.summary.total),
        errors: requests - good + failed,
        latency_ms: percentiles.filter_map(|(name, seconds)| percentile(name, *seconds)).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrk_is_read() {
        let output = "Running 5s \
                      test\n{\"requests\":1000,\"elapsed_us\":2000000,\"errors\":3,\"p50\":1500,\"p99\":9000}\n";
        let outcome = read_wrk(output).unwrap();
        assert_eq!((outcome.requests, outcome.errors), (1000, 3));
        assert_eq!(outcome.elapsed, Duration::from_secs(2));
        assert_eq!(outcome.latency_ms["p50"], 1.5);
        assert!(read_wrk("unable to connect").is_err());
    }

    #[test]
    fn oha_is_read_and_what_it_gave_up_at_the_end_is_no_error() {
        let output = r#"{
            "summary": {"successRate": 1.0, "total": 2.0, "sizePerRequest": 39},
            "latencyPercentiles": {"p50": 0.0015, "p75": 0.002, "p99": 0.009, "p99.9": null},
            "statusCodeDistribution": {"200": 990, "503": 10},
            "errorDistribution": {"aborted due to deadline": 64, "connection refused": 2}
        }"#;
        let outcome = read_oha(output, 39).unwrap();
        assert_eq!((outcome.requests, outcome.errors), (1000, 12));
        assert_eq!(
            outcome.latency_ms,
            BTreeMap::from([("p50".to_owned(), 1.5), ("p99".to_owned(), 9.0)])
        );
        let only_good = output.replace(", \"503\": 10", "");
        assert!(read_oha(&only_good, 39).is_ok());
        assert!(read_oha(&only_good, 40).is_err(), "a body of another length");
    }
}

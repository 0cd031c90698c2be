//! Load generators, as child processes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use natsway_testkit::{Process, repository_root};
use serde::{Deserialize, Serialize};

/// A program that makes requests as fast as they are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Tool {
    /// <https://github.com/wg/wrk>: the cheapest, so that most of the machine is left to what is measured.
    Wrk,
    /// <https://github.com/hatoo/oha>: dearer, and `make tools` has it on any machine.
    Oha,
}

/// A tool that is installed.
#[derive(Clone, Debug)]
pub struct Load {
    /// Which it is.
    pub tool: Tool,
    /// What it says of itself.
    pub version: String,
    program: PathBuf,
}

/// What a tool saw.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Requests that were answered, rightly or wrongly.
    pub requests: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Requests that were answered wrongly or not at all.
    pub errors: u64,
    /// Latency in milliseconds by percentile: `p50`, `p90`, `p99`, `p99.9`.
    pub latency_ms: BTreeMap<String, f64>,
}

impl Tool {
    /// Every tool, the cheapest first.
    pub const ALL: [Tool; 2] = [Tool::Wrk, Tool::Oha];

    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Tool::Wrk => "wrk",
            Tool::Oha => "oha",
        }
    }
}

/// Has wrk print its figures as JSON. No function is called for each request, which would cost.
const WRK_SCRIPT: &str = r#"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"elapsed_us":%d,"errors":%d,"p50":%d,"p90":%d,"p99":%d,"p99.9":%d}\n',
    summary.requests, summary.duration, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50), latency:percentile(90), latency:percentile(99), latency:percentile(99.9)))
end
"#;

/// Longer than any run: for a tool that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

impl Load {
    /// Finds an installed tool.
    ///
    /// # Errors
    /// It is not installed, or does not say its version.
    pub fn find(tool: Tool) -> anyhow::Result<Load> {
        let name = tool.name();
        let installed = repository_root().join("target/tools/bin").join(name);
        let program = if installed.exists() { installed } else { PathBuf::from(name) };
        let how = match tool {
            Tool::Wrk => "install the package wrk",
            Tool::Oha => "`make tools` installs it",
        };
        // wrk says its version with its usage, and fails.
        let output = Command::new(&program).arg(if tool == Tool::Wrk { "-v" } else { "--version" }).output();
        let output = output.with_context(|| format!("{name} is not installed: {how}"))?;
        let text =
            String::from_utf8_lossy(if output.stdout.is_empty() { &output.stderr } else { &output.stdout });
        let version = text.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
        Ok(Load { tool, version, program })
    }

    /// Loads `http://127.0.0.1:<port>/` over so many kept connections for so long.
    ///
    /// # Errors
    /// The tool fails, or says something that cannot be read.
    pub async fn run(
        &self,
        port: u16,
        connections: u32,
        duration: Duration,
        directory: &Path,
    ) -> anyhow::Result<Outcome> {
        let url = format!("http://127.0.0.1:{port}/");
        let (connections, seconds) = (connections.to_string(), format!("{}s", duration.as_secs()));
        let command = Process::builder(&self.program);
        let command = match self.tool {
            Tool::Wrk => {
                let script = directory.join("wrk.lua");
                fs::write(&script, WRK_SCRIPT).with_context(|| format!("write {}", script.display()))?;
                let threads = wrk_threads(connections.parse().unwrap_or(1)).to_string();
                command
                    .args(["-t", &threads, "-c", &connections, "-d", &seconds, "--timeout", "10s", "-s"])
                    .arg(script)
                    .arg(&url)
            }
            Tool::Oha => command.args(["--no-tui", "--output-format", "json", "--redirect", "0"]).args([
                "-c",
                &connections,
                "-z",
                &seconds,
                &url,
            ]),
        };
        let mut process = command.start();
        let status = process.wait_exit(duration + PATIENCE).await;
        ensure!(status.success(), "{} failed ({status}): {}", self.tool.name(), process.stderr());
        let output = process.stdout();
        match self.tool {
            Tool::Wrk => read_wrk(&output),
            Tool::Oha => read_oha(&output),
        }
        .with_context(|| format!("{} printed {output:?}", self.tool.name()))
    }
}

/// One for each processor, and never more than connections, which wrk refuses.
fn wrk_threads(connections: u32) -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    processors.min(connections)
}

#[derive(Deserialize)]
struct WrkFigures {
    requests: u64,
    elapsed_us: u64,
    errors: u64,
    #[serde(flatten)]
    latency_us: BTreeMap<String, f64>,
}

fn read_wrk(output: &str) -> anyhow::Result<Outcome> {
    let line = output.lines().find(|line| line.starts_with('{')).context("no line of figures")?;
    let WrkFigures { requests, elapsed_us, errors, latency_us } = serde_json::from_str(line)?;
    let latency_ms = latency_us.into_iter().map(|(name, us)| (name, us / 1_000.0)).collect();
    Ok(Outcome { requests, elapsed: Duration::from_micros(elapsed_us), errors, latency_ms })
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

fn read_oha(output: &str) -> anyhow::Result<Outcome> {
    let figures: OhaFigures = serde_json::from_str(output)?;
    let requests: u64 = figures.status_code_distribution.values().sum();
    let good = figures.status_code_distribution.get("200").copied().unwrap_or(0);
    // What is out when the time is up is given up: nobody's failure.
    let failed = figures.error_distribution.iter().filter(|(error, _)| !error.contains("deadline"));
    let failed: u64 = failed.map(|(_, count)| count).sum();
    let body_bytes = super::direct::GREETING.len() as u64;
    if figures.summary.size_per_request.is_some_and(|bytes| bytes != body_bytes) {
        bail!("bodies are not of {body_bytes} bytes");
    }
    let percentile = |name: &String, seconds: Option<f64>| Some((name.clone(), seconds? * 1_000.0));
    let wanted = ["p50", "p90", "p99", "p99.9"];
    let percentiles = figures.latency_percentiles.iter().filter(|(name, _)| wanted.contains(&name.as_str()));
    Ok(Outcome {
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
        let output = "Running 5s test\n{\"requests\":1000,\"elapsed_us\":2000000,\"errors\":3,\"p50\":1500,\"p99\":9000}\n";
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
        let outcome = read_oha(output).unwrap();
        assert_eq!((outcome.requests, outcome.errors), (1000, 12));
        assert_eq!(outcome.latency_ms, BTreeMap::from([("p50".to_owned(), 1.5), ("p99".to_owned(), 9.0)]));
        assert!(read_oha(&output.replace("39", "40")).is_err());
    }
}

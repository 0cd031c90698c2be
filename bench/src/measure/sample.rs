//! One run: a contender under load, and what it cost.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::contender::Running;
use super::load::{Load, Outcome, Tool};
use super::processes::{Machine, Meter, Role, Usage};

/// The figures of one run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Sample {
    /// The contender's name.
    pub contender: String,
    /// What made the load.
    pub tool: Tool,
    /// Connections of the load.
    pub connections: u32,
    /// The round, from 0; ratios are taken within one.
    pub round: u32,
    /// Requests that were answered.
    pub requests: u64,
    /// Requests answered wrongly or not at all.
    pub errors: u64,
    /// Requests answered per second.
    pub per_second: f64,
    /// Latency in milliseconds by percentile.
    pub latency_ms: BTreeMap<String, f64>,
    /// Microseconds of processor time per request, by what the process is for.
    pub cpu_us: BTreeMap<Role, f64>,
    /// What else the machine did.
    pub machine: Machine,
    /// Whether others used too much of the machine: it does not count.
    pub disturbed: bool,
}

impl Sample {
    /// The figures for people who watch.
    pub fn line(&self) -> String {
        let Sample { tool, connections, per_second, errors, cpu_us, machine, disturbed, .. } = self;
        let latency = |name: &str| self.latency_ms.get(name).copied().unwrap_or_default();
        let cpu: Vec<String> = cpu_us
            .iter()
            .map(|(role, us)| format!("{} {us:.1}", format!("{role:?}").to_lowercase()))
            .collect();
        format!(
            "{:3} c{connections:<4} {per_second:8.0}/s  p50 {:.2} p99 {:.2} ms  us: {}  errors {errors}  foreign {:.1} % steal {:.1} % idle {:.0} %{}",
            tool.name(),
            latency("p50"),
            latency("p99"),
            cpu.join(", "),
            machine.foreign * 100.0,
            machine.steal * 100.0,
            machine.idle * 100.0,
            if *disturbed { "  DROPPED" } else { "" },
        )
    }
}

/// Makes one run. The answer is checked byte for byte before and after it; name, round and judgement are the caller's.
///
/// # Errors
/// The load tool failed, a process is gone, or the answer is wrong.
pub async fn take(
    running: &Running,
    load: &Load,
    connections: u32,
    duration: Duration,
    directory: &Path,
) -> anyhow::Result<Sample> {
    running.check().await?;
    let meter = Meter::start(running.processes())?;
    let outcome = load.run(running.port, connections, duration, directory).await?;
    let Usage { by_role, machine } = meter.stop()?;
    running.check().await?;
    let Outcome { requests, elapsed, errors, latency_ms } = outcome;
    let each = |time: Duration| time.as_secs_f64() * 1e6 / requests.max(1) as f64;
    Ok(Sample {
        contender: String::new(),
        tool: load.tool,
        connections,
        round: 0,
        requests,
        errors,
        per_second: requests as f64 / elapsed.as_secs_f64(),
        latency_ms,
        cpu_us: by_role.into_iter().map(|(role, time)| (role, each(time))).collect(),
        machine,
        disturbed: false,
    })
}

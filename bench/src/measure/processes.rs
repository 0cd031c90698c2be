//! What processes and the machine did, from `/proc`.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

/// How the kernel counts time in `/proc/stat` and `/proc/<pid>/stat`: a fixed part of its interface on Linux.
const TICK: Duration = Duration::from_millis(10);

/// The machine's time since it started, all processors together.
#[derive(Clone, Copy, Debug)]
struct MachineTime {
    busy: Duration,
    idle: Duration,
    steal: Duration,
}

/// Parts of the machine's time during a run, 0 to 1.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Machine {
    /// Nothing to do.
    pub idle: f64,
    /// Taken by the hypervisor.
    pub steal: f64,
    /// Used by processes that are not part of the run.
    pub foreign: f64,
}

/// Processor time of several groups of processes, the machine's beside it.
#[derive(Debug)]
pub struct Meter {
    roots: Vec<(Role, u32)>,
    machine: MachineTime,
    parts: BTreeMap<Role, Duration>,
    children: Duration,
    own: Duration,
}

/// What a process is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// The load generator.
    Load,
    /// What clients connect to, when it is not the service itself.
    Gateway,
    /// nats-server.
    Broker,
    /// What answers.
    Service,
}

/// What a [`Meter`] saw.
#[derive(Debug)]
pub struct Usage {
    /// Processor time by role.
    pub by_role: BTreeMap<Role, Duration>,
    /// The machine's time.
    pub machine: Machine,
}

impl Meter {
    /// Begins; `roots` are processes whose descendants count with them.
    ///
    /// # Errors
    /// A process is gone.
    pub fn start(roots: Vec<(Role, u32)>) -> anyhow::Result<Meter> {
        let parts = by_role(&roots)?;
        let (own, children) = own_times()?;
        Ok(Meter { machine: machine_time()?, roots, parts, children, own })
    }

    /// Ends. Children of this process that ended and were waited for since the start were the load.
    ///
    /// # Errors
    /// A process is gone.
    pub fn stop(self) -> anyhow::Result<Usage> {
        let machine = machine_time()?;
        let (own, children) = own_times()?;
        let mut by_role = by_role(&self.roots)?;
        for (role, time) in &mut by_role {
            *time = time.saturating_sub(self.parts.get(role).copied().unwrap_or_default());
        }
        by_role.insert(Role::Load, children.saturating_sub(self.children));
        let ours: Duration = by_role.values().sum::<Duration>() + own.saturating_sub(self.own);
        Ok(Usage { by_role, machine: self.machine.until(machine, ours) })
    }
}

impl MachineTime {
    fn until(self, end: MachineTime, ours: Duration) -> Machine {
        let busy = end.busy.saturating_sub(self.busy);
        let idle = end.idle.saturating_sub(self.idle);
        let steal = end.steal.saturating_sub(self.steal);
        let total = (busy + idle + steal).as_secs_f64().max(f64::MIN_POSITIVE);
        let share = |time: Duration| time.as_secs_f64() / total;
        Machine { idle: share(idle), steal: share(steal), foreign: share(busy.saturating_sub(ours)) }
    }
}

/// Waits until the machine has nothing else to do. When patience ends it goes on, and the run will tell.
///
/// # Errors
/// `/proc` cannot be read.
pub async fn quiet(tolerance: f64, patience: Duration) -> anyhow::Result<()> {
    const LOOK: Duration = Duration::from_millis(300);
    let begun = Instant::now();
    while begun.elapsed() < patience {
        let before = machine_time()?;
        tokio::time::sleep(LOOK).await;
        let seen = before.until(machine_time()?, Duration::ZERO);
        if seen.foreign + seen.steal <= tolerance {
            return Ok(());
        }
    }
    Ok(())
}

fn by_role(roots: &[(Role, u32)]) -> anyhow::Result<BTreeMap<Role, Duration>> {
    let mut times = BTreeMap::new();
    for &(role, root) in roots {
        *times.entry(role).or_insert(Duration::ZERO) += tree_time(root)?;
    }
    Ok(times)
}

/// Processor time of a process and its living descendants.
fn tree_time(pid: u32) -> anyhow::Result<Duration> {
    let mut time = threads_time(pid)?;
    for child in children(pid) {
        // One that ended in between has no more to tell.
        time += tree_time(child).unwrap_or_default();
    }
    Ok(time)
}

/// The scheduler's own account, in nanoseconds; `/proc/<pid>/stat` has only ticks. Threads that ended are not in it: those
/// measured here keep theirs.
fn threads_time(pid: u32) -> anyhow::Result<Duration> {
    let tasks =
        fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid} is gone"))?;
    let mut time = Duration::ZERO;
    for task in tasks.flatten() {
        let Ok(text) = fs::read_to_string(task.path().join("schedstat")) else { continue };
        let nanos = text.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
        time += Duration::from_nanos(nanos);
    }
    Ok(time)
}

fn children(pid: u32) -> Vec<u32> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let lists = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("children")).ok());
    lists.flat_map(|list| list.split(' ').filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()).collect()
}

/// Processor time of this process, and of its children that it has waited for.
fn own_times() -> anyhow::Result<(Duration, Duration)> {
    let text = fs::read_to_string("/proc/self/stat").context("read /proc/self/stat")?;
    // The name in parentheses may hold anything; times are counted from behind it.
    let (_, fields) = text.rsplit_once(')').context("/proc/self/stat has no name")?;
    let ticks: Vec<u32> = fields.split_whitespace().skip(11).take(4).flat_map(str::parse).collect();
    let [user, system, child_user, child_system] = ticks[..] else { bail!("/proc/self/stat is short") };
    Ok((TICK * (user + system), TICK * (child_user + child_system)))
}

fn machine_time() -> anyhow::Result<MachineTime> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    machine_line(text.lines().next().unwrap_or_default())
        .context("/proc/stat does not begin with the sum of processors")
}

/// `cpu  user nice system idle iowait irq softirq steal ...`; guests are in `user` already.
fn machine_line(line: &str) -> Option<MachineTime> {
    let ticks: Vec<u32> =
        line.strip_prefix("cpu ")?.split_whitespace().take(8).flat_map(str::parse).collect();
    let [user, nice, system, idle, wait, irq, softirq, steal] = ticks[..] else { return None };
    Some(MachineTime {
        busy: TICK * (user + nice + system + irq + softirq),
        idle: TICK * (idle + wait),
        steal: TICK * steal,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machines_time_is_split() {
        let before = machine_line("cpu  100 0 50 800 10 0 5 2 0 0").unwrap();
        let after = machine_line("cpu  180 0 60 880 20 5 10 12 0 0").unwrap();
        let seen = before.until(after, TICK * 60);
        // 200 ticks passed: 100 busy of which 60 ours, 90 idle, 10 stolen.
        assert_eq!((seen.idle, seen.steal, seen.foreign), (0.45, 0.05, 0.2));
        assert!(machine_line("intr 1 2 3").is_none());
        assert!(machine_line("cpu  1 2 3").is_none());
    }

    #[test]
    fn this_process_has_used_some_time() {
        let begun = Instant::now();
        let meter = Meter::start(vec![(Role::Service, std::process::id())]).unwrap();
        while begun.elapsed() < Duration::from_millis(50) {
            std::hint::black_box(0);
        }
        let used = meter.stop().unwrap().by_role[&Role::Service];
        assert!(used > Duration::ZERO && used < Duration::from_secs(30), "{used:?}");
    }
}

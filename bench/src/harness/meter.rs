//! What processes and the machine did, from `/proc`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use crate::results::{Machine, ProcessUse, Role};

/// How the kernel counts time in `/proc/stat`: a fixed part of its interface on Linux.
const TICK: Duration = Duration::from_millis(10);

/// A process to watch, with what it starts.
#[derive(Clone, Debug)]
pub struct Watched {
    /// Such as `worker 2`.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Its id.
    pub pid: u32,
}

/// The machine's time since it started, all processors together.
#[derive(Clone, Copy, Debug)]
struct MachineTime {
    busy: Duration,
    idle: Duration,
    steal: Duration,
}

/// What a process, or a tree of them, used since it started.
#[derive(Clone, Copy, Debug, Default)]
struct Used {
    cpu: Duration,
    waits: u64,
    preemptions: u64,
}

/// Processes and the machine from [`start`](Meter::start) to [`stop`](Meter::stop).
#[derive(Debug)]
pub struct Meter {
    watched: Vec<(Watched, Used)>,
    machine: MachineTime,
    children: Used,
    own: Duration,
}

impl Meter {
    /// Begins; what the processes start counts with them.
    ///
    /// # Errors
    /// A process is gone.
    pub fn start(watched: Vec<Watched>) -> anyhow::Result<Self> {
        let watched = watched.into_iter().map(|one| {
            forget_peak(one.pid);
            Ok((one.clone(), used_by_tree(one.pid)?))
        });
        let watched = watched.collect::<anyhow::Result<_>>()?;
        Ok(Self {
            watched,
            machine: machine_time()?,
            children: usage(UsageWho::RUSAGE_CHILDREN)?,
            own: own()?,
        })
    }

    /// Ends, and shares what was used among the requests. Children of this process that ended and
    /// were waited for since the start were the load.
    ///
    /// # Errors
    /// A process is gone.
    pub fn stop(self, requests: u64) -> anyhow::Result<(Vec<ProcessUse>, Machine)> {
        let machine = machine_time()?;
        let load = usage(UsageWho::RUSAGE_CHILDREN)?.since(self.children);
        let mut ours = load.cpu + own()?.saturating_sub(self.own);
        let mut processes = vec![load.per_request("load".to_owned(), Role::Load, requests)];
        for (Watched { name, role, pid }, before) in self.watched {
            let used = used_by_tree(pid)?.since(before);
            ours += used.cpu;
            let mut process = used.per_request(name, role, requests);
            (process.peak_mib, process.resident_mib) = memory_mib(pid);
            processes.push(process);
        }
        Ok((processes, self.machine.until(machine, ours)))
    }
}

impl Used {
    fn since(self, before: Self) -> Self {
        Self {
            cpu: self.cpu.saturating_sub(before.cpu),
            waits: self.waits.saturating_sub(before.waits),
            preemptions: self.preemptions.saturating_sub(before.preemptions),
        }
    }

    fn add(&mut self, other: Self) {
        self.cpu += other.cpu;
        self.waits += other.waits;
        self.preemptions += other.preemptions;
    }

    /// Without its memory.
    fn per_request(self, name: String, role: Role, requests: u64) -> ProcessUse {
        let each = |sum: f64| sum / requests.max(1) as f64;
        ProcessUse {
            name,
            role,
            cpu_us: each(self.cpu.as_secs_f64() * 1e6),
            cpu_s: self.cpu.as_secs_f64(),
            waits: each(self.waits as f64),
            preemptions: each(self.preemptions as f64),
            peak_mib: 0.0,
            resident_mib: 0.0,
        }
    }
}

impl MachineTime {
    fn until(self, end: Self, ours: Duration) -> Machine {
        let busy = end.busy.saturating_sub(self.busy);
        let idle = end.idle.saturating_sub(self.idle);
        let steal = end.steal.saturating_sub(self.steal);
        let total = (busy + idle + steal).as_secs_f64().max(f64::MIN_POSITIVE);
        let share = |time: Duration| time.as_secs_f64() / total;
        Machine {
            idle: share(idle),
            steal: share(steal),
            foreign: share(busy.saturating_sub(ours)),
        }
    }
}

/// Waits until the machine has nothing else to do, and tells how long that took beyond a look. When
/// patience ends it goes on, and the run will tell.
///
/// # Errors
/// `/proc` cannot be read.
pub async fn quiet(tolerance: f64, patience: Duration) -> anyhow::Result<Duration> {
    const LOOK: Duration = Duration::from_millis(200);
    let begun = Instant::now();
    while begun.elapsed() < patience {
        let before = machine_time()?;
        tokio::time::sleep(LOOK).await;
        let seen = before.until(machine_time()?, Duration::ZERO);
        if seen.foreign + seen.steal <= tolerance.max(0.05) {
            break;
        }
    }
    Ok(begun.elapsed().saturating_sub(LOOK))
}

/// A process and its living descendants.
///
/// # Errors
/// The process is gone.
pub fn tree(pid: u32) -> anyhow::Result<Vec<u32>> {
    threads(pid)?;
    let mut all = vec![pid];
    let mut next = 0;
    while let Some(&parent) = all.get(next) {
        let tasks = threads(parent).unwrap_or_default();
        let lists = tasks.into_iter().filter_map(|task| {
            fs::read_to_string(format!("/proc/{parent}/task/{task}/children")).ok()
        });
        let children: Vec<u32> = lists
            .flat_map(|list| list.split(' ').flat_map(str::parse).collect::<Vec<u32>>())
            .collect();
        all.extend(children);
        next += 1;
    }
    Ok(all)
}

/// The threads of a process.
///
/// # Errors
/// The process is gone.
pub fn threads(pid: u32) -> anyhow::Result<Vec<u32>> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"))
        .with_context(|| format!("process {pid} is gone"))?;
    Ok(tasks.flatten().filter_map(|task| task.file_name().to_str()?.parse().ok()).collect())
}

fn used_by_tree(pid: u32) -> anyhow::Result<Used> {
    let mut used = Used::default();
    for process in tree(pid)? {
        // One that ended in between has no more to tell. Threads that ended are not in it: those
        // measured here keep theirs.
        for thread in threads(process).unwrap_or_default() {
            used.add(used_by_thread(&format!("/proc/{process}/task/{thread}")));
        }
    }
    Ok(used)
}

/// The scheduler's own account, in nanoseconds; `/proc/<pid>/stat` has only ticks.
fn used_by_thread(task: &str) -> Used {
    let times = fs::read_to_string(format!("{task}/schedstat")).unwrap_or_default();
    let status = fs::read_to_string(format!("{task}/status")).unwrap_or_default();
    let nanos = times.split(' ').next().and_then(|nanos| nanos.parse().ok()).unwrap_or(0);
    Used {
        cpu: Duration::from_nanos(nanos),
        waits: field(&status, "voluntary_ctxt_switches").unwrap_or(0),
        preemptions: field(&status, "nonvoluntary_ctxt_switches").unwrap_or(0),
    }
}

/// The number behind `name:` at the beginning of a line.
fn field(status: &str, name: &str) -> Option<u64> {
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

/// Has the kernel begin anew with the peak of a tree's memory: one load's is not the next one's.
fn forget_peak(pid: u32) {
    for process in tree(pid).unwrap_or_default() {
        // Where that cannot be had, the peak is that since the start.
        fs::write(format!("/proc/{process}/clear_refs"), "5").ok();
    }
}

/// The peak and the present memory of a tree; shared pages count in each process.
fn memory_mib(pid: u32) -> (f64, f64) {
    let (mut peak, mut resident) = (0.0, 0.0);
    for process in tree(pid).unwrap_or_default() {
        let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
        peak += field(&status, "VmHWM").unwrap_or(0) as f64 / 1024.0;
        resident += field(&status, "VmRSS").unwrap_or(0) as f64 / 1024.0;
    }
    (peak, resident)
}

fn usage(who: UsageWho) -> anyhow::Result<Used> {
    let usage = getrusage(who).context("getrusage")?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    let count = |switches: i64| u64::try_from(switches).unwrap_or(0);
    Ok(Used {
        cpu: Duration::from_micros(u64::try_from(micros).unwrap_or(0)),
        waits: count(usage.voluntary_context_switches()),
        preemptions: count(usage.involuntary_context_switches()),
    })
}

fn own() -> anyhow::Result<Duration> {
    Ok(usage(UsageWho::RUSAGE_SELF)?.cpu)
}

fn machine_time() -> anyhow::Result<MachineTime> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let Some(time) = machine_line(text.lines().next().unwrap_or_default()) else {
        bail!("/proc/stat does not begin with the sum of processors")
    };
    Ok(time)
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
    fn a_field_is_not_the_end_of_another_ones_name() {
        let status =
            "VmHWM:\t  2048 kB\nvoluntary_ctxt_switches:\t7\nnonvoluntary_ctxt_switches:\t3\n";
        assert_eq!(field(status, "VmHWM"), Some(2048));
        assert_eq!(field(status, "voluntary_ctxt_switches"), Some(7));
        assert_eq!(field(status, "nonvoluntary_ctxt_switches"), Some(3));
        assert_eq!(field(status, "VmRSS"), None);
    }

    #[test]
    fn this_process_has_used_some_time_and_memory() {
        let begun = Instant::now();
        let own = Watched { name: "test".to_owned(), role: Role::Service, pid: std::process::id() };
        let meter = Meter::start(vec![own]).unwrap();
        while begun.elapsed() < Duration::from_millis(50) {
            std::hint::black_box(0);
        }
        let (processes, _) = meter.stop(1_000).unwrap();
        let test = processes.iter().find(|process| process.name == "test").unwrap();
        assert!(test.cpu_us > 0.0 && test.cpu_us < 30_000.0, "{test:?}");
        assert!((test.cpu_s * 1e3 - test.cpu_us).abs() < 1e-6, "{test:?}");
        assert!(test.peak_mib >= test.resident_mib && test.resident_mib > 0.0, "{test:?}");
    }
}

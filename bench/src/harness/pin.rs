//! Processes on the processors that a scenario gives them.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use super::meter;

/// Moves every thread of a process, and of what it started, to these processors; threads that come
/// later inherit it. No processors: nothing is done.
///
/// # Errors
/// There is no such processor, or the process is gone.
pub fn pin(pid: u32, processors: &[usize]) -> anyhow::Result<()> {
    if processors.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    for &processor in processors {
        set.set(processor)?;
    }
    // The second pass is for threads that came while the first one looked.
    for _ in 0..2 {
        for process in meter::tree(pid)? {
            for thread in meter::threads(process).unwrap_or_default() {
                match sched_setaffinity(Pid::from_raw(i32::try_from(thread)?), &set) {
                    // It has ended.
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => anyhow::bail!("processors {processors:?} cannot be had: {error}"),
                }
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_stays_where_it_was_pinned() {
        let sleeper = natsway_testkit::Process::builder("sleep").arg("60").start();
        pin(sleeper.pid(), &[0]).unwrap();
        let status = std::fs::read_to_string(format!("/proc/{}/status", sleeper.pid())).unwrap();
        let allowed = status.lines().find(|line| line.starts_with("Cpus_allowed_list:")).unwrap();
        assert_eq!(allowed.split_whitespace().nth(1), Some("0"));
        assert!(pin(sleeper.pid(), &[100_000]).is_err());
    }
}

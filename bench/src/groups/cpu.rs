//! Processor time of processes, from `/proc`.

use std::fs;
use std::time::Duration;

/// How the kernel counts time in `/proc/<pid>/stat`: a fixed part of its interface on Linux.
const TICK: Duration = Duration::from_millis(10);

/// User and system time of a process so far, all its threads together; zero where there is no
/// `/proc`.
pub(super) fn of_process(pid: u32) -> Duration {
    two_fields(&format!("/proc/{pid}/stat"), 11)
}

/// User and system time of this process's children that have ended and were waited for.
pub(super) fn of_ended_children() -> Duration {
    two_fields("/proc/self/stat", 13)
}

/// The sum of two neighbours among the fields behind the name, which may hold anything.
fn two_fields(path: &str, first: usize) -> Duration {
    let stat = fs::read_to_string(path).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    let ticks: u32 = fields.skip(first).take(2).filter_map(|field| field.parse::<u32>().ok()).sum();
    TICK * ticks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_in_the_time_of_a_process_and_of_its_ended_children() {
        let before = (of_process(std::process::id()), of_ended_children());
        let spin = "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done";
        assert!(std::process::Command::new("sh").args(["-c", spin]).status().unwrap().success());
        let began = std::time::Instant::now();
        while of_process(std::process::id()) <= before.0 {
            assert!(
                began.elapsed() < Duration::from_secs(60),
                "a minute of spinning left no trace"
            );
        }
        assert!(of_ended_children() > before.1);
    }
}

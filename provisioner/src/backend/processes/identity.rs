//! A process that can be told from another with the same pid.

use std::fs;
use std::process::Command;

/// A pid and when the process that has it was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pid: i32,
    started: String,
}

impl Identity {
    /// Reads what a process wrote of itself: its line of `/proc/<pid>/stat`, or its pid and what
    /// `ps` says.
    pub(super) fn parse(line: &str) -> Option<Self> {
        let line = line.trim();
        let (pid, rest) = line.split_once(' ')?;
        let pid = pid.parse().ok().filter(|pid| *pid > 1)?;
        Some(Self { pid, started: started(rest)?.to_owned() })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether the process is there and was stopped (SIGSTOP), so that it does nothing. Only Linux
    /// tells.
    pub(super) fn is_stopped(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
    }

    /// Whether the very process is there, and is no zombie.
    pub(super) fn is_alive(&self) -> bool {
        if fs::exists("/proc/self/stat").unwrap_or(false) {
            let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", self.pid)) else {
                return false;
            };
            let is_zombie =
                stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with(['Z', 'X']));
            return !is_zombie && Self::parse(&stat).as_ref() == Some(self);
        }
        let ps = Command::new("ps").args(["-o", "lstart=", "-p", &self.pid.to_string()]).output();
        ps.is_ok_and(|ps| String::from_utf8_lossy(&ps.stdout).trim() == self.started)
    }
}

/// The start time: field 22 of Linux's `stat`, of which `rest` lacks the first, or all of what `ps`
/// says.
fn started(rest: &str) -> Option<&str> {
    match rest.rsplit_once(") ") {
        // The name is in parentheses and may hold anything; after it come fields 3 and on.
        Some((_, fields)) if rest.starts_with('(') => fields.split(' ').nth(22 - 3),
        _ => Some(rest.trim()).filter(|rest| !rest.is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat_is_read_whatever_the_program_is_called() {
        let line = "4242 (a ) b) S 1 4242 4242 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2";
        let identity = Identity::parse(line).unwrap();
        assert_eq!((identity.pid(), identity.started.as_str()), (4242, "987654"));
    }

    #[test]
    fn what_ps_says_is_read() {
        let identity = Identity::parse("4242  Sat Nov 21 08:00:00 2026").unwrap();
        assert_eq!(identity.started, "Sat Nov 21 08:00:00 2026");
    }

    #[test]
    fn half_a_line_and_the_first_process_are_nobody() {
        for line in ["", "4242", "1 (init) S", "x (y) S", "-1 (y) S 1"] {
            assert_eq!(Identity::parse(line), None, "{line:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn this_process_is_alive_and_one_that_had_its_pid_before_is_not() {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let identity = Identity::parse(&stat).unwrap();
        assert!(identity.is_alive());
        assert!(!Identity { started: "1".to_owned(), ..identity }.is_alive());
    }
}

//! A child process that leads its own process group, and takes the group along when it goes.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
#[cfg(target_os = "linux")]
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use crate::guard;

/// How often an exit is looked for.
const EXIT_POLL: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(crate) struct Group {
    child: Child,
    exit: Option<ExitStatus>,
}

impl Group {
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = command.process_group(0).spawn()?;
        let group = Self { child, exit: None };
        guard::watch(group.id());
        Ok(group)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn id(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().expect("a process id fits an i32"))
    }

    /// Sends the signal to the whole group; nothing happens when it has ended.
    pub(crate) fn signal(&mut self, signal: Signal) {
        if self.try_exit().is_none() {
            // It may end between the look and the signal, which is what an ended group means
            // anyway.
            let _ended = killpg(self.id(), signal);
        }
    }

    /// Stops the group's time; its leader has stopped, in all its threads, when this returns.
    pub(crate) fn freeze(&mut self) {
        self.signal(Signal::SIGSTOP);
        if self.exit.is_none() {
            await_stop(self.id());
        }
    }

    /// Kills the group and returns when its leader is gone; a frozen group too.
    pub(crate) fn kill9(&mut self) -> ExitStatus {
        self.signal(Signal::SIGKILL);
        let status =
            self.exit.unwrap_or_else(|| self.child.wait().expect("a child is waited for once"));
        self.ended(status)
    }

    /// The exit status of the leader once it has ended. What it left of its group is killed then.
    pub(crate) fn try_exit(&mut self) -> Option<ExitStatus> {
        if self.exit.is_none() {
            let status = self.child.try_wait().expect("a child can be waited for")?;
            self.ended(status);
        }
        self.exit
    }

    pub(crate) async fn wait_exit(&mut self, deadline: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + deadline;
        loop {
            let exit = self.try_exit();
            if exit.is_some() || Instant::now() >= end {
                return exit;
            }
            tokio::time::sleep(EXIT_POLL).await;
        }
    }

    fn ended(&mut self, status: ExitStatus) -> ExitStatus {
        if self.exit.is_none() {
            let _nobody_left = killpg(self.id(), Signal::SIGKILL);
            guard::forget(self.id());
            self.exit = Some(status);
        }
        status
    }
}

/// A signal is delivered some time after it was sent, and until then a frozen process can answer
/// once more. The status stays where it is, for `try_exit`, when the process has ended instead.
#[cfg(target_os = "linux")]
fn await_stop(pid: Pid) {
    let flags = WaitPidFlag::WSTOPPED | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
    waitid(Id::Pid(pid), flags).expect("a child can be waited for");
}

/// Elsewhere there is no call that looks at a stop and leaves an exit alone.
#[cfg(not(target_os = "linux"))]
fn await_stop(_pid: Pid) {}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill9();
    }
}

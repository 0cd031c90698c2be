//! The app as a process: its group, its output, its end.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::oneshot;
use tracing::warn;

use super::children::{Children, KnownChild};
use super::guard::{Guard, NOT_RUN};
use super::output::{LastLines, pass_on};

/// How long output is waited for when the app has ended: what it left behind may hold the pipe.
const LAST_OUTPUT: Duration = Duration::from_millis(200);

/// Between two looks whether all of a group has ended.
const LOOK: Duration = Duration::from_millis(20);

/// How long a group that was killed is waited for: the system may be unable to end what hangs in
/// it.
const KILLED: Duration = Duration::from_secs(1);

/// The command that runs an app.
#[derive(Clone, Debug)]
pub(crate) struct AppCommand {
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
    /// The variable that says its port, if we choose that.
    pub(crate) port_env: Option<String>,
}

/// A variable for the app, and its value.
pub(crate) type PortVariable = Option<(String, u16)>;

/// An app that runs.
pub(crate) struct Running {
    group: ProcessGroup,
    child: Child,
    known: KnownChild,
    _guard: Guard,
    is_told_to_end: bool,
    killed_at: Option<Instant>,
    /// Complete when all of its output was passed on.
    output: [oneshot::Receiver<()>; 2],
    last_lines: Arc<Mutex<LastLines>>,
}

/// An app that ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: u8,
    /// How, in words.
    pub(crate) how: String,
    pub(crate) last_lines: Vec<String>,
}

/// A group of processes, which is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct ProcessGroup(Pid);

impl ProcessGroup {
    /// The group that this process leads.
    ///
    /// # Errors
    /// It has been waited for.
    pub(crate) fn led_by(child: &Child) -> io::Result<Self> {
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        id.map(|id| Self(Pid::from_raw(id))).ok_or_else(|| io::Error::other("it has no id"))
    }

    fn signal(&self, signal: Signal) {
        match killpg(self.0, signal) {
            // All of it is gone.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => warn!(%error, %signal, "the app was not sent a signal"),
        }
    }

    /// Whether there is any process in it, also one that has ended and is not waited for.
    fn is_there(&self) -> bool {
        killpg(self.0, None) != Err(Errno::ESRCH)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}

/// Gives a command the variables that an app has.
pub(crate) fn add_variables(command: &mut Command, port: &PortVariable) {
    // What is for us alone.
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"NATSWAY_") {
            command.env_remove(name);
        }
    }
    if let Some((name, port)) = port {
        command.env(name, port.to_string());
    }
}

impl AppCommand {
    /// Starts it, in a process group of its own. To be called on the main thread, with which the
    /// system would end it.
    ///
    /// # Errors
    /// The system's; then nothing of it runs.
    pub(crate) fn start(&self, port: &PortVariable, children: &Children) -> io::Result<Running> {
        let guard = Guard::start(children)?;
        let mut command = guard.command()?;
        command.arg(&self.program).args(&self.arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        add_variables(&mut command, port);
        let (mut child, known) = children.spawn(&mut command)?;
        let group = ProcessGroup::led_by(&child)?;
        let last_lines = Arc::<Mutex<LastLines>>::default();
        let none = || Err(io::Error::other("it has no output"));
        let stdout = child.stdout.take().map_or_else(none, ChildStdout::into_owned_fd);
        let stderr = child.stderr.take().map_or_else(none, ChildStderr::into_owned_fd);
        let output = [
            pass_on(stdout, io::stdout(), Arc::clone(&last_lines))?,
            pass_on(stderr, io::stderr(), Arc::clone(&last_lines))?,
        ];
        Ok(Running {
            group,
            child,
            known,
            _guard: guard,
            is_told_to_end: false,
            killed_at: None,
            output,
            last_lines,
        })
    }
}

impl Running {
    /// Its process id, which is that of its group.
    pub(crate) fn id(&self) -> Pid {
        self.group.0
    }

    /// Sends a signal to the whole group.
    pub(crate) fn signal(&self, signal: Signal) {
        self.group.signal(signal);
    }

    /// Tells the whole group to end.
    pub(crate) fn terminate(&mut self) {
        self.is_told_to_end = true;
        self.signal(Signal::SIGTERM);
    }

    /// Kills the whole group.
    pub(crate) fn kill(&mut self) {
        self.is_told_to_end = true;
        self.killed_at.get_or_insert_with(Instant::now);
        self.signal(Signal::SIGKILL);
    }

    /// Waits until it ends: its first process, and if it was told to, its whole group. A shell ends
    /// at once where what it runs may take its time.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn exited(&mut self) -> ExitStatus {
        let status = match self.child.wait().await {
            Ok(status) => status,
            Err(error) => {
                warn!(%error, "the app cannot be waited for");
                ExitStatus::from_raw(i32::from(NOT_RUN) << 8)
            }
        };
        while self.is_told_to_end && self.is_left() {
            tokio::time::sleep(LOOK).await;
        }
        status
    }

    /// Whether there is something of its group to wait for.
    fn is_left(&self) -> bool {
        // What has ended and was left to us would be there for ever.
        self.known.children().reap_others();
        self.group.is_there() && self.killed_at.is_none_or(|killed| killed.elapsed() < KILLED)
    }

    /// What is to be said of it, once it has ended. What it left behind in its group ends, too.
    pub(crate) async fn end(self, status: ExitStatus) -> Ended {
        drop(self.group);
        let output = futures_util::future::join_all(self.output);
        // A process that left the group may hold the pipe.
        tokio::time::timeout(LAST_OUTPUT, output).await.ok();
        let lines = self.last_lines.lock().unwrap_or_else(PoisonError::into_inner);
        Ended { code: exit_code(status), how: status.to_string(), last_lines: lines.all() }
    }
}

/// The code that a shell would give.
fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(NOT_RUN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        for (raw, code) in [(0, 0), (3 << 8, 3), (9, 137), (15, 143)] {
            assert_eq!(exit_code(ExitStatus::from_raw(raw)), code);
        }
    }
}

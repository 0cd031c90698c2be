//! The app as a process: its group, its output, its end.
//!
//! It is started by way of this program, which has the system end it with us
//! (`PR_SET_PDEATHSIG`, which is set by a process for itself) and then becomes it.

use std::collections::{HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid, getppid};
use tokio::process::{Child, ChildStderr, ChildStdout, Command};
use tokio::sync::oneshot;
use tracing::{debug, warn};

/// The first argument of this program when it is to become an app.
const BECOME: &str = "__become";

/// This program, even when its file was replaced meanwhile.
const OURSELVES: &str = "/proc/self/exe";

/// The exit codes of a shell for a command that is not there, or cannot be run.
const NOT_FOUND: u8 = 127;
const NOT_RUN: u8 = 126;

/// Lines of the app's output that are kept, and the longest of them.
const LAST_LINES: usize = 20;
const LINE_BYTES: usize = 1_024;

/// How long output is waited for when the app has ended: what it left behind may hold the pipe.
const LAST_OUTPUT: Duration = Duration::from_millis(200);

/// Becomes an app, if this program was started for that.
pub(crate) fn become_app() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next()? != BECOME {
        return None;
    }
    let parent = arguments.next()?.into_string().ok()?.parse().ok()?;
    let program = arguments.next()?;
    if let Err(error) = set_pdeathsig(Signal::SIGKILL) {
        eprintln!("worker: the app outlives this worker if that is killed: {error}");
    }
    // It may have died before the system was told.
    if getppid() != Pid::from_raw(parent) {
        return Some(ExitCode::from(NOT_RUN));
    }
    let error = std::process::Command::new(&program).args(arguments).exec();
    eprintln!("worker: {}: {error}", program.display());
    Some(ExitCode::from(match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_RUN,
    }))
}

/// The command that runs an app.
#[derive(Clone, Debug)]
pub(crate) struct AppCommand {
    pub(crate) program: OsString,
    pub(crate) arguments: Vec<OsString>,
    /// The variable that says its port, and the port.
    pub(crate) port: Option<(String, u16)>,
}

/// An app that runs.
pub(crate) struct Running {
    child: Child,
    group: Pid,
    _known: KnownChild,
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

impl AppCommand {
    /// Starts it, in a process group of its own. To be called on the main thread, with which the
    /// system would end it.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn start(&self, children: &Children) -> io::Result<Running> {
        let mut command = Command::new(OURSELVES);
        command.arg(BECOME).arg(getpid().to_string()).arg(&self.program).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0);
        // What is for us alone.
        for (name, _) in std::env::vars_os() {
            if name.as_encoded_bytes().starts_with(b"NATSWAY_") {
                command.env_remove(name);
            }
        }
        if let Some((name, port)) = &self.port {
            command.env(name, port.to_string());
        }
        let (mut child, _known) = children.spawn(&mut command)?;
        let id = child.id().and_then(|id| i32::try_from(id).ok());
        let group = Pid::from_raw(id.ok_or_else(|| io::Error::other("it has no id"))?);
        let last_lines = Arc::<Mutex<LastLines>>::default();
        let none = || Err(io::Error::other("it has no output"));
        let stdout = child.stdout.take().map_or_else(none, ChildStdout::into_owned_fd);
        let stderr = child.stderr.take().map_or_else(none, ChildStderr::into_owned_fd);
        let output = [
            pass_on(stdout, io::stdout(), Arc::clone(&last_lines))?,
            pass_on(stderr, io::stderr(), Arc::clone(&last_lines))?,
        ];
        Ok(Running { child, group, _known, output, last_lines })
    }
}

impl Running {
    /// Its process id, which is that of its group.
    pub(crate) fn id(&self) -> Pid {
        self.group
    }

    /// Sends a signal to the whole group.
    pub(crate) fn signal(&self, signal: Signal) {
        match killpg(self.group, signal) {
            // All of it is gone.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => warn!(%error, %signal, "the app was not sent a signal"),
        }
    }

    /// Waits until it ends.
    ///
    /// # Cancel safety
    /// Nothing is lost.
    pub(crate) async fn exited(&mut self) -> ExitStatus {
        match self.child.wait().await {
            Ok(status) => status,
            Err(error) => {
                warn!(%error, "the app cannot be waited for");
                ExitStatus::from_raw(i32::from(NOT_RUN) << 8)
            }
        }
    }

    /// What is to be said of it, once it has ended. What it left behind in its group ends, too.
    pub(crate) async fn end(self, status: ExitStatus) -> Ended {
        self.signal(Signal::SIGKILL);
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

/// Passes output on as it comes, and keeps its last lines. On a thread of its own, for whoever
/// takes our output may be slow; what is returned completes at its end.
fn pass_on(
    from: io::Result<OwnedFd>,
    mut to: impl Write + Send + 'static,
    last_lines: Arc<Mutex<LastLines>>,
) -> io::Result<oneshot::Receiver<()>> {
    let mut from = File::from(from?);
    let (ended, end) = oneshot::channel();
    std::thread::Builder::new().name("app-output".to_owned()).spawn(move || {
        let mut piece = vec![0; 8 * 1_024];
        let (mut line, mut is_heard) = (Line::default(), true);
        while let Ok(count @ 1..) = from.read(&mut piece) {
            line.add(&piece[..count], &last_lines);
            // Who closed our own output does not want the app's, which must not be held up.
            is_heard = is_heard && to.write_all(&piece[..count]).and_then(|()| to.flush()).is_ok();
        }
        line.finish(&last_lines);
        // Nobody waits for what comes after the end.
        ended.send(()).ok();
    })?;
    Ok(end)
}

/// The last lines of both outputs, in the order in which they came.
#[derive(Debug, Default)]
struct LastLines(VecDeque<String>);

impl LastLines {
    fn push(&mut self, line: &[u8]) {
        if self.0.len() == LAST_LINES {
            self.0.pop_front();
        }
        self.0.push_back(String::from_utf8_lossy(line).trim_end_matches('\r').to_owned());
    }

    fn all(&self) -> Vec<String> {
        self.0.iter().cloned().collect()
    }
}

/// A line that is not yet whole.
#[derive(Debug, Default)]
struct Line(Vec<u8>);

impl Line {
    fn add(&mut self, piece: &[u8], last_lines: &Mutex<LastLines>) {
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let text = part.strip_suffix(b"\n").unwrap_or(part);
            let room = LINE_BYTES.saturating_sub(self.0.len());
            self.0.extend_from_slice(&text[..text.len().min(room)]);
            if part.ends_with(b"\n") {
                self.finish(last_lines);
            }
        }
    }

    fn finish(&mut self, last_lines: &Mutex<LastLines>) {
        if !self.0.is_empty() {
            last_lines.lock().unwrap_or_else(PoisonError::into_inner).push(&self.0);
            self.0.clear();
        }
    }
}

/// The processes that we wait for, to tell them from those that are left to us as the first
/// process of a container.
#[derive(Clone, Debug, Default)]
pub(crate) struct Children(Arc<Mutex<HashSet<Pid>>>);

/// A process that is known, as long as this is held.
#[derive(Debug)]
pub(crate) struct KnownChild {
    id: Option<Pid>,
    children: Children,
}

impl Drop for KnownChild {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.children.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }
}

impl Children {
    /// Starts a process, and knows it before it could be taken for another's.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<(Child, KnownChild)> {
        let mut own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        own.extend(id);
        Ok((child, KnownChild { id, children: self.clone() }))
    }

    /// Takes leave of processes that have ended and whose parents did before, as the first process
    /// of a container must. Our own are left to whoever waits for them.
    pub(crate) fn reap_others(&self) {
        let own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let Ok(status) = waitid(Id::All, look) else { return };
            let Some(id) = status.pid() else { return };
            if own.contains(&id) {
                // Its waiter takes it in a moment, and what is behind it is seen by the next look.
                return;
            }
            match waitpid(id, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(status) => debug!(?status, "reaped a process that was left behind"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_kept_in_parts_and_bounded() {
        let (lines, mut line) = (Mutex::default(), Line::default());
        for piece in [&b"one\ntw"[..], b"o\r\n", b"\nthree"] {
            line.add(piece, &lines);
        }
        line.finish(&lines);
        assert_eq!(lines.lock().unwrap().all(), ["one", "two", "three"]);
        for number in 0..50 {
            line.add(format!("{number}\n").as_bytes(), &lines);
        }
        let all = lines.lock().unwrap().all();
        assert_eq!((all.len(), all.first().map(String::as_str)), (LAST_LINES, Some("30")));
        line.add(&vec![b'x'; 10_000], &lines);
        line.add(b"\n", &lines);
        assert_eq!(lines.lock().unwrap().all().last().map(String::len), Some(LINE_BYTES));
    }

    #[test]
    fn exit_codes_are_those_of_a_shell() {
        for (raw, code) in [(0, 0), (3 << 8, 3), (9, 137), (15, 143)] {
            assert_eq!(exit_code(ExitStatus::from_raw(raw)), code);
        }
    }
}

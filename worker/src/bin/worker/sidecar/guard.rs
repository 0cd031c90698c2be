//! That an app ends when this worker does, however that ends.
//!
//! The app is started by way of this program, which has the system end it with us
//! (`PR_SET_PDEATHSIG`, which is set by a process for itself) and then becomes it. That ends its
//! first process alone, often a shell. So there is a guard, a process of its own at the reading end
//! of a pipe whose other end we hold: when it reads the pipe's end, we are gone, and it kills the
//! app's whole group.

use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{ExitCode, Stdio};

use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::{Pid, getpid, getppid};
use tokio::process::{Child, Command};

use super::children::{Children, KnownChild};

/// The first argument of this program when it is to become an app, or to be a guard.
const BECOME: &str = "__become";
const GUARD: &str = "__guard";

/// This program, even when its file was replaced meanwhile.
const OURSELVES: &str = "/proc/self/exe";

/// The exit codes of a shell for a command that is not there, or cannot be run.
const NOT_FOUND: u8 = 127;
pub(super) const NOT_RUN: u8 = 126;

/// Is an app or its guard, if this program was started for that.
pub(crate) fn become_other() -> Option<ExitCode> {
    let mut arguments = std::env::args_os().skip(1);
    let role = arguments.next()?;
    if role == GUARD {
        return Some(guard());
    }
    if role != BECOME {
        return None;
    }
    let parent = arguments.next()?.into_string().ok()?.parse().ok()?;
    let program = arguments.next()?;
    if let Err(error) = set_pdeathsig(Signal::SIGKILL).map_err(io::Error::from).and(tell_guard()) {
        eprintln!("worker: the app outlives this worker if that is killed: {error}");
    }
    // It may have died before the system was told.
    if getppid() != Pid::from_raw(parent) {
        return Some(ExitCode::from(NOT_RUN));
    }
    let mut command = std::process::Command::new(&program);
    let error = command.args(arguments).stdin(Stdio::null()).exec();
    eprintln!("worker: {}: {error}", program.display());
    Some(ExitCode::from(match error.kind() {
        io::ErrorKind::NotFound => NOT_FOUND,
        _ => NOT_RUN,
    }))
}

/// Tells the guard which group there is: ours, at the other end of our input.
fn tell_guard() -> io::Result<()> {
    let mut pipe = File::from(io::stdin().as_fd().try_clone_to_owned()?);
    pipe.write_all(getpid().to_string().as_bytes())
}

/// Waits until the worker is gone, and ends what it started.
fn guard() -> ExitCode {
    // What ends others, say with the session or the service, must not end this one before its time.
    SigSet::all().thread_block().ok();
    let mut group = String::new();
    io::stdin().read_to_string(&mut group).ok();
    if let Ok(group) = group.parse() {
        // It is gone, or it ends now.
        killpg(Pid::from_raw(group), Signal::SIGKILL).ok();
    }
    ExitCode::SUCCESS
}

/// The guard of one app; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Guard {
    pipe: PipeWriter,
    _process: Child,
    _known: KnownChild,
}

impl Guard {
    /// Starts a guard, in a process group of its own.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn start(children: &Children) -> io::Result<Self> {
        let (ours, pipe) = io::pipe()?;
        let mut command = Command::new(OURSELVES);
        command.arg(GUARD).env_clear().process_group(0).kill_on_drop(true);
        command.stdin(ours).stdout(Stdio::null()).stderr(Stdio::null());
        let (process, known) = children.spawn(&mut command)?;
        Ok(Self { pipe, _process: process, _known: known })
    }

    /// What starts an app that tells this guard of itself.
    ///
    /// # Errors
    /// The system's.
    pub(super) fn command(&self) -> io::Result<Command> {
        let mut command = Command::new(OURSELVES);
        command.arg(BECOME).arg(getpid().to_string()).stdin(self.pipe.try_clone()?);
        Ok(command)
    }
}

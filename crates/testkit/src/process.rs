//! One of our binaries as a real process.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::eventually::eventually;
use crate::group::Group;

/// How much of a log a failing test prints, in lines.
const TAIL: usize = 40;

/// What a process is started with; [`Process::builder`] makes one.
#[derive(Debug)]
pub struct ProcessBuilder {
    name: String,
    command: Command,
}

/// The memory of a process, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessMemory {
    /// What it has now.
    pub resident: usize,
    /// The most that it ever had.
    pub peak: usize,
}

/// A running program that leads a process group of its own. Its output goes to files.
///
/// Dropped, the whole group is killed; if the test is panicking, the end of the output is printed
/// first.
#[derive(Debug)]
pub struct Process {
    name: String,
    group: Group,
    directory: TempDir,
}

impl ProcessBuilder {
    /// The name that panics and printed output use, when several processes run the same program.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Self {
        self.command.arg(arg);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(args);
        self
    }

    /// Sets a variable of the environment; the others are those of the test.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Runs it in this directory; in that of the test without.
    pub fn current_dir(mut self, directory: impl AsRef<Path>) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Starts the process.
    ///
    /// # Panics
    /// When there is no such program, or it may not be run.
    pub fn start(mut self) -> Process {
        let directory = tempfile::Builder::new().prefix("natsway-process-").tempdir();
        let directory = directory.expect("a temporary directory can be made");
        let file = |name: &str| {
            File::create(directory.path().join(name)).expect("a temporary directory can be written")
        };
        self.command.stdin(Stdio::null()).stdout(file("stdout")).stderr(file("stderr"));
        match Group::spawn(&mut self.command) {
            Ok(group) => Process { name: self.name, group, directory },
            Err(error) => panic!("cannot start {}: {error}", self.command.get_program().display()),
        }
    }
}

impl Process {
    /// Settings for a run of this program, say of
    /// [`workspace_binary("worker")`](crate::workspace_binary).
    pub fn builder(program: impl AsRef<Path>) -> ProcessBuilder {
        let program = program.as_ref();
        let name =
            program.file_name().unwrap_or(program.as_os_str()).to_string_lossy().into_owned();
        ProcessBuilder { name, command: Command::new(program) }
    }

    /// The process, which is its process group's too.
    pub fn pid(&self) -> u32 {
        self.group.pid()
    }

    /// The process's memory, as the system says it (`proc_pid_status(5)`: `VmRSS` and `VmHWM`);
    /// `None` once it is gone.
    pub fn memory(&self) -> Option<ProcessMemory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).ok()?;
        let bytes = |name| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim().strip_suffix(" kB")?.parse::<usize>().ok()? * 1024)
        };
        Some(ProcessMemory { resident: bytes("VmRSS:")?, peak: bytes("VmHWM:")? })
    }

    /// Sends a signal to the process group; nothing happens when the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        self.group.signal(signal);
    }

    /// Asks the process to leave (SIGTERM).
    pub fn terminate(&mut self) {
        self.signal(Signal::SIGTERM);
    }

    /// Kills the process group with SIGKILL; the process is gone when this returns.
    pub fn kill9(&mut self) -> ExitStatus {
        self.group.kill9()
    }

    /// Stops the process group's time (SIGSTOP): sockets stay open, nothing answers, from the
    /// moment this returns.
    pub fn freeze(&mut self) {
        self.group.freeze();
    }

    /// Lets a frozen process group go on.
    pub fn thaw(&mut self) {
        self.signal(Signal::SIGCONT);
    }

    /// How the process ended, if it has.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        self.group.try_exit()
    }

    /// Waits until the process has ended.
    ///
    /// # Panics
    /// When it is still running after the deadline.
    pub async fn wait_exit(&mut self, deadline: Duration) -> ExitStatus {
        match self.group.wait_exit(deadline).await {
            Some(status) => status,
            None => panic!("{} (pid {}) still runs after {deadline:?}", self.name, self.pid()),
        }
    }

    /// What the process has written to its standard output so far.
    pub fn stdout(&self) -> String {
        read(&self.output("stdout"))
    }

    /// What the process has written to its standard error so far.
    pub fn stderr(&self) -> String {
        read(&self.output("stderr"))
    }

    /// Waits until a line of the output (either of the two) contains the text, and returns that
    /// line.
    ///
    /// # Panics
    /// When the deadline passes first, or the process ends without it.
    pub async fn wait_for_line(&mut self, text: &str, deadline: Duration) -> String {
        let found = eventually(deadline, async || {
            // Looked at before the output, so that what an ending process writes last is not
            // missed.
            let ended = self.group.try_exit();
            let output = self.stdout() + &self.stderr();
            match (output.lines().find(|line| line.contains(text)), ended) {
                (Some(line), _) => Ok(Ok(line.to_owned())),
                (None, Some(status)) => Ok(Err(status)),
                (None, None) => Err(format!("{} has no line with {text:?}", self.name)),
            }
        })
        .await;
        found.unwrap_or_else(|status| {
            panic!("{} ended ({status}) without a line with {text:?}", self.name)
        })
    }

    fn output(&self, stream: &str) -> PathBuf {
        self.directory.path().join(stream)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for stream in ["stdout", "stderr"] {
                print_tail(&format!("{} {stream}", self.name), &self.output(stream));
            }
        }
    }
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// Prints the last lines of a file into the output of a failing test.
pub(crate) fn print_tail(title: &str, path: &Path) {
    let text = read(path);
    let lines: Vec<&str> = text.lines().collect();
    eprintln!("--- {title}: the last {} of {} lines", lines.len().min(TAIL), lines.len());
    for line in lines.iter().skip(lines.len().saturating_sub(TAIL)) {
        eprintln!("{line}");
    }
}

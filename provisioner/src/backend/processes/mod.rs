//! Instances as processes of the system, each the leader of a process group of its own.
//!
//! They outlive the provisioner. Another one finds them in the state directory and goes on with
//! them; none is started twice and none is forgotten:
//!
//! - `lock` is held by the one provisioner that manages the directory, and falls with it, however
//!   it ends.
//! - `<id>/` is one instance. It is made before the process is; the process writes `<id>/pid`
//!   itself, with the time when it was started, before it becomes the program; where it cannot,
//!   because the directory is gone, it ends. So a directory without a pid is a process that will
//!   appear at once or never.
//! - `<id>/rules` says by which command and environment it was started, so that others are told
//!   apart when these change.
//! - `<id>/stop` says since when it is told to stop, so that whoever goes on knows when to kill it.
//! - `<id>/log` has what the process writes; when it has ended, it goes to `logs/`, which keeps the
//!   newest twenty.
//!
//! A pid is believed only while the process that has it was started at the time that was written.

mod identity;
mod state;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use natsway_boot::Clock;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tracing::{info, warn};

use super::{Backend, BackendError, Instance, InstanceState};
use identity::Identity;
use state::{Entry, StateDirectory};

/// Writes its own identity, then becomes the program: the pid stays the same.
const LAUNCH: &str = r#"
if [ -r "/proc/$$/stat" ]; then read -r started <"/proc/$$/stat"; else started="$$ $(ps -o lstart= -p $$)"; fi
printf '%s\n' "$started" >"$1/pid.new" && mv "$1/pid.new" "$1/pid" || exit 1
log=$1/log; shift
exec "$@" >>"$log" 2>&1
"#;

/// A process that has not written its pid after this never will: it was not started, or could not
/// write.
const APPEARS_WITHIN: Duration = Duration::from_secs(5);

/// What a processes backend is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessRules {
    /// The program and its arguments; `{instance}` stands for the instance's id.
    pub command: Vec<String>,
    /// Variables added to the environment.
    pub environment: Vec<(String, String)>,
    /// Variables whose name begins with `NATS_` and that are passed on; without, those that say
    /// where the broker is and not who we are.
    pub inherit: Option<Vec<String>>,
    /// Where the state is kept; one directory for each target.
    pub state: PathBuf,
    /// How long a process takes until it works: it counts as starting until then.
    pub ready_after: Duration,
    /// How long a process may take to leave after SIGTERM; then it is killed.
    pub stop_deadline: Duration,
}

impl ProcessRules {
    /// A number for what an instance is started by: another one for another command or environment
    /// (FNV-1a).
    fn fingerprint(&self) -> u64 {
        // The number of words comes first, so that none can pass from one list to the other.
        let count = self.command.len().to_string();
        let environment = self.environment.iter().flat_map(|(key, value)| [key, value]);
        let words = std::iter::once(&count).chain(&self.command).chain(environment);
        let bytes = words.flat_map(|word| word.bytes().chain([0]));
        bytes.fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }

    /// Searches for the program as the shell will: what is not there must not be called started.
    fn find_program(&self) -> io::Result<()> {
        let program = &self.command[0];
        let is_program = |path: &Path| {
            path.metadata()
                .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
        };
        let own = self
            .environment
            .iter()
            .find(|(key, _)| key == "PATH")
            .map(|(_, value)| OsString::from(value));
        let path = own.or_else(|| std::env::var_os("PATH")).unwrap_or_default();
        let is_found = match program.contains('/') {
            true => is_program(Path::new(program)),
            false => {
                std::env::split_paths(&path).any(|directory| is_program(&directory.join(program)))
            }
        };
        match is_found {
            true => Ok(()),
            false if program.contains('/') => Err(io::Error::other(format!(
                "{program} is no program that may be run: is it installed?"
            ))),
            false => Err(io::Error::other(format!(
                "no program {program} in PATH ({}): is it installed?",
                path.display()
            ))),
        }
    }
}

/// Starts and stops processes.
pub struct Processes {
    rules: ProcessRules,
    state: StateDirectory,
    clock: Clock,
    /// Those that are ours, to be reaped.
    children: Vec<std::process::Child>,
}

impl Processes {
    /// Takes over the state directory, with whatever runs there.
    ///
    /// # Errors
    /// When it cannot be used, or another provisioner manages it.
    pub fn open(rules: ProcessRules) -> Result<Self, BackendError> {
        let what = || format!("state directory {}", rules.state.display());
        if rules.command.is_empty() {
            return Err(BackendError::new(what(), "no command was given"));
        }
        let state =
            StateDirectory::open(&rules.state).map_err(|error| BackendError::new(what(), error))?;
        Ok(Self { rules, state, clock: Clock::start(), children: Vec::new() })
    }

    fn now_ms(&self) -> u64 {
        self.clock.unix_ms_at(Instant::now())
    }

    /// Examines every entry, forgets those whose process is gone, and kills those that had their
    /// time.
    fn survey(&mut self) -> io::Result<Vec<Instance>> {
        self.children.retain_mut(|child| !matches!(child.try_wait(), Ok(Some(_))));
        let now_ms = self.now_ms();
        let mut instances = Vec::new();
        for entry in self.state.entries()? {
            instances.extend(self.judge(now_ms, &entry)?);
        }
        Ok(instances)
    }

    fn judge(&self, now_ms: u64, entry: &Entry) -> io::Result<Option<Instance>> {
        let is_outdated = entry.rules.is_some_and(|rules| rules != self.rules.fingerprint());
        let instance = |state| {
            Some(Instance { is_outdated, ..Instance::new(&entry.id, state, entry.since_ms) })
        };
        let age = Duration::from_millis(now_ms.saturating_sub(entry.since_ms));
        let Some(identity) = self.state.identity(entry)? else {
            if age < APPEARS_WITHIN {
                return Ok(instance(InstanceState::Starting));
            }
            warn!(instance = %entry.id, "a process that was to be started never appeared");
            self.state.remove(entry)?;
            return Ok(None);
        };
        if !identity.is_alive() {
            self.state.remove(entry)?;
            let (instance, pid) = (&entry.id, identity.pid());
            if entry.stop_ms.is_some() {
                info!(%instance, pid, "process ended");
            } else {
                let log = self.state.log_of(entry);
                warn!(%instance, pid, log = %log.display(), "process ended by itself");
            }
            return Ok(None);
        }
        let Some(told_ms) = entry.stop_ms else {
            let works = age >= self.rules.ready_after;
            let instance =
                instance(if works { InstanceState::Ready } else { InstanceState::Starting });
            return Ok(instance.map(|of| Instance { is_frozen: identity.is_stopped(), ..of }));
        };
        if Duration::from_millis(now_ms.saturating_sub(told_ms)) >= self.rules.stop_deadline {
            warn!(instance = %entry.id, pid = identity.pid(), "did not leave in time, killed");
            signal(&identity, Signal::SIGKILL);
        }
        Ok(instance(InstanceState::Stopping))
    }

    fn launch(&mut self) -> io::Result<()> {
        self.rules.find_program()?;
        let id = natsway_boot::random_id();
        let directory = self.state.add(&id, self.now_ms(), self.rules.fingerprint())?;
        let fill = |part: &String| OsString::from(part.replace("{instance}", &id));
        let mut command = Command::new("sh");
        command
            .args(["-c", LAUNCH, "launch"])
            .arg(&directory)
            .args(self.rules.command.iter().map(fill));
        let inherit = self.rules.inherit.as_deref();
        for (name, _) in
            std::env::vars_os().filter(|(name, value)| !passes_on(inherit, name, value))
        {
            command.env_remove(name);
        }
        command.envs(self.rules.environment.iter().map(|(key, value)| (key, value)));
        command.env("NATSWAY_PROVISIONED", &id);
        // A group of its own: what ends the provisioner, Ctrl-C included, does not end it.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn()?;
        info!(instance = %id, pid = child.id(), program = %self.rules.command[0], "process started");
        self.children.push(child);
        Ok(())
    }

    fn tell_to_stop(&mut self, id: &str) -> io::Result<()> {
        let now_ms = self.now_ms();
        let Some(entry) = self.state.entries()?.into_iter().find(|entry| entry.id == id) else {
            return Ok(());
        };
        if entry.stop_ms.is_some() {
            return Ok(());
        }
        let Some(identity) = self.state.identity(&entry)? else {
            // It has not appeared yet: without its directory it never does.
            return self.state.remove(&entry);
        };
        self.state.note_stop(&entry, now_ms)?;
        if identity.is_alive() {
            info!(instance = %id, pid = identity.pid(), "process told to stop");
            signal(&identity, Signal::SIGTERM);
        }
        Ok(())
    }
}

/// What a process inherits of the variables by which a program connects to the broker, where
/// nothing else is configured: a worker is another user of the broker than the provisioner, whose
/// rights it must not have.
const WHERE_THE_BROKER_IS: [&str; 3] = ["NATS_URL", "NATS_CA", "NATS_TLS_FIRST"];

/// Whether a variable of ours is passed on to a process.
fn passes_on(inherit: Option<&[String]>, name: &OsStr, value: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return true };
    match inherit {
        _ if !name.starts_with("NATS_") => true,
        Some(named) => named.iter().any(|named| named == name),
        // An address may have a user and a password in it.
        None => WHERE_THE_BROKER_IS.contains(&name) && !value.as_encoded_bytes().contains(&b'@'),
    }
}

/// Sends a signal to the whole group of a process that was just seen alive.
fn signal(identity: &Identity, signal: Signal) {
    if let Err(error) = killpg(Pid::from_raw(identity.pid()), signal) {
        warn!(pid = identity.pid(), %signal, %error, "process not signalled");
    }
}

impl Backend for Processes {
    fn instances(&mut self) -> BoxFuture<'_, Result<Vec<Instance>, BackendError>> {
        let surveyed =
            self.survey().map_err(|error| BackendError::new("processes not counted", error));
        ready(surveyed).boxed()
    }

    fn start(&mut self) -> BoxFuture<'_, Result<(), BackendError>> {
        let started = self.launch();
        let what = || format!("start {}", self.rules.command[0]);
        ready(started.map_err(|error| BackendError::new(what(), error))).boxed()
    }

    fn stop<'a>(&'a mut self, id: &'a str) -> BoxFuture<'a, Result<(), BackendError>> {
        let told = self.tell_to_stop(id);
        ready(told.map_err(|error| BackendError::new(format!("stop process {id}"), error))).boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_inherits_where_the_broker_is_and_not_who_we_are() {
        let passes = |inherit: Option<&[String]>, name: &str, value: &str| {
            passes_on(inherit, OsStr::new(name), OsStr::new(value))
        };
        for (name, value, expected) in [
            ("PATH", "/bin", true),
            ("NATSWAY_LOG", "info", true),
            ("NATS_URL", "nats://a,tls://b:1", true),
            ("NATS_URL", "nats://a,nats://me:s3cr3t@b", false),
            ("NATS_CA", "/tls/ca.pem", true),
            ("NATS_PASSWORD", "s3cr3t", false),
            ("NATS_PASSWORD_FILE", "/run/secrets/x", false),
            ("NATS_CREDS", "/x", false),
            ("NATS_ANYTHING_ELSE", "x", false),
        ] {
            assert_eq!(passes(None, name, value), expected, "{name}={value}");
        }
        let named = ["NATS_CREDS".to_owned(), "NATS_URL".to_owned()];
        for (name, expected) in
            [("NATS_CREDS", true), ("NATS_URL", true), ("NATS_CA", false), ("HOME", true)]
        {
            assert_eq!(passes(Some(&named), name, "me:s3cr3t@b"), expected, "{name}");
        }
        assert!(!passes(Some(&[]), "NATS_URL", "a"));
    }
}

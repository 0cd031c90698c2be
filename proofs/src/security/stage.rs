//! A broker with permissions and the programs that use it, for as long as a proof needs them. Each
//! stage has its own directory, ports and store; whatever was started ends with it.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use natsway_testkit::{
    Process, Signal, free_port, nats_server, workspace_binary, workspace_example,
};
use tempfile::TempDir;

use super::accounts;
use super::intruder::Intruder;
use super::page;
use super::permissions::{ROLES, shipped};
use super::played::{PlayError, Played};
use super::running::{BROKER, CALLER, Running};
use super::secrets::{SETUP, password, variable, with_setup};
use super::server_log::{Operation, Violation};
use super::trio::Trio;

/// A cold start on a machine that does other things as well.
const DEADLINE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(100);
/// How long a page is waited for.
const PAGE: Duration = Duration::from_secs(10);

/// Where roles hear answers, if not below `_INBOX_<role>`.
const INBOXES: [(&str, &str); 3] =
    [("gateway", "_INBOX_apiproxy"), ("groups", "_INBOX_cg"), ("member", "_INBOX_cg")];

/// A directory for a stage.
///
/// # Errors
/// The system's.
pub(super) fn directory() -> io::Result<TempDir> {
    tempfile::Builder::new().prefix("natsway-stage-").tempdir()
}

/// What serves the programs of a stage.
#[derive(Debug)]
pub(super) enum Brokers {
    /// One, with the permissions of roles.
    Alone,
    /// One, with accounts.
    WithAccounts,
    /// Three, as the Compose files have them.
    Three(Trio),
}

/// A running broker, or three, and what was started with it.
#[derive(Debug)]
pub(super) struct Stage {
    running: RefCell<Vec<Rc<Running>>>,
    /// Whose violations end the play at once.
    watched: Option<String>,
    pub(super) brokers: Brokers,
    /// Where gateways that are asked listen for clients, and for operators.
    pub(super) listen: u16,
    pub(super) admin: u16,
    port: u16,
    directory: TempDir,
}

impl Stage {
    /// Starts a broker with these permissions, in one account.
    pub(super) fn new(permissions: &str) -> Played<Self> {
        let files = [("permissions.conf", with_setup(permissions))];
        Self::begin(Brokers::Alone, &files)
    }

    /// The same; a play ends when this role is not permitted something.
    pub(super) fn watching(permissions: &str, role: &str) -> Played<Self> {
        Ok(Self { watched: Some(role.to_owned()), ..Self::new(permissions)? })
    }

    /// Starts a broker with these accounts.
    pub(super) fn with_accounts(accounts: &str) -> Played<Self> {
        let permissions = shipped("permissions.conf");
        let files =
            [("accounts.conf", accounts::with_owners(accounts)), ("permissions.conf", permissions)];
        Self::begin(Brokers::WithAccounts, &files)
    }

    /// Writes files, of which the broker's configuration includes the first, and starts it.
    fn begin(brokers: Brokers, files: &[(&str, String)]) -> Played<Self> {
        let stage = Self::empty(brokers, directory()?);
        for (name, text) in files {
            std::fs::write(stage.file(name), text)?;
        }
        let home = stage.directory().display();
        let config = format!(
            "host: 127.0.0.1\nport: {}\ntrace: true\nlogfile: \"{home}/server.log\"\n\
             jetstream {{ store_dir: \"{home}/jetstream\" }}\ninclude ./{}\n",
            stage.port, files[0].0
        );
        std::fs::write(stage.file("server.conf"), config)?;
        stage.serve()?;
        Ok(stage)
    }

    /// A stage on which nothing runs.
    pub(super) fn empty(brokers: Brokers, directory: TempDir) -> Self {
        let [listen, admin, port] = [free_port(), free_port(), free_port()];
        let (running, watched) = (RefCell::default(), None);
        Self { running, watched, brokers, listen, admin, port, directory }
    }

    fn serve(&self) -> Played<()> {
        let roles = match self.has_accounts() {
            true => accounts::users().into_iter().map(|user| user.name).collect(),
            false => ROLES.map(str::to_owned).to_vec(),
        };
        let variable = |role: &String| (variable(role), password(role));
        let mut broker = Process::builder(nats_server()).name(BROKER);
        broker = broker.arg("--config").arg(self.file("server.conf"));
        for (name, value) in roles.iter().map(variable) {
            broker = broker.env(name, value);
        }
        let server = self.add(BROKER, broker.start());
        self.until("the broker listens", || {
            if server.has_ended() {
                let log = self.server_log();
                let end = log.chars().rev().take(2_000).collect::<Vec<_>>();
                let end: String = end.into_iter().rev().collect();
                return Err(PlayError::Failed(format!("the broker ended: {}{end}", server.text())));
            }
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok())
        })
    }

    fn has_accounts(&self) -> bool {
        matches!(self.brokers, Brokers::WithAccounts)
    }

    /// Whether its broker dies in the plays: one of three is killed under load instead.
    pub(super) fn loses_brokers(&self) -> bool {
        !matches!(self.brokers, Brokers::Three(_))
    }

    /// Has the only broker die, and come back with what it has stored.
    pub(super) fn lose_broker(&self) -> Played<()> {
        self.broker().kill();
        self.serve()
    }

    fn broker(&self) -> Rc<Running> {
        let is_broker = |running: &&Rc<Running>| running.role == BROKER;
        let last = self.running.borrow().iter().rev().find(is_broker).cloned();
        last.expect("a stage has a broker")
    }

    /// Has the only broker go by other permissions.
    pub(super) fn permit(&self, permissions: &str) -> Played<()> {
        const READ: &str = "Reloaded server configuration";
        let read = || self.server_log().matches(READ).count();
        let before = read();
        std::fs::write(self.file("permissions.conf"), with_setup(permissions))?;
        self.broker().process.borrow_mut().signal(Signal::SIGHUP);
        self.until("the broker has read them", || Ok(read() > before))
    }

    /// The secret of a role here.
    pub(super) fn password(&self, role: &str) -> String {
        match &self.brokers {
            Brokers::Three(trio) => trio.password(role),
            Brokers::Alone | Brokers::WithAccounts => password(role),
        }
    }

    /// What a program of a role is told of the broker.
    fn credentials(&self, role: &str) -> Vec<(&'static str, String)> {
        let mut told = vec![("NATS_USER", role.to_owned()), ("NATS_PASSWORD", self.password(role))];
        match &self.brokers {
            Brokers::Three(trio) => told.extend(trio.variables()),
            Brokers::Alone | Brokers::WithAccounts => {
                told.push(("NATS_URL", format!("nats://127.0.0.1:{}", self.port)));
            }
        }
        told
    }

    /// Where everything of the stage is.
    pub(super) fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A file there.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory().join(name)
    }

    /// The broker's port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Starts one of our programs as a role, with arguments and variables.
    pub(super) fn start(
        &self,
        role: &str,
        program: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Rc<Running> {
        let mut command = Process::builder(self::program(program)).name(role);
        command = command
            .args(arguments)
            .current_dir(self.directory())
            // A context of the machine's owner must not lead cg elsewhere.
            .env("XDG_CONFIG_HOME", self.directory());
        for (name, value) in self.credentials(role) {
            command = command.env(name, value);
        }
        for (name, value) in variables {
            command = command.env(name, value);
        }
        self.add(role, command.start())
    }

    /// Takes a program in, which ends with the stage.
    pub(super) fn add(&self, role: &str, process: Process) -> Rc<Running> {
        let running = Running { role: role.to_owned(), process: RefCell::new(process) };
        let running = Rc::new(running);
        self.running.borrow_mut().push(Rc::clone(&running));
        running
    }

    /// Runs one of our programs as a role to its end, and returns what it printed. It has to
    /// succeed.
    pub(super) fn run(&self, role: &str, program: &str, arguments: &[&str]) -> Played<String> {
        self.run_with(role, program, arguments, &[])
    }

    /// The same with variables.
    pub(super) fn run_with(
        &self,
        role: &str,
        program: &str,
        arguments: &[&str],
        variables: &[(&str, &str)],
    ) -> Played<String> {
        let running = self.start(role, program, arguments, variables);
        let shown = format!("{program} {}", arguments.join(" "));
        self.until(&format!("{shown} ends"), || Ok(running.has_ended()))?;
        match running.exit_code() {
            Some(0) => Ok(running.printed()),
            code => {
                let text = running.text();
                Err(PlayError::Failed(format!("{shown}: exit code {code:?}: {text}")))
            }
        }
    }

    /// Has an administrator make the buckets and streams that programs need, and finds that there
    /// is nothing left to do.
    pub(super) fn set_up(&self, arguments: &[&str]) -> Played<()> {
        self.run("admin", "apiproxy", &[&["setup"], arguments].concat())?;
        self.run("admin", "apiproxy", &[&["setup", "--dry-run"], arguments].concat())?;
        Ok(())
    }

    /// Runs a program of another role as an administrator, who has inboxes of his own.
    pub(super) fn run_admin(&self, program: &str, arguments: &[&str]) -> Played<String> {
        self.run_with("admin", program, arguments, &[("NATS_INBOX_PREFIX", "_INBOX_admin")])
    }

    /// A connection as a user that does what no program of ours does.
    pub(super) fn intruder(&self, user: &str) -> Played<Intruder> {
        let known = self.has_accounts().then(|| accounts::inbox_of(user)).flatten();
        let usual = INBOXES.iter().find(|(role, _)| *role == user).map(|(_, inbox)| inbox);
        let inbox = known.or(usual.map(|inbox| (*inbox).to_owned()));
        let inbox = inbox.unwrap_or_else(|| format!("_INBOX_{user}"));
        Intruder::connect(self.port, user, &password(user), &inbox)
    }

    /// Whoever may do anything in the account of a role.
    pub(super) fn owner(&self, of: &str) -> Played<Intruder> {
        match self.has_accounts() {
            true => self.owner_of_account(&accounts::account_of(of)),
            false => self.intruder(SETUP),
        }
    }

    /// Whoever may do anything in an account.
    pub(super) fn owner_of_account(&self, account: &str) -> Played<Intruder> {
        self.intruder(&accounts::owner_name(account))
    }

    /// Makes a stream for an elastic group, as whoever sets up the broker does: with permissions
    /// for all.
    pub(super) fn admin_stream(&self, name: &str) -> Played<()> {
        self.run(SETUP, "cg", &["elastic", "setup", name]).map(drop)
    }

    /// The same for a static group.
    pub(super) fn admin_partitioned_stream(&self, name: &str, partitions: u32) -> Played<()> {
        let partitions = partitions.to_string();
        self.run(SETUP, "cg", &["static", "setup", name, "--partitions", &partitions]).map(drop)
    }

    /// Ten messages into a stream.
    pub(super) fn admin_traffic(&self, name: &str) -> Played<()> {
        self.run(SETUP, "cg", &["traffic", name, "--count", "10", "--every", "1ms"]).map(drop)
    }

    /// Asks a program to leave, and waits until it has, in peace.
    pub(super) fn stop(&self, running: &Running) -> Played<()> {
        running.process.borrow_mut().terminate();
        self.until(&format!("{} leaves", running.role), || Ok(running.has_ended()))?;
        match running.exit_code() {
            Some(0) => Ok(()),
            code => {
                let (role, text) = (&running.role, running.text());
                Err(PlayError::Failed(format!("{role} left with exit code {code:?}: {text}")))
            }
        }
    }

    /// Looks until something holds; ends early when the watched role is not permitted something.
    pub(super) fn until(&self, what: &str, holds: impl FnMut() -> Played<bool>) -> Played<()> {
        match self.wait(DEADLINE, holds)? {
            true => Ok(()),
            false => {
                let within = DEADLINE.as_secs();
                let last = self.last_words();
                Err(PlayError::Failed(format!("within {within} s it was not so that {what}{last}")))
            }
        }
    }

    /// The same, and says whether it came to hold.
    pub(super) fn wait(
        &self,
        within: Duration,
        mut holds: impl FnMut() -> Played<bool>,
    ) -> Played<bool> {
        let deadline = Instant::now() + within;
        while !holds()? {
            self.check()?;
            if Instant::now() > deadline {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
        self.check()?;
        Ok(true)
    }

    /// The end of each log, for whoever has to find out why.
    fn last_words(&self) -> String {
        let words = |running: &Rc<Running>| {
            let state = if running.has_ended() { "has ended" } else { "runs" };
            let text = running.text();
            let lines: Vec<&str> = text.lines().collect();
            let end = lines[lines.len().saturating_sub(3)..].join("\n");
            format!("\n--- {} {state}\n{end}", running.role)
        };
        self.running.borrow().iter().map(words).collect()
    }

    fn check(&self) -> Played<()> {
        let Some(watched) = &self.watched else { return Ok(()) };
        let violated = self.violations().into_iter().find(|violation| violation.role == *watched);
        match violated {
            None => Ok(()),
            Some(Violation { operation, subject, .. }) => {
                Err(PlayError::Violated { operation, subject })
            }
        }
    }

    /// What was not permitted so far.
    pub(super) fn violations(&self) -> Vec<Violation> {
        self.server_log().lines().filter_map(Violation::read).collect()
    }

    /// What was done so far.
    pub(super) fn operations(&self) -> BTreeSet<Operation> {
        self.server_log().lines().filter_map(Operation::read).collect()
    }

    /// How often a role did something, such as `SUB logs.>`.
    pub(super) fn count(&self, role: &str, operation: &str) -> usize {
        self.server_log().matches(&format!("user:{role}\" - <<- [{operation}")).count()
    }

    /// What the brokers say, with each operation of a client.
    pub(super) fn server_log(&self) -> String {
        let logs = match &self.brokers {
            Brokers::Three(trio) => trio.logs(),
            Brokers::Alone | Brokers::WithAccounts => vec![self.file("server.log")],
        };
        let read = |log| std::fs::read(log).unwrap_or_default();
        let logs: Vec<u8> = logs.into_iter().flat_map(read).collect();
        String::from_utf8_lossy(&logs).into_owned()
    }

    /// Passwords in logs of ours, a sentence each.
    pub(super) fn told_secrets(&self) -> Vec<String> {
        let mut told = Vec::new();
        for running in self.running.borrow().iter().filter(|running| running.role != BROKER) {
            let text = running.text();
            let of = ROLES.iter().filter(|role| text.contains(&self.password(role)));
            told.extend(of.map(|of| format!("{} tells the password of {of}", running.role)));
        }
        told
    }

    /// Whether a program of the role says what is not permitted.
    pub(super) fn is_told(&self, role: &str, subject: &str) -> bool {
        let tells = |running: &Rc<Running>| {
            let text = running.text();
            let mut lines = text.lines();
            lines.any(|line| line.contains("does not permit") && line.contains(subject))
        };
        self.running.borrow().iter().filter(|running| running.role == role).any(tells)
    }

    /// A GET at the gateway; status 0 when there is no answer.
    pub(super) fn get(&self, path: &str) -> (u16, String) {
        page::get(self.listen, path, PAGE)
    }

    /// Whether a GET at the gateway is answered with this status.
    pub(super) fn is_answered(&self, path: &str, status: u16) -> bool {
        self.get(path).0 == status
    }

    /// The gateway's page of metrics; empty when there is none.
    pub(super) fn metrics(&self) -> String {
        match page::get(self.admin, "/metrics", PAGE) {
            (200, page) => page,
            _ => String::new(),
        }
    }
}

/// One of our programs, or the example that calls another worker.
fn program(name: &str) -> PathBuf {
    match name {
        CALLER => workspace_example(name),
        name => workspace_binary(name),
    }
}

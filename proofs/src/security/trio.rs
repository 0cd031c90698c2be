//! Three brokers as `docker-compose.secured.yml` has them in the profile `cluster`, as processes of
//! this machine. The configuration is what is shipped in `deploy/nats`, and the secrets are made by
//! its script; only addresses and paths are others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use natsway_testkit::{Process, free_port, nats_server};
use serde_json::Value;

use super::page;
use super::permissions::{path, usual};
use super::played::{PlayError, Played};
use super::secrets::{password, with_setup};

pub(super) const NAMES: [&str; 3] = ["nats-1", "nats-2", "nats-3"];

/// Four connections between any two: three for messages, one for the system's account.
const ROUTES: usize = 4 * (NAMES.len() - 1);

/// One of the brokers.
#[derive(Debug)]
pub(super) struct Member {
    name: &'static str,
    home: PathBuf,
    port: u16,
    monitor: u16,
    pub(super) route: u16,
}

/// All three, and their secrets.
#[derive(Debug)]
pub(super) struct Trio {
    pub(super) members: Vec<Member>,
    pub(super) secrets: PathBuf,
    /// The passwords, by their variables.
    passwords: BTreeMap<String, String>,
}

/// Whether certificates can be made here.
pub(super) fn is_possible() -> bool {
    let mut openssl = Command::new("openssl");
    let told = openssl.arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    told.is_ok_and(|status| status.success())
}

impl Trio {
    /// Makes secrets and writes each member's configuration below a directory.
    pub(super) fn prepare(home: &Path) -> Played<Self> {
        let secrets = home.join("secrets");
        let made = Command::new(path("make-secrets.sh")).arg(&secrets).output()?;
        if !made.status.success() {
            let why = String::from_utf8_lossy(&made.stderr).into_owned();
            return Err(PlayError::Failed(format!("no secrets are made: {why}")));
        }
        let lines = fs::read_to_string(secrets.join("passwords.env"))?;
        let passwords = lines.lines().filter_map(|line| line.split_once('='));
        let passwords =
            passwords.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        let member = |name| Member {
            name,
            home: home.join(name),
            port: free_port(),
            monitor: free_port(),
            route: free_port(),
        };
        let trio = Self { members: NAMES.map(member).into(), secrets, passwords };
        for member in &trio.members {
            trio.configure(member)?;
        }
        Ok(trio)
    }

    /// Writes a member's configuration: what is shipped, with this machine's addresses and paths in
    /// it.
    fn configure(&self, member: &Member) -> Played<()> {
        let home = member.home.display();
        let monitor = format!("http: \"127.0.0.1:{}\"\n", member.monitor);
        let mut here = vec![
            (
                "port: 4222\n".to_owned(),
                format!(
                    "host: 127.0.0.1\nport: {}\ntrace: true\nlogfile: \"{home}/server.log\"\n",
                    member.port
                ),
            ),
            ("http_port: 8222\n".to_owned(), monitor.clone()),
            ("http: \"127.0.0.1:8222\"\n".to_owned(), monitor),
            ("store_dir: /jetstream\n".to_owned(), format!("store_dir: \"{home}/jetstream\"\n")),
            ("port: 6222\n".to_owned(), format!("host: 127.0.0.1\nport: {}\n", member.route)),
            ("\"/tls/".to_owned(), format!("\"{}/", self.secrets.display())),
        ];
        for other in &self.members {
            let there = format!("nats://{}:6222\n", other.name);
            here.push((there, format!("nats://127.0.0.1:{}\n", other.route)));
        }
        fs::create_dir(&member.home)?;
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(path(""))? {
            let file = entry?.path();
            if file.extension().is_none_or(|extension| extension != "conf") {
                continue;
            }
            let mut text = fs::read_to_string(&file)?;
            for (there, ours) in &here {
                if text.contains(there) {
                    found.insert(there);
                    text = text.replace(there, ours);
                }
            }
            let name = file.file_name().expect("a file has a name");
            if name == "permissions.conf" {
                text = with_setup(&usual());
            }
            fs::write(member.home.join(name), text)?;
        }
        let gone: Vec<_> = here.iter().filter(|(there, _)| !found.contains(there)).collect();
        match gone.is_empty() {
            true => Ok(()),
            false => Err(PlayError::Failed(format!("not in deploy/nats any more: {gone:?}"))),
        }
    }

    /// The secret of a role; that of whoever sets up streams is none of the script's.
    pub(super) fn password(&self, role: &str) -> String {
        let made = self.passwords.get(&format!("NATSWAY_{}_PASSWORD", role.to_uppercase()));
        made.cloned().unwrap_or_else(|| password(role))
    }

    /// What programs are told of the brokers, as the Compose files do, with all addresses.
    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        let url = |member: &Member| format!("nats://127.0.0.1:{}", member.port);
        let urls: Vec<String> = self.members.iter().map(url).collect();
        let three = || "3".to_owned();
        vec![
            ("NATS_CA", self.secrets.join("authority.pem").display().to_string()),
            ("NATS_URL", urls.join(",")),
            ("NATSWAY_ROUTES_REPLICAS", three()),
            ("NATSWAY_LEASE_REPLICAS", three()),
            ("SHIPPER_STREAM_REPLICAS", three()),
        ]
    }

    /// The logs of all members.
    pub(super) fn logs(&self) -> Vec<PathBuf> {
        self.members.iter().map(|member| member.home.join("server.log")).collect()
    }

    /// Starts a member, with the command of the Compose file.
    pub(super) fn start(&self, member: &Member) -> Process {
        let mut broker = Process::builder(nats_server()).name(member.name);
        broker = broker.arg("--config").arg(member.home.join("secured-cluster.conf"));
        for (name, value) in self.passwords.iter().filter(|(name, _)| name.ends_with("_PASSWORD")) {
            broker = broker.env(name, value);
        }
        broker.env("SERVER_NAME", member.name).start()
    }

    /// Whether every member has all its routes, and JetStream is well at each.
    pub(super) fn is_whole(&self) -> bool {
        self.members.iter().all(|member| {
            let routes = member.look("/routez")["routes"].as_array().map_or(0, Vec::len);
            routes == ROUTES && member.look("/healthz")["status"] == "ok"
        })
    }

    /// How many copies a stream has, by what the members say.
    pub(super) fn copies(&self, stream: &str) -> u64 {
        let of = |member: &Member| {
            let page = member.look("/jsz?streams=true&config=true");
            let accounts = page["account_details"].as_array().cloned().unwrap_or_default();
            let streams = accounts.iter().filter_map(|account| account["stream_detail"].as_array());
            let this = streams.flatten().filter(|detail| detail["name"] == stream);
            this.filter_map(|detail| detail["config"]["num_replicas"].as_u64()).max().unwrap_or(0)
        };
        self.members.iter().map(of).max().unwrap_or(0)
    }
}

impl Member {
    /// A page of its monitoring; null when there is none.
    pub(super) fn look(&self, page: &str) -> Value {
        let (_, text) = page::get(self.monitor, page, Duration::from_secs(10));
        serde_json::from_str(&text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use natsway_testkit::repository_root;

    use super::super::permissions::shipped;
    use super::*;

    /// Texts below `/tls/` between quotation marks, or after a colon and before `:ro`.
    fn of_tls(text: &str, before: &str, after: &str) -> BTreeSet<String> {
        let begin = format!("{before}/tls/");
        let rests = text.split(&begin).skip(1).filter_map(|rest| rest.split_once(after));
        rests.map(|(name, _)| format!("/tls/{name}")).collect()
    }

    #[test]
    fn the_members_are_the_services_and_get_what_their_configuration_names() {
        let compose = repository_root().join("docker-compose.secured.yml");
        let compose = fs::read_to_string(compose).unwrap();
        let (_, member) = compose.split_once("\n  nats-1: &member\n").unwrap();
        let is_of = |line: &&str| line.starts_with("    ");
        let member: String =
            member.lines().take_while(is_of).map(|line| format!("{line}\n")).collect();
        for other in &NAMES[1..] {
            assert!(compose.contains(&format!("\n  {other}: *member\n")), "{other}");
        }
        let command = r#"command: ["--config", "/etc/nats/secured-cluster.conf"]"#;
        assert!(member.contains(command), "{member}");
        let mut wanted = of_tls(&shipped("secured-cluster.conf"), "\"", "\"");
        wanted.extend(of_tls(&shipped("secured.conf"), "\"", "\""));
        assert!(!wanted.is_empty());
        assert_eq!(of_tls(&member, ":", ":ro"), wanted);
        let members = shipped("members.conf");
        let routes = members
            .lines()
            .filter_map(|line| line.trim().strip_prefix("nats://")?.strip_suffix(":6222"));
        assert_eq!(routes.collect::<Vec<_>>(), NAMES);
    }
}

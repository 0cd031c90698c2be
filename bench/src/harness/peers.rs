//! What people would use instead: found on this machine, or built from their pinned sources.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context, bail, ensure};
use natsway_testkit::{Process, ProcessBuilder, free_port, repository_root};

use crate::scenario::arrangement::Proxy;

/// Proxies over kept connections, as many as any load has, without a log of requests; the rest is
/// as each has it by default.
const NGINX: &str = include_str!("../../peers/nginx.conf");
const HAPROXY: &str = include_str!("../../peers/haproxy.cfg");
const CADDY: &str = include_str!("../../peers/Caddyfile");
const TRAEFIK: &str = include_str!("../../peers/traefik.toml");

/// A program that was found, and what it says of its version.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where it is.
    pub program: PathBuf,
    /// Its version alone.
    pub version: String,
}

impl Proxy {
    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Haproxy => "haproxy",
            Self::Traefik | Self::TraefikConsul => "traefik",
            Self::Caddy => "caddy",
            Self::Fabio => "fabio",
        }
    }

    /// Whether it asks a Consul where the services are.
    pub fn asks_consul(self) -> bool {
        matches!(self, Self::TraefikConsul | Self::Fabio)
    }

    /// Finds it.
    ///
    /// # Errors
    /// It is not installed; the error says how to get it.
    pub fn find(self) -> anyhow::Result<Found> {
        match self {
            Self::Nginx => packaged("nginx", "-v"),
            Self::Haproxy => packaged("haproxy", "-v"),
            Self::Traefik => built("traefik", "version"),
            Self::TraefikConsul => {
                consul()?;
                built("traefik", "version")
            }
            Self::Caddy => packaged("caddy", "version"),
            Self::Fabio => {
                consul()?;
                built("fabio", "-v")
            }
        }
    }

    /// The proxy that listens on a port and forwards to the services; its files go to `directory`.
    /// Those that [ask one](Self::asks_consul) need the port of a Consul.
    ///
    /// # Errors
    /// It is not installed, or its configuration cannot be written.
    pub fn command(
        self,
        listen: u16,
        services: &[u16],
        consul: Option<u16>,
        directory: &Path,
    ) -> anyhow::Result<ProcessBuilder> {
        let command = Process::builder(self.find()?.program).name(self.name());
        let servers = |line: &str| -> String {
            let lines = services.iter().enumerate().map(|(number, port)| {
                line.replace("@number@", &number.to_string()).replace("@port@", &port.to_string())
            });
            lines.collect::<Vec<_>>().join("\n")
        };
        let config = |name: &str, template: &str, line: &str| -> anyhow::Result<PathBuf> {
            let text = template
                .replace("@directory@", &directory.display().to_string())
                .replace("@listen@", &listen.to_string())
                .replace("@servers@", &servers(line));
            let path = directory.join(name);
            fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
            Ok(path)
        };
        Ok(match self {
            Self::Nginx => {
                let path = config("nginx.conf", NGINX, "        server 127.0.0.1:@port@;")?;
                command.arg("-p").arg(directory).arg("-c").arg(path)
            }
            Self::Haproxy => {
                let path = config("haproxy.cfg", HAPROXY, "    server s@number@ 127.0.0.1:@port@")?;
                command.arg("-db").arg("-f").arg(path)
            }
            Self::Traefik => {
                let server = "[[http.services.service.loadBalancer.servers]]\nurl = \
                              \"http://127.0.0.1:@port@\"";
                let path = config("traefik.toml", TRAEFIK, server)?;
                traefik(command, listen)
                    .arg(format!("--providers.file.filename={}", path.display()))
            }
            Self::TraefikConsul => {
                let consul = consul.context("traefik with a catalogue needs a consul")?;
                traefik(command, listen)
                    .arg(format!("--providers.consulcatalog.endpoint.address=127.0.0.1:{consul}"))
                    .arg("--providers.consulcatalog.defaultRule=PathPrefix(`/`)")
                    .arg("--providers.consulcatalog.refreshInterval=1s")
            }
            Self::Caddy => {
                let path = config("Caddyfile", CADDY, "127.0.0.1:@port@")?;
                let text = fs::read_to_string(&path)?;
                // Its servers stand on one line.
                let line = servers("127.0.0.1:@port@");
                fs::write(&path, text.replace(&line, &line.replace('\n', " ")))?;
                command
                    .args(["run", "--adapter", "caddyfile", "--config"])
                    .arg(path)
                    .env("XDG_DATA_HOME", directory)
                    .env("XDG_CONFIG_HOME", directory)
            }
            Self::Fabio => {
                let consul = consul.context("fabio needs a consul")?;
                command
                    .args(["-proxy.addr", &format!("127.0.0.1:{listen}")])
                    .args(["-ui.addr", &format!("127.0.0.1:{}", free_port())])
                    .args(["-registry.consul.addr", &format!("127.0.0.1:{consul}")])
                    .args(["-registry.consul.register.enabled=false", "-log.level", "ERROR"])
            }
        })
    }
}

/// Traefik on a port, but for how it learns of services.
fn traefik(command: ProcessBuilder, listen: u16) -> ProcessBuilder {
    command
        .arg(format!("--entryPoints.web.address=127.0.0.1:{listen}"))
        .args(["--log.level=ERROR", "--accesslog=false", "--global.checknewversion=false"])
        .arg("--global.sendanonymoususage=false")
        // By default it keeps 200: with more clients than that it would dial anew all the time.
        .arg("--serversTransport.maxIdleConnsPerHost=4096")
}

/// Consul, which knows for others where the services are.
///
/// # Errors
/// It is not installed and cannot be built.
pub fn consul() -> anyhow::Result<Found> {
    built("consul", "version")
}

/// A Consul of one node with its state in memory.
///
/// # Errors
/// As [`consul`].
pub fn consul_command(http: u16) -> anyhow::Result<ProcessBuilder> {
    let command = Process::builder(consul()?.program).args([
        "agent",
        "-dev",
        "-client=127.0.0.1",
        "-bind=127.0.0.1",
    ]);
    let ports = ["-server-port", "-serf-lan-port", "-serf-wan-port"]
        .map(|name| format!("{name}={}", free_port()));
    let off = ["-dns-port=-1", "-grpc-port=-1", "-https-port=-1", "-log-level=error"];
    Ok(command.arg(format!("-http-port={http}")).args(ports).args(off))
}

/// Our own Go programs, built once.
///
/// # Errors
/// Go is not installed, or does not compile them.
pub fn go_peer() -> anyhow::Result<Found> {
    once("go-gateway", || {
        let version = Command::new("go")
            .arg("version")
            .output()
            .context("go is not installed: https://go.dev/dl")?;
        let version = String::from_utf8_lossy(&version.stdout);
        let version =
            version.split_whitespace().nth(2).unwrap_or("go").trim_start_matches("go").to_owned();
        let program = repository_root().join("target/bench/go-gateway");
        let output = Command::new("go")
            .args(["build", "-trimpath", "-buildvcs=false", "-o"])
            .arg(&program)
            .arg(".")
            .current_dir(repository_root().join("bench/peers/go-gateway"))
            .output()?;
        ensure!(
            output.status.success(),
            "go build failed: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(Found { program, version })
    })
}

/// What a package of the system installs; where Debian has it is not in everybody's PATH.
fn packaged(name: &'static str, version: &str) -> anyhow::Result<Found> {
    let candidates = [
        PathBuf::from(name),
        Path::new("/usr/sbin").join(name),
        Path::new("/usr/local/sbin").join(name),
    ];
    for program in candidates {
        if let Ok(version) = version_of(&program, version) {
            return Ok(Found { program, version });
        }
    }
    bail!("{name} is not installed: install the package {name}")
}

/// What is in PATH, or was built by `scripts/find_peer.py`, which `make peers` runs.
fn built(name: &'static str, version: &str) -> anyhow::Result<Found> {
    once(name, || {
        let script = repository_root().join("scripts/find_peer.py");
        let output = Command::new("python3").arg(script).args(["--installed", name]).output();
        let output = output.context("python3 is not in PATH: install Python >= 3.9")?;
        let complaint = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        ensure!(output.status.success(), "{}", complaint.trim_start_matches("find_peer: "));
        let program = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        let version = version_of(&program, version)?;
        Ok(Found { program, version })
    })
}

fn once(name: &'static str, find: impl FnOnce() -> anyhow::Result<Found>) -> anyhow::Result<Found> {
    static FOUND: OnceLock<Mutex<BTreeMap<&str, Result<Found, String>>>> = OnceLock::new();
    let mut found =
        FOUND.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let found = found.entry(name).or_insert_with(|| find().map_err(|error| format!("{error:#}")));
    found.clone().map_err(anyhow::Error::msg)
}

fn version_of(program: &Path, argument: &str) -> anyhow::Result<String> {
    let output = Command::new(program).arg(argument).output()?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    Ok(version_in(&text))
}

/// The first word of a text that looks like a version.
fn version_in(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c == '/' || c == ',');
    let mut words = words.map(|word| word.trim_start_matches('v'));
    let version =
        words.find(|word| word.starts_with(|c: char| c.is_ascii_digit()) && word.contains('.'));
    version.unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_found_wherever_a_program_says_it() {
        assert_eq!(version_in("nginx version: nginx/1.22.1"), "1.22.1");
        assert_eq!(
            version_in("HAProxy version 2.6.12-1+deb12u4 2025/10/01 - https://x"),
            "2.6.12-1+deb12u4"
        );
        assert_eq!(version_in("Consul v1.20.0\nRevision abc"), "1.20.0");
        assert_eq!(version_in("Version:      3.7.13\nCodename: x"), "3.7.13");
        assert_eq!(version_in("nothing"), "unknown");
    }

    #[test]
    fn what_is_not_installed_says_how_to_get_it() {
        let error = packaged("no-such-proxy", "-v").unwrap_err().to_string();
        assert_eq!(error, "no-such-proxy is not installed: install the package no-such-proxy");
    }
}

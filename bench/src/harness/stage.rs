//! A contender's processes: started for a round, taken down after it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use natsway_testkit::{
    Cluster, Process, ProcessBuilder, TestBroker, eventually, free_port, workspace_binary,
};

use super::meter::Watched;
use super::peers;
use super::pin::pin;
use super::question::{Question, ask};
use crate::results::Role;
use crate::scenario::arrangement::{Form, GoCodec, GoGateway, Natsway, Proxy, Server, Transport};
use crate::scenario::{Arrangement, Contender, Cpus};

/// Generous: for a hang, not for a slow machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// How often an answer is asked for until one comes.
const LOOK: Duration = Duration::from_millis(20);

/// A contender's processes. Dropped, they are killed.
#[derive(Debug)]
pub struct Stage {
    /// Where it answers, on 127.0.0.1.
    pub port: u16,
    /// Where our gateway tells of itself.
    admin: u16,
    processes: Vec<(Role, String, Process)>,
    brokers: Vec<TestBroker>,
    cluster: Option<Cluster>,
}

/// Has what [`Stage::start`] needs built or found, so that no compiler runs during a measurement.
///
/// # Errors
/// Something is not installed, and how to get it; or the machine has not the processors that are
/// asked for.
pub fn prepare(contender: &Contender) -> anyhow::Result<()> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let Cpus { gateway, broker, service, load } = &contender.cpus;
    let highest = [gateway, broker, service, load].into_iter().flatten().max();
    ensure!(
        highest.is_none_or(|highest| *highest < processors),
        "it needs processor {}, this machine has {processors}",
        highest.copied().unwrap_or_default()
    );
    match &contender.arrangement {
        Arrangement::Natsway(_) => drop(workspace_binary("apiproxy")),
        Arrangement::Proxy { program, .. } => drop(program.find()?),
        Arrangement::Direct { .. } | Arrangement::GoGateway(_) => {}
    }
    if contender.arrangement.needs_go() {
        peers::go_peer()?;
    }
    Ok(())
}

impl Stage {
    /// Starts a contender's processes on free ports; it answers when this returns, and its
    /// processes are where they were pinned.
    ///
    /// # Errors
    /// Something is not installed or cannot be written, or a process ends, or does not come up
    /// within a minute.
    ///
    /// # Panics
    /// When a broker does not come up.
    pub async fn start(contender: &Contender, directory: &Path) -> anyhow::Result<Self> {
        let mut stage = Self {
            port: free_port(),
            admin: free_port(),
            processes: Vec::new(),
            brokers: Vec::new(),
            cluster: None,
        };
        match &contender.arrangement {
            Arrangement::Direct { server: Server::Axum } => stage.axum(stage.port, "service")?,
            Arrangement::Direct { server: Server::Fiber } => {
                let server = go("direct")?.args(["-listen", &local(stage.port)]);
                stage.add(Role::Service, "fiber", limited(server, &contender.cpus.service));
            }
            Arrangement::Proxy { program, backends } => {
                stage.proxy(*program, *backends, &contender.cpus, directory).await?;
            }
            Arrangement::Natsway(natsway) => stage.natsway(natsway, contender, directory).await?,
            Arrangement::GoGateway(gateway) => stage.go_gateway(gateway, &contender.cpus).await?,
        }
        stage.ready().await?;
        if matches!(&contender.arrangement, Arrangement::Natsway(natsway) if natsway.transport == Transport::Auto)
        {
            stage.by_tunnel().await?;
        }
        stage.pin(&contender.cpus)?;
        Ok(stage)
    }

    /// Waits until it answers; a process that has ended tells why it never will.
    async fn ready(&mut self) -> anyhow::Result<()> {
        let question = Question::greeting(self.port);
        let begun = Instant::now();
        loop {
            let Err(reason) = ask(&question).await else { return Ok(()) };
            if let Some(ended) = self.ended() {
                bail!("{ended}");
            }
            ensure!(
                begun.elapsed() < DEADLINE,
                "no answer within {} s: {reason:#}",
                DEADLINE.as_secs()
            );
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until requests go by tunnels: workers dial once they have been asked.
    async fn by_tunnel(&self) -> anyhow::Result<()> {
        let begun = Instant::now();
        let question = Question::greeting(self.port);
        while natsway_proofs::probe::metric(self.admin, "natsway_tunnel_requests_total").await?
            == 0.0
        {
            ensure!(begun.elapsed() < DEADLINE, "no tunnel within {} s", DEADLINE.as_secs());
            ask(&question).await?;
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Which of its processes has ended, how, and the last that it said.
    pub fn ended(&mut self) -> Option<String> {
        self.processes.iter_mut().find_map(|(_, name, process)| {
            let status = process.exit_status()?;
            let said = process.stderr() + &process.stdout();
            let last: Vec<&str> = said.lines().rev().take(3).collect();
            Some(format!("{name} ended ({status}): {}", last.join(" / ")))
        })
    }

    /// Its processes; what they started themselves counts with them.
    pub fn watched(&self) -> Vec<Watched> {
        let cluster = self.cluster.iter().flat_map(|cluster| cluster.iter());
        let brokers = self.brokers.iter().chain(cluster).enumerate().map(|(number, broker)| {
            Watched { name: format!("nats-server {number}"), role: Role::Broker, pid: broker.pid() }
        });
        let processes = self.processes.iter().map(|(role, name, process)| Watched {
            name: name.clone(),
            role: *role,
            pid: process.pid(),
        });
        processes.chain(brokers).collect()
    }

    /// Takes everything down; nothing is left when this returns.
    pub fn stop(mut self) {
        // Gateways first: they would only complain about the loss of the others.
        for (_, _, process) in self.processes.iter_mut().rev() {
            process.kill9();
        }
    }

    fn add(&mut self, role: Role, name: impl Into<String>, process: ProcessBuilder) {
        let name = name.into();
        self.processes.push((role, name.clone(), process.name(name).start()));
    }

    fn pin(&self, cpus: &Cpus) -> anyhow::Result<()> {
        for Watched { role, pid, .. } in self.watched() {
            let processors = match role {
                Role::Gateway => &cpus.gateway,
                Role::Broker => &cpus.broker,
                Role::Service => &cpus.service,
                Role::Load => continue,
            };
            pin(pid, processors)?;
        }
        Ok(())
    }

    fn axum(&mut self, port: u16, name: &str) -> anyhow::Result<()> {
        let server =
            Process::builder(std::env::current_exe()?).arg("serve-direct").arg(local(port));
        self.add(Role::Service, name, server);
        Ok(())
    }

    async fn proxy(
        &mut self,
        program: Proxy,
        backends: u32,
        cpus: &Cpus,
        directory: &Path,
    ) -> anyhow::Result<()> {
        let services: Vec<u16> = (0..backends).map(|_| free_port()).collect();
        for (number, port) in services.iter().enumerate() {
            self.axum(*port, &format!("service {number}"))?;
        }
        let consul = match program.asks_consul() {
            true => Some(self.consul(&services).await?),
            false => None,
        };
        let command = program.command(self.port, &services, consul, directory)?;
        self.add(Role::Gateway, program.name(), limited(command, &cpus.gateway));
        Ok(())
    }

    /// A Consul that knows the services, by the tag that Fabio looks for; Traefik needs none.
    async fn consul(&mut self, services: &[u16]) -> anyhow::Result<u16> {
        let port = free_port();
        self.add(Role::Broker, "consul", peers::consul_command(port)?);
        for (number, service) in services.iter().enumerate() {
            let registration = serde_json::json!({
                "ID": format!("service-{number}"), "Name": "service", "Address": "127.0.0.1", "Port": service,
                "Tags": ["urlprefix-/"],
                "Check": { "TTL": "1h", "Status": "passing" },
            });
            let body = registration.to_string();
            eventually(DEADLINE, async || {
                super::question::put(port, "/v1/agent/service/register", &body).await
            })
            .await;
        }
        Ok(port)
    }

    /// The addresses of the brokers: one, or as many as the cluster has.
    async fn brokers(&mut self, count: u32) -> Vec<String> {
        if count == 1 {
            let broker = TestBroker::start().await;
            let url = broker.url();
            self.brokers.push(broker);
            return vec![url];
        }
        let cluster = Cluster::start(count as usize).await;
        let urls = cluster.iter().map(TestBroker::url).collect();
        self.cluster = Some(cluster);
        urls
    }

    async fn natsway(
        &mut self,
        natsway: &Natsway,
        contender: &Contender,
        directory: &Path,
    ) -> anyhow::Result<()> {
        let urls = self.brokers(natsway.brokers).await;
        // In a cluster, not where the gateway is: requests cross from one broker to another.
        let of_workers = urls.iter().cycle().skip(usize::from(urls.len() > 1));
        for (number, url) in (0..natsway.workers).zip(of_workers) {
            let worker = worker(natsway, number, url)?;
            self.add(
                Role::Service,
                format!("worker {number}"),
                limited(worker, &contender.cpus.service),
            );
        }
        let path = directory.join("routes.toml");
        fs::write(&path, routes(natsway))
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut gateway = Process::builder(workspace_binary("apiproxy"))
            .args(["--listen", &local(self.port), "--admin-listen", &local(self.admin)])
            .args(["--nats-url", &urls[0]])
            .args(["--connections-per-shard", &natsway.connections_per_shard.to_string()])
            .args(["--static-routes", "--routes"])
            .arg(path);
        if let Some(shards) = natsway.shards {
            gateway = gateway.args(["--shards", &shards.to_string()]);
        }
        self.add(Role::Gateway, "apiproxy", gateway);
        Ok(())
    }

    async fn go_gateway(&mut self, gateway: &GoGateway, cpus: &Cpus) -> anyhow::Result<()> {
        let url = self.brokers(1).await.remove(0);
        let codec = match gateway.codec {
            GoCodec::Text => "text",
            GoCodec::Json => "json",
            GoCodec::Msgpack => "msgpack",
        };
        for number in 0..gateway.workers {
            let mut worker = go("worker")?.args(["-nats", &url, "-codec", codec]);
            if gateway.broadcast {
                worker = worker.arg("-broadcast");
            }
            if gateway.synchronous {
                worker = worker.arg("-sync");
            }
            self.add(Role::Service, format!("go worker {number}"), limited(worker, &cpus.service));
        }
        let front = go("gateway")?
            .args([
                "-nats",
                &url,
                "-codec",
                codec,
                "-connections",
                &gateway.connections.to_string(),
            ])
            .args(["-listen", &local(self.port)]);
        self.add(Role::Gateway, "go gateway", limited(front, &cpus.gateway));
        Ok(())
    }
}

/// One of our own Go programs.
fn go(role: &str) -> anyhow::Result<ProcessBuilder> {
    Ok(Process::builder(peers::go_peer()?.program).arg(role))
}

/// A Go program asks once, at its start, how many processors it has: pinned later, it would have
/// threads for all. Others do not mind.
fn limited(process: ProcessBuilder, processors: &[usize]) -> ProcessBuilder {
    match processors.len() {
        0 => process,
        count => process.env("GOMAXPROCS", count.to_string()),
    }
}

fn worker(natsway: &Natsway, number: u32, url: &str) -> anyhow::Result<ProcessBuilder> {
    if natsway.form == Form::GoMicro {
        return Ok(go("micro")?.args(["-nats", url, "-subject", &subject(0)]));
    }
    // Services are dealt out to the workers like cards, so that each has about as many.
    let dealt = (0..natsway.services)
        .filter(|service| service % natsway.workers == number % natsway.services);
    let subjects: Vec<String> = dealt.map(subject).collect();
    let worker = Process::builder(std::env::current_exe()?)
        .args(["serve-worker", "--nats-url", url, "--subjects", &subjects.join(",")])
        .args(["--instances", &natsway.instances.to_string()]);
    let worker = if natsway.form == Form::PerCore { worker.arg("--per-core") } else { worker };
    Ok(match natsway.readers {
        Some(readers) => worker.args(["--readers", &readers.to_string()]),
        None => worker,
    })
}

fn subject(service: u32) -> String {
    format!("svc.bench{service}.blue")
}

/// The route that everything else goes to stands last; the others are there to be not chosen. With
/// several services, each but the first has a route of its own, below the prefix that
/// [`service_prefix`] gives.
fn routes(natsway: &Natsway) -> String {
    let codec = if natsway.form == Form::GoMicro { "codec = \"native\"\n" } else { "" };
    let transport = match natsway.transport {
        Transport::Broker => "",
        Transport::Auto => "transport = \"auto\"\n",
    };
    let mut text = String::new();
    for number in 1..natsway.routes {
        // Three segments and, in every other one, a parameter, as APIs have them.
        let end = if number % 2 == 0 { "" } else { "/{id}" };
        text += &format!(
            "[[route]]\nname = \"r{number}\"\npath = \"/api/area{}/kind{}{end}\"\n\
             target = [{{ version = \"blue\", subject = \"{}\" }}]\n",
            number / 100,
            number % 100,
            subject(0),
        );
    }
    for number in 1..natsway.services {
        text += &format!(
            "[[route]]\nname = \"s{number}\"\npath = \"{prefix}/{{*rest}}\"\nstrip_prefix = \
             \"{prefix}\"\n\
             target = [{{ version = \"blue\", subject = \"{}\" }}]\n",
            subject(number),
            prefix = service_prefix(number),
        );
    }
    text += &format!(
        "[[route]]\nname = \"bench\"\npath = \"/{{*rest}}\"\n{codec}max_body_bytes = 65536\n{transport}\
         target = [{{ version = \"blue\", subject = \"{}\" }}]\n",
        subject(0),
    );
    text
}

/// What paths of a service begin with; those of the first one with nothing.
pub fn service_prefix(service: u32) -> String {
    if service == 0 { String::new() } else { format!("/s{service}") }
}

fn local(port: u16) -> String {
    format!("127.0.0.1:{port}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn natsway(text: &str) -> Natsway {
        toml::from_str(text).unwrap()
    }

    #[test]
    fn a_table_has_as_many_routes_as_asked_for_and_ends_with_the_one_that_is_used() {
        let text = routes(&natsway("routes = 3\nservices = 2"));
        assert_eq!(text.matches("[[route]]").count(), 4);
        assert!(text.trim_end().ends_with("subject = \"svc.bench0.blue\" }]"));
        assert!(text.contains("strip_prefix = \"/s1\"") && text.contains("/api/area0/kind1/{id}"));
    }

    #[test]
    fn native_backends_get_a_route_of_their_codec() {
        assert!(routes(&natsway("form = \"go-micro\"")).contains("codec = \"native\""));
    }
}

//! Attackers who would have a gateway hold much for little, each against a gateway with the memory
//! that the Compose file gives it, while another client is served: the memory stays below its
//! bound, and no request of others fails.

pub mod attackers;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use async_nats::Client;
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use natsway_testkit::{
    Process, ProcessMemory, TestBroker, eventually, free_port, workspace_binary,
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::task::AbortOnDropHandle;

use self::attackers::{ATTACKERS, Attacker, Ground};
use super::scenario::{raw_directory, select};
use super::stand::DEADLINE;
use super::{Finding, Report};
use crate::probe;

/// What `docker-compose.yml` gives the gateway, and to how many processors.
const LIMIT_BYTES: usize = 512 << 20;
const SHARDS: usize = 2;

/// The part of the limit that the gateway plans for: `docs/operations.md` has the sum.
const BOUND_BYTES: usize = LIMIT_BYTES / 10 * 9;

/// Less than a message may have.
const LARGE_BYTES: usize = 900_000;

/// Descriptors of this process that are no attacker's.
const OWN_FILES: u64 = 256;

/// How large the proof is.
#[derive(Clone, Debug, clap::Args)]
pub struct Size {
    /// Seed of what attackers choose by chance
    #[arg(long, env = "SEED", default_value = "1")]
    pub seed: u64,

    /// How long each attacker has, in seconds
    #[arg(long, env = "SECONDS", default_value = "8")]
    pub seconds: u64,

    /// The part of each attacker's connections that there are, of 100
    #[arg(long, env = "PERCENT", default_value = "100")]
    pub percent: usize,

    /// Run only the attackers whose name holds this
    #[arg(long, env = "ONLY", default_value = "", hide_default_value = true)]
    pub only: String,
}

/// Lets every attacker loose, one after the other.
///
/// # Errors
/// Anything that does not start.
pub async fn prove(size: &Size) -> anyhow::Result<Report> {
    let files = raise_open_files()?;
    let mut scenarios = Vec::new();
    for attacker in select(ATTACKERS, &size.only, |attacker| attacker.name)? {
        eprintln!("{} ...", attacker.name);
        let directory = raw_directory(&format!("memory/{}/{}", size.seed, attacker.name))?;
        let finding = Box::pin(withstand(attacker, size, files, &directory)).await?;
        eprintln!("  {}", serde_json::to_string(&finding)?);
        scenarios.push(finding);
    }
    Ok(Report { proof: "memory", seed: size.seed, scenarios })
}

/// The connections that the limit on open files leaves to an attacker, once it is as high as it may
/// be.
fn raise_open_files() -> anyhow::Result<usize> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("limit on open files")?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit on open files")?;
    Ok(usize::try_from(hard.saturating_sub(OWN_FILES)).unwrap_or(usize::MAX))
}

async fn withstand(
    attacker: &Attacker,
    size: &Size,
    files: usize,
    directory: &Path,
) -> anyhow::Result<Finding> {
    let mut finding = Finding::new(attacker.name);
    let arena = Arena::start(directory).await?;
    let witness = Witness::start(arena.port).await?;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let before = arena.memory()?.resident;
    let connections = (attacker.connections * size.percent / 100).max(1);
    if connections > files {
        eprintln!("  the limit on open files leaves {files} of {connections} connections");
        finding.figure("connections_wanted", connections);
    }
    let ground = Ground { port: arena.port, connections: connections.min(files), seed: size.seed };
    finding.figure("connections", ground.connections);
    let attack = AbortOnDropHandle::new(tokio::spawn((attacker.attack)(ground)));
    tokio::time::sleep(Duration::from_secs(size.seconds)).await;
    let held = arena.metric("natsway_held_bytes").await?;
    drop(attack);
    let asked = witness.leave().await;

    let (peak, failed) =
        (arena.memory()?.peak, asked.iter().filter(|asked| asked.is_err()).count());
    let mut took: Vec<Duration> =
        asked.iter().filter_map(|asked| asked.as_ref().ok().copied()).collect();
    took.sort_unstable();
    let p99 = took.get(took.len() * 99 / 100).copied().unwrap_or_default();
    finding.figure("before_mib", before >> 20);
    finding.figure("peak_mib", peak >> 20);
    finding.figure("bound_mib", BOUND_BYTES >> 20);
    finding.figure("held_mib", (held / f64::from(1 << 20)).round());
    finding.figure("others_asked", asked.len());
    finding.figure("others_p99_ms", (p99.as_secs_f64() * 1e4).round() / 10.0);
    for figure in ["closes_total{reason=\"slow\"}", "closes_total{reason=\"no_room\"}"] {
        finding.figure(figure, arena.metric(&format!("natsway_client_{figure}")).await?);
    }
    for code in ["memory_full", "no_room_for_answer"] {
        finding.figure(
            code,
            arena.metric(&format!("natsway_problems_total{{code=\"{code}\"}}")).await?,
        );
    }
    finding.promise(peak < BOUND_BYTES, || format!("{} MiB of memory", peak >> 20));
    finding.promise(asked.len() > 3, || format!("others got {} answers alone", asked.len()));
    finding.promise(failed == 0, || {
        let first = asked.iter().find_map(|asked| asked.as_ref().err());
        format!("{failed} requests of others failed: {first:?}")
    });
    let connects = arena.metric("natsway_broker_connects_total").await?;
    finding.promise(connects <= 2.0 * SHARDS as f64, || {
        format!("{connects} connections to the broker")
    });
    // What an attacker had is given back once it is gone.
    eventually(DEADLINE, async || match arena.metric("natsway_held_bytes").await {
        Ok(held) if held < f64::from(1 << 20) => Ok(()),
        other => Err(format!("{other:?} bytes held after the attack")),
    })
    .await;
    Ok(finding)
}

/// A gateway with Compose's memory before backends that answer with little or much.
struct Arena {
    gateway: Process,
    port: u16,
    admin_port: u16,
    _backends: Vec<AbortOnDropHandle<()>>,
    _broker: TestBroker,
}

impl Arena {
    async fn start(directory: &Path) -> anyhow::Result<Self> {
        let broker = TestBroker::start().await;
        let routes = directory.join("routes.toml");
        let route = |name, path, codec, subject| {
            format!(
                "[[route]]\nname = \"{name}\"\npath = \"{path}\"\ncodec = \"{codec}\"\n\
                 target = [{{ version = \"blue\", subject = \"{subject}\" }}]\n"
            )
        };
        let both = [
            route("native", "/native/{*rest}", "native", "svc.prove.native"),
            route("prove", "/{*rest}", "http", "svc.prove.blue"),
        ];
        std::fs::write(&routes, both.concat())?;
        let mut backends = Vec::new();
        for _ in 0..2 {
            backends.push(envelope_backend(broker.connect().await).await?);
            backends.push(native_backend(broker.connect().await).await?);
        }
        let (port, admin_port) = (free_port(), free_port());
        let gateway = Process::builder(workspace_binary("apiproxy"))
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin_port}")])
            .args(["--nats-url", &broker.url(), "--static-routes", "--log", "warn"])
            .args(["--shards", &SHARDS.to_string(), "--memory-limit", &LIMIT_BYTES.to_string()])
            .arg("--routes")
            .arg(&routes)
            .start();
        eventually(DEADLINE, async || match probe::get(admin_port, "/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        Ok(Self { gateway, port, admin_port, _backends: backends, _broker: broker })
    }

    /// A figure of `/metrics`; 0 when it is not there.
    async fn metric(&self, sample: &str) -> anyhow::Result<f64> {
        probe::metric(self.admin_port, sample).await
    }

    fn memory(&self) -> anyhow::Result<ProcessMemory> {
        self.gateway.memory().context("the gateway is gone")
    }
}

/// Answers with much where the path says so.
async fn envelope_backend(client: Client) -> anyhow::Result<AbortOnDropHandle<()>> {
    let answer = |body: &[u8]| {
        natsway_wire::envelope::encode_response(
            StatusCode::OK,
            &HeaderMap::new(),
            &HeaderMap::new(),
            body,
        )
    };
    let (little, large) = (answer(b"little")?, answer(&vec![b'x'; LARGE_BYTES])?);
    let mut requests = client.queue_subscribe("svc.prove.blue", "q".to_owned()).await?;
    client.flush().await?;
    Ok(AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let Some(reply) = request.reply else { continue };
            let has = |text: &[u8]| request.payload.windows(text.len()).any(|part| part == text);
            let answer = if has(b"/large") { &large } else { &little };
            client.publish(reply, answer.clone()).await.ok();
        }
    })))
}

/// Answers with much, always.
async fn native_backend(client: Client) -> anyhow::Result<AbortOnDropHandle<()>> {
    let large = bytes::Bytes::from(vec![b'x'; LARGE_BYTES]);
    let mut requests = client.queue_subscribe("svc.prove.native", "q".to_owned()).await?;
    client.flush().await?;
    Ok(AbortOnDropHandle::new(tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            if let Some(reply) = request.reply {
                client.publish(reply, large.clone()).await.ok();
            }
        }
    })))
}

/// Another client, none of whose requests may fail.
struct Witness {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<Result<Duration, String>>>,
}

impl Witness {
    async fn start(port: u16) -> anyhow::Result<Self> {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.set_nodelay(true)?;
        let stop = Arc::<AtomicBool>::default();
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut asked = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let began = Instant::now();
                let status = tokio::time::timeout(DEADLINE, ask(&mut stream)).await;
                let outcome = match status {
                    Ok(Ok(200)) => Ok(began.elapsed()),
                    other => Err(format!("{other:?}")),
                };
                if outcome.is_err()
                    && asked.iter().filter(|asked: &&Result<_, _>| asked.is_err()).count() > 20
                {
                    break;
                }
                asked.push(outcome);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            asked
        });
        Ok(Self { stop, task })
    }

    async fn leave(self) -> Vec<Result<Duration, String>> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap_or_default()
    }
}

/// The status of one small request; its answer fits one read or a few.
async fn ask(stream: &mut TcpStream) -> std::io::Result<u16> {
    stream.write_all(b"GET /little HTTP/1.1\r\nhost: a\r\n\r\n").await?;
    let mut answer = Vec::new();
    loop {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.to_ascii_lowercase().lines().find_map(|line| {
            line.strip_prefix("content-length:")
                .and_then(|length| length.trim().parse::<usize>().ok())
        });
        if body.len() >= length.unwrap_or(0) {
            return Ok(head.get(9..12).and_then(|code| code.parse().ok()).unwrap_or(0));
        }
    }
}

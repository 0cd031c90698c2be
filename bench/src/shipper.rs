//! How fast lines get from files to files, and how much CPU that takes; `bench shipper`.
//!
//! Ours goes through a stream, with acknowledgements, fsync and commits; rsyslog goes over TCP,
//! without any of them.

use std::fmt;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use natsway_testkit::{Process, TestBroker, free_port, workspace_binary};
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::raw_directory;

/// Bytes of a line, its line feed included.
const LINE: u64 = 256;
const LIMIT: Duration = Duration::from_secs(600);
const LOOK: Duration = Duration::from_millis(5);
/// The kernel counts CPU time in hundredths of a second.
const TICKS_PER_SECOND: f64 = 100.0;

/// How much is measured.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Size of the input, in lines of 256 bytes
    #[arg(long, env = "MEBIBYTES", value_name = "COUNT", default_value = "1024")]
    mebibytes: u64,

    /// How often each form runs, in turn
    #[arg(long, env = "ROUNDS", value_name = "COUNT", default_value = "3")]
    rounds: usize,
}

/// What is measured.
#[derive(Clone, Debug)]
enum Form {
    /// Producers, a broker and one consumer.
    Shipper {
        /// Hosts, with a producer each; they share the lines.
        hosts: usize,
    },
    /// Two rsyslogd, one behind the other, by the path of the program.
    Rsyslog(PathBuf),
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shipper { hosts: 1 } => write!(f, "shipper, 1 host, acks and fsync"),
            Self::Shipper { hosts } => write!(f, "shipper, {hosts} hosts, acks and fsync"),
            Self::Rsyslog(_) => write!(f, "rsyslog over TCP, no acks, no fsync"),
        }
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    /// From the sender's start until everything was written (and, of ours, synced, committed and
    /// acknowledged).
    seconds: f64,
    /// Input bytes in that time.
    mebibytes_per_second: f64,
    /// CPU time of sender, broker and receiver for each MiB, in milliseconds.
    cpu_ms_per_mebibyte: [f64; 3],
}

/// Where rsyslogd is, if it is installed.
fn rsyslogd() -> Option<PathBuf> {
    ["/usr/sbin/rsyslogd", "/sbin/rsyslogd", "/usr/local/sbin/rsyslogd"]
        .map(PathBuf::from)
        .into_iter()
        .find(|p| p.exists())
}

/// Measures all forms in turn, and prints a table and one line of JSON.
///
/// # Errors
/// When something does not start, or does not finish in ten minutes.
pub async fn measure(args: &Args) -> Result<()> {
    let directory = raw_directory("shipper")?;
    let mut forms = vec![Form::Shipper { hosts: 1 }, Form::Shipper { hosts: 4 }];
    match rsyslogd() {
        Some(path) => forms.push(Form::Rsyslog(path)),
        None => {
            eprintln!("rsyslogd is not installed (Debian package rsyslog): nothing to compare with")
        }
    }
    let mut all: Vec<(String, Vec<Measured>)> =
        forms.iter().map(|form| (form.to_string(), Vec::new())).collect();
    for round in 0..args.rounds {
        for (form, (name, measured)) in forms.iter().zip(&mut all) {
            let one =
                timed(form, args.mebibytes, &directory).await.with_context(|| name.clone())?;
            eprintln!("round {}: {name}: {:.0} MiB/s", round + 1, one.mebibytes_per_second);
            measured.push(one);
        }
    }
    let line = report(all)?;
    fs::write(directory.join("report.json"), &line)?;
    println!("{line}");
    Ok(())
}

/// Prints the median of each form, and gives all rounds as JSON, the slowest first.
fn report(all: Vec<(String, Vec<Measured>)>) -> Result<String> {
    println!(
        "{:<34} {:>8}  {:>10}  {:>22}",
        "median of the rounds", "MiB/s", "ms CPU/MiB", "sender/broker/receiver"
    );
    let mut report = serde_json::Map::new();
    for (name, mut measured) in all {
        measured.sort_by(|a, b| a.mebibytes_per_second.total_cmp(&b.mebibytes_per_second));
        let median = measured.get(measured.len() / 2).context("no round was measured")?;
        let [sender, broker, receiver] = median.cpu_ms_per_mebibyte;
        let parts = format!("{sender:.1} / {broker:.1} / {receiver:.1}");
        println!(
            "{name:<34} {:>8.0}  {:>10.1}  {parts:>22}",
            median.mebibytes_per_second,
            sender + broker + receiver
        );
        report.insert(name, serde_json::to_value(measured)?);
    }
    Ok(serde_json::to_string(&report)?)
}

/// Runs one form once, below a directory that is there for as long.
async fn timed(form: &Form, mebibytes: u64, directory: &Path) -> Result<Measured> {
    let (bytes, place) = (mebibytes << 20, directory.join("run"));
    if place.exists() {
        fs::remove_dir_all(&place)?;
    }
    fs::create_dir_all(&place)?;
    let measured = match form {
        Form::Shipper { hosts } => shipper(*hosts, bytes, &place).await,
        Form::Rsyslog(program) => rsyslog(program, bytes, &place).await,
    };
    fs::remove_dir_all(&place)?;
    measured
}

async fn shipper(hosts: usize, bytes: u64, directory: &Path) -> Result<Measured> {
    let each = bytes / hosts as u64;
    let inputs: Vec<PathBuf> =
        (0..hosts).map(|host| directory.join(format!("web{host}.log"))).collect();
    for input in &inputs {
        write_lines(input, each)?;
    }
    let broker = TestBroker::builder().jetstream().start().await;
    let output = directory.join("out");
    let consumer = Process::builder(workspace_binary("consumer"))
        .env("NATS_URL", broker.url())
        .env("SHIPPER_SUBJECT", "shipper")
        .env("SHIPPER_OUTPUT", "log")
        .env("SHIPPER_READ_PARTITIONS", "0,1,2,3")
        .env("SHIPPER_DIRECTORY", &output);
    let mut consumer = consumer.start();
    consumer.wait_for_line("shipper.p3.>", LIMIT).await;
    let began = Instant::now();
    let broker_before = cpu_seconds(broker.pid());
    let producers: Vec<Process> = inputs
        .iter()
        .enumerate()
        .map(|(host, input)| {
            Process::builder(workspace_binary("producer"))
                .env("NATS_URL", broker.url())
                .env("SHIPPER_SUBJECT", "shipper")
                .env("SHIPPER_PARTITIONS", "4")
                .env("SHIPPER_FILE", input)
                .env("SHIPPER_STATE", directory.join("state"))
                .env("HOSTNAME", format!("web{host}"))
                .start()
        })
        .collect();
    let context = async_nats::jetstream::new(broker.connect().await);
    loop {
        if size_below(&output) >= each * hosts as u64 && acknowledged(&context).await {
            break;
        }
        if began.elapsed() > LIMIT {
            bail!("{} of {bytes} bytes after {LIMIT:?}", size_below(&output));
        }
        sleep(LOOK).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    let sender = producers.iter().map(|producer| cpu_seconds(producer.pid())).sum();
    let cpu = [sender, cpu_seconds(broker.pid()) - broker_before, cpu_seconds(consumer.pid())];
    Ok(measured(seconds, bytes, cpu))
}

/// Whether the stream has nothing left that the consumer has not acknowledged.
async fn acknowledged(context: &async_nats::jetstream::Context) -> bool {
    let Ok(stream) = context.get_stream("SHIPPER").await else { return false };
    for partition in 0..4 {
        match stream.consumer_info(format!("default-p{partition}")).await {
            Ok(info) if info.num_pending == 0 && info.num_ack_pending == 0 => {}
            _ => return false,
        }
    }
    true
}

async fn rsyslog(program: &Path, bytes: u64, directory: &Path) -> Result<Measured> {
    let port = free_port();
    let (input, output) = (directory.join("web0.log"), directory.join("out.log"));
    write_lines(&input, bytes)?;
    let start = |name: &str, config: String| -> Result<Process> {
        let path = directory.join(format!("{name}.conf"));
        fs::write(&path, config)?;
        let pid = directory.join(format!("{name}.pid"));
        let args = [
            "-n".to_owned(),
            "-f".to_owned(),
            path.display().to_string(),
            "-i".to_owned(),
            pid.display().to_string(),
        ];
        Ok(Process::builder(program).name(name).args(args).start())
    };
    let receiver = start(
        "receiver",
        format!(
            "module(load=\"imtcp\")\ninput(type=\"imtcp\" port=\"{port}\" address=\"127.0.0.1\")\n\
             template(name=\"line\" type=\"string\" string=\"%msg:2:$%\\n\")\n\
             action(type=\"omfile\" file=\"{}\" template=\"line\")\n",
            output.display()
        ),
    )?;
    let listening = Instant::now();
    while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
        if listening.elapsed() > Duration::from_secs(30) {
            bail!("rsyslogd does not listen: {}", receiver.stderr());
        }
        sleep(LOOK).await;
    }
    let began = Instant::now();
    let sender = start(
        "sender",
        format!(
            "module(load=\"imfile\")\nglobal(workDirectory=\"{}\")\n\
             input(type=\"imfile\" file=\"{}\" tag=\"bench:\")\n\
             action(type=\"omfwd\" target=\"127.0.0.1\" port=\"{port}\" protocol=\"tcp\")\n",
            directory.display(),
            input.display()
        ),
    )?;
    let (mut size, mut changed) = (0, Instant::now());
    while size < bytes {
        let now = fs::metadata(&output).map_or(0, |metadata| metadata.len());
        if now != size {
            (size, changed) = (now, Instant::now());
        }
        if changed.elapsed() > Duration::from_secs(30) {
            bail!(
                "rsyslog stopped at {size} of {bytes} bytes: {} {}",
                sender.stderr(),
                receiver.stderr()
            );
        }
        sleep(LOOK).await;
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(measured(seconds, bytes, [cpu_seconds(sender.pid()), 0.0, cpu_seconds(receiver.pid())]))
}

fn measured(seconds: f64, bytes: u64, cpu_seconds: [f64; 3]) -> Measured {
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    Measured {
        seconds,
        mebibytes_per_second: mebibytes / seconds,
        cpu_ms_per_mebibyte: cpu_seconds.map(|seconds| seconds * 1_000.0 / mebibytes),
    }
}

fn write_lines(path: &Path, bytes: u64) -> Result<()> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let filler = "the quick brown fox jumps over the lazy dog and runs ".repeat(8);
    for number in 0..bytes / LINE {
        let head = format!("2026-01-01T00:00:00Z web app[1]: request {number:012} ");
        let rest = LINE as usize - 1 - head.len();
        writeln!(out, "{head}{}", &filler[..rest])?;
    }
    let file = out.into_inner().context("the input cannot be written")?;
    // What is measured does not pay for it.
    file.sync_all()?;
    Ok(())
}

fn size_below(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'))
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size_below(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// User and system time of a process, its threads included.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in parentheses may hold anything.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>()
        / TICKS_PER_SECOND
}

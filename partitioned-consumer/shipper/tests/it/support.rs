//! Programs, files and what is expected in them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use natsway_testkit::{Process, ProcessBuilder, TestBroker, eventually};
use tempfile::TempDir;

/// Longer than anything here takes, short enough to notice a hang.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A broker, and a directory for everything.
pub(crate) struct Bench {
    pub(crate) broker: TestBroker,
    pub(crate) directory: TempDir,
}

impl Bench {
    pub(crate) async fn core() -> Self {
        Self::with(TestBroker::start().await)
    }

    pub(crate) async fn jetstream() -> Self {
        Self::with(TestBroker::builder().jetstream().start().await)
    }

    pub(crate) fn with(broker: TestBroker) -> Self {
        Self { broker, directory: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// A producer of one file.
    pub(crate) fn producer(&self, host: &str, file: &Path) -> ProcessBuilder {
        let builder =
            Process::builder(env!("CARGO_BIN_EXE_producer")).name(format!("producer-{host}"));
        self.settings(builder, host).env("SHIPPER_FILE", file)
    }

    /// What every producer is told.
    pub(crate) fn settings(&self, builder: ProcessBuilder, host: &str) -> ProcessBuilder {
        builder
            .env("NATS_URL", self.broker.url())
            .env("SHIPPER_SUBJECT", "shipper")
            .env("SHIPPER_PARTITIONS", "5")
            .env("SHIPPER_STATE", self.path("state"))
            .env("SHIPPER_ROTATE_WAIT", "200ms")
            .env("HOSTNAME", host)
    }

    /// A consumer of all partitions, that writes to a directory of its own.
    pub(crate) fn consumer(&self, directory: &str) -> ProcessBuilder {
        Process::builder(env!("CARGO_BIN_EXE_consumer"))
            .name(format!("consumer-{directory}"))
            .env("NATS_URL", self.broker.url())
            .env("SHIPPER_SUBJECT", "shipper")
            .env("SHIPPER_OUTPUT", "logfile")
            .env("SHIPPER_READ_PARTITIONS", "0,1,2,3,4")
            .env("SHIPPER_DIRECTORY", self.path(directory))
    }

    /// The lines of each host in a directory, over all its files in the order of their names.
    pub(crate) fn output(&self, directory: &str) -> BTreeMap<String, Vec<String>> {
        let mut output = BTreeMap::new();
        for host in entries(&self.path(directory)) {
            let name = host.file_name().unwrap().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            let lines: &mut Vec<String> = output.entry(name).or_default();
            for file in entries(&host) {
                lines.extend(
                    fs::read_to_string(file).unwrap_or_default().lines().map(str::to_owned),
                );
            }
        }
        output
    }

    /// Waits until a host's lines are exactly these.
    pub(crate) async fn expect(&self, directory: &str, host: &str, lines: &[String]) {
        eventually(SOON, async || {
            let output = self.output(directory).remove(host).unwrap_or_default();
            if output == lines {
                return Ok(());
            }
            let differs = output
                .iter()
                .zip(lines)
                .position(|(a, b)| a != b)
                .unwrap_or(output.len().min(lines.len()));
            Err(format!(
                "{} lines of {}, the first difference at {differs}: {:?} for {:?}",
                output.len(),
                lines.len(),
                output.get(differs),
                lines.get(differs)
            ))
        })
        .await;
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(directory) else { return Vec::new() };
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

/// The page of metrics at a port, or nothing while there is none.
pub(crate) fn page(port: u16) -> String {
    let get = || -> std::io::Result<String> {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\nhost: localhost\r\n\r\n")?;
        std::io::read_to_string(stream)
    };
    get()
        .ok()
        .and_then(|answer| answer.split_once("\r\n\r\n").map(|it| it.1.to_owned()))
        .unwrap_or_default()
}

/// Numbered lines.
pub(crate) fn numbered(numbers: std::ops::Range<u32>) -> Vec<String> {
    numbers.map(|number| format!("line {number}")).collect()
}

/// Appends lines to a file.
pub(crate) fn write(path: &Path, lines: &[String]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    file.write_all(text.as_bytes()).unwrap();
}

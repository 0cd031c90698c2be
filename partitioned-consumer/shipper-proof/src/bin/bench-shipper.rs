//! Throughput from a file to a file on another side, and what it costs.
//!
//! `MEBIBYTES` (1024) is the size of the input, lines of 256 bytes; `ROUNDS` (3) how often each form runs, in turn. Ours goes through a
//! stream, with acknowledgements, fsync and commits; rsyslog goes over TCP, without any of them. One line of JSON at the end.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use natsway_shipper_proof::throughput::{self, Form, Measured};

fn number<T: std::str::FromStr>(name: &str, default: T) -> Result<T> {
    match std::env::var(name) {
        Ok(text) => text.parse().ok().with_context(|| format!("{name}={text}: expected a number")),
        Err(_) => Ok(default),
    }
}

#[tokio::main]
async fn main() -> Result<ExitCode> {
    let (mebibytes, rounds) = (number("MEBIBYTES", 1024)?, number("ROUNDS", 3)?);
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| PathBuf::from("target"), PathBuf::from);
    let directory = std::path::absolute(target.join("bench/shipper"))?;
    let mut forms = vec![Form::Shipper { hosts: 1 }, Form::Shipper { hosts: 4 }];
    match throughput::rsyslogd() {
        Some(path) => forms.push(Form::Rsyslog(path)),
        None => eprintln!("rsyslogd is not installed (Debian package rsyslog): nothing to compare with"),
    }
    let mut all: Vec<(String, Vec<Measured>)> =
        forms.iter().map(|form| (form.to_string(), Vec::new())).collect();
    for round in 0..rounds {
        for (form, (name, measured)) in forms.iter().zip(&mut all) {
            let one = run(form, mebibytes, &directory).await.with_context(|| name.clone())?;
            eprintln!("round {}: {name}: {:.0} MiB/s", round + 1, one.mebibytes_per_second);
            measured.push(one);
        }
    }
    println!(
        "{:<34} {:>8}  {:>10}  {:>22}",
        "median of the rounds", "MiB/s", "ms CPU/MiB", "sender/broker/receiver"
    );
    let mut report = serde_json::Map::new();
    for (name, mut measured) in all {
        measured.sort_by(|a, b| a.mebibytes_per_second.total_cmp(&b.mebibytes_per_second));
        let median = measured[measured.len() / 2].clone();
        let [sender, broker, receiver] = median.cpu_ms_per_mebibyte;
        let parts = format!("{sender:.1} / {broker:.1} / {receiver:.1}");
        println!(
            "{name:<34} {:>8.0}  {:>10.1}  {parts:>22}",
            median.mebibytes_per_second,
            sender + broker + receiver
        );
        report.insert(name, serde_json::to_value(measured)?);
    }
    let line = serde_json::to_string(&report)?;
    std::fs::write(directory.join("report.json"), &line)?;
    println!("{line}");
    Ok(ExitCode::SUCCESS)
}

async fn run(form: &Form, mebibytes: u64, directory: &Path) -> Result<Measured> {
    let place = directory.join("run");
    if place.exists() {
        std::fs::remove_dir_all(&place)?;
    }
    std::fs::create_dir_all(&place)?;
    let measured = throughput::measure(form, mebibytes, &place).await;
    std::fs::remove_dir_all(&place)?;
    measured
}

//! `provisioner record` and `provisioner replay`.

use std::fs::File;
use std::io::{BufReader, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::Args;
use futures_util::StreamExt;
use natsway_boot::{BrokerConfig, shutdown};

use super::ask::connect;
use super::{read, refused};
use crate::config::{Config, TargetConfig};
use crate::decision::Decision;
use crate::events::decision_subject;
use crate::replay::{self, Parts, replay};

#[derive(Args)]
pub(super) struct RecordArgs {
    /// The target; all of them by default
    target: Option<String>,

    /// Where to write; standard output by default
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Leave after so many decisions
    #[arg(long, value_name = "COUNT")]
    count: Option<usize>,
}

#[derive(Args)]
pub(super) struct ReplayArgs {
    /// What `record` wrote
    recording: PathBuf,

    /// The configuration whose rules decide
    #[arg(long, value_name = "FILE")]
    config: PathBuf,

    /// Only by this target of that file
    #[arg(long, value_name = "NAME")]
    target: Option<String>,

    /// Also explain every decision that differs
    #[arg(long)]
    explain: bool,
}

impl RecordArgs {
    pub(super) async fn run(self, broker: BrokerConfig) -> anyhow::Result<ExitCode> {
        let stop = shutdown::on_signal()?;
        let client = connect(&broker).await?;
        let target = self.target.as_deref().unwrap_or("*");
        let mut decisions = client.subscribe(decision_subject(target)).await?;
        let mut out: Box<dyn Write> = match &self.out {
            Some(path) => Box::new(File::create(path).with_context(|| path.display().to_string())?),
            None => Box::new(std::io::stdout()),
        };
        let mut written = 0;
        while self.count != Some(written) {
            let message = tokio::select! {
                message = decisions.next() => message.context("the connection has ended")?,
                () = stop.cancelled() => break,
            };
            out.write_all(&message.payload)?;
            out.write_all(b"\n")?;
            written += 1;
        }
        out.flush()?;
        Ok(ExitCode::SUCCESS)
    }
}

impl ReplayArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let config = Config::read(&read(&self.config)?).with_context(|| refused(&self.config))?;
        if let Some(name) = &self.target {
            let names: Vec<&str> = config.targets.iter().map(TargetConfig::name).collect();
            ensure!(
                names.contains(&name.as_str()),
                "{} has no target {name}; it has: {}",
                self.config.display(),
                names.join(", ")
            );
        }
        let recording =
            File::open(&self.recording).with_context(|| self.recording.display().to_string())?;
        let recording = replay::read(BufReader::new(recording)).map_err(anyhow::Error::msg)?;
        let Parts { of, left_out } = replay::parts(&recording, &config, self.target.as_deref());
        let left_out: Vec<String> =
            left_out.iter().map(|(name, count)| format!("{name} ({count} decisions)")).collect();
        let told = format!(
            "{} decides about none of these recorded targets: {}",
            self.config.display(),
            left_out.join(", ")
        );
        ensure!(!of.is_empty() || left_out.is_empty(), "{told}");
        for (target, recording) in &of {
            self.replay(target, recording);
        }
        if !left_out.is_empty() {
            eprintln!("provisioner: left out: {told}");
        }
        Ok(ExitCode::SUCCESS)
    }

    fn replay(&self, target: &TargetConfig, recording: &[Decision]) {
        let replayed = replay(recording, target);
        let began_ms = replayed.first().map_or(0, |first| first.recorded.at_ms);
        let (mut then, mut now) = (0_u64, 0_u64);
        if let Some(first) = replayed.first() {
            println!("{} by the rules of {}", first.recorded.target, target.name());
        }
        println!("{:>9} {:>5} {:>5}  WHY", "SECOND", "THEN", "NOW");
        let mut before = None;
        for pair in &replayed {
            let numbers = (pair.recorded.to, pair.decided.to);
            then += u64::from(numbers.0);
            now += u64::from(numbers.1);
            if before.replace(numbers) != Some(numbers) {
                let second = pair.recorded.at_ms.saturating_sub(began_ms) as f64 / 1_000.0;
                println!(
                    "{second:>9.1} {:>5} {:>5}  {}",
                    numbers.0,
                    numbers.1,
                    pair.decided.reason()
                );
            }
            if self.explain && numbers.0 != numbers.1 {
                print!("{}", pair.decided);
            }
        }
        println!("{} decisions; instances times decisions: {then} then, {now} now", replayed.len());
    }
}

//! What is measured beside the scenarios: other commands of `bench`, run with sizes that fit into
//! one report.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use natsway_testkit::{repository_root, workspace_binary};
use serde_json::Value;

use crate::micro;
use crate::results::Results;
use crate::settings::Part;

impl Part {
    /// How long it takes, about.
    pub fn expected(self, quick: bool) -> Duration {
        Duration::from_secs(match (self, quick) {
            (Self::Groups, false) => 160,
            (Self::Groups, true) => 15,
            (Self::Shipper, false) => 40,
            (Self::Shipper, true) => 8,
            (Self::Autoscalers, false) => 15,
            (Self::Autoscalers, true) => 5,
            (Self::Instructions, _) => 30,
            (Self::Times, false) => 70,
            (Self::Times, true) => 15,
        })
    }

    /// Whether what it needs besides this workspace is installed.
    ///
    /// # Errors
    /// It is not, and how to get it.
    pub fn prepare(self) -> anyhow::Result<()> {
        match self {
            Self::Instructions => micro::count::find(),
            Self::Groups | Self::Shipper | Self::Autoscalers | Self::Times => Ok(()),
        }
    }

    /// Measures it; raw data goes to `directory`.
    ///
    /// # Errors
    /// It is not built, or its program fails.
    pub async fn measure(self, quick: bool, directory: &Path) -> anyhow::Result<Value> {
        match self {
            Self::Groups => {
                // Built before the clock runs.
                for name in ["groups-member", "groups-speed"] {
                    workspace_binary(name);
                }
                let size = match quick {
                    true => ("throughput", "10000"),
                    false => ("throughput,handlers,take-over", "50000"),
                };
                own_command("groups", &[("PARTS", size.0), ("MESSAGES", size.1)]).await
            }
            Self::Shipper => {
                for name in ["producer", "consumer"] {
                    workspace_binary(name);
                }
                let size = if quick { ("32", "1") } else { ("256", "3") };
                own_command("shipper", &[("MEBIBYTES", size.0), ("ROUNDS", size.1)]).await
            }
            Self::Autoscalers => {
                let comparison =
                    tokio::task::spawn_blocking(move || crate::autoscalers::compare(quick)).await?;
                Ok(serde_json::to_value(comparison)?)
            }
            Self::Instructions => Ok(serde_json::to_value(micro::count::all().await?)?),
            Self::Times => Ok(serde_json::to_value(
                micro::time::all(&directory.join("criterion"), quick).await?,
            )?),
        }
    }

    /// Whether its figures are there already.
    pub fn is_kept(self, results: &Results) -> bool {
        match self {
            Self::Instructions => !results.instructions.is_empty(),
            Self::Times => !results.times.is_empty(),
            Self::Groups | Self::Shipper | Self::Autoscalers => {
                results.parts.contains_key(self.name())
            }
        }
    }

    /// Puts the figures where the report looks for them.
    ///
    /// # Errors
    /// They have another shape.
    pub fn keep(self, figures: Value, results: &mut Results) -> anyhow::Result<()> {
        match self {
            Self::Instructions => results.instructions = serde_json::from_value(figures)?,
            Self::Times => results.times = serde_json::from_value(figures)?,
            Self::Groups | Self::Shipper | Self::Autoscalers => {
                results.parts.insert(self.name().to_owned(), figures);
            }
        }
        Ok(())
    }
}

/// Runs a command of this very program; the last line that it prints is JSON.
async fn own_command(name: &str, environment: &[(&str, &str)]) -> anyhow::Result<Value> {
    let mut command = tokio::process::Command::new(std::env::current_exe()?);
    command.arg(name).current_dir(repository_root()).stdin(Stdio::null()).kill_on_drop(true);
    // What the user said on the command line goes before what fits here.
    for (key, value) in environment.iter().filter(|(key, _)| std::env::var_os(key).is_none()) {
        command.env(key, value);
    }
    let output = command.output().await?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    let last = complaint.lines().last().unwrap_or_default();
    ensure!(output.status.success(), "{name} failed ({}): {last}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().last().with_context(|| format!("{name} printed nothing"))?;
    serde_json::from_str(line).with_context(|| format!("{name} printed {line:?}"))
}

//! Whether an app is well.

use std::convert::Infallible;
use std::process::Stdio;
use std::str::FromStr;
use std::time::Duration;

use natsway_worker::upstream::Upstream;
use tokio::process::Command;

use super::children::Children;
use super::process::{PortVariable, ProcessGroup, add_variables};

/// How an app is asked whether it is well.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HealthCheck {
    /// It takes a connection.
    Tcp,
    /// It answers a GET of this path with a status of 2xx or 3xx.
    Get(String),
    /// This command of the shell ends with 0.
    Command(String),
}

impl FromStr for HealthCheck {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text.split_once(' ') {
            None if text == "tcp" => Self::Tcp,
            Some(("GET", path)) if path.starts_with('/') => Self::Get(path.to_owned()),
            _ => Self::Command(text.to_owned()),
        })
    }
}

impl HealthCheck {
    /// Checks once; what takes longer than `timeout` is not well.
    ///
    /// # Errors
    /// Why it is not, as a sentence.
    pub(crate) async fn run(
        &self,
        upstream: &Upstream,
        port: &PortVariable,
        children: &Children,
        timeout: Duration,
    ) -> Result<(), String> {
        let check = async {
            match self {
                Self::Tcp => upstream.connects().await.map_err(|error| error.to_string()),
                Self::Get(path) => match upstream.check(path).await {
                    Ok(status) if status.is_success() || status.is_redirection() => Ok(()),
                    Ok(status) => Err(format!("GET {path} answered {status}")),
                    Err(error) => Err(format!("GET {path}: {error}")),
                },
                Self::Command(command) => run_command(command, port, children).await,
            }
        };
        tokio::time::timeout(timeout, check)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")))
    }
}

/// Runs a command with the app's variables. What it started ends with it, and when this is dropped.
async fn run_command(
    command: &str,
    port: &PortVariable,
    children: &Children,
) -> Result<(), String> {
    let mut shell = Command::new("sh");
    shell.args(["-c", command]).process_group(0).kill_on_drop(true);
    shell.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    add_variables(&mut shell, port);
    let not_run = |error: std::io::Error| format!("sh: {error}");
    let (mut child, _known) = children.spawn(&mut shell).map_err(not_run)?;
    let _group = ProcessGroup::led_by(&child).map_err(not_run)?;
    match child.wait().await {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("the check ended with {status}")),
        Err(error) => Err(format!("the check: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checks_are_read_as_they_are_written() {
        for (text, check) in [
            ("tcp", HealthCheck::Tcp),
            ("GET /health?full=1", HealthCheck::Get("/health?full=1".to_owned())),
            ("pg_isready -q", HealthCheck::Command("pg_isready -q".to_owned())),
            ("/usr/bin/check", HealthCheck::Command("/usr/bin/check".to_owned())),
        ] {
            assert_eq!(text.parse(), Ok(check));
        }
    }
}

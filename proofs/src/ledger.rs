//! What ran, by the workers' own logs, beside what clients were answered.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::load::Tally;

/// How often each nonce ran, over all workers.
#[derive(Debug, Default)]
pub struct Ledger(HashMap<u64, u32>);

impl Ledger {
    /// Reads the run logs: one nonce a line.
    ///
    /// # Errors
    /// A log that cannot be read, or a line that is no nonce.
    pub fn read(logs: &[PathBuf]) -> anyhow::Result<Self> {
        let mut ledger = Self::default();
        for log in logs {
            let text = read_log(log)?;
            for line in text.lines() {
                let nonce = line
                    .parse()
                    .with_context(|| format!("{}: {line:?} is no nonce", log.display()))?;
                *ledger.0.entry(nonce).or_default() += 1;
            }
        }
        Ok(ledger)
    }

    /// How often a request ran.
    pub fn runs(&self, nonce: u64) -> u32 {
        self.0.get(&nonce).copied().unwrap_or(0)
    }

    /// POSTs that ran more than once.
    pub fn repeated_posts(&self, tally: &Tally) -> usize {
        tally
            .outcomes
            .iter()
            .filter(|outcome| outcome.method == http::Method::POST && self.runs(outcome.nonce) > 1)
            .count()
    }

    /// Requests that were answered 200 and ran nowhere.
    pub fn answered_without_a_run(&self, tally: &Tally) -> usize {
        tally
            .outcomes
            .iter()
            .filter(|outcome| !outcome.failed() && self.runs(outcome.nonce) == 0)
            .count()
    }
}

/// A worker that was killed may have left half a line; that request's answer never left it either.
fn read_log(log: &Path) -> anyhow::Result<String> {
    if !log.exists() {
        return Ok(String::new());
    }
    let mut text =
        std::fs::read_to_string(log).with_context(|| format!("run log {}", log.display()))?;
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    text.truncate(whole);
    Ok(text)
}

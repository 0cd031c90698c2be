//! The configuration file, followed: what is valid is in force within a second or two, what is not
//! leaves the last good one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use crate::config::{Config, ConfigError};

/// How often the file is polled.
const PACE: Duration = Duration::from_secs(1);

/// A file that is followed while this lives.
#[derive(Debug)]
pub struct Followed {
    /// The configuration that is in force.
    pub config: watch::Receiver<Arc<Config>>,
    _following: AbortOnDropHandle<()>,
}

/// Reads a file and follows it.
///
/// # Errors
/// What is wrong with the file now; later faults are told in the log.
pub fn follow(path: PathBuf) -> Result<Followed, ConfigError> {
    let text = read(&path)?;
    let (sender, config) = watch::channel(Arc::new(Config::read(&text)?));
    let following = AbortOnDropHandle::new(tokio::spawn(keep(path, text, sender)));
    Ok(Followed { config, _following: following })
}

fn read(path: &PathBuf) -> Result<String, ConfigError> {
    std::fs::read_to_string(path)
        .map_err(|error| ConfigError(vec![format!("{}: {error}", path.display())]))
}

async fn keep(path: PathBuf, mut known: String, config: watch::Sender<Arc<Config>>) {
    let mut complaint = None;
    loop {
        tokio::time::sleep(PACE).await;
        let read = read(&path);
        if read.as_ref().is_ok_and(|text| *text == known) {
            complaint = None;
            continue;
        }
        match read.and_then(|text| Config::read(&text).map(|config| (text, config))) {
            Ok((text, new)) => {
                info!(path = %path.display(), targets = new.targets.len(), "configuration reloaded");
                (known, complaint) = (text, None);
                config.send_replace(Arc::new(new));
            }
            Err(error) if complaint.as_ref() == Some(&error) => {}
            Err(error) => {
                warn!(path = %path.display(), %error, "configuration refused, the last good one \
                                                       stays");
                complaint = Some(error);
            }
        }
    }
}

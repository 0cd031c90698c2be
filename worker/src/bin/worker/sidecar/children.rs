//! The processes that we wait for, and those that are left to us.

use std::collections::HashSet;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tracing::debug;

/// The processes that we wait for, to tell them from those that are left to us: what apps leave
/// behind, and as the first process of a container whatever is.
#[derive(Clone, Debug, Default)]
pub(crate) struct Children(Arc<Mutex<HashSet<Pid>>>);

/// A process that is known, as long as this is held.
#[derive(Debug)]
pub(crate) struct KnownChild {
    id: Option<Pid>,
    children: Children,
}

impl KnownChild {
    /// All that are known.
    pub(crate) fn children(&self) -> &Children {
        &self.children
    }
}

impl Drop for KnownChild {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            self.children.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }
}

impl Children {
    /// Starts a process, and knows it before it could be taken for another's.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<(Child, KnownChild)> {
        let mut own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let child = command.spawn()?;
        let id = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        own.extend(id);
        Ok((child, KnownChild { id, children: self.clone() }))
    }

    /// Takes leave of processes that have ended and whose parents did before. Our own are left to
    /// whoever waits for them.
    pub(crate) fn reap_others(&self) {
        let own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
            let Ok(status) = waitid(Id::All, look) else { return };
            let Some(id) = status.pid() else { return };
            if own.contains(&id) {
                // Its waiter takes it in a moment, and what is behind it is seen by the next look.
                return;
            }
            match waitpid(id, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(status) => debug!(?status, "reaped a process that was left behind"),
            }
        }
    }
}

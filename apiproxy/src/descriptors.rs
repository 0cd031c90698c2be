//! How many client connections the system's limit on open files (RLIMIT_NOFILE) leaves room for.
//!
//! A process that has no descriptor left cannot accept, reach its broker or answer its probes, so
//! the limit is raised as far as it may be, and connections end well before it.

use std::num::NonZeroUsize;

use tracing::{debug, warn};

use crate::settings::Settings;

/// Descriptors that are no client's and no shard's: standard streams, listeners, the control
/// plane's runtime and its broker connection, signals, and a few tens of connections to the admin
/// address.
const RESERVE: usize = 64;

/// Descriptors of a shard besides its broker connections: its runtime has three.
const SHARD: usize = 4;

/// The most client connections there may be at once: those of the settings, or fewer if the system
/// allows no more, which is said. Raises the limit on open files first.
pub fn allowed_connections(settings: &Settings) -> usize {
    let wanted = settings.memory.connections;
    let open_files = match rlimit::increase_nofile_limit(u64::MAX) {
        Ok(open_files) => usize::try_from(open_files).unwrap_or(usize::MAX),
        Err(error) => {
            // A system without such a limit has nothing to say about it.
            debug!(%error, "limit on open files unknown");
            return wanted;
        }
    };
    let room = room(open_files, settings.shards, settings.connections_per_shard);
    if room < wanted {
        warn!(
            open_files,
            connections = room,
            wanted,
            "the limit on open files leaves room for fewer client connections than \
             --max-connections: raise it (ulimit -n, LimitNOFILE)"
        );
    }
    wanted.min(room)
}

/// The client connections that fit beside everything else. A broker connection may have its
/// successor beside it.
fn room(open_files: usize, shards: NonZeroUsize, connections_per_shard: NonZeroUsize) -> usize {
    let others = RESERVE + shards.get() * (SHARD + 2 * connections_per_shard.get());
    open_files.saturating_sub(others).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_else_comes_before_clients() {
        let count = |number| NonZeroUsize::new(number).unwrap();
        assert_eq!(room(1_024, count(2), count(1)), 1_024 - 64 - 2 * 6);
        assert_eq!(room(1_024, count(4), count(3)), 1_024 - 64 - 4 * 10);
        assert_eq!(room(32, count(2), count(1)), 1, "one, slowly, rather than none");
    }
}

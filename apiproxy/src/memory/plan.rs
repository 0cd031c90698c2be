//! The one sum of what a gateway may need: from its settings, or from the memory that there is.
//! Pure.
//!
//! `docs/operations.md` says the same in words.

use std::num::NonZeroUsize;

use super::MemoryLimits;

/// The process before it has any client: code, control plane, routes, metrics, the allocator's
/// reserve.
const PROCESS_BYTES: usize = 48 << 20;

/// A shard before it has any client: its runtime, and what its broker connections read and write.
const SHARD_BYTES: usize = 16 << 20;

/// A client connection that is idle after a request, of either version of HTTP: its task, and the
/// buffers that it was read and answered with. One that has said nothing yet costs a tenth of it.
const CONNECTION_BYTES: usize = 40 << 10;

/// What the allocator may lose between what is held, as a part of that.
const SLACK: usize = 4;

/// The part of the memory that may be planned for; the rest is for sockets, which the system counts
/// as well.
const PLANNED_PERCENT: usize = 90;

/// Client connections, where nothing says otherwise.
pub const DEFAULT_CONNECTIONS: usize = 16_384;

/// What a shard may hold, where nothing says otherwise.
pub const DEFAULT_HELD_BYTES: usize = 64 << 20;

/// What a stream costs beside what HTTP/2 may hold of it: what is copied at a time, its task, its
/// fields.
const STREAM_BYTES: usize = 64 << 10;

/// Streams, where nothing says otherwise.
pub const DEFAULT_STREAMS: usize = 1_024;

/// Two tunnels of a worker that carry nothing, one for streams and one for requests: TLS, HTTP/2,
/// and the buffers that both were last used with.
const TUNNEL_BYTES: usize = 64 << 10;

/// Tunnels of each kind of a shard, where nothing says otherwise.
pub const DEFAULT_TUNNELS: NonZeroUsize = NonZeroUsize::new(1_024).expect("it is above zero");

/// Pipes of a shard, where nothing says otherwise: with the usual window they are a quarter of what
/// a broker has waiting for a client before it drops that.
pub const DEFAULT_PIPES: usize = 32;

/// However little memory there is, a gateway can serve somebody.
const LEAST_CONNECTIONS: usize = 64;
const LEAST_HELD_BYTES: usize = 4 << 20;
const LEAST_STREAMS: usize = 16;
const LEAST_TUNNELS: usize = 128;
const LEAST_PIPES: usize = 2;

/// The part of the memory that streams may plan with, where nothing says otherwise.
const STREAMS_PART: usize = 10;

/// The same, of tunnels and of pipes.
const TUNNELS_PART: usize = 40;
const PIPES_PART: usize = 40;

/// What an operator asked for; what is left out follows from the memory that there is.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRequest {
    /// Threads that serve.
    pub shards: NonZeroUsize,
    /// Client connections of the process.
    pub connections: Option<usize>,
    /// What each shard may hold.
    pub held_bytes: Option<usize>,
    /// Streams of the process.
    pub streams: Option<usize>,
    /// What HTTP/2 may hold of one: its window, and what waits to be sent.
    pub stream_bytes: usize,
    /// Tunnels of each kind of each shard.
    pub tunnels: Option<usize>,
    /// Pipes of each shard.
    pub pipes: Option<usize>,
    /// What one of them may hold.
    pub pipe_bytes: usize,
    /// What the process may have, if there is a limit.
    pub limit_bytes: Option<usize>,
}

/// The bounds in force, and what they may need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Threads that serve.
    pub shards: usize,
    /// Client connections of the process.
    pub connections: usize,
    /// What each shard may hold.
    pub held_bytes: usize,
    /// Streams of the process.
    pub streams: usize,
    /// What HTTP/2 may hold of one whose client stopped reading.
    pub stream_bytes: usize,
    /// Tunnels of each kind of each shard.
    pub tunnels: usize,
    /// Pipes of each shard.
    pub pipes: usize,
    /// What one of them may hold.
    pub pipe_bytes: usize,
    /// What the process may have, if there is a limit.
    pub limit_bytes: Option<usize>,
}

impl MemoryPlan {
    /// Makes the bounds: those that were asked for, else the usual ones, and smaller ones where the
    /// memory is too little for those. Half of what is left after the rest goes to what is held,
    /// and what that does not need to connections.
    pub fn new(request: MemoryRequest) -> Self {
        let MemoryRequest {
            shards,
            connections,
            held_bytes,
            streams,
            stream_bytes,
            tunnels,
            pipes,
            pipe_bytes,
            limit_bytes,
        } = request;
        let shards = shards.get();
        let mut plan = Self {
            shards,
            connections: connections.unwrap_or(DEFAULT_CONNECTIONS),
            held_bytes: held_bytes.unwrap_or(DEFAULT_HELD_BYTES),
            streams: streams.unwrap_or(DEFAULT_STREAMS),
            stream_bytes,
            tunnels: tunnels.unwrap_or(DEFAULT_TUNNELS.get()),
            pipes: pipes.unwrap_or(DEFAULT_PIPES),
            pipe_bytes,
            limit_bytes,
        };
        if plan.fits() {
            return plan;
        }
        let planned = plan.planned_bytes().unwrap_or(usize::MAX);
        if streams.is_none() {
            let most = planned / STREAMS_PART / (stream_bytes + STREAM_BYTES);
            plan.streams = most.clamp(LEAST_STREAMS, DEFAULT_STREAMS);
        }
        if tunnels.is_none() {
            let most = planned / TUNNELS_PART / shards / TUNNEL_BYTES;
            plan.tunnels = most.clamp(LEAST_TUNNELS, DEFAULT_TUNNELS.get());
        }
        if pipes.is_none() {
            let most = planned / PIPES_PART / shards / pipe_bytes.max(1);
            plan.pipes = most.clamp(LEAST_PIPES, DEFAULT_PIPES);
        }
        let others = (PROCESS_BYTES + shards * SHARD_BYTES)
            .saturating_add(plan.streams_bytes())
            .saturating_add(plan.tunnels_bytes())
            .saturating_add(plan.pipes_bytes());
        let left = planned.saturating_sub(others);
        if held_bytes.is_none() {
            let of_connections = connections.map_or(left / 2, |count| count * CONNECTION_BYTES);
            let shared = left.saturating_sub(of_connections) / shards;
            plan.held_bytes =
                (shared / (SLACK + 1) * SLACK).clamp(LEAST_HELD_BYTES, DEFAULT_HELD_BYTES);
        }
        if connections.is_none() {
            let left = left.saturating_sub(shards * with_slack(plan.held_bytes));
            plan.connections =
                (left / CONNECTION_BYTES).clamp(LEAST_CONNECTIONS, DEFAULT_CONNECTIONS);
        }
        plan
    }

    /// Returns what the process may need when its clients do their worst.
    pub fn needed_bytes(&self) -> usize {
        let shard = SHARD_BYTES + with_slack(self.held_bytes);
        let connections = self.connections.saturating_mul(CONNECTION_BYTES);
        (PROCESS_BYTES.saturating_add(self.shards.saturating_mul(shard)))
            .saturating_add(connections)
            .saturating_add(self.streams_bytes())
            .saturating_add(self.tunnels_bytes())
            .saturating_add(self.pipes_bytes())
    }

    fn tunnels_bytes(&self) -> usize {
        self.shards.saturating_mul(self.tunnels).saturating_mul(TUNNEL_BYTES)
    }

    fn pipes_bytes(&self) -> usize {
        self.shards.saturating_mul(self.pipes).saturating_mul(self.pipe_bytes)
    }

    fn streams_bytes(&self) -> usize {
        self.streams.saturating_mul(self.stream_bytes + STREAM_BYTES)
    }

    /// Whether that is no more than there is.
    pub fn fits(&self) -> bool {
        self.planned_bytes().is_none_or(|planned| self.needed_bytes() <= planned)
    }

    fn planned_bytes(&self) -> Option<usize> {
        self.limit_bytes.map(|limit| limit / 100 * PLANNED_PERCENT)
    }

    /// Returns a shard's bounds; `coming_bytes` is what its answers may come to that the broker
    /// has.
    pub fn limits(&self, coming_bytes: usize) -> MemoryLimits {
        MemoryLimits { held_bytes: self.held_bytes, coming_bytes }
    }
}

fn with_slack(bytes: usize) -> usize {
    bytes.saturating_add(bytes / SLACK)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MIB: usize = 1 << 20;

    fn request(shards: usize, limit_mib: Option<usize>) -> MemoryRequest {
        MemoryRequest {
            shards: NonZeroUsize::new(shards).unwrap(),
            connections: None,
            held_bytes: None,
            streams: None,
            stream_bytes: 320 << 10,
            tunnels: None,
            pipes: None,
            pipe_bytes: 576 << 10,
            limit_bytes: limit_mib.map(|mib| mib * MIB),
        }
    }

    #[test]
    fn the_usual_bounds_hold_where_there_is_room() {
        let plan = MemoryPlan::new(request(2, None));
        assert_eq!((plan.connections, plan.held_bytes), (DEFAULT_CONNECTIONS, DEFAULT_HELD_BYTES));
        assert_eq!(plan.needed_bytes(), (48 + 2 * (16 + 64 + 16 + 64) + 640 + 384 + 36) * MIB);
        assert_eq!(
            MemoryPlan::new(request(2, Some(2_048))),
            MemoryPlan { limit_bytes: Some(2_048 * MIB), ..plan }
        );
    }

    #[test]
    fn the_composed_gateway_fits_its_container() {
        let compose = include_str!("../../../docker-compose.yml");
        let (_, gateway) = compose.split_once("\n  apiproxy:\n").expect("it is there");
        let (gateway, _) = gateway.split_once("\n\n").expect("others come behind it");
        assert!(gateway.contains("mem_limit: 512m") && gateway.contains("cpus: 2.0"), "{gateway}");
        let plan = MemoryPlan::new(request(2, Some(512)));
        assert!(plan.fits(), "{plan:?}");
        assert!(plan.held_bytes >= 60 * MIB, "{plan:?}");
        assert!(plan.tunnels >= 128, "{plan:?}");
        assert!(plan.connections > 3_900 && plan.streams > 100, "{plan:?}");
        assert!(plan.pipes >= 8, "{plan:?}");
    }

    #[test]
    fn what_was_asked_for_stays_and_may_not_fit() {
        let asked = MemoryRequest { connections: Some(16_384), ..request(2, Some(512)) };
        let plan = MemoryPlan::new(asked);
        assert_eq!(
            (plan.fits(), plan.connections, plan.held_bytes),
            (false, 16_384, LEAST_HELD_BYTES)
        );
        let plan = MemoryPlan::new(MemoryRequest { connections: Some(7_000), ..asked });
        assert!(
            plan.fits() && plan.connections == 7_000 && plan.held_bytes < DEFAULT_HELD_BYTES,
            "{plan:?}"
        );
        let plan = MemoryPlan::new(MemoryRequest { held_bytes: Some(256 * MIB), ..asked });
        assert_eq!((plan.fits(), plan.connections, plan.held_bytes), (false, 16_384, 256 * MIB));
        let plan = MemoryPlan::new(request(64, Some(256)));
        assert_eq!((plan.fits(), plan.connections, plan.held_bytes), (false, 64, LEAST_HELD_BYTES));
    }

    proptest! {
        #[test]
        fn bounds_that_follow_from_the_memory_fit_unless_they_are_the_least(
            shards in 1..128_usize,
            limit_mib in 1..100_000_usize,
            connections in proptest::option::of(1..100_000_usize),
        ) {
            let plan = MemoryPlan::new(MemoryRequest { connections, ..request(shards, Some(limit_mib)) });
            prop_assert!(plan.fits() || plan.held_bytes == LEAST_HELD_BYTES, "{plan:?}");
            prop_assert!((LEAST_HELD_BYTES..=DEFAULT_HELD_BYTES).contains(&plan.held_bytes));
        }
    }
}

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

/// However little memory there is, a gateway can serve somebody.
const LEAST_CONNECTIONS: usize = 64;
const LEAST_HELD_BYTES: usize = 4 << 20;

/// What an operator asked for; what is left out follows from the memory that there is.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRequest {
    /// Threads that serve.
    pub shards: NonZeroUsize,
    /// Client connections of the process.
    pub connections: Option<usize>,
    /// What each shard may hold.
    pub held_bytes: Option<usize>,
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
    /// What the process may have, if there is a limit.
    pub limit_bytes: Option<usize>,
}

impl MemoryPlan {
    /// Makes the bounds: those that were asked for, else the usual ones, and smaller ones where the
    /// memory is too little for those. Half of what is left after the rest goes to what is held,
    /// and what that does not need to connections.
    pub fn new(request: MemoryRequest) -> MemoryPlan {
        let MemoryRequest { shards, connections, held_bytes, limit_bytes } = request;
        let shards = shards.get();
        let mut plan = MemoryPlan {
            shards,
            connections: connections.unwrap_or(DEFAULT_CONNECTIONS),
            held_bytes: held_bytes.unwrap_or(DEFAULT_HELD_BYTES),
            limit_bytes,
        };
        if plan.fits() {
            return plan;
        }
        let planned = plan.planned_bytes().unwrap_or(usize::MAX);
        let left = planned.saturating_sub(PROCESS_BYTES + shards * SHARD_BYTES);
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
            limit_bytes: limit_mib.map(|mib| mib * MIB),
        }
    }

    #[test]
    fn the_usual_bounds_hold_where_there_is_room() {
        let plan = MemoryPlan::new(request(2, None));
        assert_eq!((plan.connections, plan.held_bytes), (DEFAULT_CONNECTIONS, DEFAULT_HELD_BYTES));
        assert_eq!(plan.needed_bytes(), (48 + 2 * (16 + 64 + 16) + 640) * MIB);
        assert_eq!(
            MemoryPlan::new(request(2, Some(1_024))),
            MemoryPlan { limit_bytes: Some(1_024 * MIB), ..plan }
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
        assert_eq!(plan.held_bytes, DEFAULT_HELD_BYTES);
        assert!(plan.connections > 5_000, "{plan:?}");
    }

    #[test]
    fn what_was_asked_for_stays_and_may_not_fit() {
        let asked = MemoryRequest { connections: Some(16_384), ..request(2, Some(512)) };
        let plan = MemoryPlan::new(asked);
        assert_eq!(
            (plan.fits(), plan.connections, plan.held_bytes),
            (false, 16_384, LEAST_HELD_BYTES)
        );
        let plan = MemoryPlan::new(MemoryRequest { connections: Some(8_000), ..asked });
        assert!(
            plan.fits() && plan.connections == 8_000 && plan.held_bytes < DEFAULT_HELD_BYTES,
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

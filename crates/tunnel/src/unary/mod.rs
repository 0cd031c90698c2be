//! Whole requests on a tunnel: what each end knows and decides. Pure, but for the pump.
//!
//! A driver reads frames and hands them to its end, takes what is to be written from it, and tells
//! it the time. What becomes of a request when a tunnel ends is decided here alone: it never ran,
//! or it may have.
//!
//! - [`GatewayEnd`]: what is out on a tunnel, and whether its worker is there.
//! - [`WorkerEnd`]: what was taken from it, how old a request is, and when it may be left.
//! - [`choice`]: which tunnel a request goes by, or the broker.
//! - [`pump`](pump()): the task that moves the frames of either end.

pub mod choice;
mod clocks;
mod gateway;
mod pulse;
mod pump;
mod worker;

use std::time::Duration;

pub use self::clocks::ClockBounds;
pub use self::gateway::{Fate, GatewayEnd, GatewayHeard, RequestKey, Unsendable};
pub use self::pulse::{ControlAnswer, PINGS_MISSED};
pub use self::pump::{PumpError, TunnelEnd, pump};
pub use self::worker::{Taken, WorkerEnd, WorkerHeard};

/// How often an end is to be told the time, and a gateway asks whether the worker is there.
pub const TICK: Duration = Duration::from_millis(500);

/// Bytes that may wait to be written at one end. What is more goes elsewhere or waits.
pub const UNSENT_BYTES: usize = 1 << 20;

/// A peer that does not keep to the protocol: the tunnel is of no use any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// A frame of the other side's, before the hello, after the goodbye, or a second hello.
    #[error("a frame that does not belong there")]
    OutOfPlace,
    /// An answer to a request that was not sent, or not whole yet.
    #[error("an answer to what was not asked")]
    Unasked,
    /// A goodbye that counts more requests than were sent.
    #[error("a goodbye that counts too much")]
    Miscounted,
    /// More pings than answers could be written to.
    #[error("more pings than can be answered")]
    Flood,
    /// A hello or a frame that cannot be read.
    #[error("it cannot be read")]
    Unreadable,
}

impl From<natsway_wire::Error> for Violation {
    fn from(_: natsway_wire::Error) -> Self {
        Self::Unreadable
    }
}

//! Where samples come from: drivers that ask and count, and decide nothing.

mod consumer;
mod deliveries;
pub mod discover;
mod gateways;
mod http;
mod monitoring;
mod services;
mod tally;
mod totals;

pub use consumer::ConsumerSignal;
pub use deliveries::{Deliveries, Position};
pub use gateways::Gateways;
pub use monitoring::MonitoringSignal;
pub use services::{ServicesSignal, Via};
pub use tally::{TallySignal, tally_config};
pub use totals::{Counters, Totals};

pub(crate) use http::get_json;

use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use natsway_boot::Clock;

use crate::roll_call::Answers;
use crate::sample::{Fault, Sample};

/// How long the broker may take to answer one question.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Something that can be polled.
pub trait Signal: Send {
    /// The counters as they stand now, or why they cannot be had. Ends within a few seconds,
    /// whatever happens.
    fn poll(&mut self) -> BoxFuture<'_, Result<Sample, Fault>>;

    /// Who answered at the last poll, where instances are asked and the broker was heard; otherwise
    /// nobody can be missed.
    fn answers(&self) -> Option<&Answers> {
        None
    }
}

/// Now, in milliseconds since the Unix epoch.
pub(crate) fn now_ms(clock: &Clock) -> u64 {
    clock.unix_ms_at(Instant::now())
}

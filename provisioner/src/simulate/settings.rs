//! Our parameters, one setting for all traces. Chosen on the seeds below 1000 and not touched
//! since.

use super::{Autoscaler, COLD_START_MS, MAX_INSTANCES};
use crate::controller::{Controller, ControllerRules};
use crate::policy::{Lag, LatencySlo, Policy, Rate};
use crate::sample::{Fault, Fleet, Sample};
use crate::scale::ScaleRules;
use crate::window::WindowRules;

/// The rules that every simulation of ours runs with.
pub fn frozen_rules(min: u32, warm_spares: u32) -> ControllerRules {
    ControllerRules {
        window: WindowRules { span_ms: 5_000, stale_after_ms: 3_000 },
        lead_s: COLD_START_MS as f64 / 1_000.0,
        service_rate: None,
        concurrency: 1.0,
        slots: None,
        prefetch: 1,
        tolerance: 0.1,
        scale: ScaleRules {
            warm_spares,
            down_window_ms: 10_000,
            cooldown_ms: 15_000,
            hold_ms: 120_000,
            in_tolerance_percent: 10,
            zero_after_ms: 10_000,
            ..ScaleRules::between(min, MAX_INSTANCES)
        },
    }
}

/// The policies that every simulation of ours runs with.
pub fn frozen_policies() -> Vec<Box<dyn Policy>> {
    vec![
        Box::new(Rate { target_utilisation: 0.8 }),
        Box::new(Lag { target_utilisation: 0.8, drain_s: 5.0 }),
        Box::new(LatencySlo { target_utilisation: 0.8, wait_s: 1.0, beta: 0.0 }),
    ]
}

/// The provisioner's own core.
pub struct Ours(Controller);

impl Ours {
    /// The frozen setting.
    pub fn new(min: u32, warm_spares: u32) -> Self {
        Self::with(frozen_rules(min, warm_spares), frozen_policies())
    }

    /// Any other setting.
    pub fn with(rules: ControllerRules, policies: Vec<Box<dyn Policy>>) -> Self {
        Self(Controller::new("simulated", rules, policies))
    }
}

impl Autoscaler for Ours {
    fn period_ms(&self) -> u64 {
        1_000
    }

    fn decide(&mut self, now_ms: u64, fleet: Fleet, poll: &Result<Sample, Fault>) -> u32 {
        self.0.decide(now_ms, fleet, poll.clone()).to
    }
}

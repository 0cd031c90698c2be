//! As many instances as the arrivals need, and the backlog to be worked off in time.

use super::{Answer, Policy, View};

/// `ceil((lambda + max(0, P - nB) / T) / (rho mu))`: the backlog `P` beyond what `n` instances fetch ahead (`B` each)
/// is to be gone after `T`.
///
/// What instances fetched ahead is no lag: a sum that counts it never falls, and ends at the maximum with an empty
/// queue.
#[derive(Clone, Copy, Debug)]
pub struct Lag {
    /// As for [`Rate`](super::Rate).
    pub target_utilisation: f64,
    /// How long a backlog may take to be worked off, in seconds, above 0.
    pub drain_s: f64,
}

impl Policy for Lag {
    fn name(&self) -> &'static str {
        "lag"
    }

    fn desire(&mut self, view: &View) -> Answer {
        let Some(service_rate) = view.service_rate else { return Answer::unlearned(view) };
        let fetched_ahead = u64::from(view.prefetch).saturating_mul(u64::from(view.fleet.ready));
        let lag = view.backlog().saturating_sub(fetched_ahead);
        let Lag { target_utilisation: rho, drain_s } = *self;
        let load = view.arrival_rate + lag as f64 / drain_s;
        let lambda = view.arrival_rate;
        Answer::load(
            load / (rho * service_rate),
            format!(
                "{lambda:.1}/s and a lag of {lag} within {drain_s} s, over {rho} of {service_rate:.1}/s each"
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::wanted;
    use crate::sample::Fleet;

    #[test]
    fn a_backlog_asks_for_more_than_the_arrivals() {
        let mut policy = Lag { target_utilisation: 1.0, drain_s: 5.0 };
        let view = View {
            arrival_rate: 200.0,
            waiting: 1_000,
            service_rate: Some(100.0),
            fleet: Fleet { ready: 2, ..Fleet::default() },
            ..View::default()
        };
        assert_eq!(wanted(&mut policy, &view), Some(4));
        let fetched = View { waiting: 0, in_hand: 200, prefetch: 100, ..view };
        assert_eq!(wanted(&mut policy, &fetched), Some(2), "what was fetched ahead is no lag");
    }
}

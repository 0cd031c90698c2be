//! As many instances as keep messages from waiting longer than promised (Little's law).

use super::{Answer, Policy, View};

/// The larger of `lambda / (rho mu)` and `(lambda + P / W) / mu`, and `beta sqrt(lambda / mu)`
/// spare ones.
///
/// By Little's law a message that comes to a backlog of `P` before `n` instances waits
/// `P / (n mu)`; that must be no more than `W`, while what comes meanwhile is carried too. Where
/// that takes more than there are, the backlog grows until others have started, and is to be gone
/// after as long again and `W` ([`View::clearing`]). The spare ones are the square-root staffing
/// rule, which takes up the chance in the arrivals.
#[derive(Clone, Copy, Debug)]
pub struct LatencySlo {
    /// As for [`Rate`](super::Rate).
    pub target_utilisation: f64,
    /// How long a message may wait, in seconds, above 0.
    pub wait_s: f64,
    /// Spare instances, in square roots of the busy ones; 0 for none.
    pub beta: f64,
}

impl Policy for LatencySlo {
    fn name(&self) -> &'static str {
        "latency-slo"
    }

    fn desire(&mut self, view: &View) -> Answer {
        let Some(service_rate) = view.service_rate else { return Answer::unlearned(view) };
        let Self { target_utilisation: rho, wait_s, beta } = *self;
        let (lambda, backlog) = (view.arrival_rate, view.backlog());
        let carrying = lambda / (rho * service_rate);
        let at_once = (lambda + backlog as f64 / wait_s) / service_rate;
        let within_s = wait_s + view.start_s;
        let clearing = view
            .clearing(backlog, service_rate, within_s)
            .unwrap_or_else(|| at_once.min(view.present()));
        let busy = lambda / service_rate;
        let staffed = busy + beta * busy.sqrt();
        Answer::load(
            carrying.max(clearing).max(staffed),
            format!(
                "{carrying:.1} to carry {lambda:.1}/s, {clearing:.1} to clear {backlog} within \
                 {wait_s} s, {staffed:.1} staffed"
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
    fn the_larger_of_carrying_and_clearing_wins() {
        let mut policy = LatencySlo { target_utilisation: 1.0, wait_s: 2.0, beta: 0.0 };
        let view = View { arrival_rate: 300.0, service_rate: Some(100.0), ..View::default() };
        assert_eq!(wanted(&mut policy, &view), Some(3));
        assert_eq!(
            wanted(&mut policy, &View { waiting: 1_000, ..view.clone() }),
            Some(8),
            "3 carry, 5 clear"
        );
        let enough = Fleet { ready: 9, ..Fleet::default() };
        assert_eq!(
            wanted(&mut policy, &View { waiting: 1_000, fleet: enough, ..view.clone() }),
            Some(8)
        );
        policy.beta = 1.0;
        assert_eq!(wanted(&mut policy, &view), Some(5), "3 and the square root of 3");
    }
}

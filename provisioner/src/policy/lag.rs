//! As many instances as the arrivals need, and the backlog to be worked off in time.

use super::{Answer, Policy, View};

/// The larger of `lambda / (rho mu)` and of `(lambda + max(0, P - nB) / T) / mu`: the backlog `P`
/// beyond what `n` instances fetch ahead (`B` each) is to be gone after `T`. More than there are
/// only as [`View::clearing`] has it: `T` begins when another instance could have started, and
/// those on their way count with what they will have done by then.
///
/// What instances fetched ahead is no lag: a sum that counts it never falls, and ends at the
/// maximum with an empty queue.
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
        let Self { target_utilisation: rho, drain_s } = *self;
        let lambda = view.arrival_rate;
        let carrying = lambda / (rho * service_rate);
        let at_once = ((lambda + lag as f64 / drain_s) / service_rate).min(view.present());
        // While instances start none of them is taken back: the lag that they were started for
        // grows still.
        let enough = if lag > 0 && view.fleet.starting > 0 { view.present() } else { at_once };
        let clearing = view.clearing(lag, service_rate, drain_s).unwrap_or(enough);
        Answer::load(
            carrying.max(clearing),
            format!(
                "{carrying:.1} to carry {lambda:.1}/s at {rho} of {service_rate:.1}/s each, \
                 {clearing:.1} to clear a lag of {lag} within {drain_s} s of a start"
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

    #[test]
    fn a_backlog_that_grows_while_instances_start_asks_for_no_others() {
        let mut policy = Lag { target_utilisation: 0.8, drain_s: 5.0 };
        // 1,000/s before two instances of 100/s each; one takes 15 s to start.
        let mut fleet = Fleet { ready: 2, ..Fleet::default() };
        let at = |second: u64, fleet: Fleet| View {
            fleet,
            arrival_rate: 1_000.0,
            waiting: 800 * (second + 1),
            service_rate: Some(100.0),
            start_s: 15.0,
            started_s: f64::from(fleet.starting) * second as f64,
            ..View::default()
        };
        let first = wanted(&mut policy, &at(0, fleet)).unwrap();
        fleet.starting = first - 2;
        for second in 1..15 {
            assert_eq!(
                wanted(&mut policy, &at(second, fleet)),
                Some(first),
                "{second} s after the first answer"
            );
        }
    }
}

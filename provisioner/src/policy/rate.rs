//! As many instances as the arrivals need.

use super::{Answer, Policy, View};

/// `ceil(lambda / (rho mu))`: arrivals a second, over what an instance may carry.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// The share of an instance's capacity that is planned for, above 0 and up to 1: the rest takes
    /// up chance.
    pub target_utilisation: f64,
}

impl Policy for Rate {
    fn name(&self) -> &'static str {
        "rate"
    }

    fn desire(&mut self, view: &View) -> Answer {
        let Some(service_rate) = view.service_rate else { return Answer::unlearned(view) };
        let (lambda, rho) = (view.arrival_rate, self.target_utilisation);
        Answer::load(
            lambda / (rho * service_rate),
            format!("{lambda:.1}/s over {rho} of {service_rate:.1}/s each"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::wanted;

    #[test]
    fn arrivals_are_spread_at_the_planned_utilisation() {
        let mut policy = Rate { target_utilisation: 0.8 };
        let view = View { arrival_rate: 1_000.0, service_rate: Some(100.0), ..View::default() };
        assert_eq!(wanted(&mut policy, &view), Some(13));
        assert_eq!(wanted(&mut policy, &View { arrival_rate: 0.0, ..view.clone() }), Some(0));
        assert_eq!(wanted(&mut policy, &View { service_rate: None, ..view }), None);
    }
}

//! As many instances as the arrivals need.

use super::{Answer, Policy, View, instances_for};

/// `ceil(lambda / (rho mu))`: arrivals a second, over what an instance may carry.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    /// The share of an instance's capacity that is planned for, above 0 and up to 1: the rest takes up chance.
    pub target_utilisation: f64,
}

impl Policy for Rate {
    fn name(&self) -> &'static str {
        "rate"
    }

    fn desire(&mut self, view: &View) -> Answer {
        let Some(service_rate) = view.service_rate else { return Answer::unlearned() };
        let (lambda, rho) = (view.arrival_rate, self.target_utilisation);
        let instances = instances_for(lambda, rho * service_rate);
        Answer::want(instances, format!("{lambda:.1}/s over {rho} of {service_rate:.1}/s each"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_spread_at_the_planned_utilisation() {
        let mut policy = Rate { target_utilisation: 0.8 };
        let view = View { arrival_rate: 1_000.0, service_rate: Some(100.0), ..View::default() };
        assert_eq!(policy.desire(&view).instances, Some(13));
        assert_eq!(policy.desire(&View { arrival_rate: 0.0, ..view.clone() }).instances, Some(0));
        assert_eq!(policy.desire(&View { service_rate: None, ..view }).instances, None);
    }
}

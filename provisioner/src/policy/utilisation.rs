//! As many instances as bring their utilisation to what is planned.

use super::{Answer, Policy, View};

/// `ceil(n rho_seen / rho)`.
///
/// It cannot see a load above what instances can take, so it reaches a tenfold load in steps;
/// combine it with a policy that sees the arrivals.
#[derive(Clone, Copy, Debug)]
pub struct Utilisation {
    /// The utilisation to reach, above 0 and up to 1.
    pub target_utilisation: f64,
}

impl Policy for Utilisation {
    fn name(&self) -> &'static str {
        "utilisation"
    }

    fn desire(&mut self, view: &View) -> Answer {
        let Some(seen) = view.utilisation else {
            return Answer::none(
                "nothing is known of the time that instances spent in the last second",
            );
        };
        let (ready, target) = (view.fleet.ready, self.target_utilisation);
        Answer::load(
            f64::from(ready) * seen / target,
            format!("{seen:.2} of the time of {ready} ready was used, {target} planned"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::wanted;
    use crate::sample::Fleet;

    #[test]
    fn instances_follow_the_ratio_of_seen_to_planned() {
        let mut policy = Utilisation { target_utilisation: 0.5 };
        let fleet = Fleet { ready: 4, ..Fleet::default() };
        let view = View { fleet, utilisation: Some(0.75), ..View::default() };
        assert_eq!(wanted(&mut policy, &view), Some(6));
        assert_eq!(wanted(&mut policy, &View { utilisation: None, ..view }), None);
    }
}

//! The rule of the auto-scaler of NATS by Example, as it stands there.

use super::{Answer, Policy, View};

/// One instance more for each call, up to `ceil(r / 500)`; one less for each call once nothing has
/// come for 2 s.
///
/// `r` is the mean since the first poll, so old idle time dilutes it for ever. The one thing that
/// is not as it stands there: it stops at zero, where the original goes on to -1.
///
/// <https://natsbyexample.com/examples/use-cases/auto-scaler/go>
#[derive(Clone, Copy, Debug)]
pub struct Example {
    /// Messages a second for each instance; 500 there.
    pub rate_per_instance: f64,
    /// How long nothing must have come, in milliseconds; 2,000 there.
    pub idle_ms: u64,
}

impl Default for Example {
    fn default() -> Self {
        Self { rate_per_instance: 500.0, idle_ms: 2_000 }
    }
}

impl Policy for Example {
    fn name(&self) -> &'static str {
        "example"
    }

    fn desire(&mut self, view: &View) -> Answer {
        let current = view.fleet.present();
        let idle_ms = view.idle_ms();
        if view.last_arrival_ms.is_none() || idle_ms >= self.idle_ms {
            return Answer::exactly(
                current.saturating_sub(1),
                format!("nothing came for {idle_ms} ms"),
            );
        }
        if current == 0 {
            return Answer::exactly(1, "messages come and nobody is there");
        }
        let last_ms = view.last_arrival_ms.unwrap_or(view.now_ms);
        let lifetime_ms = last_ms.saturating_sub(view.since_ms);
        let rate =
            if lifetime_ms == 0 { 0.0 } else { view.count as f64 * 1_000.0 / lifetime_ms as f64 };
        let ceiling = (rate / self.rate_per_instance).ceil() as u32;
        Answer::exactly(
            (current + 1).min(ceiling),
            format!(
                "{rate:.1}/s since the beginning, {} for each instance",
                self.rate_per_instance
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::tests::wanted;
    use crate::sample::Fleet;

    /// Two batches of 10,000, at 2,400/s and 1,970/s with 3 s between them, as in the transcript.
    fn arrived_at(ms: u64) -> (u64, u64) {
        let first_ms = 10_000 * 1_000 / 2_400;
        let second_from = first_ms + 3_000;
        let second = (ms.saturating_sub(second_from) * 1_970 / 1_000).min(10_000);
        let first = (ms * 2_400 / 1_000).min(10_000);
        let last = if second == 10_000 {
            second_from + 10_000 * 1_000 / 1_970
        } else if second > 0 || ms < first_ms {
            ms
        } else {
            first_ms
        };
        (first + second, last.min(ms))
    }

    #[test]
    fn the_transcript_is_followed() {
        let mut rule = Example::default();
        let mut instances = 0;
        let mut trajectory = vec![0];
        for second in 0..30 {
            let now_ms = 4 + second * 1_000;
            let (count, last_ms) = arrived_at(now_ms);
            let fleet = Fleet { ready: instances, ..Fleet::default() };
            let view =
                View { now_ms, fleet, count, last_arrival_ms: Some(last_ms), ..View::default() };
            instances = wanted(&mut rule, &view).unwrap();
            if trajectory.last() != Some(&instances) {
                trajectory.push(instances);
            }
        }
        assert_eq!(trajectory, [0, 1, 2, 3, 4, 5, 4, 3, 4, 3, 2, 1, 0], "0-5, 5-3, 3-4, 4-0");
    }

    #[test]
    fn it_stays_at_zero_while_nothing_comes() {
        assert_eq!(wanted(&mut Example::default(), &View::default()), Some(0));
    }
}

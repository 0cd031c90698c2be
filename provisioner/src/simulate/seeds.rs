//! The two autoscalers that this one began with, as they are, faults included.

use super::{Autoscaler, SERVICE_RATE};
use crate::policy::{Example, Policy, View};
use crate::sample::{Fault, Fleet, Sample};

/// NATS by Example's rule, once a second, with the rate of an instance here in place of its 500.
///
/// It has no bounds and no floor of one; below zero, where it would go on to, nobody can follow it.
#[derive(Clone, Debug)]
pub struct NatsExample {
    rule: Example,
    first: Option<Sample>,
    last_arrival: Option<(u64, u64)>,
}

impl Default for NatsExample {
    fn default() -> Self {
        let rule = Example { rate_per_instance: SERVICE_RATE, ..Example::default() };
        Self { rule, first: None, last_arrival: None }
    }
}

impl Autoscaler for NatsExample {
    fn period_ms(&self) -> u64 {
        1_000
    }

    fn decide(&mut self, now_ms: u64, fleet: Fleet, poll: &Result<Sample, Fault>) -> u32 {
        // It counts what it receives itself; while it receives nothing, it takes that for idleness.
        let first = match poll {
            Ok(sample) => self.first.get_or_insert_with(|| sample.clone()).clone(),
            Err(_) => self.first.clone().unwrap_or_default(),
        };
        if let Ok(sample) = poll
            && self.last_arrival.is_none_or(|(arrived, _)| arrived != sample.arrived)
        {
            self.last_arrival = Some((sample.arrived, now_ms));
        }
        let (arrived, last_ms) = self.last_arrival.unwrap_or_default();
        let view = View {
            now_ms,
            fleet,
            count: arrived.saturating_sub(first.arrived),
            since_ms: first.at_ms,
            last_arrival_ms: Some(last_ms),
            ..View::default()
        };
        self.rule.desire(&view).instances(fleet.present(), 0.0).unwrap_or(0)
    }
}

/// QueueWatch: every 5 s, one consumer more or less, one at the least.
#[derive(Clone, Debug, Default)]
pub struct QueueWatch {
    before: Option<Metric>,
    last: Option<Sample>,
}

/// What it reads from the broker's management interface.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Metric {
    utilisation_percent: f64,
    publish: f64,
    dispatch: f64,
    length: i64,
}

impl QueueWatch {
    /// The change as it is computed there: in percent of the *later* figure, 0 where that is 0.
    fn change(before: f64, now: f64) -> f64 {
        if now == 0.0 { 0.0 } else { ((now - before) / now * 100.0).round() }
    }

    /// -1, 0 or 1, by the first analyser of the chain that fires.
    fn directive(before: Metric, now: Metric) -> i32 {
        const DIFFERENCE: f64 = 20.0;
        let published = Self::change(before.publish, now.publish);
        let dispatched = Self::change(before.dispatch, now.dispatch);
        // Of whole numbers, so it is 100 when the queue was empty before, and 0 otherwise.
        let grown = (now.length - before.length).checked_div(now.length).unwrap_or(0) * 100;
        if (0.0..99.0).contains(&now.utilisation_percent)
            || published >= DIFFERENCE
            || dispatched <= -DIFFERENCE
            || (now.length > 100 && grown >= 20)
        {
            1
        } else if published <= -DIFFERENCE || now.publish == 0.0 {
            -1
        } else {
            0
        }
    }
}

impl Autoscaler for QueueWatch {
    fn period_ms(&self) -> u64 {
        5_000
    }

    fn decide(&mut self, _: u64, fleet: Fleet, poll: &Result<Sample, Fault>) -> u32 {
        let current = fleet.present();
        let Ok(sample) = poll else { return current };
        let last = self.last.replace(sample.clone());
        let Some(last) = last.filter(|last| last.at_ms < sample.at_ms) else {
            return current.max(1);
        };
        let elapsed_s = (sample.at_ms - last.at_ms) as f64 / 1_000.0;
        let rate = |before: u64, now: u64| now.saturating_sub(before) as f64 / elapsed_s;
        let length = sample.waiting.unwrap_or(0);
        let now = Metric {
            // A queue that is empty could always be delivered from at once.
            utilisation_percent: if length == 0 { 100.0 } else { 50.0 },
            publish: rate(last.arrived, sample.arrived),
            dispatch: rate(last.completed, sample.completed),
            length: i64::try_from(length).unwrap_or(i64::MAX),
        };
        let Some(before) = self.before.replace(now) else { return current.max(1) };
        current.saturating_add_signed(Self::directive(before, now)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALM: Metric =
        Metric { utilisation_percent: 100.0, publish: 100.0, dispatch: 100.0, length: 0 };

    #[test]
    fn queue_watch_has_the_faults_that_it_has() {
        let stalled = Metric { dispatch: 0.0, ..CALM };
        assert_eq!(QueueWatch::directive(CALM, stalled), 0, "a total stall is not seen");
        let longer = |length| Metric { length, ..CALM };
        assert_eq!(
            QueueWatch::directive(longer(200), longer(900)),
            0,
            "a growing queue is not seen"
        );
        assert_eq!(QueueWatch::directive(longer(0), longer(900)), 1, "unless it was empty");
        assert_eq!(QueueWatch::directive(CALM, Metric { publish: 0.0, ..CALM }), -1);
        assert_eq!(
            QueueWatch::directive(CALM, Metric { publish: 126.0, ..CALM }),
            1,
            "26 of 126 are 21 %"
        );
        assert_eq!(
            QueueWatch::directive(CALM, Metric { publish: 121.0, ..CALM }),
            0,
            "21 of 121 are 17 %"
        );
    }
}

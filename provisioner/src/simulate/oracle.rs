//! The instances of somebody who knows the future.

use super::{SERVICE_RATE, SLO_MS, TICK_MS, Trace};

/// Instance-seconds of the smoothest service that makes no message late, whole instances, cold
/// starts included.
///
/// Service is a curve between what has come and what must be finished; the taut string between the
/// two is the one that changes least (J. Salehi et al., *Supporting stored video*, 1996). Instances
/// are rounded up for each second; one that would be needed again within a cold start stays, and
/// each start is paid for.
pub fn oracle(trace: &Trace) -> f64 {
    let per_second = (1_000 / TICK_MS) as usize;
    let mut came = vec![0.0];
    for second in trace.arrivals().chunks(per_second) {
        let last = came.last().copied().unwrap_or(0.0);
        came.push(last + second.iter().copied().map(f64::from).sum::<f64>());
    }
    let slack = (SLO_MS / 1_000) as usize;
    let end = came.len() - 1;
    let due: Vec<f64> = (0..=end)
        .map(|second| if second == end { came[end] } else { came[second.saturating_sub(slack)] })
        .collect();
    let rates = taut_string(&due, &came);
    let fitness =
        trace.fitness().chunks(per_second).map(|ticks| ticks.iter().copied().fold(1.0, f64::min));
    let needed = rates.iter().zip(fitness);
    let needed =
        needed.map(|(rate, fit)| (rate / (SERVICE_RATE * fit) - 1e-9).ceil().max(0.0) as u32);
    let mut instances: Vec<u32> =
        needed.map(|count| count.max(trace.kind().min_instances())).collect();
    let cold_start_ms = trace.kind().cold_start_ms();
    keep_over_gaps(&mut instances, (cold_start_ms / 1_000) as usize);
    let starts: u32 = instances.windows(2).map(|pair| pair[1].saturating_sub(pair[0])).sum();
    let held: u32 = instances.iter().sum();
    f64::from(held) + f64::from(starts) * cold_start_ms as f64 / 1_000.0
}

/// The slopes of the shortest line between two rising curves that meet at both ends.
fn taut_string(below: &[f64], above: &[f64]) -> Vec<f64> {
    let end = below.len() - 1;
    let mut slopes = Vec::with_capacity(end);
    let (mut at, mut height) = (0, 0.0);
    while at < end {
        let (mut least, mut most) = ((f64::NEG_INFINITY, at), (f64::INFINITY, at));
        let mut bend = None;
        for ahead in at + 1..=end {
            let run = (ahead - at) as f64;
            let (low, high) = ((below[ahead] - height) / run, (above[ahead] - height) / run);
            if low > most.0 {
                bend = Some(most);
                break;
            }
            if high < least.0 {
                bend = Some(least);
                break;
            }
            if low >= least.0 {
                least = (low, ahead);
            }
            if high <= most.0 {
                most = (high, ahead);
            }
        }
        let (slope, until) = bend.unwrap_or(least);
        slopes.resize(until, slope);
        height += slope * (until - at) as f64;
        at = until;
    }
    slopes
}

fn keep_over_gaps(instances: &mut [u32], longest: usize) {
    for second in 1..instances.len() {
        let before = instances[second - 1];
        let soon = instances[second..].iter().take(longest + 1).copied().max().unwrap_or(0);
        instances[second] = instances[second].max(before.min(soon));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::TraceKind;

    #[test]
    fn the_string_is_straight_where_it_can_be() {
        let above = [0.0, 10.0, 10.0, 10.0, 40.0];
        let below = [0.0, 0.0, 10.0, 10.0, 40.0];
        assert_eq!(taut_string(&below, &above), [5.0, 5.0, 0.0, 30.0]);
        assert_eq!(taut_string(&[0.0, 0.0, 0.0, 9.0], &[0.0, 9.0, 9.0, 9.0]), [3.0, 3.0, 3.0]);
    }

    #[test]
    fn nobody_serves_with_less_than_the_work_needs() {
        for kind in TraceKind::ALL {
            let trace = Trace::new(kind, 1);
            let work_s: f64 =
                trace.arrivals().iter().copied().map(f64::from).sum::<f64>() / SERVICE_RATE;
            let cost = oracle(&trace);
            assert!(cost >= work_s && cost < work_s * 2.0 + 650.0, "{kind:?}: {cost} for {work_s}");
        }
    }

    #[test]
    fn short_gaps_are_kept() {
        let mut instances = [3, 1, 1, 3, 0, 0, 0, 0, 2];
        keep_over_gaps(&mut instances, 3);
        assert_eq!(instances, [3, 3, 3, 3, 0, 0, 0, 0, 2], "a gap of four is longer than three");
    }
}

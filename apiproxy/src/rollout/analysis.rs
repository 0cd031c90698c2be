//! Is the new version worse than the old one? Pure: metrics of both over the same stretch of time
//! in, a verdict out.
//!
//! Three things are compared, all by one test: the share of errors, and the shares of requests that
//! are slower than the old version's 95th and 99th percentile, with some tolerance. The test looks
//! at the bad requests only and asks which version each of them came from. If the versions are
//! equally good, that is the new one as often as it has its share of the requests; the more often
//! it is, the larger grows the likelihood ratio of "so many times as bad" to "equally bad".
//! Averaged over how many times, that ratio is a martingale while the versions are equal, so the
//! probability that it *ever* exceeds 1,000 is below 1 in 1,000 (Ville's inequality). So it may be
//! looked at after every request, at samples as small as they come, without a false alarm for
//! having looked often. See Ramdas et al., "Game-theoretic statistics and safe anytime-valid
//! inference" (2023); Lindon and Malek, "Anytime-valid inference for multinomial count data"
//! (2022).

use std::fmt;
use std::time::Duration;

use natsway_routes::metrics::{AttemptMetrics, Histogram};
use natsway_routes::rollout::{Control, Criteria};

/// Evidence above this is enough to go back: a false alarm in less than one of 10,000 steps.
const WORSE: f64 = 10_000.0;

/// Fewer bad requests are never enough, however improbable they are: they may have one cause that
/// passes.
const LEAST_BAD: u64 = 5;

/// Evidence above this is enough not to go forward.
const DOUBTFUL: f64 = 20.0;

/// How many times as bad the new version may be, for the average. From a little to always failing.
const TIMES_AS_BAD: [f64; 8] = [1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 100.0, 1_000.0];

/// Below this a difference of latencies is no difference that anybody notices.
const LEAST_DELAY_US: u64 = 1_000;

/// The same stretch of time at both versions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// The version that served before.
    pub old: AttemptMetrics,
    /// The version that is to serve.
    pub new: AttemptMetrics,
}

/// What the metrics say.
#[derive(Clone, Debug, PartialEq)]
pub enum AnalysisResult {
    /// It fails more often.
    MoreErrors(Finding),
    /// It is slower.
    Slower(Finding),
    /// Too few requests to tell.
    TooFew {
        /// Of the old version.
        old: u64,
        /// Of the new one.
        new: u64,
        /// How many each must have.
        wanted: u64,
    },
    /// Something speaks against it, not strongly.
    Doubtful(Finding),
    /// Nothing speaks against it.
    Sound,
}

/// What speaks against the new version.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    what: &'static str,
    new: String,
    old: String,
    /// How strongly: a likelihood ratio.
    evidence: f64,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, new, old, evidence } = self;
        let evidence =
            if *evidence < 1e6 { format!("{evidence:.0}") } else { format!("{evidence:.0e}") };
        write!(f, "{what} {new}, of the old version {old} (evidence {evidence} to 1)")
    }
}

impl fmt::Display for AnalysisResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MoreErrors(finding) | Self::Slower(finding) => {
                write!(f, "worse: {finding}")
            }
            Self::Doubtful(finding) => write!(f, "doubtful: {finding}"),
            Self::TooFew { old, new, wanted } => {
                write!(
                    f,
                    "too few requests to tell: {new}, of the old version {old}, {wanted} wanted of \
                     each"
                )
            }
            Self::Sound => f.write_str("nothing speaks against it"),
        }
    }
}

/// A quantile of the old version: how long, and how many of its requests took longer.
struct Bound {
    us: u64,
    above: u64,
}

/// What the new version is compared with.
struct Reference {
    requests: u64,
    errors: u64,
    p95: Option<Bound>,
    p99: Option<Bound>,
}

impl Reference {
    fn of_window(old: &AttemptMetrics) -> Self {
        let bound = |quantile| {
            let us = old.latency.quantile(quantile)?;
            Some(Bound { us, above: old.latency.above(us) })
        };
        Self { requests: old.requests(), errors: old.errors, p95: bound(0.95), p99: bound(0.99) }
    }

    fn of_control(control: &Control) -> Self {
        let bound = |us, one_of| Some(Bound { us, above: control.requests / one_of });
        let Control { requests, errors, p95_us, p99_us } = *control;
        Self { requests, errors, p95: bound(p95_us, 20), p99: bound(p99_us, 100) }
    }
}

/// What a step keeps of the old version for the next, in which it may have no traffic: the errors
/// of this step, and the worst latencies of this and of all `before`.
///
/// Of the last step before that the old version had a part of the traffic only, and at a time that
/// is over. In the first it had nearly all, as the new one is to have; and what its latency went
/// through meanwhile is no reason to blame the new one.
pub fn control(old: &AttemptMetrics, before: Option<&Control>) -> Control {
    let worst = |quantile, of: fn(&Control) -> u64| {
        old.latency.quantile(quantile).unwrap_or(0).max(before.map_or(0, of))
    };
    Control {
        requests: old.requests(),
        errors: old.errors,
        p95_us: worst(0.95, |before| before.p95_us),
        p99_us: worst(0.99, |before| before.p99_us),
    }
}

/// Compares the versions. `before` stands for the old one where it gets no traffic.
pub fn judge(window: &Window, before: Option<&Control>, criteria: &Criteria) -> AnalysisResult {
    let reference = match before {
        Some(before) => Reference::of_control(before),
        None => Reference::of_window(&window.old),
    };
    let new = &window.new;
    let errors = compare_errors(new, &reference, criteria);
    if let Some(finding) = &errors
        && finding.evidence >= WORSE
    {
        return AnalysisResult::MoreErrors(finding.clone());
    }
    let wanted = criteria.min_requests;
    if new.requests() < wanted || reference.requests < wanted {
        return AnalysisResult::TooFew { old: reference.requests, new: new.requests(), wanted };
    }
    let slow = |what, quantile, bound: &Option<Bound>| {
        compare_latency(what, quantile, &new.latency, bound.as_ref()?, reference.requests, criteria)
    };
    let slower = [slow("p95 is", 0.95, &reference.p95), slow("p99 is", 0.99, &reference.p99)];
    if let Some(finding) = slower.iter().flatten().find(|finding| finding.evidence >= WORSE) {
        return AnalysisResult::Slower(finding.clone());
    }
    let doubtful = |finding: &Finding| finding.evidence >= DOUBTFUL;
    errors
        .into_iter()
        .chain(slower.into_iter().flatten())
        .find(doubtful)
        .map_or(AnalysisResult::Sound, AnalysisResult::Doubtful)
}

fn compare_errors(new: &AttemptMetrics, old: &Reference, criteria: &Criteria) -> Option<Finding> {
    let share = |errors: u64, requests: u64| errors as f64 / requests.max(1) as f64;
    let requests = new.requests();
    // Within the margin even certainty is no reason to go back.
    let difference = share(new.errors, requests) - share(old.errors, old.requests);
    (difference > criteria.error_margin).then(|| Finding {
        what: "errors are",
        new: format!("{} of {requests}", new.errors),
        old: format!("{} of {}", old.errors, old.requests),
        evidence: evidence((new.errors, requests), (old.errors, old.requests)),
    })
}

fn compare_latency(
    what: &'static str,
    quantile: f64,
    new: &Histogram,
    old: &Bound,
    old_requests: u64,
    criteria: &Criteria,
) -> Option<Finding> {
    let tolerated = (old.us as f64 * criteria.latency_factor) as u64;
    let tolerated = tolerated.max(old.us + LEAST_DELAY_US);
    let ms = |us| format!("{:?}", Duration::from_micros(us));
    let found = new.quantile(quantile)?;
    (found > tolerated).then(|| Finding {
        what,
        new: ms(found),
        old: ms(old.us),
        evidence: evidence((new.above(tolerated), new.count()), (old.above, old_requests)),
    })
}

/// How much more likely the bad ones among the requests are if the new version is worse than if it
/// is not; both pairs are bad requests and all requests.
///
/// The bad requests come from the new version with its share of all requests if both are equally
/// good. (Where bad ones are not rare their number is limited by that of the requests, which makes
/// a surplus still less likely than assumed here: the error is on the safe side.)
fn evidence(new: (u64, u64), old: (u64, u64)) -> f64 {
    let ((new_bad, new_all), (old_bad, old_all)) = (new, old);
    if new_bad < LEAST_BAD || old_all == 0 {
        return 0.0;
    }
    let share = new_all as f64 / (new_all + old_all) as f64;
    let ratio = |times: f64| {
        let share_if_worse = times * share / (times * share + 1.0 - share);
        let of_new = new_bad as f64 * (share_if_worse / share).ln();
        let of_old = old_bad as f64 * ((1.0 - share_if_worse) / (1.0 - share)).ln();
        // Beyond this it is certain anyway, and sums must stay finite.
        (of_new + of_old).min(600.0).exp()
    };
    TIMES_AS_BAD.into_iter().map(ratio).sum::<f64>() / TIMES_AS_BAD.len() as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `errors` of `requests`, of which one in twenty takes 10 times and one in a hundred 20 times
    /// `us`.
    fn metrics(requests: u64, errors: u64, us: u64) -> AttemptMetrics {
        let mut metrics = AttemptMetrics { errors, ..AttemptMetrics::default() };
        let (p99, p95) = (requests / 100, requests / 20);
        metrics.latency.add(us * 20, p99);
        metrics.latency.add(us * 10, p95 - p99);
        metrics.latency.add(us, requests - p95);
        metrics
    }

    fn verdict(old: AttemptMetrics, new: AttemptMetrics) -> AnalysisResult {
        judge(&Window { old, new }, None, &Criteria::default())
    }

    #[test]
    fn equal_versions_are_sound_and_few_requests_are_too_few() {
        assert_eq!(
            verdict(metrics(1_000, 10, 1_000), metrics(1_000, 10, 1_000)),
            AnalysisResult::Sound
        );
        assert_eq!(
            verdict(metrics(1_000, 0, 1_000), metrics(40, 0, 1_000)),
            AnalysisResult::TooFew { old: 1_000, new: 40, wanted: 50 }
        );
    }

    #[test]
    fn a_handful_of_failures_is_evidence_only_when_there_is_nothing_else() {
        // Five of five failed while three hundred of the old version did not.
        assert!(matches!(
            verdict(metrics(300, 0, 1_000), metrics(5, 5, 1_000)),
            AnalysisResult::MoreErrors(_)
        ));
        // Fewer may have one cause that passes.
        for failed in 1..5 {
            let verdict = verdict(metrics(300_000, 0, 1_000), metrics(failed, failed, 1_000));
            assert!(matches!(verdict, AnalysisResult::TooFew { .. }), "{verdict}");
        }
        // Five of five where everything fails is no evidence at all.
        assert!(matches!(
            verdict(metrics(300, 290, 1_000), metrics(5, 5, 1_000)),
            AnalysisResult::TooFew { .. }
        ));
    }

    #[test]
    fn with_equal_shares_an_always_failing_version_is_found_within_twenty_requests() {
        let found = (1..).find(|count| {
            matches!(
                verdict(metrics(*count, 0, 1_000), metrics(*count, *count, 1_000)),
                AnalysisResult::MoreErrors(_)
            )
        });
        assert!(found.unwrap() <= 20, "{found:?}");
    }

    #[test]
    fn five_percent_of_errors_are_found_and_one_more_in_a_thousand_is_within_the_margin() {
        let found = verdict(metrics(10_000, 10, 1_000), metrics(500, 25, 1_000));
        assert!(matches!(found, AnalysisResult::MoreErrors(_)), "{found}");
        let margin = verdict(metrics(1_000_000, 1_000, 1_000), metrics(1_000_000, 2_000, 1_000));
        assert_eq!(margin, AnalysisResult::Sound);
    }

    #[test]
    fn three_times_as_slow_is_found_and_a_little_slower_is_not() {
        let slow = verdict(metrics(2_000, 0, 1_000), metrics(200, 0, 3_000));
        assert!(matches!(slow, AnalysisResult::Slower(_)), "{slow}");
        assert_eq!(
            verdict(metrics(2_000, 0, 1_000), metrics(2_000, 0, 1_250)),
            AnalysisResult::Sound
        );
        // Tenths of a millisecond are nobody's concern.
        assert_eq!(verdict(metrics(2_000, 0, 10), metrics(2_000, 0, 30)), AnalysisResult::Sound);
    }

    #[test]
    fn a_tail_alone_is_found_by_its_p99() {
        let mut tail = AttemptMetrics::default();
        tail.latency.add(1_000, 9_700);
        tail.latency.add(1_000_000, 300);
        let found = verdict(metrics(10_000, 0, 1_000), tail);
        assert!(
            matches!(&found, AnalysisResult::Slower(finding) if finding.what == "p99 is"),
            "{found}"
        );
    }

    #[test]
    fn what_an_earlier_step_saw_stands_for_an_old_version_without_traffic() {
        let before = control(&metrics(5_000, 5, 1_000), None);
        let judge = |new| {
            judge(
                &Window { old: AttemptMetrics::default(), new },
                Some(&before),
                &Criteria::default(),
            )
        };
        assert_eq!(judge(metrics(5_000, 5, 1_000)), AnalysisResult::Sound);
        assert!(matches!(judge(metrics(5_000, 100, 1_000)), AnalysisResult::MoreErrors(_)));
        assert!(matches!(judge(metrics(5_000, 5, 4_000)), AnalysisResult::Slower(_)));
    }

    #[test]
    fn without_traffic_the_old_version_is_as_slow_as_it_was_at_worst() {
        // With all of the traffic, and then with half of it.
        let whole = control(&metrics(9_900, 9, 2_000), None);
        let half = control(&metrics(5_000, 5, 1_000), Some(&whole));
        assert_eq!((half.requests, half.errors), (5_000, 5));
        assert_eq!((half.p95_us, half.p99_us), (whole.p95_us, whole.p99_us));
        let judge = |new| {
            judge(
                &Window { old: AttemptMetrics::default(), new },
                Some(&half),
                &Criteria::default(),
            )
        };
        assert_eq!(judge(metrics(10_000, 10, 2_000)), AnalysisResult::Sound);
        assert!(matches!(judge(metrics(10_000, 10, 4_000)), AnalysisResult::Slower(_)));
    }

    #[test]
    fn findings_read_as_sentences() {
        let text = verdict(metrics(10_000, 10, 1_000), metrics(500, 25, 1_000)).to_string();
        assert!(
            text.starts_with(
                "worse: errors are 25 of 500, of the old version 10 of 10000 (evidence "
            ),
            "{text}"
        );
    }

    /// Looks after every request; gives how many of so many runs ever saw strong evidence.
    fn alarms(runs: u64, share_of_new: f64, bad_old: f64, bad_new: f64) -> u64 {
        let alarm = |seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut old, mut new) = ((0, 0), (0, 0));
            (0..20_000).any(|_| {
                let is_new = random.f64() < share_of_new;
                let (side, bad) = if is_new { (&mut new, bad_new) } else { (&mut old, bad_old) };
                side.0 += u64::from(random.f64() < bad);
                side.1 += 1;
                evidence(new, old) >= WORSE
            })
        };
        (0..runs).filter(|seed| alarm(*seed)).count() as u64
    }

    #[test]
    fn looking_after_every_request_raises_no_false_alarm() {
        for (share, bad) in [(0.01, 0.01), (0.05, 0.05), (0.5, 0.01), (0.5, 0.3)] {
            assert_eq!(alarms(40, share, bad, bad), 0, "share {share}, {bad} bad");
        }
    }

    #[test]
    fn what_is_worse_is_found_in_every_run() {
        for (share, bad_old, bad_new) in [(0.05, 0.0, 0.05), (0.5, 0.01, 0.05), (0.01, 0.001, 0.3)]
        {
            assert_eq!(
                alarms(40, share, bad_old, bad_new),
                40,
                "share {share}, {bad_old} and {bad_new}"
            );
        }
    }
}

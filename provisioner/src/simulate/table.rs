//! The comparison as a table, and whether it is what was aimed at.

use super::{Rival, Standing, TraceKind};

/// Shares of late messages that differ by less than this many percentage points are the same.
const SAME_POINTS: f64 = 0.1;

/// How far above tuned KEDA's share of late messages ours may be.
const NEAR_TUNED: f64 = 1.1;

/// Whether the aims were reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Verdict {
    /// Traces on which ours has fewer late messages than default KEDA, at no more cost.
    pub better_than_default: Vec<&'static str>,
    /// Traces on which ours has at most 1.1 times the late messages of KEDA tuned for that trace, at no more cost.
    pub as_good_as_tuned: Vec<&'static str>,
    /// Traces on which *no* setting of the grid that costs no more than ours has fewer late messages than ours by more than
    /// that: what the tuning's price for lateness cannot hide.
    pub unbeaten_by_grid: Vec<&'static str>,
    /// The most reversals for each change of the load on a step, rounded up.
    pub reversals_per_step: u32,
}

/// The comparison in Markdown.
pub fn table(standings: &[Standing]) -> String {
    let mut text = String::from(
        "| trace | autoscaler | late % | cost over the oracle's | changes | reversals | scaled after s | longest queue |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for standing in standings {
        let Standing { late_percent, cost, events, reversals, most_waiting, .. } = standing;
        let after = standing.scaled_after_s.map_or("-".to_owned(), |seconds| format!("{seconds:.1}"));
        text.push_str(&format!(
            "| {} | {} | {late_percent:.2} | {cost:.2} | {events:.0} | {reversals:.1} | {after} | {most_waiting} |\n",
            standing.trace.name(),
            described(&standing.rival),
        ));
    }
    text
}

fn described(rival: &Rival) -> String {
    match rival {
        Rival::KedaTuned(rules) => format!(
            "{} (threshold {}, every {} s, window {} s)",
            rival.name(),
            rules.lag_threshold,
            rules.sync_ms / 1_000,
            rules.down_window_ms / 1_000,
        ),
        _ => rival.name(),
    }
}

/// Compares ours with both forms of KEDA. On the spike ours is the one with warm spares.
pub fn verdict(standings: &[Standing]) -> Verdict {
    let mut verdict = Verdict::default();
    for kind in TraceKind::ALL {
        let of = |is: &dyn Fn(&Rival) -> bool| {
            standings.iter().rfind(|standing| standing.trace == kind && is(&standing.rival))
        };
        let (Some(ours), Some(default), Some(tuned)) = (
            of(&|rival| matches!(rival, Rival::Ours { .. })),
            of(&|rival| *rival == Rival::KedaDefault),
            of(&|rival| matches!(rival, Rival::KedaTuned(_))),
        ) else {
            continue;
        };
        let no_dearer_than = |other: &Standing| ours.cost <= other.cost + 0.005;
        if ours.late_percent < default.late_percent.max(SAME_POINTS) && no_dearer_than(default) {
            verdict.better_than_default.push(kind.name());
        }
        let is_near = |late_percent: f64| {
            ours.late_percent <= (late_percent * NEAR_TUNED).max(late_percent + SAME_POINTS)
        };
        if is_near(tuned.late_percent) && no_dearer_than(tuned) {
            verdict.as_good_as_tuned.push(kind.name());
        }
        if ours.best_of_grid_percent.is_none_or(is_near) {
            verdict.unbeaten_by_grid.push(kind.name());
        }
        if let Some(changes) = kind.load_changes() {
            verdict.reversals_per_step = ours.most_reversals.div_ceil(changes);
        }
    }
    verdict
}

//! The comparison as a table, and whether it is what was aimed at.

use super::{BestOfGrid, HpaRules, Rival, Standing, TraceKind};

/// Shares of late messages that differ by less than this many percentage points are the same.
const SAME_POINTS: f64 = 0.1;

/// How far above tuned KEDA's share of late messages ours may be.
const NEAR_TUNED: f64 = 1.1;

/// How far above the share of the best of the grid ours may be at the least, in percentage points.
const NEAR_GRID_POINTS: f64 = 0.5;

/// How many times the changes of the best of the grid ours may make.
const CHANGES_OF_GRID: f64 = 2.0;

/// Whether the aims were reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct AimResults {
    /// Traces on which ours has fewer late messages than default KEDA, at no more cost.
    pub better_than_default: Vec<&'static str>,
    /// Traces on which ours has at most 1.1 times the late messages of KEDA tuned for that trace,
    /// at no more cost.
    pub as_good_as_tuned: Vec<&'static str>,
    /// Traces on which ours has at most 1.1 times the late messages, or half a percentage point
    /// more, and at most twice the changes of the setting of the grid that has the fewest late
    /// messages among those that cost no more: what the tuning's price for lateness cannot hide.
    pub near_best_of_grid: Vec<&'static str>,
    /// The other traces, each with what it is lost by.
    pub lost_to_grid: Vec<String>,
    /// The most reversals for each change of the load on a step, rounded up.
    pub reversals_per_step: u32,
}

/// The comparison in Markdown.
pub fn table(standings: &[Standing]) -> String {
    let mut text = String::from(
        "| trace | autoscaler | late % | cost over the oracle's | changes | reversals | scaled \
         after s | longest queue | best of the grid at no more cost: late %, changes |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for standing in standings {
        let Standing { late_percent, cost, events, reversals, most_waiting, .. } = standing;
        let after =
            standing.scaled_after_s.map_or("-".to_owned(), |seconds| format!("{seconds:.1}"));
        let best = standing.best_of_grid.map_or("-".to_owned(), |best| {
            let BestOfGrid { late_percent, events, rules } = best;
            format!("{late_percent:.2}, {events:.0} ({})", setting(&rules))
        });
        text.push_str(&format!(
            "| {} | {} | {late_percent:.2} | {cost:.2} | {events:.0} | {reversals:.1} | {after} | \
             {most_waiting} | {best} |\n",
            standing.trace.name(),
            described(&standing.rival),
        ));
    }
    text
}

fn described(rival: &Rival) -> String {
    match rival {
        Rival::KedaTuned(rules) => format!("{} ({})", rival.name(), setting(rules)),
        _ => rival.name(),
    }
}

fn setting(rules: &HpaRules) -> String {
    let HpaRules { lag_threshold, sync_ms, down_window_ms, .. } = rules;
    format!(
        "threshold {lag_threshold}, every {} s, window {} s",
        sync_ms / 1_000,
        down_window_ms / 1_000
    )
}

/// Compares ours with both forms of KEDA: the one setting for all, without warm spares.
pub fn verdict(standings: &[Standing]) -> AimResults {
    let mut verdict = AimResults::default();
    for kind in TraceKind::ALL.into_iter().chain([TraceKind::Own]) {
        let of = |is: &dyn Fn(&Rival) -> bool| {
            standings.iter().rfind(|standing| standing.trace == kind && is(&standing.rival))
        };
        let (Some(ours), Some(default), Some(tuned)) = (
            of(&|rival| *rival == Rival::Ours { warm_spares: 0 }),
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
        match ours.best_of_grid.and_then(|best| lost_by(ours, &best)) {
            None => verdict.near_best_of_grid.push(kind.name()),
            Some(lost) => verdict.lost_to_grid.push(format!("{}: {lost}", kind.name())),
        }
        if let Some(changes) = kind.load_changes() {
            verdict.reversals_per_step = ours.most_reversals.div_ceil(changes);
        }
    }
    verdict
}

/// By what ours is worse than the best of the grid, if it is.
fn lost_by(ours: &Standing, best: &BestOfGrid) -> Option<String> {
    let most_late = (best.late_percent * NEAR_TUNED).max(best.late_percent + NEAR_GRID_POINTS);
    let late = (ours.late_percent > most_late)
        .then(|| format!("{:.2} % late against {:.2} %", ours.late_percent, best.late_percent));
    let changes = (ours.events > best.events * CHANGES_OF_GRID)
        .then(|| format!("{:.0} changes against {:.0}", ours.events, best.events));
    let lost: Vec<String> = late.into_iter().chain(changes).collect();
    (!lost.is_empty()).then(|| lost.join(", "))
}

//! Metrics over time, drawn with letters. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::decision::Decision;

/// Heights of a bar in eighths.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// What stands beside the bars: the name of a row, its value now, and its scale.
const BESIDE: usize = 38;

/// A decision is made at each poll; after so long without one nobody decides any more, in
/// milliseconds.
const GONE_AFTER_MS: u64 = 5_000;

/// The last metrics of each target.
#[derive(Clone, Debug)]
pub struct Graph {
    columns: usize,
    width: usize,
    targets: BTreeMap<String, VecDeque<Point>>,
    last: BTreeMap<String, (Decision, u64)>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Point {
    rate: f64,
    lag: f64,
    in_hand: f64,
    instances: f64,
}

impl Graph {
    /// An empty graph for a terminal of so many columns, at most `width` decisions wide where that
    /// is given.
    pub fn new(columns: usize, width: Option<usize>) -> Self {
        let room = columns.saturating_sub(BESIDE).max(1);
        let width = width.map_or(room, |width| width.clamp(1, room));
        Self { columns, width, targets: BTreeMap::new(), last: BTreeMap::new() }
    }

    /// Takes a decision that came `now_ms`. A frozen one repeats the metrics before it.
    pub fn push(&mut self, now_ms: u64, decision: Decision) {
        let points = self.targets.entry(decision.target.clone()).or_default();
        let before = points.back().copied().unwrap_or_default();
        let seen = match &decision.view {
            Some(view) => Point {
                rate: view.arrival_rate,
                lag: view.waiting as f64,
                in_hand: view.in_hand as f64,
                ..before
            },
            None => before,
        };
        points.push_back(Point { instances: f64::from(decision.from), ..seen });
        while points.len() > self.width {
            points.pop_front();
        }
        self.last.insert(decision.target.clone(), (decision, now_ms));
    }

    /// The picture at `now_ms`: for each target its name and last decision, and a line each for
    /// rate, lag, what is in hand, and instances, with the height of the highest bar. No line is
    /// wider than the terminal.
    pub fn draw(&self, now_ms: u64) -> String {
        if self.targets.is_empty() {
            return "waiting for the first decision; is a provisioner running?\n".to_owned();
        }
        let mut text = String::new();
        for (name, points) in &self.targets {
            if let Some((last, came_ms)) = self.last.get(name) {
                let age_ms = now_ms.saturating_sub(*came_ms);
                let age = match age_ms {
                    0..GONE_AFTER_MS => String::new(),
                    _ => {
                        format!("  no decision for {} s: is its provisioner gone?", age_ms / 1_000)
                    }
                };
                let trouble =
                    last.trouble().map(|trouble| format!("  {trouble}")).unwrap_or_default();
                let header = format!(
                    "{name}: {} -> {} ({}){age}{trouble}",
                    last.from,
                    last.to,
                    last.direction()
                );
                text.push_str(&self.fitted(&header));
            }
            let row = |what: &str, of: fn(&Point) -> f64| {
                let values: Vec<f64> = points.iter().map(of).collect();
                let now = values.last().copied().unwrap_or(0.0);
                let top = values.iter().copied().fold(0.0, f64::max);
                let bars = bars(&values);
                format!(
                    "  {what:<9} {:>8} |{bars:<width$}| of {:<8}",
                    short(now),
                    short(top),
                    width = self.width
                )
            };
            for (what, of) in [
                ("rate /s", (|point| point.rate) as fn(&Point) -> f64),
                ("lag", |point| point.lag),
                ("in hand", |point| point.in_hand),
                ("instances", |point| point.instances),
            ] {
                text.push_str(&self.fitted(row(what, of).trim_end()));
            }
        }
        text
    }

    /// A line that is no wider than the terminal.
    fn fitted(&self, line: &str) -> String {
        if line.chars().count() <= self.columns {
            return format!("{line}\n");
        }
        let cut: String = line.chars().take(self.columns.saturating_sub(1)).collect();
        format!("{cut}…\n")
    }
}

/// A figure in eight letters at the most.
fn short(value: f64) -> String {
    match value {
        0.0..100_000.0 => format!("{value:.1}"),
        100_000.0..1e8 => format!("{:.1}k", value / 1e3),
        _ => format!("{value:.1e}"),
    }
}

fn bars(values: &[f64]) -> String {
    let top = values.iter().copied().fold(0.0, f64::max);
    let height = |value: &f64| if top > 0.0 { (value / top * 8.0).ceil() as usize } else { 0 };
    values.iter().map(|value| BARS[height(value).min(8)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::Controller;
    use crate::sample::{Fault, Fleet};
    use crate::simulate::{frozen_policies, frozen_rules};

    #[test]
    fn bars_are_as_high_as_their_share_of_the_highest() {
        assert_eq!(bars(&[0.0, 1.0, 4.0, 8.0]), " ▁▄█");
        assert_eq!(bars(&[0.0, 0.0]), "  ");
    }

    fn frozen(instances: u32, why: &str) -> Decision {
        let controller = Controller::new("orders", frozen_rules(1, 0), frozen_policies());
        let fleet = Fleet { ready: instances, ..Fleet::default() };
        controller.freeze(0, fleet, Fault::Missing(why.to_owned()))
    }

    #[test]
    fn a_graph_keeps_the_newest_says_why_it_is_frozen_and_how_high_it_is() {
        let mut graph = Graph::new(80, Some(5));
        assert!(graph.draw(0).contains("is a provisioner running"));
        for instances in 1..=9 {
            graph.push(0, frozen(instances, "no answer"));
        }
        let picture = graph.draw(1_000);
        assert!(picture.starts_with("orders: 9 -> 9 (frozen)  missing: no answer\n"), "{picture}");
        assert!(picture.contains("  instances      9.0 |▅▆▇██| of 9.0\n"), "{picture}");
    }

    #[test]
    fn a_provisioner_that_is_gone_is_seen_by_the_age_of_its_decision() {
        let mut graph = Graph::new(80, None);
        graph.push(1_000, frozen(2, "x"));
        assert!(!graph.draw(5_999).contains("no decision"), "{}", graph.draw(5_999));
        let picture = graph.draw(61_000);
        assert!(picture.starts_with("orders: 2 -> 2 (frozen)  no decision for 60 s"), "{picture}");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for columns in [20, 80, 200] {
            let mut graph = Graph::new(columns, None);
            for _ in 0..300 {
                graph.push(0, frozen(1_000_000, &"why ".repeat(100)));
            }
            for line in graph.draw(99_000).lines() {
                assert!(line.chars().count() <= columns, "{columns}: {line}");
            }
        }
    }
}

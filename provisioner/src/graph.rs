//! Figures over time, drawn with letters. Pure.

use std::collections::{BTreeMap, VecDeque};

use crate::decision::Decision;

/// Heights of a bar in eighths.
const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];

/// The last figures of each target.
#[derive(Clone, Debug)]
pub struct Graph {
    width: usize,
    targets: BTreeMap<String, VecDeque<Point>>,
    last: BTreeMap<String, Decision>,
}

#[derive(Clone, Copy, Debug)]
struct Point {
    rate: f64,
    lag: f64,
    instances: f64,
}

impl Graph {
    /// An empty graph, so many decisions wide.
    pub fn new(width: usize) -> Graph {
        Graph { width, targets: BTreeMap::new(), last: BTreeMap::new() }
    }

    /// Takes a decision. A frozen one repeats the figures before it.
    pub fn push(&mut self, decision: Decision) {
        let points = self.targets.entry(decision.target.clone()).or_default();
        let before = points.back().copied().unwrap_or(Point { rate: 0.0, lag: 0.0, instances: 0.0 });
        let (rate, lag) = match &decision.view {
            Some(view) => (view.arrival_rate, view.backlog() as f64),
            None => (before.rate, before.lag),
        };
        points.push_back(Point { rate, lag, instances: f64::from(decision.from) });
        while points.len() > self.width {
            points.pop_front();
        }
        self.last.insert(decision.target.clone(), decision);
    }

    /// The picture: for each target its name and last decision, and a line each for rate, lag and instances.
    pub fn draw(&self) -> String {
        if self.targets.is_empty() {
            return "waiting for the first decision; is a provisioner running?\n".to_owned();
        }
        let mut text = String::new();
        for (name, points) in &self.targets {
            if let Some(last) = self.last.get(name) {
                let trouble = last.trouble().map(|trouble| format!("  {trouble}")).unwrap_or_default();
                text.push_str(&format!(
                    "{name}: {} -> {} ({}){trouble}\n",
                    last.from,
                    last.to,
                    last.course()
                ));
            }
            let row = |what: &str, of: fn(&Point) -> f64| {
                let values: Vec<f64> = points.iter().map(of).collect();
                let now = values.last().copied().unwrap_or(0.0);
                format!("  {what:<10} {now:>9.1} |{:<width$}|\n", bars(&values), width = self.width)
            };
            text.push_str(&row("rate /s", |point| point.rate));
            text.push_str(&row("lag", |point| point.lag));
            text.push_str(&row("instances", |point| point.instances));
        }
        text
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

    #[test]
    fn a_graph_keeps_the_newest_and_says_why_it_is_frozen() {
        let mut graph = Graph::new(5);
        assert!(graph.draw().contains("is a provisioner running"));
        let controller = Controller::new("orders", frozen_rules(1, 0), frozen_policies());
        for instances in 1..=9 {
            let fleet = Fleet { ready: instances, ..Fleet::default() };
            graph.push(controller.freeze(0, fleet, Fault::Missing("no answer".to_owned())));
        }
        let picture = graph.draw();
        assert!(picture.starts_with("orders: 9 -> 9 (frozen)  missing: no answer\n"), "{picture}");
        assert!(picture.contains("  instances        9.0 |▅▆▇██|\n"), "{picture}");
    }
}

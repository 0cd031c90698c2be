//! What a larger machine would carry, by arithmetic from what a request costs on this one.

use super::document::{Block, Table};
use super::scenarios::cpu;
use super::{or_dash, rate};
use crate::results::{Cell, Results, Role};

const SCENARIO: &str = "peers";
const LOAD: &str = "c255";

/// The article's machine.
const PROCESSORS: f64 = 32.0;

/// An estimate for every contender that was measured at saturation.
pub(super) fn blocks(results: &Results) -> Vec<Block> {
    let Some(scenario) = results.scenario(SCENARIO) else { return Vec::new() };
    let mut table = Table::new([
        "",
        "one processor of gateway",
        "one of broker",
        "one of service",
        "32 processors, shared out as needed",
    ]);
    for contender in &scenario.contenders {
        let at = Cell { scenario: SCENARIO, contender: &contender.name, load: LOAD };
        let each = [Role::Gateway, Role::Broker, Role::Service].map(|role| cpu(results, at, role));
        if let Some(whole) = whole_machine(each, PROCESSORS) {
            let mut row = vec![contender.title.clone()];
            row.extend(each.map(|us| or_dash(us.map(|us| rate(1e6 / us)))));
            row.push(rate(whole));
            table.rows.push(row);
        }
    }
    if table.rows.is_empty() {
        return Vec::new();
    }
    let about = "**An estimate, not a measurement**: the processor time that a request took here \
                 at 255 connections, turned round. It holds as far as every process uses more \
                 processors as well as it uses these, which the scenarios of several connections \
                 and workers speak to only up to 2; one nats-server, in particular, has locks that \
                 32 processors would meet. The load generator runs elsewhere in this sum. Requests \
                 per second.";
    vec![
        Block::Heading(2, "Headroom, an estimate".to_owned()),
        Block::Paragraph(about.to_owned()),
        Block::Table(table),
    ]
}

/// Requests per second when each of so many processors is busy with whichever process needs it;
/// `None` when nothing was measured.
fn whole_machine(each_us: [Option<f64>; 3], processors: f64) -> Option<f64> {
    let total_us: f64 = each_us.into_iter().flatten().sum();
    (total_us > 0.0).then(|| processors * 1e6 / total_us)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_what_all_processors_do_together() {
        assert_eq!(whole_machine([Some(10.0), Some(5.0), Some(5.0)], 32.0), Some(1.6e6));
        assert_eq!(whole_machine([None, None, Some(8.0)], 1.0), Some(125_000.0));
        assert_eq!(whole_machine([None; 3], 1.0), None);
    }
}

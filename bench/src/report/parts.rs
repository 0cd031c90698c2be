//! Consumer groups, the shipper, the autoscaler, and instructions: what other programs measured.

use std::collections::BTreeSet;

use serde_json::Value;

use super::document::{Block, Figure};
use super::{microseconds, or_dash, rate, table};
use crate::results::Results;
use crate::results::statistics::Spread;

/// The sections that have figures.
pub(super) fn blocks(results: &Results) -> Vec<Block> {
    let part = |name: &str| results.parts.get(name);
    let sections = [
        part("groups").map(groups),
        part("shipper").map(shipper),
        part("autoscalers").map(autoscalers),
        small_operations(results),
    ];
    sections.into_iter().flatten().flatten().collect()
}

fn section(title: &str, about: &str) -> Vec<Block> {
    vec![Block::Heading(2, title.to_owned()), Block::Paragraph(about.to_owned())]
}

fn groups(figures: &Value) -> Vec<Block> {
    let about = "One member of a group of 10 partitions, messages stored before; and a pair of \
                 members of which one goes. One broker, the same work, this library beside the Go \
                 library. `make bench-groups` measures more: changes of membership and the run \
                 that breaks exclusivity where a buffer outlives its pin.";
    let mut blocks = section("Consumer groups", about);
    let cell = |side: &str, key: &str, field: Option<&str>, show: fn(f64) -> String| {
        let runs = figures["figures"][side][key].as_array().into_iter().flatten();
        let values = runs.filter_map(|run| field.map_or(run, |field| &run[field]).as_f64());
        or_dash(Spread::of(values).map(|spread| {
            format!("{} ({} to {})", show(spread.median), show(spread.least), show(spread.most))
        }))
    };
    let row = |what: &str, key: &str, field: Option<&str>, show: fn(f64) -> String| {
        [what.to_owned(), cell("rust", key, field, show), cell("go", key, field, show)]
    };
    let of_throughput = |limit: &str, key: &str| {
        [
            row(&format!("messages/s, {limit}"), key, Some("messages_per_s"), rate),
            row(
                &format!("member's CPU, µs a message, {limit}"),
                key,
                Some("member_us_per_message"),
                microseconds,
            ),
            row(
                &format!("broker's CPU, µs a message, {limit}"),
                key,
                Some("broker_us_per_message"),
                microseconds,
            ),
        ]
    };
    let rows = [
        of_throughput("one at a time", "max_ack_pending_1"),
        of_throughput("up to 1,000 unacknowledged", "max_ack_pending_1000"),
    ];
    let take_over = [
        row(
            "seconds from `kill -9` to the other member's first message",
            "failover_after_kill_s",
            None,
            two_digits,
        ),
        row("seconds from a graceful leave to it", "graceful_hand_over_s", None, two_digits),
    ];
    let rows = rows.into_iter().flatten().chain(take_over);
    let measured = rows.filter(|[_, rust, go]| rust != "-" || go != "-");
    blocks.push(Block::Table(table(["", "this library", "the Go library"], measured)));
    blocks.extend(group_speeds(figures));
    blocks
}

/// How members are measured with up to 1,000 messages unacknowledged: what, part, side.
const GROUP_SPEEDS: [(&str, &str, &str); 8] = [
    ("handlers only acknowledge", "max_ack_pending_1000", "rust"),
    ("the same, in a runtime of one thread", "max_ack_pending_1000", "rust_one_thread"),
    ("the same, the Go library", "max_ack_pending_1000", "go"),
    ("the same, a bare socket without order or handlers", "max_ack_pending_1000", "bound"),
    ("handlers wait 1 ms and compute 20 µs, one at a time", "busy_handlers", "rust_one_handler"),
    ("the same, the 10 partitions at once", "busy_handlers", "rust"),
    ("the same, 100 keys at once", "busy_handlers", "rust_by_key"),
    ("the same, the Go library", "busy_handlers", "go"),
];

/// What bounds a light member, and what order costs a slow one.
fn group_speeds(figures: &Value) -> Vec<Block> {
    let spread = |part: &str, side: &str, field: &str| {
        let runs = figures["figures"][side][part].as_array().into_iter().flatten();
        Spread::of(runs.filter_map(|run| run[field].as_f64()))
    };
    let rows: Vec<[String; 4]> = GROUP_SPEEDS
        .into_iter()
        .filter_map(|(what, part, side)| {
            let speed = spread(part, side, "messages_per_s")?;
            let go = spread(part, "go", "messages_per_s");
            Some([
                what.to_owned(),
                format!("{} ({} to {})", rate(speed.median), rate(speed.least), rate(speed.most)),
                or_dash(go.map(|go| two_digits(speed.median / go.median))),
                or_dash(
                    spread(part, side, "member_us_per_message").map(|cpu| microseconds(cpu.median)),
                ),
            ])
        })
        .collect();
    if rows.is_empty() {
        return Vec::new();
    }
    let about = "The same member by how its handlers run, up to 1,000 messages unacknowledged. \
                 Where handlers do something, the order of every key is checked on both sides; \
                 tokio's timer counts whole milliseconds, so that a wait of 1 ms takes 2 there and \
                 1.1 in Go.";
    let header = ["", "messages/s", "of the Go library's", "member's CPU, µs a message"];
    vec![Block::Paragraph(about.to_owned()), Block::Table(table(header, rows))]
}

fn two_digits(value: f64) -> String {
    format!("{value:.2}")
}

fn shipper(figures: &Value) -> Vec<Block> {
    let about = "A file of lines of 256 bytes, to a file on another side: ours through a stream \
                 with acknowledgements, fsync and commits; rsyslog over TCP without any of them.";
    let mut blocks = section("The log shipper", about);
    let rows = figures.as_object().into_iter().flatten().filter_map(|(form, runs)| {
        let runs = runs.as_array()?;
        let speed = Spread::of(runs.iter().filter_map(|run| run["mebibytes_per_second"].as_f64()))?;
        let cpu = Spread::of(runs.iter().filter_map(|run| {
            Some(run["cpu_ms_per_mebibyte"].as_array()?.iter().filter_map(Value::as_f64).sum())
        }));
        let speed = format!("{:.0} ({:.0} to {:.0})", speed.median, speed.least, speed.most);
        Some([form.clone(), speed, or_dash(cpu.map(|cpu| format!("{:.1}", cpu.median)))])
    });
    blocks.push(Block::Table(table(["", "MiB/s", "ms of CPU for each MiB"], rows)));
    blocks
}

fn autoscalers(figures: &Value) -> Vec<Block> {
    let about = "Simulated: everybody on the same traffic by a virtual clock.";
    let mut blocks = section("The autoscaler", about);
    blocks.extend(
        figures["table"]
            .as_str()
            .map(|text| Block::Verbatim(text.trim_start_matches('#').to_owned())),
    );
    blocks.extend(figures["plot"].as_str().map(|svg| {
        let caption = "Instances of each autoscaler over the traffic".to_owned();
        Block::Figure(Figure { name: "autoscalers".to_owned(), caption, svg: svg.to_owned() })
    }));
    blocks
}

/// Instructions and times, a row for each operation that has either.
fn small_operations(results: &Results) -> Option<Vec<Block>> {
    let names: BTreeSet<&String> =
        results.instructions.keys().chain(results.times.keys()).collect();
    if names.is_empty() {
        return None;
    }
    let about = "Instructions are counted by valgrind, so the same on a busy machine: a change of \
                 5 % shows (`bench compare`). Nanoseconds are criterion's median, with the \
                 interval that it is 95 % sure of; `make bench-micro` takes more time for them. \
                 The envelope does more than derived codecs: it ends in the types that a service \
                 is called with, as *rmp-serde+HeaderMap* does.";
    let mut blocks = section("Small operations", about);
    let rows = names.into_iter().map(|name| {
        let instructions = results.instructions.get(name).map(|count| format!("{count:.0}"));
        let time = results.times.get(name).map(|time| {
            format!(
                "{} ({} to {})",
                three_digits(time.median),
                three_digits(time.low),
                three_digits(time.high)
            )
        });
        [name.clone(), or_dash(instructions), or_dash(time)]
    });
    blocks.push(Block::Table(table(["", "instructions", "ns"], rows)));
    Some(blocks)
}

fn three_digits(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::document::markdown;
    use super::super::tests::measured;
    use super::*;
    use crate::micro::time::Nanoseconds;

    #[test]
    fn figures_of_other_programs_become_tables() {
        let mut results = measured();
        let groups = json!({ "figures": {
            "rust": { "max_ack_pending_1": [
                { "messages_per_s": 5000, "member_us_per_message": 20.0 }, { "messages_per_s": 7000 },
                { "messages_per_s": 6000 },
            ]},
            "rust_by_key": { "busy_handlers": [{ "messages_per_s": 40000, "member_us_per_message": 30.0 }] },
            "go": { "max_ack_pending_1": [{ "messages_per_s": 2000 }], "busy_handlers": [{ "messages_per_s": 800 }] },
        }});
        let shipper = json!({ "shipper, 1 host": [
            { "seconds": 1.0, "mebibytes_per_second": 100.0, "cpu_ms_per_mebibyte": [1.0, 2.0, 3.5] },
        ]});
        let scaler = json!({ "table": "| a | b |\n|---|---|\n| 1 | 2 |", "plot": "<svg></svg>" });
        for (name, part) in [("groups", groups), ("shipper", shipper), ("autoscalers", scaler)] {
            results.parts.insert(name.to_owned(), part);
        }
        results.instructions.insert("route/match".to_owned(), 123.4);
        results
            .times
            .insert("route/pick".to_owned(), Nanoseconds { median: 12.34, low: 12.0, high: 130.0 });
        let text = markdown(&blocks(&results), "plots");
        for part in [
            "| messages/s, one at a time | 6.0K (5.0K to 7.0K) | 2.0K (2.0K to 2.0K) |",
            "| member's CPU, µs a message, one at a time | 20.0 (20.0 to 20.0) | - |",
            "| the same, 100 keys at once | 40.0K (40.0K to 40.0K) | 50.00 | 30.0 |",
            "| the same, the Go library | 800 (800 to 800) | 1.00 | - |",
            "| shipper, 1 host | 100 (100 to 100) | 6.5 |",
            "| 1 | 2 |",
            "| route/match | 123 | - |",
            "| route/pick | - | 12.3 (12.0 to 130) |",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(
            !text.contains("kill -9") && !text.contains("bare socket"),
            "what was not measured has no row"
        );
    }

    #[test]
    fn a_shape_that_nobody_expected_is_an_empty_table() {
        let mut results = measured();
        for name in ["groups", "shipper", "autoscalers"] {
            results.parts.insert(name.to_owned(), json!({ "other": 1 }));
        }
        assert!(!blocks(&results).is_empty());
    }
}

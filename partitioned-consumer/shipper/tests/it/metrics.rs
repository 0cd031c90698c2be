//! What a monitoring system reads.

use std::collections::BTreeMap;

use natsway_testkit::{eventually, free_port};

use crate::support::{Bench, SOON, numbered, page, write};

/// Each value of a page by its name. Every one has a help and a kind, and no labels: no host or
/// file makes a page longer. What is not known yet has no value.
fn read(page: &str) -> BTreeMap<String, u64> {
    let mut values = BTreeMap::new();
    let mut lines = page.lines();
    let mut next = lines.next();
    while let Some(head) = next {
        let (name, help) =
            head.strip_prefix("# HELP ").and_then(|head| head.split_once(' ')).expect(head);
        assert!(help.ends_with('.'), "{help}");
        let is_plain = |letter: char| letter.is_ascii_lowercase() || letter == '_';
        assert!(name.starts_with("shipper_") && name.chars().all(is_plain), "{name}");
        let expected = if name.ends_with("_total") { "counter" } else { "gauge" };
        assert_eq!(lines.next(), Some(format!("# TYPE {name} {expected}").as_str()));
        next = lines.next();
        if let Some(value) = next.and_then(|line| line.strip_prefix(&format!("{name} "))) {
            let earlier = values.insert(name.to_owned(), value.parse().unwrap());
            assert!(earlier.is_none(), "{name} is there twice");
            next = lines.next();
        }
    }
    values
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_metrics_tell_what_happened_and_are_documented() {
    let bench = Bench::jetstream().await;
    let files: Vec<_> = (0..5).map(|n| bench.path(&format!("logs/app{n}.log"))).collect();
    files.iter().for_each(|file| write(file, &numbered(0..100)));
    let (of_producer, of_consumer) = (free_port(), free_port());
    let producer = bench.producer("web1", &bench.path("logs/*.log"));
    let _producer = producer.env("SHIPPER_METRICS", format!("127.0.0.1:{of_producer}")).start();
    let consumer = bench.consumer("out").env("SHIPPER_OUTPUT", "{file}");
    let _consumer = consumer.env("SHIPPER_METRICS", format!("127.0.0.1:{of_consumer}")).start();
    let bytes = 5 * numbered(0..100).iter().map(|line| line.len() as u64 + 1).sum::<u64>();
    let pages = eventually(SOON, async || {
        let pages = [page(of_producer), page(of_consumer)].map(|page| read(&page));
        let [producer, consumer] = &pages;
        let all = [producer, consumer].map(|page| page.get("shipper_bytes_total").copied());
        if all == [Some(bytes), Some(bytes)] {
            Ok(pages)
        } else {
            Err(format!("{all:?} of {bytes}"))
        }
    })
    .await;
    let [producer, consumer] = &pages;
    assert_eq!(
        (producer["shipper_lost_bytes_total"], consumer["shipper_lost_bytes_total"]),
        (0, 0)
    );
    assert_eq!((consumer["shipper_open_files"], consumer["shipper_stopped"]), (5, 0));
    let guide =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/shipper.md"))
            .unwrap();
    for name in producer.keys().chain(consumer.keys()) {
        assert!(guide.contains(&format!("`{name}`")), "{name} is not in docs/shipper.md");
    }
}

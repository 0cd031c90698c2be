//! A lease on a real broker: one holds it, the others stand by, and who loses it is told.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use async_nats::jetstream::kv;
use natsway_stores::definitions::{PROVISIONER_LEASES, provisioner_leases};
use natsway_stores::lease::Lease;
use natsway_testkit::TestBroker;

/// An entry lasts four seconds.
const MOMENT: Duration = Duration::from_millis(1_500);
const LONG: Duration = Duration::from_secs(20);

async fn lease(broker: &TestBroker, holder: &str) -> Lease {
    let bucket = provisioner_leases(PROVISIONER_LEASES, 1);
    Lease::new(broker.connect().await, bucket, "orders", holder)
}

async fn bucket(broker: &TestBroker) -> kv::Store {
    let context = jetstream::new(broker.connect().await);
    context.get_key_value(PROVISIONER_LEASES).await.expect("the first holder made it")
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()
}

#[tokio::test]
async fn one_holds_it_longer_than_an_entry_lasts_and_another_has_it_once_it_is_given_back() {
    let broker = TestBroker::builder().jetstream().start().await;
    let (first, second) = (lease(&broker, "a").await, lease(&broker, "b").await);
    let mut held = within(LONG, first.acquire()).await.expect("nobody else wants it");
    tokio::select! {
        () = held.keep() => panic!("it was lost"),
        _ = second.acquire() => panic!("two hold it"),
        () = tokio::time::sleep(Duration::from_secs(5)) => {}
    }
    held.release().await;
    // Within the pace of those who wait, not only when the entry has lapsed.
    within(MOMENT, second.acquire()).await.expect("it was given back");
}

#[tokio::test]
async fn a_holder_whose_key_somebody_else_wrote_is_told_at_its_next_renewal() {
    let broker = TestBroker::builder().jetstream().start().await;
    let first = lease(&broker, "a").await;
    let mut held = within(LONG, first.acquire()).await.expect("nobody else wants it");
    bucket(&broker).await.put("orders", "b".into()).await.unwrap();
    within(MOMENT, held.keep()).await.expect("the next renewal fails for good");
}

#[tokio::test]
async fn a_holder_that_cannot_renew_is_told_once_the_last_renewal_has_lapsed() {
    let mut broker = TestBroker::builder().jetstream().start().await;
    let first = lease(&broker, "a").await;
    let mut held = within(LONG, first.acquire()).await.expect("nobody else wants it");
    broker.freeze();
    let frozen = Instant::now();
    within(LONG, held.keep()).await.expect("nothing renewed it for as long as it lasts");
    assert!(frozen.elapsed() > Duration::from_secs(3), "it lasts four seconds");
    broker.thaw();
}

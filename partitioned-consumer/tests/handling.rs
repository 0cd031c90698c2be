//! What a handler, or a reader of the stream, may do with its messages on a real broker.

mod support;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::consumer::{AckPolicy, pull};
use futures_util::{FutureExt, StreamExt};
use natsway_partitioned_consumer::{
    ElasticConfig, ElasticGroup, End, ErrorKind, Membership, OrderBy, StaticConfig, StaticGroup,
};
use natsway_testkit::{TestBroker, eventually};
use support::{
    Ledger, SOON, broker, handler, handles, number, partitioned_stream, publish, stream,
};
use tokio::time::timeout;

fn template() -> pull::Config {
    pull::Config { max_ack_pending: 20, ack_wait: Duration::from_secs(2), ..Default::default() }
}

/// One partition, so that everything has one order.
#[expect(clippy::unwrap_used, reason = "set-up of tests")]
async fn group(context: &Context, partitions: u32) -> ElasticGroup {
    stream(context, "S", "foo.*").await;
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(partitions).filter("foo.*", [1])).await.unwrap();
    group.add_members(["m1"]).await.unwrap();
    group
}

#[expect(clippy::unwrap_used, reason = "a check of tests")]
async fn everything_is_settled(context: &Context) {
    let queue = context.get_stream("S-g").await.unwrap();
    eventually(SOON, async || match queue.get_info().await.unwrap().state.messages {
        0 => Ok(()),
        left => Err(format!("{left} messages left")),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_yields_the_next_of_a_partition_after_the_one_before_is_settled() {
    let (_broker, context) = broker().await;
    let group = group(&context, 1).await;
    publish(&context, 1, 1, 4).await;
    let (mut messages, mut consuming) =
        group.consume("m1").template(template()).concurrency(4).messages().await.unwrap();
    let first = timeout(SOON, messages.next()).await.unwrap().unwrap();
    assert_eq!((number(&first), first.partition()), (1, Some(0)));
    // A token that its holder cancels is nobody else's affair.
    first.cancellation().cancel();
    assert!(!first.cancellation().is_cancelled());
    // The other three are in hand by now or soon, and none may pass.
    assert!(
        timeout(Duration::from_millis(300), messages.next()).await.is_err(),
        "two of one partition"
    );
    first.ack().await.unwrap();
    assert_eq!(first.ack().await.unwrap_err().kind(), ErrorKind::AlreadySettled);
    // The run lasts as long as somebody holds the message.
    assert!(
        timeout(Duration::from_millis(100), messages.next()).await.is_err(),
        "the first is still held"
    );
    drop(first);
    for expected in 2..=3 {
        // As a stream, and a wait that is given up loses nothing.
        assert!(
            StreamExt::next(&mut messages)
                .now_or_never()
                .flatten()
                .is_none_or(|m| number(&m) == expected)
        );
        let next = timeout(SOON, StreamExt::next(&mut messages)).await.unwrap().unwrap();
        assert_eq!(number(&next), expected);
        next.double_ack().await.unwrap();
    }
    // Whoever lets the stream go has the member stop; what was not taken waits for another.
    drop(messages);
    assert_eq!(timeout(SOON, consuming.done()).await.unwrap().unwrap(), End::Stopped);
    assert_eq!(consuming.done().await.unwrap_err().kind(), ErrorKind::Closed);
    let ledger = Ledger::default();
    let next = group.consume("m1").template(template());
    let next = next.handle(handler(&ledger, "next", Duration::ZERO)).await.unwrap();
    handles(&ledger, 1).await;
    assert_eq!(ledger.handled(), [("foo.k0".to_owned(), 4, "next".to_owned())]);
    everything_is_settled(&context).await;
    next.stopped().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_stream_ends_with_its_member() {
    let (_broker, context) = broker().await;
    let group = group(&context, 1).await;
    let (mut messages, mut consuming) = group.consume("m1").messages().await.unwrap();
    group.delete().await.unwrap();
    assert_eq!(timeout(SOON, consuming.done()).await.unwrap().unwrap(), End::GroupDeleted);
    assert!(timeout(SOON, messages.next()).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_settle_a_message_is_heeded() {
    let (broker, context) = broker().await;
    let group = group(&context, 1).await;
    let client = broker.connect().await;
    let advisories = "$JS.EVENT.ADVISORY.CONSUMER.MSG_TERMINATED.S-g.m1";
    let mut terminated = client.subscribe(advisories).await.unwrap();
    client.flush().await.unwrap();
    let deliveries = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&deliveries);
    let member = group.consume("m1").template(template()).handle(move |message| {
        let seen = Arc::clone(&seen);
        async move {
            seen.lock().unwrap().push((number(&message), message.deliveries()));
            match (number(&message), message.deliveries()) {
                (1, 1) => message.nak().await,
                (2, 1) => message.nak_with_delay(Duration::from_millis(50)).await,
                (3, _) => message.term().await,
                (4, _) => message.term_with_reason("no such customer").await,
                (5, 1) => {
                    message.in_progress().await.unwrap();
                    // Left as it is: it comes again after the ack wait.
                    return;
                }
                (6, _) => message.double_ack().await,
                _ => message.ack().await,
            }
            .unwrap();
            assert_eq!(message.nak().await.unwrap_err().kind(), ErrorKind::AlreadySettled);
        }
    });
    let member = member.await.unwrap();
    publish(&context, 1, 1, 7).await;
    let order = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (4, 1), (5, 1), (5, 2), (6, 1), (7, 1)];
    eventually(SOON, async || deliveries.lock().unwrap().len() >= order.len()).await;
    everything_is_settled(&context).await;
    member.stopped().await.unwrap();
    assert_eq!(*deliveries.lock().unwrap(), order);
    let mut reasons = Vec::new();
    for _ in 0..2 {
        let advisory = timeout(SOON, terminated.next()).await.unwrap().unwrap();
        let advisory: serde_json::Value = serde_json::from_slice(&advisory.payload).unwrap();
        reasons.push(advisory["reason"].as_str().unwrap_or_default().to_owned());
    }
    assert_eq!(reasons, ["", "no such customer"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_used_up_its_deliveries_lets_its_partition_go_on() {
    let (_broker, context) = broker().await;
    let group = group(&context, 1).await;
    let ledger = Ledger::default();
    let book = ledger.clone();
    let limited = pull::Config { max_deliver: 2, ..template() };
    let builder = group.consume("m1").template(limited).retry_delay(Duration::from_millis(20));
    let member = builder.handle(move |message| {
        let book = book.clone();
        async move {
            if number(&message) == 2 {
                return Err("cannot be handled");
            }
            book.begin("m1", message.subject()).succeed("m1", number(&message));
            Ok(())
        }
    });
    let member = member.await.unwrap();
    publish(&context, 1, 1, 5).await;
    handles(&ledger, 4).await;
    member.stopped().await.unwrap();
    ledger.check_exactly_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn static_groups_may_acknowledge_all_at_once_or_nothing() {
    let (_broker, context) = broker().await;
    partitioned_stream(&context, "foo", 4).await;
    for (name, ack_policy) in [("all", AckPolicy::All), ("none", AckPolicy::None)] {
        let group = StaticGroup::new(context.clone(), "foo", name).unwrap();
        group.create(&StaticConfig::new(4, Membership::balanced(["m"]))).await.unwrap();
        let ledger = Ledger::default();
        let template = pull::Config { ack_policy, ..template() };
        let member = group.consume("m").template(template).concurrency(4);
        let member = member.handle(handler(&ledger, "m", Duration::from_millis(1))).await.unwrap();
        if name == "all" {
            publish(&context, 10, 1, 20).await;
        }
        handles(&ledger, 200).await;
        let consumer = format!("{name}-m");
        eventually(SOON, async || {
            let info =
                context.get_stream("foo").await.unwrap().consumer_info(&consumer).await.unwrap();
            let left = (info.num_pending, info.num_ack_pending);
            if left == (0, 0) { Ok(()) } else { Err(format!("{left:?} left")) }
        })
        .await;
        member.stopped().await.unwrap();
        ledger.check_exactly_once();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_of_one_partition_run_at_once_where_the_subject_is_the_key() {
    let (_broker, context) = broker().await;
    let group = group(&context, 1).await;
    publish(&context, 2, 1, 3).await;
    let member = group.consume("m1").template(template()).order_by(OrderBy::Subject).concurrency(4);
    let (mut messages, consuming) = member.messages().await.unwrap();
    let first = timeout(SOON, messages.next()).await.unwrap().unwrap();
    let second = timeout(SOON, messages.next()).await.unwrap().unwrap();
    assert_eq!((first.subject(), number(&first)), ("foo.k0", 1));
    assert_eq!((second.subject(), number(&second)), ("foo.k1", 1));
    assert!(
        timeout(Duration::from_millis(300), messages.next()).await.is_err(),
        "two of one subject"
    );
    consuming.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_may_go_on_after_it_has_refused_its_message() {
    let (_broker, context) = broker().await;
    let group = group(&context, 1).await;
    let (ledger, runs) = (Ledger::default(), Arc::new(Mutex::new(Vec::new())));
    let (book, seen) = (ledger.clone(), Arc::clone(&runs));
    let member = group.consume("m1").template(template()).concurrency(4).handle(move |message| {
        let (book, seen) = (book.clone(), Arc::clone(&seen));
        async move {
            let entry = book.begin("m1", message.subject());
            seen.lock().unwrap().push((number(&message), message.deliveries()));
            if number(&message) % 3 == 2 && message.deliveries() < 3 {
                message.nak().await.unwrap();
                // The broker delivers it again at once, long before this ends.
                tokio::time::sleep(Duration::from_millis(150)).await;
            } else {
                message.ack().await.unwrap();
                entry.succeed("m1", number(&message));
            }
        }
    });
    let member = member.await.unwrap();
    publish(&context, 1, 1, 6).await;
    handles(&ledger, 6).await;
    everything_is_settled(&context).await;
    assert_eq!(member.stopped().await.unwrap(), End::Stopped);
    ledger.check_exactly_once();
    let refused = |number| [(number, 1), (number, 2), (number, 3)];
    let order: Vec<(u64, u64)> = [(1, 1)]
        .into_iter()
        .chain(refused(2))
        .chain([(3, 1), (4, 1)])
        .chain(refused(5))
        .chain([(6, 1)])
        .collect();
    assert_eq!(*runs.lock().unwrap(), order);
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_go_where_either_form_of_their_subject_says() {
    // The form with domain and account hash (ADR-15), which a server from 2.14 on uses when it is
    // told to.
    for (lines, tokens) in [("", 9), ("feature_flags { js_ack_fc_v2: true }", 11)] {
        let broker = TestBroker::builder().jetstream().config_lines(lines).start().await;
        let context = async_nats::jetstream::new(broker.connect().await);
        let group = group(&context, 2).await;
        publish(&context, 4, 1, 3).await;
        let (mut messages, consuming) =
            group.consume("m1").template(template()).concurrency(2).messages().await.unwrap();
        for _ in 0..12 {
            let message = timeout(SOON, messages.next()).await.unwrap().unwrap();
            let reply: Vec<&str> = message.reply().split('.').collect();
            assert!(
                message.reply().starts_with("$JS.ACK.") && reply.len() == tokens,
                "{}",
                message.reply()
            );
            assert_eq!(message.deliveries(), 1);
            assert!(message.stream_sequence() <= 12 && message.stored_at_unix_ns() > 0);
            message.double_ack().await.unwrap();
        }
        everything_is_settled(&context).await;
        consuming.stopped().await.unwrap();
    }
}

/// What a handler may hold: it panics when it is dropped.
struct Bomb;

impl Drop for Bomb {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            panic!("a destructor of the handler panics");
        }
    }
}

/// An error that cannot even be written down.
struct Unspeakable;

impl std::fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("the error of the handler panics")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn panics_in_destructors_and_errors_cost_a_delivery_and_no_handler() {
    let (_broker, context) = broker().await;
    let group = group(&context, 1).await;
    let ledger = Ledger::default();
    let book = ledger.clone();
    let builder = group.consume("m1").template(template()).retry_delay(Duration::from_millis(20));
    let member = builder.handle(move |message| {
        let book = book.clone();
        async move {
            match (number(&message), message.deliveries()) {
                // Dropped where it waits, when the pin is lost.
                (1, 1) => {
                    let _bomb = Bomb;
                    book.begin("m1", "at work").succeed("m1", 1);
                    std::future::pending().await
                }
                (2, 1) => {
                    let _bomb = Bomb;
                    Ok(())
                }
                (3, 1) => Err(Unspeakable),
                (4, 1) => panic!("the handler panics"),
                (number, _) => {
                    book.begin("m1", message.subject()).succeed("m1", number);
                    Ok(())
                }
            }
        }
    });
    let member = member.await.unwrap();
    publish(&context, 1, 1, 5).await;
    handles(&ledger, 1).await;
    group.step_down("m1").await.unwrap();
    handles(&ledger, 6).await;
    everything_is_settled(&context).await;
    assert_eq!(member.stopped().await.unwrap(), End::Stopped);
    ledger.check_exactly_once();
}

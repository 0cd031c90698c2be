//! Elastic groups on a real broker: joining, leaving, moving partitions, and handing over.

mod support;

use std::time::{Duration, Instant};

use async_nats::jetstream::consumer::pull;
use futures_util::future::BoxFuture;
use natsway_partitioned_consumer::{
    ElasticConfig, ElasticGroup, End, Error, ErrorKind, GroupSettings, MemberMapping, MemberState,
    Membership,
};
use natsway_testkit::eventually;
use support::{Ledger, SOON, becomes, broker, handler, handles, publish, stream};
use tokio::sync::mpsc;
use tokio::time::timeout;

fn template(max_ack_pending: i64) -> pull::Config {
    pull::Config { max_ack_pending, ack_wait: Duration::from_secs(2), ..Default::default() }
}

#[expect(clippy::unwrap_used, reason = "set-up of tests")]
async fn group(context: &async_nats::jetstream::Context) -> ElasticGroup {
    stream(context, "S", "foo.*").await;
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(6).filter("foo.*", [1])).await.unwrap();
    group
}

#[tokio::test(flavor = "multi_thread")]
async fn members_share_the_work_in_order() {
    let (_broker, context) = broker().await;
    let group = group(&context).await;
    let ledger = Ledger::default();
    let mut members = Vec::new();
    for name in ["m1", "m2", "m3"] {
        let member = group.consume(name).template(template(100)).concurrency(4);
        members
            .push(member.handle(handler(&ledger, name, Duration::from_millis(1))).await.unwrap());
    }
    publish(&context, 20, 1, 20).await;
    assert_eq!(group.add_members(["m1", "m2", "m3"]).await.unwrap(), ["m1", "m2", "m3"]);
    handles(&ledger, 400).await;
    for name in ["m1", "m2", "m3"] {
        assert!(ledger.count_by(name) > 0, "{name} got nothing");
    }
    assert_eq!(group.active_members().await.unwrap(), ["m1", "m2", "m3"]);
    for member in members {
        assert_eq!(member.stopped().await.unwrap(), End::Stopped);
    }
    ledger.check_exactly_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn partitions_move_without_overlap_loss_or_repeat() {
    let (_broker, context) = broker().await;
    let group = group(&context).await;
    let ledger = Ledger::default();
    let mut members = Vec::new();
    for name in ["m1", "m2", "m3"] {
        let member = group.consume(name).template(template(50)).concurrency(3);
        members
            .push(member.handle(handler(&ledger, name, Duration::from_millis(3))).await.unwrap());
    }
    group.add_members(["m1"]).await.unwrap();
    let feed = tokio::spawn({
        let context = context.clone();
        async move { publish(&context, 12, 1, 150).await }
    });
    for round in 0..4 {
        for name in ["m2", "m3"] {
            let before = ledger.count();
            if round % 2 == 0 {
                group.add_members([name]).await
            } else {
                group.drop_members([name]).await
            }
            .unwrap();
            eventually(SOON, async || ledger.count() > before + 20 || ledger.distinct() >= 1800)
                .await;
        }
    }
    feed.await.unwrap();
    handles(&ledger, 1800).await;
    for member in members {
        member.stopped().await.unwrap();
    }
    ledger.check_exactly_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_stop_hands_over_at_once() {
    let (_broker, context) = broker().await;
    let group = group(&context).await;
    group.add_members(["m1"]).await.unwrap();
    let ledger = Ledger::default();
    let long = pull::Config {
        max_ack_pending: 100,
        ack_wait: Duration::from_secs(20),
        ..Default::default()
    };
    let first = group
        .consume("m1")
        .template(long.clone())
        .handle(handler(&ledger, "a", Duration::from_millis(2)))
        .await
        .unwrap();
    publish(&context, 6, 1, 1).await;
    becomes(&first, MemberState::Pinned).await;
    let second = group
        .consume("m1")
        .template(long)
        .handle(handler(&ledger, "b", Duration::from_millis(2)))
        .await
        .unwrap();
    becomes(&second, MemberState::Standby).await;
    publish(&context, 6, 2, 100).await;
    eventually(SOON, async || ledger.count() > 50).await;
    let begun = Instant::now();
    assert_eq!(first.stopped().await.unwrap(), End::Stopped);
    handles(&ledger, 606).await;
    assert!(
        begun.elapsed() < Duration::from_secs(15),
        "the standby waited for the pin to lapse: {:?}",
        begun.elapsed()
    );
    second.stopped().await.unwrap();
    ledger.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_is_dropped_when_its_pin_is_lost() {
    let (_broker, context) = broker().await;
    let group = group(&context).await;
    group.add_members(["m1"]).await.unwrap();
    let ledger = Ledger::default();
    let (stuck, mut at_work) = mpsc::channel(1);
    let first = group.consume("m1").template(template(10));
    let first = first.handle({
        let (ledger, later) = (ledger.clone(), handler(&ledger, "a", Duration::ZERO));
        move |message| -> BoxFuture<'static, Result<(), Error>> {
            if stuck.try_send(message.cancellation()).is_err() {
                return later(message);
            }
            let entry = ledger.begin("a", message.subject());
            Box::pin(async move {
                let _held = (entry, message);
                std::future::pending().await
            })
        }
    });
    let first = first.await.unwrap();
    publish(&context, 1, 1, 3).await;
    let cancelled = timeout(SOON, at_work.recv()).await.unwrap().unwrap();
    // Whatever comes after the first is handled as usual.
    at_work.close();
    let second = group.consume("m1").template(template(10));
    let second = second.handle(handler(&ledger, "b", Duration::ZERO)).await.unwrap();
    becomes(&second, MemberState::Standby).await;
    group.step_down("m1").await.unwrap();
    // Blocking work looks at the token; what waits is dropped, and with it its entry in the ledger.
    assert!(timeout(SOON, cancelled.cancelled()).await.is_ok(), "nobody told the handler");
    handles(&ledger, 3).await;
    ledger.check_exactly_once();
    first.stopped().await.unwrap();
    second.stopped().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_deleted_by_somebody_else_comes_back() {
    let (_broker, context) = broker().await;
    let group = group(&context).await;
    group.add_members(["m1"]).await.unwrap();
    let ledger = Ledger::default();
    let member = group
        .consume("m1")
        .template(template(10))
        .handle(handler(&ledger, "a", Duration::ZERO))
        .await
        .unwrap();
    publish(&context, 6, 1, 5).await;
    handles(&ledger, 30).await;
    context.get_stream("S-g").await.unwrap().delete_consumer("m1").await.unwrap();
    publish(&context, 6, 6, 5).await;
    handles(&ledger, 60).await;
    member.stopped().await.unwrap();
    ledger.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_is_told_whatever_is_deleted() {
    let (_broker, context) = broker().await;
    let group = group(&context).await;
    group.add_members(["m1"]).await.unwrap();
    let ledger = Ledger::default();
    let start = || async {
        group
            .consume("m1")
            .template(template(10))
            .handle(handler(&ledger, "a", Duration::ZERO))
            .await
            .unwrap()
    };

    let mut member = start().await;
    becomes(&member, MemberState::Standby).await;
    group.delete().await.unwrap();
    assert_eq!(member.done().await.unwrap(), End::GroupDeleted);

    group.create(&ElasticConfig::new(6)).await.unwrap();
    group.add_members(["m1"]).await.unwrap();
    let mut member = start().await;
    becomes(&member, MemberState::Standby).await;
    context.delete_stream("S-g").await.unwrap();
    assert_eq!(member.done().await.unwrap_err().kind(), ErrorKind::StreamNotFound);

    group.delete().await.unwrap();
    group.create(&ElasticConfig::new(6)).await.unwrap();
    group.add_members(["m1"]).await.unwrap();
    let mut member = start().await;
    becomes(&member, MemberState::Standby).await;
    context.delete_key_value("elastic-consumer-groups").await.unwrap();
    assert_eq!(member.done().await.unwrap_err().kind(), ErrorKind::BucketNotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn mapped_groups_with_several_filters_work() {
    let (_broker, context) = broker().await;
    context
        .create_stream(async_nats::jetstream::stream::Config {
            name: "S".into(),
            subjects: vec!["foo.*".into(), "bar.*".into()],
            ..Default::default()
        })
        .await
        .unwrap();
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(4).filter("foo.*", [1]).filter("bar.*", [1])).await.unwrap();
    group
        .set_mappings([MemberMapping::new("m1", [0, 1]), MemberMapping::new("m2", [2, 3])])
        .await
        .unwrap();
    assert_eq!(group.add_members(["m3"]).await.unwrap_err().kind(), ErrorKind::NotAllowed);
    let ledger = Ledger::default();
    let mut members = Vec::new();
    for name in ["m1", "m2"] {
        members.push(
            group
                .consume(name)
                .template(template(10))
                .handle(handler(&ledger, name, Duration::ZERO))
                .await
                .unwrap(),
        );
    }
    publish(&context, 10, 1, 2).await;
    context.publish("bar.x", "1".into()).await.unwrap().await.unwrap();
    handles(&ledger, 21).await;
    group.delete_mappings().await.unwrap();
    for member in &members {
        becomes(member, MemberState::Waiting).await;
    }
    ledger.check_exactly_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_number_of_partitions_changes_without_loss_or_disorder() {
    let (_broker, context) = broker().await;
    let group = group(&context).await;
    group.add_members(["m1", "m2"]).await.unwrap();
    let ledger = Ledger::default();
    let supervise = |name: &'static str| {
        // What a supervisor does: start the member again when its group has changed under it.
        let (group, ledger) = (group.clone(), ledger.clone());
        tokio::spawn(async move {
            loop {
                let member = group.consume(name).template(template(20)).concurrency(3);
                let mut member =
                    member.handle(handler(&ledger, name, Duration::from_millis(1))).await.unwrap();
                let end = member.done().await;
                assert_eq!(end.unwrap_err().kind(), ErrorKind::ConfigChanged);
            }
        })
    };
    let members = [supervise("m1"), supervise("m2")];
    let feed = tokio::spawn({
        let context = context.clone();
        async move { publish(&context, 15, 1, 60).await }
    });
    handles(&ledger, 100).await;
    let done = group.repartition(4, SOON).await.unwrap();
    assert_eq!((done.from, done.to), (6, 4));
    feed.await.unwrap();
    handles(&ledger, 900).await;
    assert_eq!(group.config().await.unwrap().partitions, 4);
    // A work queue at rest is cut as well, and growing past the old number works.
    group.repartition(9, SOON).await.unwrap();
    publish(&context, 15, 61, 10).await;
    handles(&ledger, 1050).await;
    // By hand from here on, and a number that the mappings do not fit is refused before anything is
    // touched.
    let by_hand = [MemberMapping::new("m1", [0, 1, 2, 3]), MemberMapping::new("m2", [4])];
    let uneven = group.repartition_mapped(6, by_hand.clone(), SOON).await.unwrap_err();
    assert_eq!(uneven.kind(), ErrorKind::InvalidConfig, "{uneven}");
    group.repartition_mapped(5, by_hand.clone(), SOON).await.unwrap();
    let refused = group.repartition(8, SOON).await.unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::NotAllowed, "{refused}");
    let config = group.config().await.unwrap();
    assert_eq!((config.partitions, config.membership), (5, Membership::Mapped(by_hand.into())));
    assert_eq!(group.settings().await.unwrap(), GroupSettings::default());
    publish(&context, 15, 71, 10).await;
    handles(&ledger, 1200).await;
    members.iter().for_each(tokio::task::JoinHandle::abort);
    ledger.check_exactly_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backlog_of_slow_messages_never_costs_the_pin() {
    // What breaks a client whose buffer delays the renewal: many in flight, handled far slower than
    // ack_wait.
    let (_broker, context) = broker().await;
    let group = group(&context).await;
    group.add_members(["m1"]).await.unwrap();
    publish(&context, 10, 1, 60).await;
    let ledger = Ledger::default();
    let wide = pull::Config {
        max_ack_pending: 1000,
        ack_wait: Duration::from_secs(1),
        ..Default::default()
    };
    let mut members = Vec::new();
    for name in ["a", "b"] {
        let builder = group.consume("m1").template(wide.clone());
        members
            .push(builder.handle(handler(&ledger, name, Duration::from_millis(8))).await.unwrap());
    }
    handles(&ledger, 600).await;
    assert!(ledger.count_by("a") == 0 || ledger.count_by("b") == 0, "the pin moved without need");
    for member in members {
        member.stopped().await.unwrap();
    }
    ledger.check_exactly_once();
}

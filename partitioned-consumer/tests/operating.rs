//! What an operator relies on: the doctor's findings, counts, and a repartition that somebody cut off.

mod support;

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{Context, stream as js};
use natsway_partitioned_consumer::{
    ElasticConfig, ElasticGroup, ErrorKind, Finding, Membership, StaticConfig, StaticGroup,
};
use natsway_testkit::eventually;
use support::{Ledger, SOON, broker, handler, handles, partitioned_stream, publish, stream};

fn codes(findings: &[Finding]) -> Vec<&str> {
    findings.iter().map(|finding| finding.code).collect()
}

#[expect(clippy::unwrap_used, reason = "set-up of tests")]
async fn write_entry(context: &Context, bucket: &str, key: &str, json: &str) {
    let store = context.get_key_value(bucket).await.unwrap();
    store.put(key, json.to_owned().into()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_what_is_wrong_with_an_elastic_group() {
    let (_broker, context) = broker().await;
    stream(&context, "S", "foo.*").await;
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(2).filter("foo.*", [1])).await.unwrap();
    assert_eq!(codes(&group.doctor().await.unwrap()), ["uncovered"]);
    group.add_members(["a", "b", "c"]).await.unwrap();
    assert_eq!(codes(&group.doctor().await.unwrap()), ["no-instance", "no-instance", "surplus-member"]);
    let ledger = Ledger::default();
    let mut members = Vec::new();
    for name in ["a", "b"] {
        members.push(group.consume(name).handle(handler(&ledger, name, Duration::ZERO)).await.unwrap());
    }
    group.drop_members(["c"]).await.unwrap();
    eventually(SOON, async || group.doctor().await.unwrap().is_empty()).await;
    group.pause().await.unwrap();
    assert_eq!(codes(&group.doctor().await.unwrap()), ["paused"]);
    group.resume().await.unwrap();
    // Members end at an entry that they cannot follow.
    let overlapping = r#"{"max_members":3,"partitioning_filters":[{"filter":"foo.*","partitioning_wildcards":[1]},
        {"filter":"foo.>","partitioning_wildcards":[]},{"filter":"bar.*","partitioning_wildcards":[1]}],"members":["a"]}"#;
    write_entry(&context, "elastic-consumer-groups", "S.g", overlapping).await;
    let stray = pull::Config {
        durable_name: Some("stray".into()),
        filter_subject: "9.>".into(),
        ..Default::default()
    };
    context.create_consumer_on_stream(stray, "S-g").await.unwrap();
    for mut member in members {
        assert_eq!(member.done().await.unwrap_err().kind(), ErrorKind::ConfigChanged);
    }
    // The broker removes the consumer of a member that is gone after an ack wait.
    eventually(SOON, async || {
        let findings = group.doctor().await.unwrap();
        let expected =
            ["no-instance", "orphan", "overlapping-filters", "unmatched-filter", "partitions-mismatch"];
        if codes(&findings) == expected { Ok(()) } else { Err(format!("{findings:?}")) }
    })
    .await;
    let older = r#"{"max_members":2,"filter":"foo.*","partitioning_wildcards":[1],"members":[]}"#;
    write_entry(&context, "elastic-consumer-groups", "S.g", older).await;
    assert!(codes(&group.doctor().await.unwrap()).contains(&"old-generation"));
    context.delete_stream("S").await.unwrap();
    assert!(codes(&group.doctor().await.unwrap()).contains(&"stream-missing"));
    context.delete_stream("S-g").await.unwrap();
    assert_eq!(codes(&group.doctor().await.unwrap()), ["stream-missing"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_doctor_finds_what_is_wrong_with_a_static_group() {
    let (_broker, context) = broker().await;
    partitioned_stream(&context, "foo", 4).await;
    let group = StaticGroup::new(context.clone(), "foo", "g").unwrap();
    let overlapping = StaticConfig::new(3, Membership::balanced(["a"])).filters(["foo.*", "foo.k1"]);
    assert_eq!(group.create(&overlapping).await.unwrap_err().kind(), ErrorKind::InvalidConfig);
    group.create(&StaticConfig::new(4, Membership::balanced(["a"]))).await.unwrap();
    let json = String::from_utf8(overlapping.to_json()).unwrap();
    write_entry(&context, "static-consumer-groups", "foo.g", &json).await;
    let expected = ["no-instance", "overlapping-filters", "partitions-mismatch"];
    assert_eq!(codes(&group.doctor().await.unwrap()), expected);
    write_entry(&context, "static-consumer-groups", "foo.g", r#"{"max_members":4,"members":["a"]}"#).await;
    // A member's consumer outlives its membership; one of a group whose name begins alike is no orphan.
    let longer = StaticGroup::new(context.clone(), "foo", "g-x").unwrap();
    longer.create(&StaticConfig::new(4, Membership::balanced(["a"]))).await.unwrap();
    let ledger = Ledger::default();
    for group in [&group, &longer] {
        let member = group.consume("a").handle(handler(&ledger, "a", Duration::ZERO)).await.unwrap();
        member.stopped().await.unwrap();
    }
    write_entry(&context, "static-consumer-groups", "foo.g", r#"{"max_members":4,"members":["b"]}"#).await;
    let findings = group.doctor().await.unwrap();
    assert_eq!(codes(&findings), ["no-instance", "orphan"], "{findings:?}");
    assert!(findings[1].text.contains("\"g-a\""), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn lag_is_counted_whatever_the_stream_keeps() {
    let (_broker, context) = broker().await;
    for retention in
        [js::RetentionPolicy::Limits, js::RetentionPolicy::Interest, js::RetentionPolicy::WorkQueue]
    {
        let config = js::Config {
            name: "foo".into(),
            subjects: vec!["foo.*".into()],
            retention,
            subject_transform: Some(js::SubjectTransform {
                source: "foo.*".into(),
                destination: "{{partition(2,1)}}.foo.{{wildcard(1)}}".into(),
            }),
            ..Default::default()
        };
        context.create_stream(config).await.unwrap();
        let group = StaticGroup::new(context.clone(), "foo", "g").unwrap();
        group.create(&StaticConfig::new(2, Membership::balanced(["a"]))).await.unwrap();
        let ledger = Ledger::default();
        let template = pull::Config { max_ack_pending: 1, ..Default::default() };
        let join = || async {
            let member = group.consume("a").template(template.clone());
            member.handle(handler(&ledger, "a", Duration::ZERO)).await.unwrap()
        };
        // The consumer is there before the messages, or a stream that goes by interest keeps none.
        join().await.stopped().await.unwrap();
        publish(&context, 10, 1, 3).await;
        let report = group.report().await.unwrap();
        let by_partition: u64 = report.by_partition.iter().map(|partition| partition.lag_messages).sum();
        assert_eq!((by_partition, report.members[0].lag_messages), (30, 30), "{retention:?}");
        let member = join().await;
        handles(&ledger, 30).await;
        eventually(SOON, async || {
            let report = group.report().await.unwrap();
            let lag = report.by_partition.iter().map(|partition| partition.lag_messages).sum::<u64>();
            if lag == 0 { Ok(()) } else { Err(format!("{retention:?}: {report:?}")) }
        })
        .await;
        member.stopped().await.unwrap();
        group.delete().await.unwrap();
        context.delete_stream("foo").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repartition_that_was_cut_off_anywhere_is_finished_by_the_next() {
    let (_broker, context) = broker().await;
    stream(&context, "S", "foo.*").await;
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(6).filter("foo.*", [1])).await.unwrap();
    group.add_members(["m1", "m2"]).await.unwrap();
    publish(&context, 15, 1, 20).await;
    // Nobody is at work: the backlog stays, the time runs out, and the journal remembers.
    let cut_off = group.repartition(4, Duration::from_millis(500)).await.unwrap_err();
    assert_eq!(cut_off.kind(), ErrorKind::Timeout, "{cut_off}");
    assert!(codes(&group.doctor().await.unwrap()).contains(&"repartition-unfinished"));
    let other = group.repartition(5, SOON).await.unwrap_err();
    assert_eq!(other.kind(), ErrorKind::NotAllowed, "{other}");

    let ledger = Ledger::default();
    let supervise = |name: &'static str| {
        let (group, ledger) = (group.clone(), ledger.clone());
        tokio::spawn(async move {
            loop {
                let template = pull::Config { max_ack_pending: 20, ..Default::default() };
                let member = group.consume(name).template(template).concurrency(3);
                let mut member =
                    member.handle(handler(&ledger, name, Duration::from_millis(1))).await.unwrap();
                assert_eq!(member.done().await.unwrap_err().kind(), ErrorKind::ConfigChanged);
            }
        })
    };
    let members = [supervise("m1"), supervise("m2")];
    let done = group.repartition(4, SOON).await.unwrap();
    assert_eq!((done.from, done.to), (6, 4));
    // Cut off again and again, each time a little later, with messages flowing.
    let mut sent = 20;
    for (partitions, step) in [(9, 10), (3, 25)] {
        let mut cuts = 0;
        loop {
            publish(&context, 15, sent + 1, 2).await;
            sent += 2;
            cuts += 1;
            let limit = Duration::from_millis(cuts * step);
            if let Ok(done) = tokio::time::timeout(limit, group.repartition(partitions, SOON)).await {
                assert_eq!(done.unwrap().to, partitions);
                break;
            }
        }
        assert!(cuts > 1, "it was cut off only {cuts} times");
        assert_eq!(group.config().await.unwrap().partitions, partitions);
    }
    handles(&ledger, 15 * sent as usize).await;
    assert_eq!(group.membership().await.unwrap(), Membership::balanced(["m1", "m2"]));
    assert!(!codes(&group.doctor().await.unwrap()).contains(&"repartition-unfinished"));
    members.iter().for_each(tokio::task::JoinHandle::abort);
    ledger.check_exactly_once();
}

//! What an operator relies on: the doctor's findings, counts, and a repartition that somebody cut
//! off.

mod support;

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use async_nats::jetstream::{Context, stream as js};
use natsway_partitioned_consumer::{
    DeadLetter, ElasticConfig, ElasticGroup, ErrorKind, Finding, MemberEvent, MemberMapping,
    Membership, ResetTo, StaticConfig, StaticGroup,
};
use natsway_testkit::{TestBroker, eventually};
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
    assert_eq!(
        codes(&group.doctor().await.unwrap()),
        ["no-instance", "no-instance", "surplus-member"]
    );
    let ledger = Ledger::default();
    let mut members = Vec::new();
    for name in ["a", "b"] {
        members.push(
            group.consume(name).handle(handler(&ledger, name, Duration::ZERO)).await.unwrap(),
        );
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
        let expected = [
            "no-instance",
            "orphan",
            "overlapping-filters",
            "unmatched-filter",
            "partitions-mismatch",
        ];
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
    let overlapping =
        StaticConfig::new(3, Membership::balanced(["a"])).filters(["foo.*", "foo.k1"]);
    assert_eq!(group.create(&overlapping).await.unwrap_err().kind(), ErrorKind::InvalidConfig);
    group.create(&StaticConfig::new(4, Membership::balanced(["a"]))).await.unwrap();
    let json = String::from_utf8(overlapping.to_json()).unwrap();
    write_entry(&context, "static-consumer-groups", "foo.g", &json).await;
    let expected = ["no-instance", "overlapping-filters", "partitions-mismatch"];
    assert_eq!(codes(&group.doctor().await.unwrap()), expected);
    write_entry(
        &context,
        "static-consumer-groups",
        "foo.g",
        r#"{"max_members":4,"members":["a"]}"#,
    )
    .await;
    // A member's consumer outlives its membership; one of a group whose name begins alike is no
    // orphan.
    let longer = StaticGroup::new(context.clone(), "foo", "g-x").unwrap();
    longer.create(&StaticConfig::new(4, Membership::balanced(["a"]))).await.unwrap();
    let ledger = Ledger::default();
    for group in [&group, &longer] {
        let member =
            group.consume("a").handle(handler(&ledger, "a", Duration::ZERO)).await.unwrap();
        member.stopped().await.unwrap();
    }
    write_entry(
        &context,
        "static-consumer-groups",
        "foo.g",
        r#"{"max_members":4,"members":["b"]}"#,
    )
    .await;
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
        let by_partition: u64 =
            report.by_partition.iter().map(|partition| partition.lag_messages).sum();
        assert_eq!((by_partition, report.members[0].lag_messages), (30, 30), "{retention:?}");
        let member = join().await;
        handles(&ledger, 30).await;
        eventually(SOON, async || {
            let report = group.report().await.unwrap();
            let lag =
                report.by_partition.iter().map(|partition| partition.lag_messages).sum::<u64>();
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
            if let Ok(done) = tokio::time::timeout(limit, group.repartition(partitions, SOON)).await
            {
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

#[expect(clippy::unwrap_used, reason = "set-up of tests")]
async fn bounded_stream(context: &Context, keeps: i64) {
    let config = js::Config {
        name: "S".into(),
        subjects: vec!["foo.*".into()],
        max_messages: keeps,
        ..Default::default()
    };
    context.create_stream(config).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_source_dropped_before_it_was_copied_is_counted_and_told() {
    let (_broker, context) = broker().await;
    bounded_stream(&context, 100).await;
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group
        .create(&ElasticConfig::new(2).filter("foo.*", [1]).max_buffered_messages(50))
        .await
        .unwrap();
    let risk = group.source_may_drop().await.unwrap();
    assert_eq!(risk.as_deref(), Some("keeps 100 messages"));
    group.add_members(["m1"]).await.unwrap();
    assert_eq!(group.source_loss().await.unwrap().unwrap().messages, 0);
    // Nobody is at work, so the work queue takes 50 and the source keeps 100 of the rest.
    publish(&context, 5, 1, 10).await;
    eventually(SOON, async || {
        let waits =
            group.report().await.unwrap().by_partition.iter().map(|p| p.lag_messages).sum::<u64>();
        if waits == 50 { Ok(()) } else { Err(waits) }
    })
    .await;
    publish(&context, 5, 11, 190).await;
    let lost = eventually(SOON, async || {
        let loss = group.source_loss().await.unwrap().unwrap();
        if loss.messages >= 850 { Ok(loss) } else { Err(format!("{loss:?}")) }
    })
    .await;
    assert_eq!((lost.messages, lost.exact, lost.largest_lag_messages), (850, true, 950));
    let findings = group.doctor().await.unwrap();
    assert_eq!(
        codes(&findings),
        ["no-instance", "source-dropped", "source-keeps-little"],
        "{findings:?}"
    );
    assert!(findings[1].text.contains("dropped 850 messages"), "{findings:?}");

    let ledger = Ledger::default();
    let member =
        group.consume("m1").template(pull::Config { max_ack_pending: 100, ..Default::default() });
    let member = member.handle(handler(&ledger, "m1", Duration::ZERO)).await.unwrap();
    let (mut events, told) = (member.events(), member.source_loss());
    handles(&ledger, 150).await;
    eventually(
        SOON,
        async || if told.borrow().messages == 850 { Ok(()) } else { Err("not told yet") },
    )
    .await;
    let mut seen = Vec::new();
    while let Ok(event) = events.try_recv() {
        seen.push(event);
    }
    assert!(
        seen.iter().any(|n| matches!(n, MemberEvent::SourceDropped(loss) if loss.messages == 850)),
        "{seen:?}"
    );
    // Those that are copied from now on are all there, and those that are gone are not forgotten.
    publish(&context, 5, 201, 10).await;
    handles(&ledger, 200).await;
    member.stopped().await.unwrap();
    assert_eq!(
        group.report().await.unwrap().source_loss.unwrap().messages,
        1050 - ledger.distinct() as u64
    );
    ledger.check_exactly_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_drops_what_was_copied_loses_nothing() {
    let (_broker, context) = broker().await;
    bounded_stream(&context, 100).await;
    let other =
        js::Config { name: "T".into(), subjects: vec!["bar.*".into()], ..Default::default() };
    context.create_stream(other).await.unwrap();
    // One group takes everything, the other a part.
    let all = ElasticGroup::new(context.clone(), "S", "all").unwrap();
    all.create(&ElasticConfig::new(2)).await.unwrap();
    let part = ElasticGroup::new(context.clone(), "S", "part").unwrap();
    let mapped = ElasticConfig::new(2).filter("foo.k1.>", []);
    part.create(&mapped).await.unwrap();
    for round in 0..10 {
        publish(&context, 5, 1 + round * 10, 10).await;
        eventually(SOON, async || {
            let report = all.report().await.unwrap();
            let copied: u64 = report.by_partition.iter().map(|p| p.lag_messages).sum();
            if copied == 50 * (round + 1) { Ok(()) } else { Err(format!("{copied} copied")) }
        })
        .await;
    }
    for group in [&all, &part] {
        assert_eq!(group.source_loss().await.unwrap().unwrap().messages, 0);
        let findings = group.doctor().await.unwrap();
        assert!(!codes(&findings).contains(&"source-dropped"), "{findings:?}");
    }
    let unlimited = ElasticGroup::new(context.clone(), "T", "g").unwrap();
    unlimited.create(&ElasticConfig::new(2)).await.unwrap();
    assert_eq!(unlimited.source_may_drop().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_that_go_nowhere_or_come_back_are_refused_and_found() {
    let (_broker, context) = broker().await;
    stream(&context, "S", "foo.>").await;
    stream(&context, "DEAD", "dead.>").await;
    let elastic = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    elastic.create(&ElasticConfig::new(2).filter("foo.*", [1])).await.unwrap();
    let faults = [
        ("", "dead-letter-subject"),
        ("dead.*", "dead-letter-subject"),
        ("nowhere.x", "dead-letter-unstored"),
        ("foo.dead", "dead-letter-loop"),
    ];
    for (subject, code) in faults {
        let letter = DeadLetter { after_deliveries: 3, subject: subject.into() };
        let refused = elastic.set_dead_letter(Some(letter.clone())).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidConfig, "{subject:?}: {refused}");
        // As an older program may have written it.
        elastic
            .change_settings(|settings| {
                settings.dead_letter_after = 3;
                settings.dead_letter_subject = Some(subject.into());
            })
            .await
            .unwrap();
        assert_eq!(codes(&elastic.doctor().await.unwrap()), ["uncovered", code], "{subject:?}");
        let started = elastic.consume("m1").dead_letter(letter).handle(|_| async {}).await;
        let refused = started.err().map(|error| error.kind());
        let expected = (code != "dead-letter-unstored").then_some(ErrorKind::InvalidConfig);
        assert_eq!(refused, expected, "{subject:?}");
    }
    for fine in ["dead.billing", "foo.a.dead"] {
        let letter = DeadLetter { after_deliveries: 3, subject: fine.into() };
        elastic.set_dead_letter(Some(letter)).await.unwrap();
        assert_eq!(codes(&elastic.doctor().await.unwrap()), ["uncovered"], "{fine}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_group_is_made_where_subjects_carry_its_partitions() {
    let (_broker, context) = broker().await;
    stream(&context, "PLAIN", "bar.*").await;
    stream(&context, "HAND", "0.baz.>").await;
    partitioned_stream(&context, "WRITTEN", 4).await;
    let create = async |stream: &str, partitions| {
        let group = StaticGroup::new(context.clone(), stream, "g").unwrap();
        group
            .create(&StaticConfig::new(partitions, Membership::balanced(["a"])))
            .await
            .map_err(|e| e.kind())
    };
    assert_eq!(create("PLAIN", 4).await, Err(ErrorKind::InvalidConfig));
    assert_eq!(
        create("WRITTEN", 3).await,
        Err(ErrorKind::InvalidConfig),
        "one partition would be nobody's"
    );
    assert_eq!(create("WRITTEN", 4).await, Ok(()));
    assert_eq!(create("HAND", 4).await, Ok(()), "whoever publishes may write them");
    let plain = StaticGroup::new(context.clone(), "PLAIN", "g").unwrap();
    write_entry(
        &context,
        "static-consumer-groups",
        "PLAIN.g",
        r#"{"max_members":4,"members":["a"]}"#,
    )
    .await;
    assert!(codes(&plain.doctor().await.unwrap()).contains(&"no-partitions"));
    let twice = StaticConfig::new(4, Membership::balanced(["a", "b", "a"]));
    let refused = plain.create(&twice).await.unwrap_err();
    assert!(refused.to_string().contains("\"a\" is given twice"), "{refused}");
    let mapped =
        Membership::Mapped(vec![MemberMapping::new("a", [0]), MemberMapping::new("a", [1])]);
    assert_eq!(
        plain.create(&StaticConfig::new(2, mapped)).await.unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn running_members_of_a_static_group_replay_what_a_reset_asks_for() {
    let (_broker, context) = broker().await;
    partitioned_stream(&context, "foo", 4).await;
    let group = StaticGroup::new(context.clone(), "foo", "g").unwrap();
    group.create(&StaticConfig::new(4, Membership::balanced(["a", "b"]))).await.unwrap();
    publish(&context, 8, 1, 5).await;
    let ledger = Ledger::default();
    let mut members = Vec::new();
    for (name, max_ack_pending) in [("a", 1), ("b", 100)] {
        let book = ledger.clone();
        let member =
            group.consume(name).template(pull::Config { max_ack_pending, ..Default::default() });
        let member = member.handle(move |message| {
            // What comes again by a reset comes for the first time: nothing waits for an
            // `ack_wait`.
            let entry = book.begin(name, message.subject());
            let first = (message.deliveries() == 1).then_some(()).ok_or("delivered again");
            async move {
                entry.succeed(name, support::number(&message));
                first
            }
        });
        members.push(member.await.unwrap());
    }
    let counted = async |count: usize| {
        eventually(
            SOON,
            async || if ledger.count() == count { Ok(()) } else { Err(ledger.count()) },
        )
        .await;
        eventually(SOON, async || {
            let lags: Vec<u64> =
                group.report().await.unwrap().members.iter().map(|m| m.lag_messages).collect();
            if lags == [0, 0] { Ok(()) } else { Err(lags) }
        })
        .await;
    };
    counted(40).await;
    let tried = group.reset(ResetTo::Sequence(1), true).await.unwrap();
    let again: u64 = tried.members.iter().filter_map(|member| member.again_messages).sum();
    assert_eq!((tried.sequence, tried.messages, again), (1, Some(40), 40), "{tried:?}");
    counted(40).await;
    group.reset(ResetTo::Sequence(1), false).await.unwrap();
    counted(80).await;
    group.reset(ResetTo::Sequence(31), false).await.unwrap();
    counted(90).await;
    let future = std::time::SystemTime::now() + Duration::from_secs(60);
    assert_eq!(group.reset(ResetTo::Time(future), true).await.unwrap().sequence, 41);
    let past = std::time::SystemTime::now() - Duration::from_secs(600);
    assert_eq!(group.reset(ResetTo::Time(past), false).await.unwrap().sequence, 1);
    counted(130).await;
    assert_eq!(
        group.reset(ResetTo::Sequence(99), true).await.unwrap_err().kind(),
        ErrorKind::InvalidConfig
    );
    for member in members {
        member.stopped().await.unwrap();
    }
    publish(&context, 8, 6, 1).await;
    let passed_over = group.reset(ResetTo::New, false).await.unwrap();
    let skipped: u64 =
        passed_over.members.iter().filter_map(|member| member.skipped_messages).sum();
    assert_eq!((passed_over.sequence, skipped), (49, 8), "{passed_over:?}");
    ledger.check();
    assert_eq!(ledger.count(), 130);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_elastic_group_copies_again_from_where_a_reset_asks_for() {
    let (_broker, context) = broker().await;
    stream(&context, "S", "foo.*").await;
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(4).filter("foo.*", [1])).await.unwrap();
    group.add_members(["a", "b"]).await.unwrap();
    publish(&context, 8, 1, 5).await;
    let ledger = Ledger::default();
    let mut members = Vec::new();
    for name in ["a", "b"] {
        let member = group
            .consume(name)
            .template(pull::Config { max_ack_pending: 20, ..Default::default() });
        members.push(member.handle(handler(&ledger, name, Duration::ZERO)).await.unwrap());
    }
    let counted = async |count: usize| {
        eventually(
            SOON,
            async || if ledger.count() == count { Ok(()) } else { Err(ledger.count()) },
        )
        .await;
    };
    counted(40).await;
    assert_eq!(group.reset(ResetTo::Sequence(11), true).await.unwrap().messages, Some(30));
    group.reset(ResetTo::Sequence(11), false).await.unwrap();
    counted(70).await;
    for member in members {
        member.stopped().await.unwrap();
    }
    publish(&context, 8, 6, 5).await;
    eventually(SOON, async || {
        let waits =
            group.report().await.unwrap().by_partition.iter().map(|p| p.lag_messages).sum::<u64>();
        if waits == 40 { Ok(()) } else { Err(waits) }
    })
    .await;
    let skipped = group.reset(ResetTo::New, false).await.unwrap();
    assert_eq!(
        (skipped.sequence, skipped.messages, skipped.dropped_from_queue),
        (81, Some(0), Some(40))
    );
    publish(&context, 8, 11, 1).await;
    let member =
        group.consume("a").template(pull::Config { max_ack_pending: 20, ..Default::default() });
    let member = member.handle(handler(&ledger, "a", Duration::ZERO)).await.unwrap();
    group.drop_members(["b"]).await.unwrap();
    counted(78).await;
    member.stopped().await.unwrap();
    // What was passed over on purpose is no loss.
    assert_eq!(group.source_loss().await.unwrap().unwrap().messages, 0);
    assert!(group.doctor().await.unwrap().iter().all(|finding| finding.code == "no-instance"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_source_missed_before_its_group_was_made_is_no_loss_of_the_group() {
    let (_broker, context) = broker().await;
    stream(&context, "S", "foo.*").await;
    publish(&context, 8, 1, 5).await;
    let source = context.get_stream("S").await.unwrap();
    for sequence in [5, 6, 7, 20] {
        source.delete_message(sequence).await.unwrap();
    }
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(4).filter("foo.*", [1])).await.unwrap();
    group.add_members(["a"]).await.unwrap();
    let ledger = Ledger::default();
    let member =
        group.consume("a").template(pull::Config { max_ack_pending: 20, ..Default::default() });
    let member = member.handle(handler(&ledger, "a", Duration::ZERO)).await.unwrap();
    let counted = async |count: usize| {
        eventually(
            SOON,
            async || if ledger.count() == count { Ok(()) } else { Err(ledger.count()) },
        )
        .await;
        // The newest copy is read while it is there, so nobody looks before the last one is.
        publish(&context, 1, 1, 1).await;
        eventually(SOON, async || {
            let loss = group.source_loss().await.unwrap().unwrap();
            if (loss.messages, loss.exact) == (0, true) { Ok(()) } else { Err(loss) }
        })
        .await;
    };
    counted(36).await;
    // Of those from 10 on one was missing already, and one goes now.
    source.delete_message(30).await.unwrap();
    group.reset(ResetTo::Sequence(10), false).await.unwrap();
    counted(37 + 30).await;
    member.stopped().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_leaves_out_no_message_whose_id_was_copied_before() {
    let (_broker, context) = broker().await;
    stream(&context, "S", "foo.*").await;
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(4).filter("foo.*", [1])).await.unwrap();
    group.add_members(["a"]).await.unwrap();
    let ledger = Ledger::default();
    let member =
        group.consume("a").template(pull::Config { max_ack_pending: 20, ..Default::default() });
    let member = member.handle(handler(&ledger, "a", Duration::ZERO)).await.unwrap();
    let publish = async |numbers: std::ops::RangeInclusive<u32>| {
        for number in numbers {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("Nats-Msg-Id", format!("id{number}"));
            let sent =
                context.publish_with_headers("foo.a", headers, number.to_string().into()).await;
            assert!(!sent.unwrap().await.unwrap().duplicate);
        }
    };
    publish(1..=20).await;
    let counted = async |count: usize| {
        eventually(
            SOON,
            async || if ledger.count() == count { Ok(()) } else { Err(ledger.count()) },
        )
        .await;
    };
    counted(20).await;
    group.reset(ResetTo::Sequence(1), false).await.unwrap();
    counted(40).await;
    // As the other implementation makes it, on a broker that looks for duplicates of two minutes.
    let queue = context.get_stream("S-g").await.unwrap();
    let config = queue.cached_info().config.clone();
    context
        .update_stream(js::Config { duplicate_window: Duration::from_secs(120), ..config })
        .await
        .unwrap();
    publish(21..=40).await;
    counted(60).await;
    group.reset(ResetTo::Sequence(1), false).await.unwrap();
    counted(100).await;
    member.stopped().await.unwrap();
    assert_eq!(group.source_loss().await.unwrap().unwrap().messages, 0);
}

/// The source keeps fewer messages than a burst has, and every broker of the cluster has its copy
/// of all.
#[tokio::test(flavor = "multi_thread")]
async fn a_clustered_source_that_drops_a_burst_is_counted_to_the_message() {
    let cluster = TestBroker::builder().jetstream().start_cluster(3).await;
    let context = async_nats::jetstream::new(cluster[0].connect().await);
    let config = js::Config {
        name: "S".into(),
        subjects: vec!["foo.*".into()],
        max_messages: 300,
        num_replicas: 3,
        ..Default::default()
    };
    context.create_stream(config).await.unwrap();
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group
        .create(&ElasticConfig::new(4).filter("foo.*", [1]).max_buffered_messages(200))
        .await
        .unwrap();
    group.add_members(["a", "b"]).await.unwrap();
    let ledger = Ledger::default();
    let mut members = Vec::new();
    for name in ["a", "b"] {
        let member = group
            .consume(name)
            .template(pull::Config { max_ack_pending: 50, ..Default::default() });
        members
            .push(member.handle(handler(&ledger, name, Duration::from_millis(1))).await.unwrap());
    }
    const KEYS: u64 = 8;
    const NUMBERS: u64 = 500;
    publish(&context, KEYS, 1, NUMBERS).await;
    let lost = eventually(SOON * 2, async || {
        let queue = context.get_stream("S-g").await.unwrap().get_info().await.unwrap();
        let source = context.get_stream("S").await.unwrap().get_info().await.unwrap();
        let loss = group.source_loss().await.unwrap().unwrap();
        let missing = KEYS * NUMBERS - ledger.distinct() as u64;
        let settled = queue.state.messages == 0 && source.state.last_sequence == KEYS * NUMBERS;
        if settled && loss.messages == missing {
            Ok(loss)
        } else {
            Err(format!("{missing} of {loss:?}"))
        }
    })
    .await;
    assert!(lost.messages > 0 && lost.exact, "{lost:?}: the burst was too small to lose anything");
    assert!(codes(&group.doctor().await.unwrap()).contains(&"source-dropped"));
    for member in members {
        member.stopped().await.unwrap();
    }
    ledger.check();
}

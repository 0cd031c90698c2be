//! Static groups on a real broker, and what both kinds promise to callers.

mod support;

use std::time::Duration;

use async_nats::jetstream::consumer::pull;
use futures_util::StreamExt;
use natsway_partitioned_consumer::{
    DeadLetter, ElasticConfig, ElasticGroup, End, ErrorKind, MemberState, Membership, StaticConfig,
    StaticGroup,
};
use natsway_testkit::eventually;
use support::{
    Ledger, SOON, becomes, broker, handler, handles, partitioned_stream, publish, stream,
};
use tokio::time::timeout;

fn template() -> pull::Config {
    pull::Config { max_ack_pending: 20, ack_wait: Duration::from_secs(2), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_a_static_group_share_the_work_in_order() {
    let (_broker, context) = broker().await;
    partitioned_stream(&context, "foo", 10).await;
    let group = StaticGroup::new(context.clone(), "foo", "cg").unwrap();
    let config = StaticConfig::new(10, Membership::balanced(["m1", "m2"])).filters([">"]);
    group.create(&config).await.unwrap();
    group.create(&config).await.unwrap();
    assert_eq!(
        group.create(&StaticConfig::new(9, Membership::Empty)).await.unwrap_err().kind(),
        ErrorKind::GroupExists
    );
    assert_eq!(StaticGroup::list(&context, "foo").await.unwrap(), ["cg"]);
    let refused = group.consume("m3").handle(|m| async move { m.ack().await }).await;
    assert_eq!(refused.err().unwrap().kind(), ErrorKind::NotAMember);

    let ledger = Ledger::default();
    let m1 = group
        .consume("m1")
        .template(template())
        .handle(handler(&ledger, "m1", Duration::from_millis(1)))
        .await
        .unwrap();
    let m2 = group
        .consume("m2")
        .template(template())
        .handle(handler(&ledger, "m2", Duration::from_millis(1)))
        .await
        .unwrap();
    let other = pull::Config { max_ack_pending: 7, ..template() };
    let mismatch =
        group.consume("m2").template(other).handle(|m| async move { m.ack().await }).await;
    assert_eq!(mismatch.err().unwrap().kind(), ErrorKind::ConsumerMismatch);
    publish(&context, 20, 1, 10).await;
    handles(&ledger, 200).await;
    assert!(ledger.count_by("m1") > 0 && ledger.count_by("m2") > 0);
    assert_eq!(group.is_in_membership_and_active("m1").await.unwrap(), (true, true));
    assert_eq!(group.is_in_membership_and_active("m9").await.unwrap(), (false, false));
    m1.stopped().await.unwrap();
    m2.stopped().await.unwrap();
    ledger.check_exactly_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_position_survives_every_change_of_the_entry() {
    let (_broker, context) = broker().await;
    partitioned_stream(&context, "foo", 4).await;
    let group = StaticGroup::new(context.clone(), "foo", "cg").unwrap();
    group.create(&StaticConfig::new(4, Membership::balanced(["m1"]))).await.unwrap();
    let store = context.get_key_value("static-consumer-groups").await.unwrap();
    let good = store.get("foo.cg").await.unwrap().unwrap();
    let ledger = Ledger::default();
    let start = || async {
        let member = group
            .consume("m1")
            .template(template())
            .handle(handler(&ledger, "m1", Duration::ZERO))
            .await
            .unwrap();
        becomes(&member, MemberState::Standby).await;
        member
    };
    publish(&context, 4, 1, 5).await;
    let mut member = start().await;
    handles(&ledger, 20).await;
    store.put("foo.cg", "{\"max_members\":9}".into()).await.unwrap();
    assert_eq!(member.done().await.unwrap_err().kind(), ErrorKind::ConfigChanged);
    store.put("foo.cg", good.clone()).await.unwrap();

    let mut member = start().await;
    store.put("foo.cg", "not json".into()).await.unwrap();
    assert_eq!(member.done().await.unwrap_err().kind(), ErrorKind::CorruptEntry);
    store.put("foo.cg", good.clone()).await.unwrap();

    let mut member = start().await;
    store.purge("foo.cg").await.unwrap();
    assert_eq!(member.done().await.unwrap(), End::GroupDeleted);
    store.put("foo.cg", good).await.unwrap();

    let member = start().await;
    publish(&context, 4, 6, 5).await;
    handles(&ledger, 40).await;
    member.stopped().await.unwrap();
    ledger.check_exactly_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_durable_ends_the_member_with_an_error() {
    let (_broker, context) = broker().await;
    partitioned_stream(&context, "foo", 4).await;
    let group = StaticGroup::new(context.clone(), "foo", "cg").unwrap();
    group.create(&StaticConfig::new(4, Membership::balanced(["m1"]))).await.unwrap();
    let ledger = Ledger::default();
    let mut member = group
        .consume("m1")
        .template(template())
        .handle(handler(&ledger, "m1", Duration::ZERO))
        .await
        .unwrap();
    becomes(&member, MemberState::Standby).await;
    context.get_stream("foo").await.unwrap().delete_consumer("cg-m1").await.unwrap();
    assert_eq!(member.done().await.unwrap_err().kind(), ErrorKind::ConsumerDeleted);
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_whose_names_begin_alike_leave_each_other_alone() {
    let (_broker, context) = broker().await;
    partitioned_stream(&context, "foo", 4).await;
    let (a, ab) = (
        StaticGroup::new(context.clone(), "foo", "a").unwrap(),
        StaticGroup::new(context.clone(), "foo", "a-b").unwrap(),
    );
    a.create(&StaticConfig::new(4, Membership::balanced(["m"]))).await.unwrap();
    ab.create(&StaticConfig::new(4, Membership::balanced(["m"]))).await.unwrap();
    let clash = StaticGroup::new(context.clone(), "foo", "a").unwrap();
    assert_eq!(
        clash
            .create(&StaticConfig::new(4, Membership::balanced(["b-m"])))
            .await
            .unwrap_err()
            .kind(),
        ErrorKind::NameCollision
    );
    let ledger = Ledger::default();
    let mut first = a
        .consume("m")
        .template(template())
        .handle(handler(&ledger, "a", Duration::ZERO))
        .await
        .unwrap();
    let second = ab
        .consume("m")
        .template(template())
        .handle(handler(&ledger, "ab", Duration::ZERO))
        .await
        .unwrap();
    becomes(&second, MemberState::Standby).await;
    a.delete().await.unwrap();
    assert_eq!(first.done().await.unwrap(), End::GroupDeleted);
    assert_eq!(a.delete().await.unwrap_err().kind(), ErrorKind::GroupNotFound);
    publish(&context, 3, 1, 1).await;
    handles(&ledger, 3).await;
    assert_eq!(ledger.count_by("ab"), 3);
    second.stopped().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_nak_holds_its_partition_and_nothing_else() {
    let (_broker, context) = broker().await;
    stream(&context, "S", "foo.*").await;
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(3).filter("foo.*", [1])).await.unwrap();
    group.add_members(["m1"]).await.unwrap();
    let ledger = Ledger::default();
    let book = ledger.clone();
    let member = group.consume("m1").template(template()).concurrency(3).handle(move |message| {
        let book = book.clone();
        async move {
            if message.subject() == "foo.k0" && message.deliveries() < 3 {
                return message.nak_with_delay(Duration::from_millis(300)).await;
            }
            book.begin("m1", message.subject()).succeed("m1", support::number(&message));
            message.double_ack().await
        }
    });
    let member = member.await.unwrap();
    publish(&context, 6, 1, 10).await;
    handles(&ledger, 60).await;
    member.stopped().await.unwrap();
    ledger.check_exactly_once();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_poison_message_goes_to_the_dead_letters() {
    let (_broker, context) = broker().await;
    stream(&context, "S", "foo.*").await;
    stream(&context, "DEAD", "dead.>").await;
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(1)).await.unwrap();
    group.add_members(["m1"]).await.unwrap();
    let ledger = Ledger::default();
    let book = ledger.clone();
    let dead_letter = DeadLetter { after_deliveries: 2, subject: "dead.g".into() };
    let builder = group
        .consume("m1")
        .template(template())
        .dead_letter(dead_letter)
        .retry_delay(Duration::from_millis(20));
    let member = builder.handle(move |message| {
        let book = book.clone();
        async move {
            let number = support::number(&message);
            if number == 2 {
                return Err("cannot be handled");
            }
            if number == 3 && message.deliveries() == 1 {
                panic!("this once");
            }
            book.begin("m1", message.subject()).succeed("m1", number);
            Ok(())
        }
    });
    let member = member.await.unwrap();
    publish(&context, 1, 1, 4).await;
    handles(&ledger, 3).await;
    let mut dead = context.get_stream("DEAD").await.unwrap();
    eventually(SOON, async || dead.get_info().await.unwrap().state.messages == 1).await;
    let message = dead.get_raw_message(1).await.unwrap();
    assert_eq!(&message.payload[..], b"2");
    assert_eq!(message.headers.get("Natsway-Dead-Letter-Deliveries").unwrap().as_str(), "2");
    assert_eq!(message.headers.get("Natsway-Dead-Letter-Subject").unwrap().as_str(), "foo.k0");
    assert_eq!(dead.info().await.unwrap().state.messages, 1);
    member.stopped().await.unwrap();
    ledger.check();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_member_heeds_dead_letters_that_are_set_later() {
    let (_broker, context) = broker().await;
    stream(&context, "S", "foo.*").await;
    stream(&context, "DEAD", "dead.>").await;
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(1)).await.unwrap();
    group.add_members(["m1"]).await.unwrap();
    let builder = group.consume("m1").template(template()).retry_delay(Duration::from_millis(20));
    let (tries, mut tried) = tokio::sync::watch::channel(0);
    let member = builder.handle(move |_| {
        tries.send_modify(|tries| *tries += 1);
        async { Err("cannot be handled") }
    });
    let member = member.await.unwrap();
    publish(&context, 1, 1, 1).await;
    tokio::time::timeout(SOON, tried.wait_for(|tries| *tries >= 5)).await.unwrap().unwrap();
    let set = group.change_settings(|settings| {
        settings.dead_letter_after = 3;
        settings.dead_letter_subject = Some("dead.g".into());
    });
    set.await.unwrap();
    let dead = context.get_stream("DEAD").await.unwrap();
    eventually(SOON, async || dead.get_info().await.unwrap().state.messages == 1).await;
    assert_eq!(member.stopped().await.unwrap(), End::Stopped);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_group_handles_nothing_until_it_is_resumed() {
    let (_broker, context) = broker().await;
    stream(&context, "S", "foo.*").await;
    let group = ElasticGroup::new(context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(2)).await.unwrap();
    group.add_members(["m1"]).await.unwrap();
    group.pause().await.unwrap();
    let ledger = Ledger::default();
    let member = group
        .consume("m1")
        .template(template())
        .handle(handler(&ledger, "m1", Duration::ZERO))
        .await
        .unwrap();
    let mut events = member.events();
    publish(&context, 2, 1, 2).await;
    becomes(&member, MemberState::Pinned).await;
    assert_eq!(ledger.count(), 0);
    group.resume().await.unwrap();
    handles(&ledger, 4).await;
    group.pause().await.unwrap();
    let paused = async {
        while !matches!(events.recv().await, Ok(natsway_partitioned_consumer::MemberEvent::Paused))
        {
        }
    };
    tokio::time::timeout(SOON, paused).await.unwrap();
    publish(&context, 2, 3, 2).await;
    group.step_down("m1").await.unwrap();
    becomes(&member, MemberState::Pinned).await;
    assert_eq!(ledger.count(), 4);
    group.resume().await.unwrap();
    handles(&ledger, 8).await;
    member.stopped().await.unwrap();
    ledger.check();
}

/// Answers as a server does that knows of nobody who listens.
async fn no_responders(port: u16, reply: &str) {
    use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

    let connection = tokio::net::TcpStream::connect(("127.0.0.1", port)).await;
    let mut connection = connection.expect("the broker listens");
    let (reader, mut writer) = connection.split();
    let mut lines = BufReader::new(reader).lines();
    let status = "NATS/1.0 503\r\n\r\n";
    let length = status.len();
    let sent = format!(
        "CONNECT {{\"verbose\":false,\"headers\":true}}\r\nHPUB {reply} {length} \
         {length}\r\n{status}\r\nPING\r\n"
    );
    writer.write_all(sent.as_bytes()).await.expect("the broker reads");
    while lines.next_line().await.expect("a line").expect("the broker answers") != "PONG" {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pull_that_reaches_nobody_for_a_moment_ends_no_member() {
    let (broker, context) = broker().await;
    partitioned_stream(&context, "foo", 4).await;
    let group = StaticGroup::new(context.clone(), "foo", "cg").unwrap();
    group.create(&StaticConfig::new(4, Membership::balanced(["m1"])).filters([">"])).await.unwrap();
    let observer = broker.connect().await;
    let mut pulls = observer.subscribe("$JS.API.CONSUMER.MSG.NEXT.foo.cg-m1").await.unwrap();
    let mut questions = observer.subscribe("$JS.API.CONSUMER.INFO.foo.cg-m1").await.unwrap();
    observer.flush().await.unwrap();
    let ledger = Ledger::default();
    let member =
        group.consume("m1").template(template()).handle(handler(&ledger, "m1", Duration::ZERO));
    let member = member.await.unwrap();
    let mut pull = pulls.next().await.unwrap();
    publish(&context, 4, 1, 1).await;
    handles(&ledger, 4).await;
    while let Ok(Some(newer)) = timeout(Duration::from_millis(100), pulls.next()).await {
        pull = newer;
    }
    // A cluster without a leader for the consumer answers so, and a moment later there is one: the
    // consumer is the same.
    no_responders(broker.port(), &pull.reply.unwrap()).await;
    timeout(SOON, questions.next()).await.expect("it asks whether its consumer is gone").unwrap();
    timeout(SOON, pulls.next()).await.expect("it pulls again").unwrap();
    publish(&context, 4, 2, 1).await;
    handles(&ledger, 8).await;
    assert_eq!(member.stopped().await.unwrap(), End::Stopped);
    ledger.check_exactly_once();
}

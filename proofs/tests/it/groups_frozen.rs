//! A process that stands still while it is the pinned one (SIGSTOP): what is promised then, and
//! what is not.
//!
//! Not promised: that the one handler which it froze in does not overlap with its successor.
//! Promised: when it goes on, it starts nothing more of what it had in hand, and the fencing token
//! shows which of two effects is the late one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use natsway_partitioned_consumer::{ElasticConfig, ElasticGroup};
use natsway_proofs::groups::member::{Orders, now_ns};
use natsway_testkit::{Process, TestBroker, eventually};

const SOON: Duration = Duration::from_secs(60);
const MESSAGES: u64 = 100;

/// A line of a member's log: what it was, when, of which run, and for a beginning the message's
/// number and its token.
struct Line {
    kind: char,
    at_ns: u64,
    run: u64,
    message: Option<(u64, u64)>,
}

fn lines(log: &Path) -> Vec<Line> {
    let parse = |line: &str| {
        let parts: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| parts.get(at).and_then(|text| text.parse().ok());
        let message = number(4).zip(number(5));
        Some(Line { kind: parts[0].chars().next()?, at_ns: number(1)?, run: number(2)?, message })
    };
    std::fs::read_to_string(log).unwrap_or_default().lines().filter_map(parse).collect()
}

fn handled(log: &Path) -> usize {
    lines(log).iter().filter(|line| line.kind == 'S').count()
}

fn member(broker: &TestBroker, log: &Path) -> Process {
    let orders = Orders {
        url: broker.url(),
        stream: "S".into(),
        group: "g".into(),
        fixed: false,
        member: "m1".into(),
        max_ack_pending: 50,
        ack_wait_ms: 2000,
        concurrency: 1,
        work_ms: 40,
        moody: false,
        log: log.to_string_lossy().into_owned(),
    };
    let orders = serde_json::to_string(&orders).expect("orders are JSON");
    Process::builder(env!("CARGO_BIN_EXE_groups-member")).arg(orders).start()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thawed_process_starts_nothing_of_what_it_had_in_hand() {
    let broker = TestBroker::builder().jetstream().start().await;
    let context = jetstream::new(broker.connect().await);
    let config =
        stream::Config { name: "S".into(), subjects: vec!["foo.*".into()], ..Default::default() };
    context.create_stream(config).await.expect("the stream can be made");
    let group = ElasticGroup::new(context.clone(), "S", "g").expect("the names are good");
    group.create(&ElasticConfig::new(1).filter("foo.*", [1])).await.expect("the group can be made");
    group.add_members(["m1"]).await.expect("the member can be added");
    for number in 1..=MESSAGES {
        let sent = context
            .publish("foo.k", number.to_string().into())
            .await
            .expect("a message can be sent");
        sent.await.expect("the message is stored");
    }
    let directory = tempfile::tempdir().expect("a temporary directory can be made");
    let logs: [PathBuf; 2] = ["frozen", "other"].map(|name| directory.path().join(name));
    let mut frozen = member(&broker, &logs[0]);
    eventually(SOON, async || handled(&logs[0]) >= 5).await;
    let mut other = member(&broker, &logs[1]);
    eventually(SOON, async || handled(&logs[0]) >= 20).await;
    frozen.freeze();
    // The pin lapses; the other goes on where the frozen one stands.
    eventually(SOON, async || handled(&logs[1]) >= 10).await;
    let thawed_ns = now_ns();
    frozen.thaw();
    eventually(SOON, async || handled(&logs[0]) + handled(&logs[1]) >= MESSAGES as usize).await;
    eventually(SOON, async || {
        let mut queue = context.get_stream("S-g").await.expect("the work queue is there");
        queue.info().await.expect("the work queue answers").state.messages == 0
    })
    .await;
    other.terminate();
    assert!(other.wait_exit(SOON).await.success(), "{}", other.stderr());

    let [frozen_lines, other_lines] = [lines(&logs[0]), lines(&logs[1])];
    let late: Vec<u64> = frozen_lines
        .iter()
        .filter(|line| line.kind == 'B' && line.at_ns > thawed_ns)
        .map(|line| line.run)
        .collect();
    assert!(
        late.is_empty(),
        "runs {late:?} began after the thaw, on a pin that was lost long before"
    );

    // Two stores, written to in the order of time: one takes what comes, one heeds the token.
    let mut effects: Vec<(u64, u64, u64)> = Vec::new();
    for log in [&frozen_lines, &other_lines] {
        let begun: BTreeMap<u64, (u64, u64)> =
            log.iter().filter_map(|line| line.message.map(|message| (line.run, message))).collect();
        let done = log.iter().filter(|line| line.kind == 'S');
        effects.extend(done.map(|line| (line.at_ns, begun[&line.run].0, begun[&line.run].1)));
    }
    effects.sort_unstable();
    let (mut newest, mut kept) = (0, Vec::new());
    for (_, number, token) in effects {
        if token > newest {
            newest = token;
            kept.push(number);
        }
    }
    assert_eq!(
        kept,
        (1..=MESSAGES).collect::<Vec<_>>(),
        "the token lets each effect in once and in order"
    );
}

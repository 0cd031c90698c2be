//! Rust and Go in one group, live: the real Go library and its `cg`, built by the Go toolchain from
//! pinned versions.
//!
//! Both generations of the library are tested, each where the module proxy carries it; without Go,
//! all are skipped with a message. With `CI=true` one generation at least has to be there, and a
//! peer that does not build is a failure.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use async_nats::jetstream::{self, stream};
use natsway_partitioned_consumer::{
    ElasticConfig, ElasticGroup, ErrorKind, Generation, Membership, ResetTo, StaticConfig,
    StaticGroup,
};
use natsway_proofs::groups::ledger::{Ledger, LedgerReport};
use natsway_proofs::groups::member::{Orders, now_ns};
use natsway_proofs::groups::peer::{Peer, Unavailable};
use natsway_testkit::{Process, TestBroker, eventually};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

/// Where the Go programs of a generation are; built once for all tests.
fn programs(peer: Peer) -> Option<&'static Path> {
    static CURRENT: OnceLock<Option<PathBuf>> = OnceLock::new();
    static OLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    let built = if peer == Peer::Current { &CURRENT } else { &OLDER };
    built.get_or_init(|| build(peer)).as_deref()
}

fn build(peer: Peer) -> Option<PathBuf> {
    let why = match peer.build(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("interop-go")) {
        Ok(programs) => return Some(programs),
        Err(Unavailable::Broken(why)) if std::env::var_os("CI").is_some() => {
            panic!("the Go peer {} does not build: {why}", peer.version())
        }
        Err(why) => why,
    };
    eprintln!(
        "*** SKIPPED: nothing is tested together with the Go library {}: {why:?}",
        peer.version()
    );
    None
}

/// Where there is Go, a build machine tests against one generation at least; which, depends on its
/// module proxy.
#[test]
fn a_build_machine_with_go_has_a_peer() {
    let (current, older) = (programs(Peer::Current), programs(Peer::Older));
    let go = Command::new("go").arg("version").output().is_ok();
    if go && std::env::var_os("CI").is_some() {
        assert!(current.or(older).is_some(), "neither generation of the Go library can be had");
    }
}

struct Stage {
    broker: TestBroker,
    context: jetstream::Context,
    programs: &'static Path,
    logs: tempfile::TempDir,
}

impl Stage {
    async fn set(peer: Peer) -> Option<Self> {
        let programs = programs(peer)?;
        let broker = TestBroker::builder().jetstream().start().await;
        let context = jetstream::new(broker.connect().await);
        let config = stream::Config {
            name: "S".into(),
            subjects: vec!["foo.*".into()],
            ..Default::default()
        };
        context.create_stream(config).await.unwrap();
        Some(Self { broker, context, programs, logs: tempfile::tempdir().unwrap() })
    }

    fn orders(&self, mut orders: Value) -> String {
        let defaults = json!({ "url": self.broker.url(), "stream": "S", "group": "g" });
        for (name, value) in defaults.as_object().unwrap() {
            orders.as_object_mut().unwrap().entry(name).or_insert_with(|| value.clone());
        }
        orders.to_string()
    }

    /// One call of the Go library.
    fn go(&self, orders: Value) -> Result<Value, String> {
        let output = Command::new(self.programs.join("interop"))
            .arg(self.orders(orders))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap())
    }

    fn log(&self, name: &str) -> PathBuf {
        self.logs.path().join(name)
    }

    fn go_member(&self, name: &str, member: &str, work_ms: u64) -> Process {
        let orders = json!({
            "do": "consume-elastic", "member": member, "max_ack_pending": 1, "ack_wait_ms": 2000, "work_ms": work_ms,
            "log": self.log(name),
        });
        Process::builder(self.programs.join("interop")).name(name).arg(self.orders(orders)).start()
    }

    /// A stream that writes four partitions before `bar.<key>`.
    async fn partitioned_stream(&self) {
        let transform = stream::SubjectTransform {
            source: "bar.*".into(),
            destination: "{{partition(4,1)}}.bar.{{wildcard(1)}}".into(),
        };
        let config = stream::Config {
            name: "P".into(),
            subjects: vec!["bar.*".into()],
            subject_transform: Some(transform),
            ..Default::default()
        };
        self.context.create_stream(config).await.unwrap();
    }

    fn rust_orders(&self, name: &str, member: &str, work_ms: u64) -> Orders {
        Orders {
            url: self.broker.url(),
            stream: "S".into(),
            group: "g".into(),
            fixed: false,
            member: member.into(),
            max_ack_pending: 1,
            ack_wait_ms: 2000,
            concurrency: 1,
            work_ms,
            moody: false,
            log: self.log(name).to_string_lossy().into_owned(),
        }
    }

    fn rust_member(&self, name: &str, member: &str, work_ms: u64) -> Process {
        let orders = serde_json::to_string(&self.rust_orders(name, member, work_ms)).unwrap();
        Process::builder(env!("CARGO_BIN_EXE_groups-member")).name(name).arg(orders).start()
    }

    async fn publish(&self, numbers: std::ops::RangeInclusive<u64>) {
        for number in numbers {
            for key in 0..8 {
                self.context
                    .publish(format!("foo.k{key}"), number.to_string().into())
                    .await
                    .unwrap()
                    .await
                    .unwrap();
            }
        }
    }

    fn handled(&self, name: &str) -> usize {
        let log = std::fs::read_to_string(self.log(name)).unwrap_or_default();
        log.lines().filter(|line| line.starts_with('S')).count()
    }

    async fn drained(&self) {
        eventually(SOON, async || {
            let mut queue = self.context.get_stream("S-g").await.unwrap();
            let info = queue.info().await.unwrap();
            let left = info.state.messages + info.sources.iter().map(|s| s.lag).sum::<u64>();
            if left == 0 { Ok(()) } else { Err(format!("{left} messages left")) }
        })
        .await;
    }

    fn judge(&self, last: u64, members: &[(&str, Option<u64>)]) -> LedgerReport {
        let mut ledger = Ledger::default();
        for key in 0..8 {
            (1..=last).for_each(|number| ledger.published(format!("foo.k{key}"), number));
        }
        for (name, killed_ns) in members {
            killed_ns.iter().for_each(|at| ledger.fault(*at..=*at));
            if self.log(name).exists() {
                ledger.read(&self.log(name), name, *killed_ns).unwrap();
            }
        }
        ledger.judge()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_reads_what_the_other_writes() {
    let Some(stage) = Stage::set(Peer::Current).await else { return };
    let filters = json!([{ "filter": "foo.*", "partitioning_wildcards": [1] }]);
    stage.go(json!({ "do": "create-elastic", "partitions": 6, "filters": filters })).unwrap();
    let group = ElasticGroup::new(stage.context.clone(), "S", "g").unwrap();
    let config = ElasticConfig::new(6).filter("foo.*", [1]);
    assert_eq!(group.config().await.unwrap(), config);
    // What Go made is what we would have made: creating it again is no change, streams included.
    group.create(&config).await.unwrap();
    group.add_members(["a", "b"]).await.unwrap();
    assert_eq!(stage.go(json!({ "do": "get-elastic" })).unwrap()["members"], json!(["a", "b"]));
    stage.go(json!({ "do": "drop", "members": ["a"] })).unwrap();
    assert_eq!(group.config().await.unwrap().membership, Membership::balanced(["b"]));

    let ours = ElasticGroup::new(stage.context.clone(), "S", "ours").unwrap();
    ours.create(&ElasticConfig::new(4)).await.unwrap();
    let read = stage.go(json!({ "do": "get-elastic", "group": "ours" })).unwrap();
    assert_eq!((&read["max_members"], &read["partitioning_filters"]), (&json!(4), &Value::Null));
    stage.go(json!({ "do": "create-elastic", "group": "ours", "partitions": 4 })).unwrap();

    stage.partitioned_stream().await;
    let fixed = StaticGroup::new(stage.context.clone(), "P", "fixed").unwrap();
    fixed.create(&StaticConfig::new(4, Membership::balanced(["m1"]))).await.unwrap();
    let read = stage.go(json!({ "do": "get-static", "stream": "P", "group": "fixed" })).unwrap();
    assert_eq!(read["members"], json!(["m1"]));
    let order = json!({ "do": "create-static", "stream": "P", "group": "theirs", "partitions": 4, "members": ["x"] });
    stage.go(order).unwrap();
    let theirs = StaticGroup::new(stage.context.clone(), "P", "theirs").unwrap();
    assert_eq!(theirs.config().await.unwrap(), StaticConfig::new(4, Membership::balanced(["x"])));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_golden_distributions_are_those_of_the_library() {
    let Some(stage) = Stage::set(Peer::Current).await else { return };
    let vectors: Value = serde_json::from_str(include_str!(
        "../../../partitioned-consumer/tests/golden/partitions.json"
    ))
    .unwrap();
    let expected: Vec<Value> =
        vectors.as_array().unwrap().iter().map(|vector| vector["Out"].clone()).collect();
    assert!(expected.len() > 70);
    let answers = stage.go(json!({ "do": "partition-filters", "vectors": vectors })).unwrap();
    for (answer, expected) in answers.as_array().unwrap().iter().zip(&expected) {
        // The library has no list, or an empty one, where a member gets nothing.
        let filled = |of: &Value| -> BTreeMap<String, Vec<Value>> {
            let filters = |filters: &Value| filters.as_array().cloned().unwrap_or_default();
            of.as_object()
                .unwrap()
                .iter()
                .map(|(member, list)| (member.clone(), filters(list)))
                .collect()
        };
        assert_eq!(filled(answer), filled(expected));
    }
    assert_eq!(answers.as_array().unwrap().len(), expected.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_both_kinds_follow_a_reset() {
    let Some(stage) = Stage::set(Peer::Current).await else { return };
    stage.partitioned_stream().await;
    let group = StaticGroup::new(stage.context.clone(), "P", "g").unwrap();
    group.create(&StaticConfig::new(4, Membership::balanced(["a", "b"]))).await.unwrap();
    let orders = json!({
        "do": "consume-static", "stream": "P", "member": "a", "max_ack_pending": 1, "ack_wait_ms": 2000, "work_ms": 1,
        "log": stage.log("go"),
    });
    let _go = Process::builder(stage.programs.join("interop"))
        .name("go")
        .arg(stage.orders(orders))
        .start();
    let orders = Orders { stream: "P".into(), fixed: true, ..stage.rust_orders("rust", "b", 1) };
    let orders = serde_json::to_string(&orders).unwrap();
    let _rust =
        Process::builder(env!("CARGO_BIN_EXE_groups-member")).name("rust").arg(orders).start();
    for number in 1..=5 {
        for key in 0..8 {
            let ack = stage
                .context
                .publish(format!("bar.k{key}"), number.to_string().into())
                .await
                .unwrap();
            ack.await.unwrap();
        }
    }
    let handled = async |go: usize, rust: usize| {
        eventually(SOON, async || {
            let seen = (stage.handled("go"), stage.handled("rust"));
            if seen == (go, rust) { Ok(()) } else { Err(seen) }
        })
        .await;
    };
    eventually(SOON, async || stage.handled("go") + stage.handled("rust") == 40).await;
    let (go, rust) = (stage.handled("go"), stage.handled("rust"));
    assert!(go > 0 && rust > 0, "{go} by Go, {rust} by Rust");
    group.reset(ResetTo::Sequence(1), false).await.unwrap();
    handled(2 * go, 2 * rust).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_go_command_line_shows_our_groups() {
    let Some(stage) = Stage::set(Peer::Current).await else { return };
    let group = ElasticGroup::new(stage.context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(4).filter("foo.*", [1])).await.unwrap();
    group.add_members(["m1"]).await.unwrap();
    let contexts = stage.logs.path().join("nats/context");
    std::fs::create_dir_all(&contexts).unwrap();
    std::fs::write(contexts.join("here.json"), json!({ "url": stage.broker.url() }).to_string())
        .unwrap();
    std::fs::write(stage.logs.path().join("nats/context.txt"), "here").unwrap();
    let cg = |args: &[&str]| {
        let mut command = Command::new(stage.programs.join("cg"));
        let output = command.args(args).env("XDG_CONFIG_HOME", stage.logs.path()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(cg(&["elastic", "ls", "S"]).contains("[g]"));
    assert!(cg(&["elastic", "info", "S", "g"]).contains("[m1]"));
    cg(&["elastic", "add", "S", "g", "m2"]);
    // The Go library writes names in no particular order.
    let mut names = group.config().await.unwrap().membership.names();
    names.sort();
    assert_eq!(names, ["m1", "m2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_one_member_take_over_from_each_other() {
    let Some(stage) = Stage::set(Peer::Current).await else { return };
    let group = ElasticGroup::new(stage.context.clone(), "S", "g").unwrap();
    group.create(&ElasticConfig::new(4).filter("foo.*", [1])).await.unwrap();
    group.add_members(["m1"]).await.unwrap();

    let mut go = stage.go_member("go-1", "m1", 2);
    stage.publish(1..=5).await;
    eventually(SOON, async || stage.handled("go-1") > 5).await;
    // Strict creation by both: settings that differ in anything would be refused, or fought over.
    let mut rust = stage.rust_member("rust-1", "m1", 4);
    stage.publish(6..=20).await;
    let go_killed = now_ns();
    go.kill9();
    eventually(SOON, async || stage.handled("rust-1") > 5).await;
    let go_again = stage.go_member("go-2", "m1", 2);
    stage.publish(21..=40).await;
    let rust_killed = now_ns();
    rust.kill9();
    eventually(SOON, async || stage.handled("go-2") > 5).await;
    let mut rust_again = stage.rust_member("rust-2", "m1", 4);
    stage.go(json!({ "do": "step-down-elastic", "member": "m1" })).unwrap();
    stage.publish(41..=60).await;
    stage.drained().await;
    rust_again.terminate();
    rust_again.wait_exit(SOON).await;
    drop(go_again);
    // A step-down ends the pin of whoever is at work, in either implementation.
    let members = [
        ("go-1", Some(go_killed)),
        ("rust-1", Some(rust_killed)),
        ("go-2", None),
        ("rust-2", None),
    ];
    let verdict = stage.judge(60, &members);
    assert_eq!((verdict.overlaps, verdict.disorders, verdict.lost), (0, 0, 0), "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn members_of_both_kinds_share_a_group() {
    let Some(stage) = Stage::set(Peer::Current).await else { return };
    let filters = json!([{ "filter": "foo.*", "partitioning_wildcards": [1] }]);
    stage.go(json!({ "do": "create-elastic", "partitions": 6, "filters": filters })).unwrap();
    let group = ElasticGroup::new(stage.context.clone(), "S", "g").unwrap();
    let mut go = stage.go_member("go", "a", 1);
    let mut rust = stage.rust_member("rust", "b", 2);
    group.add_members(["a", "b"]).await.unwrap();
    stage.publish(1..=10).await;
    eventually(SOON, async || stage.handled("go") > 0 && stage.handled("rust") > 0).await;
    for round in 0..4 {
        // Each side changes the membership in turn, while messages flow.
        if round % 2 == 0 {
            group.drop_members(["a"]).await.unwrap();
            stage.publish(11 + round * 10..=15 + round * 10).await;
            stage.go(json!({ "do": "add", "members": ["a"] })).unwrap();
        } else {
            stage.go(json!({ "do": "drop", "members": ["b"] })).unwrap();
            stage.publish(11 + round * 10..=15 + round * 10).await;
            group.add_members(["b"]).await.unwrap();
        }
        stage.publish(16 + round * 10..=20 + round * 10).await;
    }
    stage.drained().await;
    assert!(
        go.exit_status().is_none(),
        "the Go member did not survive our writes: {}",
        go.stderr()
    );
    assert!(
        rust.exit_status().is_none(),
        "the Rust member did not survive Go's writes: {}",
        rust.stderr()
    );
    rust.terminate();
    rust.wait_exit(SOON).await;
    // A Go member deletes its consumer with a handler at work, so a repeat is its right; loss is
    // nobody's.
    let verdict = stage.judge(50, &[("go", None), ("rust", None)]);
    assert_eq!(verdict.lost, 0, "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_older_generation_is_read_joined_and_never_rewritten() {
    let Some(stage) = Stage::set(Peer::Older).await else { return };
    let filters = json!([{ "filter": "foo.*", "partitioning_wildcards": [1] }]);
    stage.go(json!({ "do": "create-elastic", "partitions": 6, "filters": filters })).unwrap();
    stage.go(json!({ "do": "add", "members": ["a", "b"] })).unwrap();
    let group = ElasticGroup::new(stage.context.clone(), "S", "g").unwrap();
    let config = group.config().await.unwrap();
    assert_eq!((config.generation, config.filters.len()), (Generation::First, 1));
    // Its members would stop at an entry in the new form.
    assert_eq!(group.add_members(["c"]).await.unwrap_err().kind(), ErrorKind::NotAllowed);

    let mut go = stage.go_member("go", "a", 1);
    let mut rust = stage.rust_member("rust", "b", 2);
    stage.publish(1..=10).await;
    eventually(SOON, async || stage.handled("go") > 0 && stage.handled("rust") > 0).await;
    stage.go(json!({ "do": "drop", "members": ["a"] })).unwrap();
    stage.publish(11..=15).await;
    stage.go(json!({ "do": "add", "members": ["a"] })).unwrap();
    stage.publish(16..=20).await;
    stage.drained().await;
    assert!(go.exit_status().is_none(), "{}", go.stderr());
    rust.terminate();
    rust.wait_exit(SOON).await;
    let verdict = stage.judge(20, &[("go", None), ("rust", None)]);
    assert_eq!(verdict.lost, 0, "{verdict:#?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn instances_of_an_older_member_take_over_from_each_other() {
    let Some(stage) = Stage::set(Peer::Older).await else { return };
    let filters = json!([{ "filter": "foo.*", "partitioning_wildcards": [1] }]);
    stage.go(json!({ "do": "create-elastic", "partitions": 4, "filters": filters })).unwrap();
    stage.go(json!({ "do": "add", "members": ["m1"] })).unwrap();
    let mut go = stage.go_member("go-1", "m1", 2);
    stage.publish(1..=5).await;
    eventually(SOON, async || stage.handled("go-1") > 5).await;
    let mut rust = stage.rust_member("rust", "m1", 4);
    stage.publish(6..=20).await;
    let go_killed = now_ns();
    go.kill9();
    eventually(SOON, async || stage.handled("rust") > 5).await;
    let go_again = stage.go_member("go-2", "m1", 2);
    stage.publish(21..=40).await;
    let rust_killed = now_ns();
    rust.kill9();
    eventually(SOON, async || stage.handled("go-2") > 5).await;
    stage.drained().await;
    drop(go_again);
    let members = [("go-1", Some(go_killed)), ("rust", Some(rust_killed)), ("go-2", None)];
    let verdict = stage.judge(40, &members);
    assert_eq!((verdict.overlaps, verdict.disorders, verdict.lost), (0, 0, 0), "{verdict:#?}");
}

//! What an administrator sees of `apiproxy setup`, on a broker that has all kinds of things
//! already.

use async_nats::jetstream::{self, stream};
use natsway_testkit::TestBroker;

/// Runs it to its end: the exit code, and what it printed.
async fn setup(broker: &TestBroker, arguments: &[&str]) -> (i32, String) {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_apiproxy"));
    command.arg("setup").args(arguments).env("NATS_URL", broker.url());
    let output = command.output().await.unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
}

#[tokio::test]
async fn setup_makes_what_is_missing_once_and_says_so() {
    let broker = TestBroker::builder().jetstream().start().await;
    let (code, told) = setup(&broker, &["--groups", "--shipper", "--dry-run"]).await;
    assert_eq!((code, told.matches("to do: make").count()), (4, 10), "{told}");
    let context = jetstream::new(broker.connect().await);
    assert!(context.get_stream("KV_natsway-routes").await.is_err(), "a dry run makes nothing");

    let (code, told) = setup(&broker, &["--groups", "--shipper"]).await;
    assert_eq!((code, told.matches("made").count()), (0, 10), "{told}");
    let routes = context.get_stream("KV_natsway-routes").await.unwrap();
    assert!(
        !routes.cached_info().config.allow_direct,
        "by direct gets, who writes a key publishes it anywhere"
    );

    let (code, told) = setup(&broker, &["--groups", "--shipper", "--dry-run"]).await;
    assert_eq!((code, told.matches("is there").count()), (0, 10), "{told}");
}

#[tokio::test]
async fn setup_mends_what_older_versions_made_and_leaves_what_others_chose() {
    let broker = TestBroker::builder().jetstream().start().await;
    let context = jetstream::new(broker.connect().await);
    let bucket = |name: &str| stream::Config {
        name: format!("KV_{name}"),
        subjects: vec![format!("$KV.{name}.>")],
        max_messages_per_subject: 1,
        discard: stream::DiscardPolicy::New,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: true,
        ..stream::Config::default()
    };
    // The lease as it was: in memory. The routes with more history than a gateway gives them.
    let max_age = std::time::Duration::from_secs(3);
    let storage = stream::StorageType::Memory;
    let lease = stream::Config { max_age, storage, ..bucket("natsway-lease") };
    context.create_stream(lease).await.unwrap();
    let routes = stream::Config {
        max_messages_per_subject: 64,
        max_message_size: 256 * 1024,
        ..bucket("natsway-routes")
    };
    context.create_stream(routes).await.unwrap();
    context.create_stream(bucket("elastic-consumer-groups")).await.unwrap();

    let (code, told) = setup(&broker, &["--groups"]).await;
    assert_eq!(code, 0, "{told}");
    for (name, what) in [
        ("KV_natsway-lease ", "made anew"),
        ("KV_natsway-routes ", "changed: no direct gets"),
        ("KV_elastic-consumer-groups ", "changed: no direct gets"),
    ] {
        let line = told.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.contains(what), "{line}");
    }
    let groups = context.get_stream("KV_elastic-consumer-groups").await.unwrap();
    assert!(!groups.cached_info().config.allow_direct);
    let (code, told) = setup(&broker, &["--groups", "--dry-run"]).await;
    assert_eq!(code, 3, "something differs, nothing is to do");
    assert!(told.contains("left as it is: max_msgs_per_subject is 64, not 16"), "{told}");
}

#[tokio::test]
async fn setup_fails_where_the_broker_keeps_no_streams() {
    let broker = TestBroker::start().await;
    let (code, told) = setup(&broker, &["--wait", "0s"]).await;
    assert_eq!((code, told.matches("failed: ").count()), (1, 3), "{told}");
}

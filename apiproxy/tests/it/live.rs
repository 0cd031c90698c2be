//! Routes in the bucket: every gateway follows, and what is bad changes nothing.

use std::process::Output;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use natsway_routes::document::RouteDocument;
use natsway_routes::store::{BUCKET, RouteStore, StoreErrorKind};
use natsway_testkit::{TestBroker, eventually};
use natsway_wire::control::{GATEWAY_SOURCE, metrics_subject, report_subject};
use natsway_wire::envelope::NotRun;
use tokio_util::task::AbortOnDropHandle;

use crate::backend::{Backend, not_run, ok, settled};
use crate::fixture::{DEADLINE, Gateway, ROUTES};

fn document(path: &str, weights: [u32; 2]) -> RouteDocument {
    let json = format!(
        r#"{{"name":"test","path":"{path}","target":[
            {{"version":"blue","subject":"svc.test.blue","weight":{}}},
            {{"version":"green","subject":"svc.test.green","weight":{}}}],
            "rule":[{{"header":"x-canary","value":"always","version":"green"}}]}}"#,
        weights[0], weights[1]
    );
    RouteDocument::from_json(json.as_bytes()).unwrap()
}

async fn store(broker: &TestBroker) -> RouteStore {
    RouteStore::open_or_create(broker.connect().await, BUCKET, 1).await.unwrap()
}

/// Runs `apiproxy routes ...` and gives what it printed.
async fn cli(broker: &TestBroker, arguments: &[&str], input: &str) -> Output {
    use tokio::io::AsyncWriteExt;
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_apiproxy"))
        .arg("routes")
        .args(arguments)
        .args(["--nats-url", &broker.url()])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read is free to leave before all is written.
    child.stdin.take().unwrap().write_all(input.as_bytes()).await.ok();
    child.wait_with_output().await.unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_change_is_in_force_at_every_gateway_without_a_restart() {
    let broker = TestBroker::builder().jetstream().start().await;
    let _blue = Backend::saying(&broker, "blue").await;
    let gateways = [Gateway::launch_live(&broker, ROUTES), Gateway::launch_live(&broker, ROUTES)];
    for gateway in &gateways {
        gateway.ready().await;
        assert_eq!(gateway.get("/any").await.text(), "blue", "the file filled the empty bucket");
    }
    let store = store(&broker).await;
    let first = store.get("test").await.unwrap().unwrap();
    let revision = store.put(&document("/only", [1, 0]), Some(first.revision)).await.unwrap();
    let written = Instant::now();
    for gateway in &gateways {
        eventually(DEADLINE, async || gateway.get("/any").await.status == 404).await;
        assert_eq!(gateway.get("/only").await.text(), "blue");
        assert_eq!(gateway.metric("natsway_routes_revision").await, revision as f64);
    }
    // The promise of 100 ms is measured by the bench; this only notices a poll that has taken the
    // watch's place.
    assert!(written.elapsed() < Duration::from_secs(5));

    // A gateway that starts later reads the bucket, not its file.
    let late = Gateway::launch_live(&broker, ROUTES);
    late.ready().await;
    assert_eq!(late.get("/any").await.status, 404);
}

#[tokio::test]
async fn a_bucket_that_was_lost_is_followed_again_and_its_routes_serve_until_there_are_others() {
    let mut broker = TestBroker::builder().jetstream().start().await;
    // It has no file to fill a bucket from.
    let gateway = Gateway::launch_live(&broker, "");
    gateway.ready().await;
    let before = store(&broker).await;
    let mut revision = None;
    for path in ["/a", "/b", "/c"] {
        revision = Some(before.put(&document(path, [1, 0]), revision).await.unwrap());
    }
    eventually(DEADLINE, async || gateway.metric("natsway_routes_revision").await == 3.0).await;

    let context = async_nats::jetstream::new(broker.connect().await);
    context.delete_key_value(BUCKET).await.unwrap();
    broker.restart().await;
    let _blue = Backend::saying(&broker, "blue").await;
    eventually(DEADLINE, async || gateway.process.stderr().contains("was made anew and is empty"))
        .await;
    eventually(DEADLINE, async || gateway.get("/c").await.text() == "blue").await;

    let revision = store(&broker).await.put(&document("/new", [1, 0]), None).await.unwrap();
    assert_eq!(revision, 1, "it counts anew");
    eventually(DEADLINE, async || gateway.metric("natsway_routes_revision").await == 1.0).await;
    assert_eq!(gateway.get("/new").await.text(), "blue");
    assert_eq!(gateway.get("/c").await.status, 404, "no earlier document serves any more");
}

#[tokio::test]
async fn a_bucket_filled_after_it_was_opened_is_not_taken_for_empty() {
    use natsway_routes::store::Update;
    let broker = TestBroker::builder().jetstream().start().await;
    let store = store(&broker).await;
    store.put(&document("/a", [1, 0]), None).await.unwrap();
    let mut updates = std::pin::pin!(store.watch().await.unwrap());
    let first = tokio::time::timeout(DEADLINE, updates.next()).await.unwrap().unwrap();
    // A gateway that seeds the bucket would be ready with no route at all.
    assert!(matches!(first, Update::Change(_)), "{first:?}");
}

#[tokio::test]
async fn a_retry_goes_by_the_route_of_its_own_time() {
    let broker = TestBroker::builder().jetstream().start().await;
    // Every try is sent away until the route leads elsewhere.
    let old = Backend::start(&broker, |_, _| vec![not_run(NotRun::Moved)]).await;
    let client = broker.connect().await;
    let mut native = client.subscribe("svc.test.native").await.unwrap();
    settled(&client).await;
    let routes = ROUTES.replace("\"1s\"", "\"1m\"\nretries = 1000").replace("\"5s\"", "\"1m\"");
    let gateway = Gateway::launch_live(&broker, &routes);
    gateway.ready().await;
    let mut caller = gateway.client().await;
    caller.send("POST /api/x HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").await.unwrap();
    eventually(DEADLINE, async || old.seen.count() > 0).await;

    let changed = r#"{"name":"test","path":"/{*rest}","codec":"native","strip_prefix":"/api",
        "target":[{"version":"new","subject":"svc.test.native","weight":1}]}"#;
    let store = store(&broker).await;
    let revision = store.get("test").await.unwrap().unwrap().revision;
    let changed = RouteDocument::from_json(changed.as_bytes()).unwrap();
    store.put(&changed, Some(revision)).await.unwrap();
    let message = tokio::time::timeout(DEADLINE, native.next()).await.unwrap().unwrap();
    assert_eq!(&message.payload[..], b"body");
    assert_eq!(message.headers.unwrap().get("Natsway-Path").unwrap().as_str(), "/x");
    client.publish(message.reply.unwrap(), "answered".into()).await.unwrap();
    assert_eq!(caller.reply(false).await.unwrap().text(), "answered");
}

#[tokio::test]
async fn weight_zero_gets_nothing_but_what_a_rule_sends_there() {
    let broker = TestBroker::builder().jetstream().start().await;
    let blue = Backend::saying(&broker, "blue").await;
    let green = Backend::start_at(&broker, "svc.test.green", |_, _| vec![ok("green")]).await;
    let gateway = Gateway::launch_live(&broker, ROUTES);
    gateway.ready().await;
    let store = store(&broker).await;
    let first = store.get("test").await.unwrap().unwrap();
    let second = store.put(&document("/{*rest}", [1, 0]), Some(first.revision)).await.unwrap();
    let canary = "GET / HTTP/1.1\r\nhost: a\r\nx-canary: always\r\n\r\n";
    eventually(DEADLINE, async || {
        gateway.client().await.exchange(canary).await.unwrap().text() == "green"
    })
    .await;
    let (blue_before, green_before) = (blue.seen.count(), green.seen.count());
    for _ in 0..200 {
        assert_eq!(gateway.get("/").await.text(), "blue");
    }
    assert_eq!((blue.seen.count() - blue_before, green.seen.count() - green_before), (200, 0));

    store.put(&document("/{*rest}", [0, 1]), Some(second)).await.unwrap();
    eventually(DEADLINE, async || gateway.get("/").await.text() == "green").await;
    let blue_before = blue.seen.count();
    for _ in 0..200 {
        assert_eq!(gateway.get("/").await.text(), "green");
    }
    assert_eq!(blue.seen.count(), blue_before);
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_told_with_what_makes_it() {
    let broker = TestBroker::builder().jetstream().start().await;
    for arguments in [["ls"].as_slice(), &["export"], &["get", "demo"], &["rm", "demo"]] {
        let told = cli(&broker, arguments, "").await;
        let words = String::from_utf8_lossy(&told.stderr).into_owned();
        assert_eq!(told.status.code(), Some(1), "{words}");
        assert!(
            words.contains("no routes bucket \"natsway-routes\" yet: start a gateway"),
            "{words}"
        );
    }
    let imported = cli(&broker, &["import", "/dev/stdin"], ROUTES).await;
    assert!(imported.status.success(), "{imported:?}");
    assert!(out(&cli(&broker, &["ls"], "").await).contains("blue"));
}

#[tokio::test]
async fn a_bad_document_is_refused_and_said_and_the_old_table_serves() {
    let broker = TestBroker::builder().jetstream().start().await;
    let _blue = Backend::saying(&broker, "blue").await;
    let gateway = Gateway::launch_live(&broker, ROUTES);
    gateway.ready().await;
    let context = async_nats::jetstream::new(broker.connect().await);
    let bucket = context.get_key_value(BUCKET).await.unwrap();
    bucket.put("test", "{\"name\":\"test\",\"path\":\"nope\"}".into()).await.unwrap();
    eventually(DEADLINE, async || gateway.metric("natsway_routes{state=\"refused\"}").await == 1.0)
        .await;
    assert_eq!(gateway.get("/any").await.text(), "blue");
    let said = gateway.process.stderr();
    assert!(
        said.contains("route document refused") && said.contains("must begin with a slash"),
        "{said}"
    );
    let listed = out(&cli(&broker, &["ls"], "").await);
    assert!(listed.contains("refused: ") && listed.contains("must begin with a slash"), "{listed}");
}

#[tokio::test]
async fn routes_stay_in_force_while_the_broker_is_away_and_changes_are_caught_up() {
    let mut broker = TestBroker::builder().jetstream().start().await;
    let gateway = Gateway::launch_live(&broker, ROUTES);
    gateway.ready().await;
    broker.restart().await;
    gateway.ready().await;
    let _blue = Backend::saying(&broker, "blue").await;
    assert_eq!(gateway.get("/any").await.text(), "blue");
    let store = store(&broker).await;
    let stored = store.get("test").await.unwrap().unwrap();
    store.remove("test", stored.revision).await.unwrap();
    eventually(DEADLINE, async || gateway.get("/any").await.status == 404).await;

    // The file fills a new bucket, not one whose routes an operator has removed.
    let late = Gateway::launch_live(&broker, ROUTES);
    late.ready().await;
    assert_eq!(late.get("/any").await.status, 404);
    assert!(store.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_gateway_that_has_not_read_its_routes_says_so() {
    // No JetStream, so no bucket.
    let broker = TestBroker::start().await;
    let gateway = Gateway::launch_live(&broker, ROUTES);
    let reply = eventually(DEADLINE, async || gateway.admin("/readyz").await).await;
    assert_eq!((reply.status, reply.text().as_str()), (503, "routes not read yet\n"));
    let refused = gateway.get("/").await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "no_routes_yet"));
    eventually(DEADLINE, async || gateway.process.stderr().contains("--static-routes")).await;
}

#[tokio::test]
async fn of_two_operators_one_wins_and_the_other_is_told() {
    let broker = TestBroker::builder().jetstream().start().await;
    let put = async |weights, arguments: &[&str]| {
        let json = document("/a", weights).to_json();
        cli(&broker, &[&["put", "-"], arguments].concat(), &json).await
    };
    assert_eq!(put([1, 0], &["--revision", "0"]).await.status.code(), Some(0));
    let again = put([1, 0], &["--revision", "0"]).await;
    assert_eq!(again.status.code(), Some(3), "{again:?}");
    assert_eq!(put([1, 1], &["--revision", "1"]).await.status.code(), Some(0));
    let late = put([0, 1], &["--revision", "1"]).await;
    assert_eq!(late.status.code(), Some(3));
    assert!(
        String::from_utf8_lossy(&late.stderr).contains("read it again and decide anew"),
        "{late:?}"
    );
    let store = store(&broker).await;
    assert_eq!(store.remove("test", 1).await.unwrap_err().kind(), StoreErrorKind::Conflict);
}

/// A gateway of a release before schema 2 does the same with that one: it reads strictly as well.
#[tokio::test]
async fn a_document_of_a_later_schema_is_refused_and_the_one_before_serves() {
    let broker = TestBroker::builder().jetstream().start().await;
    let _blue = Backend::saying(&broker, "blue").await;
    let gateway = Gateway::launch_live(&broker, ROUTES);
    gateway.ready().await;
    let client = broker.connect().await;
    let bucket = async_nats::jetstream::new(client).get_key_value(BUCKET).await.unwrap();
    let later = r#"{"schema":3,"name":"test","path":"/later","lanes":7}"#;
    bucket.put("test", later.into()).await.unwrap();
    eventually(DEADLINE, async || gateway.metric("natsway_routes{state=\"refused\"}").await == 1.0)
        .await;
    assert_eq!(gateway.get("/any").await.text(), "blue");
    let listed = out(&cli(&broker, &["ls"], "").await);
    assert!(listed.contains("refused: route \"test\": schema=3: expected 1 to 2"), "{listed}");
}

/// Answers as a gateway before schema 2 does: it says nothing of schemas.
async fn older_gateway(broker: &TestBroker, name: &str) -> AbortOnDropHandle<()> {
    let client = broker.connect().await;
    let mut questions = client.subscribe(report_subject()).await.unwrap();
    client.flush().await.unwrap();
    let report = format!(r#"{{"id":"{name}","host":"{name}","age_ms":60000,"whole":true}}"#);
    let subject = metrics_subject(GATEWAY_SOURCE, name);
    AbortOnDropHandle::new(tokio::spawn(async move {
        while questions.next().await.is_some() {
            client.publish(subject.clone(), report.clone().into()).await.unwrap();
        }
    }))
}

#[tokio::test]
async fn an_operator_is_warned_of_gateways_that_do_not_read_the_document() {
    let broker = TestBroker::builder().jetstream().start().await;
    let gateway = Gateway::launch_live(&broker, ROUTES);
    gateway.ready().await;
    let (plain, streams) = (
        document("/a", [1, 0]).to_json(),
        document("/a", [1, 0]).to_json().replace(
            r#""path""#,
            r#""transport": "auto", "inline_body_bytes": 1000, "stream_idle_timeout": "5s", "path""#,
        ),
    );
    let put = async |json: &str| {
        let output = cli(&broker, &["put", "-"], json).await;
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert_eq!(put(&streams).await, "", "this gateway reads it");
    let tested = out(&cli(&broker, &["test", "GET", "http://any/a"], "").await);
    assert!(tested.contains("transport  auto"), "{tested}");

    let _older = older_gateway(&broker, "gateway-of-old").await;
    assert_eq!(put(&plain).await, "", "all releases read schema 1");
    let warned = put(&streams).await;
    assert_eq!(warned.lines().count(), 1, "{warned}");
    assert!(
        warned.contains("gateway-of-old reads no documents of schema 2, as test is"),
        "{warned}"
    );
    // A file says no schema: its keys do.
    let file = out(&cli(&broker, &["export"], "").await).replace("schema = 2\n", "");
    let imported = cli(&broker, &["import", "-"], &file).await;
    assert!(out(&imported).contains("test is unchanged"), "{file}");
    assert!(String::from_utf8_lossy(&imported.stderr).contains("gateway-of-old"), "{imported:?}");
}

#[tokio::test]
async fn routes_are_imported_listed_tested_exported_and_removed() {
    let broker = TestBroker::builder().jetstream().start().await;
    let file = r#"
        defaults = { timeout = "5s" }
        [[route]]
        name = "cart"
        host = "shop.example"
        path = "/cart/{id}"
        strip_prefix = "/cart"
        methods = ["GET"]
        target = [
            { version = "blue", subject = "svc.cart.blue", weight = 90 },
            { version = "green", subject = "svc.cart.green", weight = 10 },
        ]
        rule = [{ cookie = "beta", version = "green" }]
        [[route]]
        name = "rest"
        path = "/{*rest}"
        target = [{ version = "v1", subject = "svc.rest.v1" }]
    "#;
    assert!(out(&cli(&broker, &["import", "-"], file).await).contains("cart is at revision"));
    assert!(out(&cli(&broker, &["import", "-"], file).await).contains("cart is unchanged"));
    let listed = out(&cli(&broker, &["ls"], "").await);
    let line = listed.lines().find(|line| line.starts_with("cart")).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(
        cells,
        ["cart", "1", "shop.example", "/cart/{id}", "blue=90", "green=10", "ok"],
        "{listed}"
    );

    let by_weight = out(&cli(&broker, &["test", "GET", "http://shop.example/cart/7"], "").await);
    assert!(
        by_weight.contains("by weight: blue=90 green=10") && by_weight.contains("GET /7"),
        "{by_weight}"
    );
    assert!(by_weight.contains("because    of the weights"), "{by_weight}");
    let by_rule = ["test", "get", "http://shop.example/cart/7", "-H", "cookie: beta=1", "--json"];
    let by_rule: serde_json::Value =
        serde_json::from_str(&out(&cli(&broker, &by_rule, "").await)).unwrap();
    assert_eq!(
        (by_rule["version"].as_str(), by_rule["subject"].as_str()),
        (Some("green"), Some("svc.cart.green"))
    );
    let refused = cli(&broker, &["test", "POST", "http://shop.example/cart/7"], "").await;
    assert_eq!(refused.status.code(), Some(0), "the catch-all takes it: {}", out(&refused));

    // What is exported is what was imported.
    let exported = out(&cli(&broker, &["export"], "").await);
    let again = out(&cli(&broker, &["import", "-", "--prune"], &exported).await);
    assert_eq!(again.matches("unchanged").count(), 2, "{again}\n{exported}");

    let clash = r#"{"name":"other","path":"/{*rest}","target":[{"version":"v","subject":"s"}]}"#;
    let clash = cli(&broker, &["put", "-"], clash).await;
    assert_eq!(clash.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&clash.stderr).contains("nothing was written"), "{clash:?}");

    assert_eq!(cli(&broker, &["rm", "cart"], "").await.status.code(), Some(0));
    assert_eq!(cli(&broker, &["get", "cart"], "").await.status.code(), Some(4));
    let kept = out(&cli(&broker, &["get", "rest", "--json"], "").await);
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(
        (kept["revision"].as_u64(), kept["document"]["name"].as_str()),
        (Some(2), Some("rest"))
    );
}

#[tokio::test]
async fn a_version_that_is_added_to_a_route_gets_no_traffic_of_itself() {
    let broker = TestBroker::builder().jetstream().start().await;
    let blue = r#"{ version = "blue", subject = "svc.shop.blue" }"#;
    let green = r#"{ version = "green", subject = "svc.shop.green" }"#;
    let file = |targets: &str| {
        format!("[[route]]\nname = \"shop\"\npath = \"/shop\"\ntarget = [{targets}]\n")
    };
    let weights = async || {
        let document: serde_json::Value =
            serde_json::from_slice(&cli(&broker, &["get", "shop"], "").await.stdout).unwrap();
        let targets = document["target"].as_array().unwrap().iter();
        targets.map(|target| target["weight"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    cli(&broker, &["import", "-"], &file(blue)).await;
    assert_eq!(weights().await, [100], "a new route serves");
    let added = cli(&broker, &["import", "-"], &file(&format!("{blue}, {green}"))).await;
    assert_eq!(weights().await, [100, 0]);
    let told = String::from_utf8_lossy(&added.stderr).into_owned();
    assert!(told.contains("apiproxy rollout start shop --to green"), "{told}");
    // The same by one document, and what it does not say of the others is left alone.
    let red = r#"{"name":"shop","path":"/shop","target":[
        {"version":"blue","subject":"svc.shop.blue","weight":60},
        {"version":"green","subject":"svc.shop.green","weight":40},
        {"version":"red","subject":"svc.shop.red"}]}"#;
    cli(&broker, &["put", "-"], red).await;
    assert_eq!(weights().await, [60, 40, 0]);
    cli(&broker, &["import", "-"], &file(&format!("{blue}, {green}"))).await;
    assert_eq!(weights().await, [60, 40]);
    // Two versions of a new route that say nothing share its traffic, as ever.
    cli(&broker, &["rm", "shop"], "").await;
    cli(&broker, &["import", "-"], &file(&format!("{blue}, {green}"))).await;
    assert_eq!(weights().await, [100, 100]);
}

#[tokio::test]
async fn a_file_is_imported_while_a_rollout_sets_the_weights_of_its_route() {
    let broker = TestBroker::builder().jetstream().start().await;
    let store = store(&broker).await;
    let mut stored = document("/{*rest}", [70, 30]);
    let rollout = serde_json::json!({
        "id": "r", "from": "blue", "to": "green", "strategy": "canary", "phase": "canary",
        "steps": [{ "percent": 30, "hold": "1m" }, { "percent": 100, "hold": "1m" }],
    });
    stored.rollout = Some(serde_json::from_value(rollout).unwrap());
    store.put(&stored, None).await.unwrap();
    let backup = r#"
        [[route]]
        name = "test"
        path = "/{*rest}"
        timeout = "7s"
        target = [
            { version = "blue", subject = "svc.test.blue", weight = 100 },
            { version = "green", subject = "svc.test.green", weight = 0 },
        ]
    "#;
    let imported = cli(&broker, &["import", "-"], backup).await;
    let told = String::from_utf8_lossy(&imported.stderr).into_owned();
    assert_eq!(imported.status.code(), Some(0), "{told}");
    assert!(told.contains("the weights of test stay as they are"), "{told}");
    let got = store.get("test").await.unwrap().unwrap();
    let got = RouteDocument::from_json(&got.bytes).unwrap();
    assert_eq!(got.weights().collect::<Vec<_>>(), [("blue", 70), ("green", 30)]);
    assert_eq!(got.rollout, stored.rollout);
    assert!(got.to_json().contains("7s"), "all else of the file is taken");
    // One document with other weights is somebody's wish, and is refused as before.
    let put = cli(&broker, &["put", "-"], &document("/{*rest}", [100, 0]).to_json()).await;
    assert_eq!(put.status.code(), Some(1));
}

/// Answers every request on a subject as a member of a queue group, as `nats reply` does.
async fn replies(broker: &TestBroker, subject: &'static str, group: &str) {
    let client = broker.connect().await;
    let mut requests = client.queue_subscribe(subject, group.to_owned()).await.unwrap();
    settled(&client).await;
    tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            client.publish(request.reply.unwrap(), "hello".into()).await.unwrap();
        }
    });
}

#[tokio::test]
async fn two_queue_groups_on_one_subject_are_noticed_and_named() {
    const NATIVE: &str = r#"
        [[route]]
        name = "greet"
        path = "/greet"
        codec = "native"
        target = [{ version = "v1", subject = "svc.greet.v1" }]
    "#;
    const SECONDS: &str = "natsway_duplicate_replies_total{route=\"greet\",version=\"v1\"}";
    let broker = TestBroker::builder().jetstream().start().await;
    let gateway = Gateway::launch_live(&broker, NATIVE);
    gateway.ready().await;
    replies(&broker, "svc.greet.v1", "q").await;
    for _ in 0..20 {
        assert_eq!(gateway.post("/greet", "x").await.status, 200);
    }
    assert_eq!(gateway.metric(SECONDS).await, 0.0);
    let listed = out(&cli(&broker, &["ls"], "").await);
    assert!(!listed.contains("twice"), "{listed}");

    // The group that `nats reply` has unless it is told.
    replies(&broker, "svc.greet.v1", "NATS-RPLY-22").await;
    eventually(DEADLINE, async || {
        gateway.post("/greet", "x").await;
        gateway.metric(SECONDS).await > 0.0
    })
    .await;
    let listed = out(&cli(&broker, &["ls"], "").await);
    assert!(
        listed.contains("requests were answered twice") && listed.contains("svc.greet.v1"),
        "{listed}"
    );
}

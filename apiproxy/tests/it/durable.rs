//! Routes whose requests a stream stores: 202 says that it has, and nothing else does.

use std::time::Duration;

use async_nats::jetstream::message::StreamMessage;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Stream};
use async_nats::jetstream::{self, Context};
use futures_util::StreamExt;
use natsway_testkit::{LinkShape, TcpLink, TestBroker, eventually, repository_root};
use natsway_wire::Limits;
use natsway_wire::envelope::decode_request;
use serde_json::Value;

use crate::client::Reply;
use crate::fixture::{DEADLINE, Gateway};

/// A route with parameters, one of another codec, and one that names its stream.
const ROUTES: &str = r#"
    [[route]]
    name = "events"
    path = "/hooks/{source}/{event}"
    mode = "publish"
    inline_body_bytes = 100
    [route.publish]
    subject = "hooks.{source}.{event}"
    ack_timeout = "15s"
    [route.publish.tokens]
    source = ["git", "shop"]
    event = { push = "push", pull_request = "pr", "%C3%A9" = "e" }

    [[route]]
    name = "plain"
    path = "/plain"
    mode = "publish"
    codec = "native"
    publish = { subject = "hooks.plain", ack_timeout = "15s" }

    [[route]]
    name = "hasty"
    path = "/hasty"
    mode = "publish"
    publish = { subject = "hooks.hasty", ack_timeout = "300ms", expect_stream = "HOOKS" }
"#;

async fn broker() -> (TestBroker, Context) {
    let broker = TestBroker::builder().jetstream().start().await;
    let context = jetstream::new(broker.connect().await);
    (broker, context)
}

fn hooks() -> Config {
    Config { name: "HOOKS".to_owned(), subjects: vec!["hooks.>".to_owned()], ..Config::default() }
}

/// How many messages a stream has.
async fn stored(stream: &Stream) -> u64 {
    stream.get_info().await.unwrap().state.messages
}

async fn message(stream: &Stream, sequence: u64) -> StreamMessage {
    stream.get_raw_message(sequence).await.unwrap()
}

/// What a client reads of a 202.
fn receipt(reply: &Reply) -> Value {
    assert_eq!(reply.status, 202, "{reply:?}");
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("location"), None, "there is nothing to look at");
    serde_json::from_slice(&reply.body).unwrap()
}

async fn post(gateway: &Gateway, path: &str, fields: &str, body: &str) -> Reply {
    let length = body.len();
    let text = format!(
        "POST {path} HTTP/1.1\r\nhost: a\r\n{fields}content-length: {length}\r\n\r\n{body}"
    );
    gateway.client().await.exchange(&text).await.unwrap()
}

#[tokio::test]
async fn what_is_answered_202_is_in_the_stream_as_a_worker_would_have_got_it() {
    let (broker, context) = broker().await;
    let stream = context.create_stream(hooks()).await.unwrap();
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let reply = post(&gateway, "/hooks/git/pull_request?x=1", "x-a: 1\r\n", "body").await;
    let told = receipt(&reply);
    assert_eq!(
        (&told["stream"], &told["sequence"], &told["duplicate"]),
        (&Value::from("HOOKS"), &Value::from(1), &Value::from(false))
    );
    let kept = message(&stream, 1).await;
    assert_eq!(kept.subject.as_str(), "hooks.git.pr");
    let id = kept.headers.get("Nats-Msg-Id").unwrap().as_str();
    assert_eq!(told["id"], id);
    assert!(id.starts_with("events:"), "{id}");
    let request = decode_request(&kept.payload, Limits::DEFAULT).unwrap();
    assert_eq!(request.method, "POST");
    assert_eq!(request.path_and_query, "/hooks/git/pull_request?x=1");
    assert_eq!((request.deadline_ms, request.sent_ms), (u32::MAX, 0), "it is never too late");
    assert_eq!((&request.body[..], &request.headers["x-a"]), (&b"body"[..], &"1".parse().unwrap()));

    let fields = "nats-rollup: all\r\nNats-Msg-Id: theirs\r\nnats-ttl: 1s\r\nx-a: 1\r\n";
    receipt(&post(&gateway, "/plain", fields, "raw").await);
    let kept = message(&stream, 2).await;
    assert_eq!((kept.subject.as_str(), &kept.payload[..]), ("hooks.plain", &b"raw"[..]));
    let field = |name: &str| kept.headers.get(name).map(|value| value.as_str().to_owned());
    assert_eq!(field("Natsway-Method").as_deref(), Some("POST"));
    assert_eq!(field("X-A").as_deref(), Some("1"));
    assert_eq!(field("Natsway-Deadline-Ms"), None);
    assert!(field("Nats-Msg-Id").unwrap().starts_with("plain:"), "a client sets no id");
    for name in ["Nats-Rollup", "Nats-Ttl", "Nats-TTL", "nats-ttl"] {
        assert_eq!(field(name), None, "{name}");
    }
    assert_eq!(gateway.metric("natsway_published_total").await, 2.0);
    let answered = "natsway_responses_total{route=\"events\",version=\"-\",code=\"2xx\"}";
    assert_eq!(gateway.metric(answered).await, 1.0);
}

#[tokio::test]
async fn a_key_is_stored_once_for_its_route_and_what_has_none_each_time() {
    let (broker, context) = broker().await;
    let stream = context.create_stream(hooks()).await.unwrap();
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let key = "idempotency-key: \"order-7\"\r\n";
    let first = receipt(&post(&gateway, "/hooks/shop/push", key, "a").await);
    assert_eq!((&first["id"], &first["duplicate"]), (&"events/order-7".into(), &false.into()));
    // Without the quotes it is the same key, and another body does not make it another request.
    let bare = "Idempotency-Key: order-7\r\n";
    let again = receipt(&post(&gateway, "/hooks/shop/push", bare, "b").await);
    assert_eq!((&again["sequence"], &again["duplicate"]), (&first["sequence"], &true.into()));
    let other = receipt(&post(&gateway, "/plain", key, "a").await);
    assert_eq!((&other["id"], &other["duplicate"]), (&"plain/order-7".into(), &false.into()));
    assert_eq!(stored(&stream).await, 2);
    for number in 3..=4 {
        let told = receipt(&post(&gateway, "/plain", "", "a").await);
        assert_eq!((&told["sequence"], &told["duplicate"]), (&number.into(), &false.into()));
    }
    assert_eq!(gateway.metric("natsway_publish_duplicates_total").await, 1.0);
    for field in ["idempotency-key: a b\r\n", "idempotency-key: \r\n", &key.repeat(2)] {
        let refused = post(&gateway, "/plain", field, "a").await;
        assert_eq!((refused.status, refused.problem().as_str()), (400, "bad_idempotency_key"));
    }
    assert_eq!(stored(&stream).await, 4);
}

#[tokio::test]
async fn a_publish_that_is_repeated_after_a_lost_ack_is_stored_once() {
    let (broker, context) = broker().await;
    let stream = context.create_stream(hooks()).await.unwrap();
    let mut link = TcpLink::to_port(broker.port()).await;
    let gateway = Gateway::launch(&link.url(), ROUTES, &[]);
    gateway.ready().await;
    for (number, key) in [(1, ""), (2, "idempotency-key: k\r\n")] {
        // Messages get there, and no acknowledgement comes back.
        link.shape_down(LinkShape::delayed(Duration::from_secs(60)));
        let mut client = gateway.client().await;
        let head = format!("POST /plain HTTP/1.1\r\nhost: a\r\n{key}content-length: 1\r\n\r\nx");
        client.send(&head).await.unwrap();
        eventually(DEADLINE, async || stored(&stream).await == number).await;
        link.cut().await;
        link.shape_down(LinkShape::default());
        link.resume().await;
        let told = receipt(&client.reply(false).await.unwrap());
        assert_eq!((&told["sequence"], &told["duplicate"]), (&number.into(), &false.into()));
        assert_eq!(stored(&stream).await, number);
        gateway.ready().await;
    }
    assert!(gateway.metric("natsway_publish_repeats_total").await >= 2.0);
    assert_eq!(gateway.metric("natsway_publish_duplicates_total").await, 0.0);
}

#[tokio::test]
async fn without_an_ack_it_is_said_that_the_message_may_be_stored() {
    let (broker, context) = broker().await;
    let stream = context.create_stream(hooks()).await.unwrap();
    let link = TcpLink::to_port(broker.port()).await;
    let gateway = Gateway::launch(&link.url(), ROUTES, &[]);
    gateway.ready().await;
    link.shape_down(LinkShape::delayed(Duration::from_secs(60)));
    let unknown = post(&gateway, "/hasty", "idempotency-key: k\r\n", "x").await;
    assert_eq!((unknown.status, unknown.problem().as_str()), (504, "not_acknowledged"));
    assert!(unknown.header("retry-after").is_some() && unknown.text().contains("may be stored"));
    eventually(DEADLINE, async || stored(&stream).await == 1).await;
}

#[tokio::test]
async fn while_the_broker_restarts_a_request_waits_and_is_stored() {
    let (mut broker, context) = broker().await;
    context.create_stream(hooks()).await.unwrap();
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    broker.stop().await;
    eventually(DEADLINE, async || gateway.metric("natsway_broker_connections").await == 0.0).await;
    let refused = post(&gateway, "/hasty", "", "x").await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "not_connected"));
    let mut client = gateway.client().await;
    client.send("POST /plain HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await.unwrap();
    broker.start_again().await;
    assert_eq!(receipt(&client.reply(false).await.unwrap())["sequence"], 1);
}

#[tokio::test]
async fn what_a_stream_refuses_is_told_and_not_stored() {
    let (broker, context) = broker().await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let none = post(&gateway, "/hasty", "", "x").await;
    assert_eq!((none.status, none.problem().as_str()), (503, "no_stream"));
    assert!(none.header("retry-after").is_some());

    let other = Config { name: "OTHER".to_owned(), ..hooks() };
    context.create_stream(other).await.unwrap();
    let wrong = post(&gateway, "/hasty", "", "x").await;
    assert_eq!((wrong.status, wrong.problem().as_str()), (503, "wrong_stream"));
    context.delete_stream("OTHER").await.unwrap();

    let full =
        Config { max_messages: 1, max_message_size: 2_000, discard: DiscardPolicy::New, ..hooks() };
    let stream = context.create_stream(full).await.unwrap();
    let long = post(&gateway, "/hasty", "", &"x".repeat(3_000)).await;
    assert_eq!((long.status, long.problem().as_str()), (413, "too_large"));
    receipt(&post(&gateway, "/hasty", "", "x").await);
    let refused = post(&gateway, "/hasty", "", "x").await;
    assert_eq!((refused.status, refused.problem().as_str()), (503, "stream_full"));
    assert_eq!(stored(&stream).await, 1);
    let full = "natsway_publish_failures_total{reason=\"stream_full\"}";
    assert_eq!(gateway.metric(full).await, 1.0);
}

#[tokio::test]
async fn somebody_who_is_no_stream_cannot_acknowledge() {
    let (broker, _) = broker().await;
    let client = broker.connect().await;
    let mut requests = client.subscribe("hooks.>").await.unwrap();
    client.flush().await.unwrap();
    let answering = tokio::spawn(async move {
        while let Some(request) = requests.next().await {
            let reply = request.reply.expect("an acknowledgement is asked for");
            client.publish(reply, "{\"ok\":true}".into()).await.unwrap();
        }
    });
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let refused = post(&gateway, "/hasty", "", "x").await;
    assert_eq!((refused.status, refused.problem().as_str()), (502, "not_an_ack"));
    answering.abort();
}

#[tokio::test]
async fn a_path_chooses_among_the_operators_subjects_and_makes_none() {
    let (broker, context) = broker().await;
    let stream = context.create_stream(hooks()).await.unwrap();
    let client = broker.connect().await;
    let mut heard = client.subscribe(">").await.unwrap();
    client.flush().await.unwrap();
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    for path in [
        "/hooks/git/deploy",
        "/hooks/git/Push",
        "/hooks/push/git",
        "/hooks/git/pr",
        "/hooks/git/",
        "/hooks//push",
        "/hooks/git/.",
        "/hooks/git/..",
        "/hooks/git/*",
        "/hooks/git/>",
        "/hooks/git/push.x",
        "/hooks/git/push%2ex",
        "/hooks/git/%3e",
        "/hooks/git/%2a",
        "/hooks/git/%70ush",
        "/hooks/git/push%20",
        "/hooks/git/push%0d%0aPUB%20x%200",
        "/hooks/git/push%00",
        "/hooks/$JS.API.STREAM.DELETE.HOOKS/push",
        "/hooks/git/{event}",
        "/hooks/git/push /x",
        "/hooks/git/pu\u{301}sh",
        "/hooks/git/\u{ff0e}",
        "/hooks/git/push/x",
    ] {
        let refused = post(&gateway, path, "", "x").await;
        assert!(matches!(refused.status, 400 | 404), "{path:?}: {refused:?}");
    }
    let refused = post(&gateway, "/hooks/git/deploy", "", "x").await;
    assert_eq!((refused.status, refused.problem().as_str()), (404, "no_subject"));
    // As the client sent it, and as the table has it.
    receipt(&post(&gateway, "/hooks/git/%C3%A9", "", "x").await);
    assert_eq!(message(&stream, 1).await.subject.as_str(), "hooks.git.e");
    assert_eq!(stored(&stream).await, 1);
    let first = loop {
        let message = heard.next().await.expect("the connection is up");
        if message.subject.starts_with("hooks") || message.subject.contains("STREAM.DELETE") {
            break message.subject.to_string();
        }
    };
    assert_eq!(first, "hooks.git.e", "the first of all that was published there");
}

#[tokio::test]
async fn what_no_message_takes_and_what_stores_nothing_is_refused() {
    let (broker, context) = broker().await;
    let stream = context.create_stream(hooks()).await.unwrap();
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let long = post(&gateway, "/hooks/git/push", "", &"x".repeat(101)).await;
    assert_eq!((long.status, long.problem().as_str()), (413, "too_large"));
    let chunked = format!(
        "POST /hooks/git/push HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n65\r\n{}\r\n0\r\n\r\n",
        "x".repeat(101)
    );
    let long = gateway.client().await.exchange(&chunked).await.unwrap();
    assert_eq!((long.status, long.problem().as_str()), (413, "too_large"));
    let preflight = "OPTIONS /plain HTTP/1.1\r\nhost: a\r\norigin: http://b\r\n\
                     access-control-request-method: POST\r\n\r\n";
    for text in [
        "GET /plain HTTP/1.1\r\nhost: a\r\n\r\n",
        "HEAD /plain HTTP/1.1\r\nhost: a\r\n\r\n",
        "PUT /plain HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n",
        preflight,
    ] {
        let refused = gateway.client().await.exchange(text).await.unwrap();
        assert_eq!((refused.status, refused.header("allow")), (405, Some("POST")), "{text}");
    }
    let upgrade = "POST /hasty HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\n\
                   upgrade: websocket\r\n\r\n";
    assert_eq!(gateway.client().await.exchange(upgrade).await.unwrap().status, 501);
    assert_eq!(stored(&stream).await, 0);
    receipt(&post(&gateway, "/hooks/git/push", "", &"x".repeat(100)).await);
}

/// The shipped permissions with all passwords the same, and with those example lines that are
/// `wanted`, by their numbers and texts.
pub fn permissions(wanted: impl Fn(usize, &str) -> bool) -> String {
    let file = repository_root().join("deploy/nats/permissions.conf");
    let shipped = std::fs::read_to_string(file).unwrap();
    let (mut examples, mut text) = (0, String::new());
    for line in shipped.lines() {
        match line.strip_prefix("    # ").filter(|example| example.starts_with('"')) {
            Some(example) if wanted(examples, example) => text += example,
            _ => text += line,
        }
        examples += usize::from(line.starts_with("    # \""));
        text.push('\n');
    }
    let (mut known, mut rest) = (String::new(), text.as_str());
    while let Some((before, after)) = rest.split_once("$NATSWAY_") {
        known += before;
        known += "secret";
        rest = after.split_once("_PASSWORD").expect("a variable of a password").1;
    }
    known + rest
}

/// An administrator's connection to a broker with these permissions.
pub async fn administrator(broker: &TestBroker) -> Context {
    let admin = async_nats::ConnectOptions::with_user_and_password("admin".into(), "secret".into())
        .custom_inbox_prefix("_INBOX_admin");
    jetstream::new(broker.connect_with(admin).await)
}

#[tokio::test]
async fn the_example_of_the_shipped_permissions_is_what_a_gateway_needs() {
    for may_publish in [true, false] {
        let lines = permissions(|_, example| may_publish && example.contains("hooks.>"));
        let broker = TestBroker::builder().jetstream().config_lines(&lines).start().await;
        let context = administrator(&broker).await;
        let stream = context.create_stream(hooks()).await.unwrap();
        let url = format!("nats://gateway:secret@127.0.0.1:{}", broker.port());
        let gateway = Gateway::launch(&url, ROUTES, &[]);
        gateway.ready().await;
        let reply = post(&gateway, "/hasty", "", "x").await;
        match may_publish {
            true => assert_eq!(receipt(&reply)["sequence"], 1),
            false => {
                assert_eq!((reply.status, reply.problem().as_str()), (504, "not_acknowledged"))
            }
        }
        assert_eq!(stored(&stream).await, u64::from(may_publish));
    }
}

#[tokio::test]
async fn routes_test_says_where_a_request_is_stored_and_whether_it_can_be() {
    let (broker, context) = broker().await;
    let gateway = Gateway::launch_live(&broker, ROUTES);
    gateway.ready().await;
    let told = async |path: &str| {
        let url = format!("http://a{path}");
        let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_apiproxy"))
            .args(["routes", "test", "POST", &url, "--nats-url", &broker.url()])
            .output()
            .await
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(told("/hasty").await.contains("requests get 503 no_stream"));
    context.create_stream(hooks()).await.unwrap();
    let push = told("/hooks/git/push").await;
    assert!(push.contains("stored at  hooks.git.push\nstream     HOOKS\n"), "{push}");
    assert!(told("/hooks/git/none").await.contains("404: route events has no \"event\""));
    context.delete_stream("HOOKS").await.unwrap();
    context.create_stream(Config { name: "OTHER".to_owned(), ..hooks() }).await.unwrap();
    assert!(told("/hasty").await.contains("OTHER, and HOOKS is expected"));
}

#[tokio::test]
async fn a_gateway_that_leaves_waits_for_acks() {
    let (broker, context) = broker().await;
    let mut gateway =
        Gateway::start(&broker, ROUTES, &["--drain-grace", "200ms", "--drain-timeout", "20s"])
            .await;
    let mut client = gateway.client().await;
    client.send("POST /plain HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n\r\nx").await.unwrap();
    // It waits for a stream.
    eventually(DEADLINE, async || gateway.metric("natsway_publish_repeats_total").await > 0.0)
        .await;
    gateway.process.terminate();
    eventually(DEADLINE, async || crate::client::Client::connect(gateway.port).await.is_err())
        .await;
    let stream = context.create_stream(hooks()).await.unwrap();
    receipt(&client.reply(false).await.unwrap());
    assert!(gateway.process.wait_exit(DEADLINE).await.success());
    assert_eq!(stored(&stream).await, 1);
}

#[tokio::test]
async fn what_was_held_for_a_stored_request_is_given_back() {
    let (broker, context) = broker().await;
    context.create_stream(hooks()).await.unwrap();
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    for _ in 0..20 {
        receipt(&post(&gateway, "/plain", "", "x").await);
    }
    assert_eq!(post(&gateway, "/hooks/git/none", "", "x").await.status, 404);
    for held in ["natsway_held_bytes", "natsway_expected_reply_bytes"] {
        eventually(DEADLINE, async || gateway.metric(held).await == 0.0).await;
    }
}

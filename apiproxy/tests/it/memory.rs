//! Clients that have the gateway hold much for them, and give little for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use natsway_testkit::http2::{self, INITIAL_WINDOW_SIZE, PREFACE, flag, kind};
use natsway_testkit::{TestBroker, eventually};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;

use crate::backend::{Backend, ok};
use crate::fixture::{DEADLINE, Gateway};
use crate::hostile::next_frame;

/// A route with times for a machine that has much else to do: nothing here is about them.
const ROUTES: &str = r#"
    [[route]]
    name = "test"
    path = "/{*rest}"
    timeout = "30s"
    target = [{ version = "blue", subject = "svc.test.blue" }]
"#;

/// Less than a message may have.
const LARGE_BYTES: usize = 900_000;

const MIB: usize = 1 << 20;

/// Patient enough that nobody is cut off while a test looks.
const BOUNDED: &[&str] = &["--max-held-bytes", "33554432"];

/// Answers with much at `/large`, and with little elsewhere.
async fn saying_much_or_little(broker: &TestBroker) -> Backend {
    Backend::start(broker, |_, request| match request.path_and_query.path().starts_with("/large") {
        true => vec![ok(&"x".repeat(LARGE_BYTES))],
        false => vec![ok("little")],
    })
    .await
}

/// The memory that a gateway has, in bytes.
fn resident_bytes(gateway: &Gateway) -> usize {
    gateway.process.memory().expect("it runs").resident
}

/// A client that asks again and again, none of whose requests may fail.
struct Witness {
    answered: Arc<AtomicUsize>,
    failed: Arc<AtomicUsize>,
    task: AbortHandle,
}

impl Witness {
    async fn start(gateway: &Gateway) -> Self {
        let (answered, failed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let mut client = gateway.client().await;
        let (well, badly) = (Arc::clone(&answered), Arc::clone(&failed));
        let task = tokio::spawn(async move {
            loop {
                match client.get("/little").await {
                    Ok(reply) if reply.status == 200 => well.fetch_add(1, Ordering::SeqCst),
                    other => {
                        eprintln!("the witness got {other:?}");
                        badly.fetch_add(1, Ordering::SeqCst)
                    }
                };
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        Self { answered, failed, task: task.abort_handle() }
    }

    /// Waits for some more answers.
    async fn is_served(&self) {
        let before = self.answered.load(Ordering::SeqCst);
        eventually(DEADLINE, async || self.answered.load(Ordering::SeqCst) >= before + 20).await;
        assert_eq!(self.failed.load(Ordering::SeqCst), 0, "others are served as before");
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// HTTP/2 up to its settings, with no window for any answer.
async fn without_window(gateway: &Gateway) -> TcpStream {
    let mut stream = gateway.client().await.stream;
    let settings = http2::settings(&[(INITIAL_WINDOW_SIZE, 0)]);
    stream.write_all(&[PREFACE, &settings].concat()).await.unwrap();
    stream
}

/// Streams that ask for a path.
fn asking(path: &str, streams: u32) -> Vec<u8> {
    let block = http2::request("GET", path);
    let head = |number| {
        http2::frame(kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, 2 * number + 1, &block)
    };
    (0..streams).flat_map(head).collect()
}

#[tokio::test]
async fn answers_without_a_window_are_counted_and_bounded() {
    let broker = TestBroker::start().await;
    let backend = saying_much_or_little(&broker).await;
    let gateway = Gateway::start(&broker, ROUTES, BOUNDED).await;
    let witness = Witness::start(&gateway).await;
    witness.is_served().await;
    let before = resident_bytes(&gateway);
    let mut greedy = Vec::new();
    for _ in 0..8 {
        let mut stream = without_window(&gateway).await;
        stream.write_all(&asking("/large", 100)).await.unwrap();
        greedy.push(stream);
    }
    // As many as there is room for are asked for, and no more.
    eventually(DEADLINE, async || gateway.metric("natsway_room_waits_total").await > 100.0).await;
    eventually(DEADLINE, async || gateway.metric("natsway_held_bytes").await > 40e6).await;
    witness.is_served().await;
    assert!(gateway.metric("natsway_held_bytes").await <= 64.0 * MIB as f64);
    let grown = resident_bytes(&gateway).saturating_sub(before);
    assert!(grown < 150 * MIB, "{} MiB more", grown / MIB);
    assert!(backend.seen.count() < 800, "what there is no room for is not worked on");
    drop(greedy);
    eventually(DEADLINE, async || gateway.metric("natsway_held_bytes").await < MIB as f64).await;
    witness.is_served().await;
}

#[tokio::test]
async fn tiny_indexed_fields_are_counted_at_what_they_cost() {
    const CONNECTIONS: usize = 100;
    let broker = TestBroker::start().await;
    let _backend = saying_much_or_little(&broker).await;
    let gateway = Gateway::start(&broker, ROUTES, &["--max-held-bytes", "16777216"]).await;
    let witness = Witness::start(&gateway).await;
    witness.is_served().await;
    let before = resident_bytes(&gateway);
    let post = |stream: u32, fields: &dyn Fn(&mut Vec<u8>)| {
        let mut block = http2::request("POST", "/little");
        fields(&mut block);
        http2::frame(kind::HEADERS, flag::END_HEADERS, stream, &block)
    };
    let taught = post(1, &|block| {
        for number in 0..60 {
            http2::put_field(block, true, &format!("x{number}"), "1");
        }
    });
    let told = |stream| {
        post(stream, &|block| (62..122).for_each(|number| http2::put_indexed(block, number)))
    };
    let sent: Vec<u8> =
        taught.into_iter().chain((1..128).flat_map(|number| told(2 * number + 1))).collect();
    let mut greedy = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = without_window(&gateway).await;
        stream.write_all(&sent).await.unwrap();
        greedy.push(stream);
    }
    let refused = "natsway_problems_total{code=\"memory_full\"}";
    eventually(DEADLINE, async || gateway.metric(refused).await > 1_000.0).await;
    witness.is_served().await;
    let held = gateway.metric("natsway_arriving_bytes").await;
    assert!(held > 1e6 && held <= 16.0 * MIB as f64, "half of what may be held: {held}");
    let grown = resident_bytes(&gateway).saturating_sub(before);
    assert!(grown < 200 * MIB, "{} MiB more", grown / MIB);
    drop(greedy);
    eventually(DEADLINE, async || gateway.metric("natsway_held_bytes").await < MIB as f64).await;
}

#[tokio::test]
async fn large_answers_to_many_at_once_do_not_overrun_the_broker_connection() {
    let broker = TestBroker::builder().config_lines("max_pending: 48MB").start().await;
    let _backend = saying_much_or_little(&broker).await;
    let gateway = Gateway::start(&broker, ROUTES, &["--shards", "1"]).await;
    let connects = gateway.metric("natsway_broker_connects_total").await;
    let witness = Witness::start(&gateway).await;
    witness.is_served().await;
    let mut greedy = Vec::new();
    for _ in 0..400 {
        let mut client = gateway.client().await;
        client.send("GET /large/1 HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
        greedy.push(client);
    }
    eventually(DEADLINE, async || gateway.metric("natsway_room_waits_total").await > 100.0).await;
    for _ in 0..5 {
        witness.is_served().await;
        let expected = gateway.metric("natsway_expected_reply_bytes").await;
        assert!(expected <= 33_554_432.0, "{expected}");
    }
    assert_eq!(gateway.metric("natsway_broker_connects_total").await, connects);
    assert!(!broker.log().contains("Slow Consumer"), "{}", broker.log());
}

#[tokio::test]
async fn a_window_of_a_byte_now_and_then_keeps_no_answer() {
    let broker = TestBroker::start().await;
    let _backend = saying_much_or_little(&broker).await;
    let gateway = Gateway::start(&broker, ROUTES, &["--send-timeout", "1s"]).await;
    let mut slow = without_window(&gateway).await;
    slow.write_all(&asking("/large", 3)).await.unwrap();
    let (mut reading, mut opening) = slow.into_split();
    let trickling = tokio::spawn(async move {
        loop {
            let bytes: Vec<u8> =
                [1, 3, 5].iter().flat_map(|stream| http2::window_update(*stream, 1)).collect();
            if opening.write_all(&bytes).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    // Everything that comes is read: only the windows are in the way.
    let reading =
        tokio::spawn(async move { tokio::io::copy(&mut reading, &mut tokio::io::sink()).await });
    eventually(DEADLINE, async || gateway.metric("natsway_client_connections").await == 0.0).await;
    assert_eq!(gateway.metric("natsway_client_closes_total{reason=\"slow\"}").await, 1.0);
    eventually(DEADLINE, async || gateway.metric("natsway_held_bytes").await == 0.0).await;
    trickling.abort();
    reading.abort();
}

#[tokio::test]
async fn an_idle_http2_connection_is_asked_to_close() {
    let broker = TestBroker::start().await;
    let _backend = saying_much_or_little(&broker).await;
    let gateway = Gateway::start(&broker, ROUTES, &["--http2-idle-timeout", "500ms"]).await;
    let mut client = gateway.client().await;
    client
        .stream
        .write_all(&[PREFACE, &http2::settings(&[]), &asking("/little", 1)].concat())
        .await
        .unwrap();
    let mut is_answered = false;
    loop {
        let (kind, stream, _) = next_frame(&mut client.stream).await;
        is_answered |= (kind, stream) == (kind::HEADERS, 1);
        if kind == kind::GOAWAY {
            break;
        }
    }
    assert!(is_answered, "not before it was served");
    eventually(DEADLINE, async || gateway.metric("natsway_client_connections").await == 0.0).await;
    assert_eq!(gateway.metric("natsway_client_closes_total{reason=\"idle\"}").await, 1.0);
}

#[tokio::test]
async fn half_a_preface_costs_no_processor_time_and_may_be_finished() {
    const CONNECTIONS: usize = 800;
    let broker = TestBroker::start().await;
    let _backend = saying_much_or_little(&broker).await;
    let gateway = Gateway::start(&broker, ROUTES, &[]).await;
    let mut half_open = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut stream = gateway.client().await.stream;
        stream.write_all(&PREFACE[..10]).await.unwrap();
        half_open.push(stream);
    }
    eventually(DEADLINE, async || {
        gateway.metric("natsway_client_connections").await == CONNECTIONS as f64
    })
    .await;
    let before = processor_ticks(&gateway);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let ticks = processor_ticks(&gateway) - before;
    assert!(ticks < 25, "{ticks} hundredths of a second of processor time in three seconds");
    let mut stream = half_open.pop().unwrap();
    stream
        .write_all(&[&PREFACE[10..], &http2::settings(&[]), &asking("/little", 1)].concat())
        .await
        .unwrap();
    while next_frame(&mut stream).await.0 != kind::HEADERS {}
    // What only begins like a preface is HTTP/1.
    let mut stream = half_open.pop().unwrap();
    stream.write_all(b"1 / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut status = [0; 12];
    stream.read_exact(&mut status).await.unwrap();
    assert_eq!(&status, b"HTTP/1.1 400");
}

/// The processor time that a gateway has had, in hundredths of a second.
fn processor_ticks(gateway: &Gateway) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", gateway.process.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[tokio::test]
async fn a_long_head_that_does_not_end_is_counted() {
    let broker = TestBroker::start().await;
    let _backend = saying_much_or_little(&broker).await;
    let gateway =
        Gateway::start(&broker, ROUTES, &["--shards", "1", "--max-held-bytes", "1048576"]).await;
    let witness = Witness::start(&gateway).await;
    witness.is_served().await;
    let mut greedy = Vec::new();
    for _ in 0..40 {
        let mut client = gateway.client().await;
        let head = format!("GET / HTTP/1.1\r\nhost: a\r\nx: {}", "y".repeat(30_000));
        // A connection that is closed meanwhile is one that found no room.
        client.send(&head).await.ok();
        greedy.push(client);
    }
    let closed = "natsway_client_closes_total{reason=\"no_room\"}";
    eventually(DEADLINE, async || gateway.metric(closed).await > 0.0).await;
    assert!(gateway.metric("natsway_arriving_bytes").await <= 524_288.0);
    witness.is_served().await;
}

#[tokio::test]
async fn a_gateway_says_what_it_may_need_and_that_it_does_not_fit() {
    let broker = TestBroker::start().await;
    let fits = Gateway::start(&broker, ROUTES, &["--memory-limit", "536870912"]).await;
    assert!(fits.process.stderr().contains("memory that clients may make it need"));
    assert!(!fits.process.stderr().contains("the system would kill it"));
    let arguments = [
        "--memory-limit",
        "104857600",
        "--max-connections",
        "16384",
        "--max-held-bytes",
        "67108864",
    ];
    let tight = Gateway::start(&broker, ROUTES, &arguments).await;
    let said = tight.process.stderr();
    assert!(said.contains("the system would kill it: lower --max-connections"), "{said}");
}

#[tokio::test]
async fn headers_of_native_requests_count_as_bytes_in_flight() {
    let broker = TestBroker::start().await;
    // Somebody who listens and says nothing.
    let silent = broker.connect().await;
    let _requests = silent.queue_subscribe("svc.test.blue", "q".to_owned()).await.unwrap();
    crate::backend::settled(&silent).await;
    let routes = ROUTES.replace("path =", "codec = \"native\"\n    path =");
    let gateway =
        Gateway::start(&broker, &routes, &["--shards", "1", "--max-in-flight-bytes", "24000"])
            .await;
    let request = format!(
        "POST / HTTP/1.1\r\nhost: a\r\nx: {}\r\ncontent-length: 0\r\n\r\n",
        "y".repeat(8_000)
    );
    let (mut first, mut second) = (gateway.client().await, gateway.client().await);
    for client in [&mut first, &mut second] {
        client.send(&request).await.unwrap();
    }
    let out = "natsway_in_flight{route=\"test\",version=\"blue\"}";
    eventually(DEADLINE, async || gateway.metric(out).await == 2.0).await;
    let refused = gateway.client().await.exchange(&request).await.unwrap();
    assert_eq!((refused.status, refused.problem().as_str()), (503, "overloaded"));
}

#[tokio::test]
async fn a_client_that_reads_nothing_of_what_it_asked_for_holds_nothing_in_the_end() {
    let broker = TestBroker::start().await;
    let _backend = saying_much_or_little(&broker).await;
    let gateway = Gateway::start(&broker, ROUTES, &["--send-timeout", "1s"]).await;
    let mut client = gateway.client().await;
    client.send(&"GET /large HTTP/1.1\r\nhost: a\r\n\r\n".repeat(50)).await.unwrap();
    // It takes a little now and then, which is not enough.
    let trickling = tokio::spawn(async move {
        let mut few = [0; 64];
        while client.stream.read(&mut few).await.is_ok_and(|count| count > 0) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    eventually(DEADLINE, async || gateway.metric("natsway_client_connections").await == 0.0).await;
    eventually(DEADLINE, async || gateway.metric("natsway_held_bytes").await == 0.0).await;
    trickling.abort();
}

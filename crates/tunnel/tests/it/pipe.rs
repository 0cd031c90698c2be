//! Pipes on a real broker.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_nats::Client;
use natsway_boot::BrokerConfig;
use natsway_testkit::TestBroker;
use natsway_tunnel::pipe::{
    Ear, Pace, PipeBroker, PipeError, PipeOpenError, PipeSettings, PipeStream, answer, call, refuse,
};
use natsway_wire::pipe::{PipeMessage, ResetReason};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::ends::PATIENCE;

const WINDOW: u32 = 256 << 10;

fn settings() -> PipeSettings {
    PipeSettings { window_bytes: WINDOW, pace: None, meter: Arc::default() }
}

/// One end, and what became of it.
struct End {
    stream: PipeStream,
    driven: JoinHandle<Result<(), PipeError>>,
}

/// A gateway's and a worker's end.
struct Pair {
    gateway: End,
    worker: End,
    /// Where the worker hears.
    subject: String,
}

fn end(url: &str, role: &str) -> PipeBroker {
    PipeBroker::new(
        BrokerConfig::new(url).unwrap(),
        role.to_owned(),
        &format!("_INBOX_{role}"),
        WINDOW,
    )
}

async fn connect(url: &str, settings: PipeSettings) -> Pair {
    let gateway = end(url, "apiproxy").connection().await.unwrap();
    let worker = end(url, "worker").connection().await.unwrap();
    let ear = Ear::open(worker, None).await.unwrap();
    let subject = ear.subject().to_string();
    let (called, answered) =
        tokio::join!(call(gateway, &subject, settings.clone()), answer(ear, settings));
    let ((gateway, calling), (worker, answering)) = (called.unwrap(), answered.unwrap());
    Pair {
        gateway: End { stream: gateway, driven: tokio::spawn(calling.run()) },
        worker: End { stream: worker, driven: tokio::spawn(answering.run()) },
        subject,
    }
}

/// Bytes of which none is like its neighbours'.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at ^ at >> 8 ^ at >> 16) as u8).collect()
}

async fn ended(end: End) -> Result<(), PipeError> {
    let ended = tokio::time::timeout(PATIENCE, end.driven).await;
    drop(end.stream);
    ended.expect("it ends in time").unwrap()
}

#[tokio::test]
async fn bytes_go_both_ways_and_end_as_on_a_connection() {
    let broker = TestBroker::start().await;
    let Pair { gateway, worker, .. } = connect(&broker.url(), settings()).await;
    let (down, up) = (pattern(5_000_001), pattern(3_000_003));
    let carry = async |end: End, out: Vec<u8>| {
        let (mut reader, mut writer) = tokio::io::split(end.stream);
        let written = async {
            writer.write_all(&out).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let mut came = Vec::new();
        let (_, read) = tokio::join!(written, reader.read_to_end(&mut came));
        read.unwrap();
        (came, end.driven)
    };
    let both = async { tokio::join!(carry(gateway, up.clone()), carry(worker, down.clone())) };
    let both = tokio::time::timeout(PATIENCE, both).await.unwrap();
    let ((came_down, calling), (came_up, answering)) = both;
    assert!(came_down == down && came_up == up, "all of it, in order");
    assert_eq!((calling.await.unwrap(), answering.await.unwrap()), (Ok(()), Ok(())));
}

/// A chunk of 16 KiB takes eight seconds here, and who says nothing for five is taken for gone.
#[tokio::test]
async fn a_pipe_that_waits_for_its_turn_is_not_taken_for_gone() {
    let broker = TestBroker::start().await;
    let pace = Some(Arc::new(Pace::new(NonZeroU64::new(2 << 10).unwrap())));
    let pair = connect(&broker.url(), PipeSettings { pace, ..settings() }).await;
    let Pair { mut gateway, mut worker, .. } = pair;
    let sent = pattern(32 << 10);
    gateway.stream.write_all(&sent).await.unwrap();
    let mut came = vec![0; sent.len()];
    let read = tokio::time::timeout(PATIENCE, worker.stream.read_exact(&mut came)).await;
    read.expect("it comes in time").expect("the pipe is whole");
    assert!(came == sent, "all of it, in order");
}

#[tokio::test]
async fn who_does_not_read_is_not_sent_more_than_a_window() {
    let broker = TestBroker::start().await;
    let Pair { mut gateway, worker, .. } = connect(&broker.url(), settings()).await;
    let mut written = 0;
    let piece = vec![7; 16 << 10];
    while let Ok(count) =
        tokio::time::timeout(Duration::from_millis(500), gateway.stream.write(&piece)).await
    {
        written += count.unwrap();
    }
    let most = PipeSettings::pipe_bytes(WINDOW);
    assert!(written <= most && written > WINDOW as usize / 2, "{written} of {most}");
    // It goes on once that is read, and what nobody reads any more ends.
    let mut reader = worker.stream;
    let mut came = vec![0; written];
    reader.read_exact(&mut came).await.unwrap();
    gateway.stream.write_all(&piece).await.unwrap();
    drop(reader);
    assert_eq!(tokio::time::timeout(PATIENCE, worker.driven).await.unwrap().unwrap(), Ok(()));
    let mut rest = Vec::new();
    gateway.stream.read_to_end(&mut rest).await.unwrap();
    assert_eq!(ended(gateway).await, Err(PipeError::Gone), "nobody hears it");
}

#[tokio::test]
async fn a_lost_broker_breaks_both_ends() {
    let mut broker = TestBroker::start().await;
    let Pair { mut gateway, mut worker, .. } = connect(&broker.url(), settings()).await;
    gateway.stream.write_all(b"whole").await.unwrap();
    let mut came = [0; 5];
    worker.stream.read_exact(&mut came).await.unwrap();
    broker.kill9();
    for end in [&mut gateway, &mut worker] {
        let read = tokio::time::timeout(PATIENCE, end.stream.read(&mut came)).await.unwrap();
        assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    }
    assert_eq!(ended(gateway).await, Err(PipeError::ConnectionLost));
    assert_eq!(ended(worker).await, Err(PipeError::ConnectionLost));
}

#[tokio::test]
async fn a_frozen_broker_breaks_both_ends() {
    let mut broker = TestBroker::start().await;
    let Pair { mut gateway, mut worker, .. } = connect(&broker.url(), settings()).await;
    broker.freeze();
    let frozen = Instant::now();
    let mut byte = [0];
    let (gateway, worker) =
        tokio::join!(gateway.stream.read(&mut byte), async { worker.stream.read(&mut [0]).await });
    assert!(gateway.is_err() && worker.is_err());
    assert!(frozen.elapsed() < PATIENCE, "{:?}", frozen.elapsed());
}

#[tokio::test]
async fn a_broker_that_will_shut_down_has_both_ends_take_no_further_streams() {
    let mut broker = TestBroker::start().await;
    let Pair { mut gateway, mut worker, .. } = connect(&broker.url(), settings()).await;
    broker.lame_duck();
    let (calling, answering) = (gateway.stream.leaving(), worker.stream.leaving());
    let begun = async { tokio::join!(calling.begun(), answering.begun()) };
    tokio::time::timeout(PATIENCE, begun).await.expect("both are told");
    // What runs goes on meanwhile.
    gateway.stream.write_all(b"meanwhile").await.unwrap();
    let mut came = [0; 9];
    worker.stream.read_exact(&mut came).await.unwrap();
    assert_eq!(&came, b"meanwhile");
}

#[tokio::test]
async fn an_end_that_dies_is_missed_by_the_other() {
    let broker = TestBroker::start().await;
    let Pair { mut gateway, worker, .. } = connect(&broker.url(), settings()).await;
    // As a process does that is killed: no word, and its subscription is gone.
    worker.driven.abort();
    let died = Instant::now();
    let read = tokio::time::timeout(PATIENCE, gateway.stream.read(&mut [0])).await.unwrap();
    assert!(read.is_err(), "{read:?}");
    assert_eq!(ended(gateway).await, Err(PipeError::Gone));
    assert!(died.elapsed() < Duration::from_secs(4), "{:?}", died.elapsed());
}

async fn connected(broker: &TestBroker) -> Client {
    broker.connect().await
}

#[tokio::test]
async fn what_somebody_else_says_breaks_the_pipe_and_is_not_read() {
    let broker = TestBroker::start().await;
    let stranger = connected(&broker).await;
    for (said, error) in [
        (PipeMessage::Data { offset: 0, bytes: "forged".into() }.encode(), None),
        (
            PipeMessage::Data { offset: 77, bytes: "forged".into() }.encode(),
            Some(PipeError::Gap { came: 0, at: 77 }),
        ),
        ("no message of a pipe".into(), Some(PipeError::Unexpected)),
        (
            PipeMessage::Reset(ResetReason::Broken).encode(),
            Some(PipeError::Reset(ResetReason::Broken)),
        ),
    ] {
        let Pair { mut gateway, mut worker, subject } = connect(&broker.url(), settings()).await;
        stranger.publish(subject, said).await.unwrap();
        stranger.flush().await.unwrap();
        let Some(error) = error else {
            // Who guesses the subject and the offset is TLS's to find; the next of us breaks it.
            gateway.stream.write_all(b"ours").await.unwrap();
            // Whichever of the two comes second.
            let ended = ended(worker).await;
            assert!(matches!(ended, Err(PipeError::Repeated { at: 0, .. })), "{ended:?}");
            continue;
        };
        let mut came = Vec::new();
        let read = tokio::time::timeout(PATIENCE, worker.stream.read_to_end(&mut came)).await;
        assert!(read.unwrap().is_err() && came.is_empty(), "{error}");
        assert_eq!(ended(worker).await, Err(error));
        let told = tokio::time::timeout(PATIENCE, gateway.stream.read(&mut [0])).await.unwrap();
        assert!(told.is_err(), "the other end is told");
    }
}

#[tokio::test]
async fn pipes_keep_to_their_pace_both_ways() {
    const RATE: u64 = 4 << 20;
    let broker = TestBroker::start().await;
    let pace = Some(Arc::new(Pace::new(NonZeroU64::new(RATE).unwrap())));
    let gateway = end(&broker.url(), "apiproxy").connection().await.unwrap();
    let worker = end(&broker.url(), "worker").connection().await.unwrap();
    let ear = Ear::open(worker, None).await.unwrap();
    let subject = ear.subject().to_string();
    let paced = PipeSettings { pace, ..settings() };
    let (called, answered) = tokio::join!(call(gateway, &subject, paced), answer(ear, settings()));
    let ((mut gateway, calling), (mut worker, answering)) = (called.unwrap(), answered.unwrap());
    tokio::spawn(calling.run());
    tokio::spawn(answering.run());
    // What the gateway sends, and then what it lets the worker send.
    for is_down in [true, false] {
        let (from, to) = match is_down {
            true => (&mut gateway, &mut worker),
            false => (&mut worker, &mut gateway),
        };
        let begun = Instant::now();
        let (out, mut came) = (pattern(3 << 20), vec![0; 3 << 20]);
        let (written, read) = tokio::join!(from.write_all(&out), to.read_exact(&mut came));
        written.unwrap();
        read.unwrap();
        assert!(came == out);
        // But for what may be ahead at the beginning.
        let paced = out.len() as f64 - 2.0 * f64::from(WINDOW);
        let took = begun.elapsed().as_secs_f64();
        assert!(took >= paced / RATE as f64 * 0.95, "{took} s, down: {is_down}");
    }
}

#[tokio::test]
async fn a_worker_that_is_not_wanted_is_told_so() {
    let broker = TestBroker::start().await;
    let gateway = end(&broker.url(), "apiproxy").connection().await.unwrap();
    let worker = end(&broker.url(), "worker").connection().await.unwrap();
    let ear = Ear::open(worker.clone(), None).await.unwrap();
    let subject = ear.subject().to_string();
    // It is one message, and may come before the broker knows who hears it.
    let refusing = async {
        loop {
            refuse(&gateway, &subject, ResetReason::Full).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let refused = tokio::select! {
        answered = answer(ear, settings()) => answered.map(|_| ()).unwrap_err(),
        () = refusing => unreachable!(),
    };
    assert!(matches!(refused, PipeOpenError::Refused(ResetReason::Full)), "{refused}");
    // And who calls nobody gives up.
    let called = call(gateway, "_INBOX_worker.nobody", settings()).await.map(|_| ());
    assert!(matches!(called, Err(PipeOpenError::NoAnswer)), "{called:?}");
}

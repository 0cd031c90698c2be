//! Clients that ask, and do not take the answer.

use std::time::Duration;

use natsway_testkit::{TestBroker, eventually};
use tokio::io::AsyncWriteExt;

use crate::backend::{Backend, ok};
use crate::fixture::{DEADLINE, Gateway, ROUTES};
use crate::hostile::{GET, PREFACE, frame, next_frame};

/// More than is sent on at once, less than a message may have.
const ANSWER_BYTES: usize = 900_000;

/// Generous beside the pace of the slow client below.
const ARGUMENTS: [&str; 2] = ["--send-timeout", "1s"];

async fn saying_much(broker: &TestBroker) -> Backend {
    Backend::start(broker, |_, _| vec![ok(&"x".repeat(ANSWER_BYTES))]).await
}

/// Waits until the gateway has closed all its client connections; nobody else closes any here.
async fn all_are_closed(gateway: &Gateway) {
    eventually(DEADLINE, async || gateway.metric("natsway_client_connections").await == 0.0).await;
}

/// HTTP/2 up to its first request, for whose answer there is no window.
fn shut_window() -> Vec<u8> {
    let no_window = [0, 4, 0, 0, 0, 0];
    [PREFACE.to_vec(), frame(4, 0, 0, &no_window), frame(1, 0x05, 1, &GET)].concat()
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_closed() {
    const ASKED: usize = 100;
    let broker = TestBroker::start().await;
    let backend = saying_much(&broker).await;
    let gateway = Gateway::start(&broker, ROUTES, &ARGUMENTS).await;
    let mut client = gateway.client().await;
    // More than all the buffers on the way hold.
    client.send(&"GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(ASKED)).await.unwrap();
    eventually(DEADLINE, async || backend.seen.count() > 0).await;
    all_are_closed(&gateway).await;
    assert!(backend.seen.count() < ASKED, "what nobody reads is not worked on");
    drop(client);
}

#[tokio::test]
async fn an_http2_client_that_never_opens_its_window_is_closed() {
    let broker = TestBroker::start().await;
    let backend = saying_much(&broker).await;
    let gateway = Gateway::start(&broker, ROUTES, &ARGUMENTS).await;
    let mut client = gateway.client().await;
    client.stream.write_all(&shut_window()).await.unwrap();
    eventually(DEADLINE, async || backend.seen.count() == 1).await;
    all_are_closed(&gateway).await;
    drop(client);
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_its_whole_answer() {
    const STEP_BYTES: u32 = 100_000;
    let broker = TestBroker::start().await;
    let _backend = saying_much(&broker).await;
    let gateway = Gateway::start(&broker, ROUTES, &ARGUMENTS).await;
    let mut client = gateway.client().await;
    client.stream.write_all(&shut_window()).await.unwrap();
    client.stream.write_all(&frame(8, 0, 0, &(1_u32 << 20).to_be_bytes())).await.unwrap();
    let mut taken = 0;
    while taken < ANSWER_BYTES {
        // Its pace: in all, several times as long as it may stand still.
        tokio::time::sleep(Duration::from_millis(400)).await;
        client.stream.write_all(&frame(8, 0, 1, &STEP_BYTES.to_be_bytes())).await.unwrap();
        let opened = (taken + STEP_BYTES as usize).min(ANSWER_BYTES);
        while taken < opened {
            let (kind, stream, payload) = next_frame(&mut client.stream).await;
            assert_ne!(kind, 7, "it is not told to go away");
            taken += if (kind, stream) == (0, 1) { payload.len() } else { 0 };
        }
    }
    assert_eq!(taken, ANSWER_BYTES);
}

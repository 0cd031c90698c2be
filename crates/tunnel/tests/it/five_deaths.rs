//! The ways in which one stream ends or stalls all others on an HTTP/2 connection.
//!
//! Each is tried twice: with the libraries' defaults, where it must do its harm (else the test
//! tries nothing), and with ours, where it must not.

use std::future::Future;
use std::pin::pin;

use futures_util::future::join_all;
use futures_util::poll;
use http_body_util::BodyExt;

use crate::ends::{Ends, Gateway, PATIENCE, STUCK, chunks, empty};

/// Asserts that the harm is done by default and not by ours.
async fn try_both<F: Future<Output = Result<(), String>>>(attack: impl Fn(Ends) -> F) {
    let by_default = attack(Ends::Defaults).await;
    assert!(by_default.is_err(), "the attack does nothing, so it shows nothing");
    let ours = tokio::time::timeout(PATIENCE, attack(Ends::Ours)).await;
    assert_eq!(ours, Ok(Ok(())), "by default: {by_default:?}");
}

#[tokio::test]
async fn stalled_readers_do_not_take_the_connections_window() {
    try_both(|ends| async move {
        let (mut gateway, _leaving) = ends.connect().await;
        let mut stalled = Vec::new();
        for _ in 0..40 {
            let opened = tokio::time::timeout(STUCK, gateway.open("/large", empty())).await;
            stalled.push(opened.map_err(|_| "stuck")??);
        }
        gateway.answers().await
    })
    .await;
}

#[tokio::test]
async fn tiny_frames_that_nobody_reads_do_not_end_the_tunnel() {
    try_both(|ends| async move {
        let (mut gateway, _leaving) = ends.connect().await;
        let unread = gateway.open("/tiny-chunks", empty()).await?;
        tokio::time::sleep(STUCK).await;
        gateway.answers().await?;
        drop(unread);
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn tiny_frames_from_outside_do_not_end_the_tunnel() {
    try_both(|ends| async move {
        let (mut gateway, _leaving) = ends.connect().await;
        let mut posting = gateway.clone();
        let posted = posting.open("/unread", chunks(1_000_000, b"x"));
        tokio::select! {
            ended = posted => ended.map(drop),
            answers = answers_after_a_while(&mut gateway) => answers,
        }
    })
    .await;
}

async fn answers_after_a_while(gateway: &mut Gateway) -> Result<(), String> {
    tokio::time::sleep(STUCK).await;
    gateway.answers().await
}

#[tokio::test]
async fn empty_frames_do_not_end_the_tunnel() {
    try_both(|ends| async move {
        let (mut gateway, _leaving) = ends.connect().await;
        let opened = gateway.open("/empty-chunks", empty()).await?;
        let body = opened.body.collect().await.map_err(|error| error.to_string())?;
        assert!(body.to_bytes().is_empty());
        gateway.answers().await
    })
    .await;
}

#[tokio::test]
async fn bodies_that_were_dropped_with_their_last_byte_do_not_end_the_tunnel() {
    for path in ["/late-end", "/late-trailers"] {
        try_both(|ends| async move {
            let (mut gateway, _leaving) = ends.connect().await;
            for _ in 0..40 {
                let mut opened = Vec::new();
                for _ in 0..100 {
                    opened.push(gateway.open(path, empty()).await?);
                }
                // As HTTP/1 does: what has its length is dropped, whether its end has come or not.
                let read = opened.into_iter().map(|mut opened| async move {
                    let mut left = 4_096;
                    while left > 0 {
                        let frame = opened.body.frame().await.ok_or("short")?;
                        let data = frame.map_err(|error| error.to_string())?;
                        left -= data.into_data().map_err(|_| "trailers")?.len();
                    }
                    Ok::<_, String>(())
                });
                join_all(read).await.into_iter().collect::<Result<Vec<()>, _>>()?;
            }
            gateway.answers().await
        })
        .await;
    }
}

#[tokio::test]
async fn a_burst_of_cancels_does_not_end_the_tunnel() {
    try_both(|ends| async move {
        // The worker begins to read after the burst was written, as it does when it was busy.
        let (near, far) = tokio::io::duplex(4 << 20);
        let mut gateway = ends.gateway(near).await;
        for _ in 0..90 {
            let mut opened = pin!(gateway.open("/unread", empty()));
            for _ in 0..4 {
                assert!(poll!(opened.as_mut()).is_pending());
                tokio::task::yield_now().await;
            }
        }
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        let _leaving = ends.serve(far);
        gateway.answers().await
    })
    .await;
}

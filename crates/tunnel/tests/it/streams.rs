//! What streams on a tunnel do, one by one.

use std::time::Duration;

use http_body_util::BodyExt;
use natsway_tunnel::http2::Settings;

use crate::ends::{Ends, Gateway, PATIENCE, chunks, empty};

fn open_streams(gateway: &Gateway) -> u32 {
    match gateway {
        Gateway::Ours(sender) => sender.streams().open(),
        Gateway::Bare(..) => unreachable!("the tests here use ours"),
    }
}

#[tokio::test]
async fn a_body_goes_up_and_down_as_it_was() {
    let (mut gateway, _leaving) = Ends::Ours.connect().await;
    let opened = gateway.open("/echo", chunks(5_000, b"0123456789")).await.unwrap();
    let body = tokio::time::timeout(PATIENCE, opened.body.collect()).await.unwrap().unwrap();
    assert_eq!(body.to_bytes(), b"0123456789".repeat(5_000));
}

#[tokio::test]
async fn what_is_above_the_limit_is_refused_and_not_queued() {
    let (mut gateway, _leaving) = Ends::Ours.connect().await;
    let mut open = Vec::new();
    for _ in 0..Settings::default().max_streams {
        open.push(gateway.open("/large", empty()).await.unwrap());
    }
    let refused = gateway.open("/small", empty()).await.err();
    assert_eq!(refused.as_deref(), Some("all streams are open"));
    drop(open);
    assert_eq!(open_streams(&gateway), 0);
    gateway.answers().await.unwrap();
}

#[tokio::test]
async fn a_leaving_worker_finishes_what_runs_and_takes_nothing_new() {
    let (mut gateway, leaving) = Ends::Ours.connect().await;
    let running = gateway.open("/slow", empty()).await.unwrap();
    leaving.cancel();
    // The next request was not run, as soon as the goodbye has come.
    let refused = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Err(error) = gateway.answers().await {
                return error;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    let refused = refused.await.unwrap();
    assert!(refused.contains("NotTaken") || refused.contains("NotSent"), "{refused}");
    let refused = gateway.answers().await.unwrap_err();
    assert!(refused.contains("NotSent"), "{refused}");
    let body = running.body.collect().await.unwrap();
    assert_eq!(body.to_bytes(), b"word ".repeat(20));
}

#[tokio::test]
async fn a_response_whose_reader_leaves_is_free_again() {
    let (mut gateway, _leaving) = Ends::Ours.connect().await;
    let opened = gateway.open("/large", empty()).await.unwrap();
    assert_eq!((opened.head.status.as_u16(), open_streams(&gateway)), (200, 1));
    drop(opened);
    assert_eq!(open_streams(&gateway), 0);
    gateway.answers().await.unwrap();
}

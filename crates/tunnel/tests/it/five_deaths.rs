//! The ways in which one stream ends or stalls all others on an HTTP/2 connection.
//!
//! Each is tried with the libraries' defaults, where it must do its harm (else the test tries
//! nothing), and with ours, where it must not. Then with ours but for one cure at a time: either
//! that one alone does the harm, or the test says why it does none, and which cures together do.
//!
//! 1. [`stalled_readers_do_not_take_the_connections_window`]: the connection's window of 2 GiB.
//! 2. [`tiny_frames_that_nobody_reads_do_not_end_the_tunnel`] and
//!    [`tiny_frames_from_outside_do_not_end_the_tunnel`]: that window, whose half is the budget of
//!    small frames, and [`MergedBody`](natsway_tunnel::body::MergedBody), which joins them.
//! 3. [`empty_frames_do_not_end_the_tunnel`]: `MergedBody`, which drops them.
//! 4. [`bodies_that_were_dropped_with_their_last_byte_do_not_end_the_tunnel`]: the end of a stream
//!    with its last byte, [`DrainedBody`](natsway_tunnel::body::DrainedBody), the limits of local
//!    resets, and how long resets are remembered.
//! 5. [`a_burst_of_cancels_does_not_end_the_tunnel`]: the limit of resets that wait.

use std::future::Future;
use std::pin::pin;
use std::time::Instant;

use futures_util::future::join_all;
use futures_util::poll;
use http_body_util::BodyExt;

use crate::ends::Cure::{Draining, LocalResets, Merging, PendingResets, ResetMemory, Window};
use crate::ends::{Cure, Ends, Gateway, PATIENCE, STUCK, chunks, empty};

/// What becomes of the tunnel without some of the cures.
enum Without {
    /// It ends or stands still.
    Dies(&'static [Cure]),
    /// It lives, for this reason.
    Lives(&'static [Cure], &'static str),
}

use Without::{Dies, Lives};

/// One attack: whose ends, and what is expected of them.
#[derive(Clone, Copy)]
struct Trial {
    ends: Ends,
    dies: bool,
}

impl Trial {
    /// Watches a tunnel for so long that the harm shows: until it does where it is expected, be the
    /// machine as slow as it likes.
    async fn watch(self, gateway: &mut Gateway) -> Result<(), String> {
        let until = Instant::now() + if self.dies { PATIENCE } else { STUCK };
        while Instant::now() < until {
            tokio::time::sleep(STUCK / 20).await;
            self.answers(gateway).await?;
        }
        Ok(())
    }

    /// Whether the tunnel is not stuck.
    async fn answers(self, gateway: &mut Gateway) -> Result<(), String> {
        self.in_time(gateway.answers()).await?
    }

    async fn in_time<T>(self, what: impl Future<Output = T>) -> Result<T, String> {
        let patience = if self.dies { STUCK } else { PATIENCE };
        tokio::time::timeout(patience, what).await.map_err(|_| "stuck".to_owned())
    }
}

/// Asserts that the harm is done by default and not by ours, and what comes of ours without some
/// of the cures.
async fn try_all<F: Future<Output = Result<(), String>>>(
    attack: impl Fn(Trial) -> F,
    cases: &[Without],
) {
    let by_default = attack(Trial { ends: Ends::Defaults, dies: true }).await;
    assert!(by_default.is_err(), "the attack does nothing, so it shows nothing");
    let ours = attack(Trial { ends: Ends::Ours, dies: false }).await;
    assert_eq!(ours, Ok(()), "by default: {by_default:?}");
    let judged = cases.iter().map(|case| async {
        match case {
            Dies(missing) => {
                let ended = attack(Trial { ends: Ends::Without(missing), dies: true }).await;
                assert!(ended.is_err(), "without {missing:?} it lives");
            }
            Lives(missing, why) => {
                let ended = attack(Trial { ends: Ends::Without(missing), dies: false }).await;
                assert_eq!(ended, Ok(()), "without {missing:?}, although {why}");
            }
        }
    });
    join_all(judged).await;
}

/// That what the tests set is what ours are.
const ALL: Without = Lives(&[], "nothing is missing");

#[tokio::test]
async fn stalled_readers_do_not_take_the_connections_window() {
    let attack = |trial: Trial| async move {
        let (mut gateway, _leaving) = trial.ends.connect().await;
        let mut stalled = Vec::new();
        for _ in 0..40 {
            stalled.push(trial.in_time(gateway.open("/large", empty())).await??);
        }
        trial.answers(&mut gateway).await
    };
    try_all(attack, &[ALL, Dies(&[Window])]).await;
}

/// Of either cure of small frames.
const NOT_BY_WINDOW: Without =
    Lives(&[Window], "frames are joined, and no budget is used up by so few");
const NOT_BY_FRAMES: Without =
    Lives(&[Merging], "the budget is 1 GiB, more than streams' windows cost; memory they do cost");

#[tokio::test]
async fn tiny_frames_that_nobody_reads_do_not_end_the_tunnel() {
    let attack = |trial: Trial| async move {
        let (mut gateway, _leaving) = trial.ends.connect().await;
        let unread = gateway.open("/tiny-chunks", empty()).await?;
        trial.watch(&mut gateway).await?;
        drop(unread);
        Ok(())
    };
    try_all(attack, &[ALL, NOT_BY_WINDOW, NOT_BY_FRAMES, Dies(&[Window, Merging])]).await;
}

#[tokio::test]
async fn tiny_frames_from_outside_do_not_end_the_tunnel() {
    let attack = |trial: Trial| async move {
        let (mut gateway, _leaving) = trial.ends.connect().await;
        let mut posting = gateway.clone();
        let posted = posting.open("/unread", chunks(1_000_000, b"x"));
        tokio::select! {
            ended = posted => ended.map(drop),
            answers = trial.watch(&mut gateway) => answers,
        }
    };
    try_all(attack, &[ALL, NOT_BY_WINDOW, NOT_BY_FRAMES, Dies(&[Window, Merging])]).await;
}

#[tokio::test]
async fn empty_frames_do_not_end_the_tunnel() {
    let attack = |trial: Trial| async move {
        let (mut gateway, _leaving) = trial.ends.connect().await;
        let opened = gateway.open("/empty-chunks", empty()).await?;
        let body = opened.body.collect().await.map_err(|error| error.to_string())?;
        assert!(body.to_bytes().is_empty());
        trial.answers(&mut gateway).await
    };
    try_all(attack, &[ALL, Dies(&[Merging])]).await;
}

#[tokio::test]
async fn bodies_that_were_dropped_with_their_last_byte_do_not_end_the_tunnel() {
    let attack = |path: &'static str| {
        move |trial: Trial| async move {
            // So far that the end is on its way when the body is dropped.
            let (mut gateway, _leaving) = trial.ends.connect_far().await;
            for _ in 0..30 {
                // As HTTP/1 does: what has its length is dropped, whether its end has come or not.
                let read =
                    std::iter::repeat_n(gateway.clone(), 100).map(|mut gateway| async move {
                        let mut opened = gateway.open(path, empty()).await?;
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
            trial.answers(&mut gateway).await
        }
    };
    // Each of these cures is enough, so no one alone is missed.
    let others = "the other cures do";
    let cases = [
        ALL,
        Lives(&[Merging], others),
        Lives(&[Draining], others),
        Lives(&[LocalResets, ResetMemory], others),
        Dies(&[Merging, Draining, LocalResets, ResetMemory]),
    ];
    try_all(attack("/late-end"), &cases).await;
    // The end behind trailers cannot come with the last byte.
    let cases = [
        Lives(&[Draining], "late frames of what is remembered are passed over, and without limit"),
        Lives(&[LocalResets, ResetMemory], "the end is awaited"),
        Lives(&[Draining, LocalResets], "late frames of what is remembered do not count"),
        Lives(&[Draining, ResetMemory], "they count, and there is no limit"),
        Dies(&[Draining, LocalResets, ResetMemory]),
    ];
    try_all(attack("/late-trailers"), &cases).await;
}

#[tokio::test]
async fn a_burst_of_cancels_does_not_end_the_tunnel() {
    let attack = |trial: Trial| async move {
        // The worker begins to read after the burst was written, as it does when it was busy.
        let (near, far) = tokio::io::duplex(4 << 20);
        let mut gateway = trial.ends.gateway(near).await;
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
        let _leaving = trial.ends.serve(far);
        trial.answers(&mut gateway).await
    };
    try_all(attack, &[ALL, Dies(&[PendingResets])]).await;
}

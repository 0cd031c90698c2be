use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;
use crate::small_frames::{SMALL_BURST, SMALL_INTERVAL};

/// A body made of steps: what each poll of it gives.
#[derive(Clone, Debug)]
enum Step {
    Data(usize),
    /// Nothing yet; the next poll goes on.
    Pending,
    Trailers,
}

struct Scripted {
    steps: VecDeque<Step>,
    next_byte: u8,
}

impl Scripted {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), next_byte: 0 }
    }
}

impl Body for Scripted {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.steps.pop_front() {
            None => Poll::Ready(None),
            Some(Step::Pending) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Some(Step::Trailers) => {
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
                Poll::Ready(Some(Ok(Frame::trailers(trailers))))
            }
            Some(Step::Data(bytes)) => {
                let first = self.next_byte;
                self.next_byte = first.wrapping_add(bytes as u8);
                let data: Vec<u8> = (0..bytes).map(|at| first.wrapping_add(at as u8)).collect();
                Poll::Ready(Some(Ok(Frame::data(data.into()))))
            }
        }
    }
}

/// What came out of a body.
#[derive(Debug, Default)]
struct Taken {
    frames: Vec<usize>,
    bytes: Vec<u8>,
    trailers: usize,
    error: Option<String>,
    ended_with_last_byte: bool,
}

async fn take_all<B>(mut body: MergedBody<B>) -> Taken
where
    B: Body<Data = Bytes, Error: std::fmt::Debug + Unpin> + Unpin,
{
    let mut taken = Taken::default();
    while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        match frame.map(Frame::into_data) {
            Ok(Ok(data)) => {
                taken.frames.push(data.len());
                taken.bytes.extend_from_slice(&data);
                taken.ended_with_last_byte = body.is_end_stream();
            }
            Ok(Err(_)) => taken.trailers += 1,
            Err(error) => taken.error = Some(error.to_string()),
        }
    }
    taken
}

fn counted(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| at as u8).collect()
}

#[tokio::test(start_paused = true)]
async fn ready_frames_leave_as_one() {
    let taken = take_all(MergedBody::new(Scripted::new(vec![Step::Data(10); 100]))).await;
    assert_eq!(taken.frames, [1_000]);
    assert_eq!(taken.bytes, counted(1_000));
}

#[tokio::test(start_paused = true)]
async fn a_flushed_chunk_does_not_wait_for_the_next() {
    let steps = [Step::Data(3), Step::Pending, Step::Data(4), Step::Pending, Step::Data(5)];
    let begun = Instant::now();
    let taken = take_all(MergedBody::new(Scripted::new(steps))).await;
    assert_eq!(taken.frames, [3, 4, 5]);
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_small_frames_is_slowed_to_its_pace() {
    let steps = (0..10_000).flat_map(|_| [Step::Data(1), Step::Pending]);
    let begun = Instant::now();
    let taken = take_all(MergedBody::new(Scripted::new(steps))).await;
    assert_eq!(taken.bytes, counted(10_000));
    let paid = begun.elapsed().as_millis() as usize / SMALL_INTERVAL.as_millis() as usize;
    let most = SMALL_BURST as usize + paid + taken.bytes.len() / SMALL_BYTES + 1;
    assert!(taken.frames.len() <= most, "{} frames, at most {most}", taken.frames.len());
}

#[tokio::test(start_paused = true)]
async fn empty_frames_never_leave() {
    let steps = (0..2_000).map(|at| if at % 500 == 0 { Step::Data(9) } else { Step::Data(0) });
    let taken = take_all(MergedBody::new(Scripted::new(steps))).await;
    assert!(taken.frames.iter().all(|bytes| *bytes > 0), "{:?}", taken.frames);
    assert_eq!(taken.bytes.len(), 4 * 9);
}

#[tokio::test(start_paused = true)]
async fn the_last_byte_of_a_known_length_carries_the_end() {
    let body = MergedBody::with_length(Scripted::new([Step::Data(9_000)]), Some(9_000), false);
    assert!(take_all(body).await.ended_with_last_byte);
    let body = MergedBody::with_length(Scripted::new([Step::Data(9)]), Some(9), false);
    assert!(take_all(body).await.ended_with_last_byte);
}

#[tokio::test(start_paused = true)]
async fn trailers_that_were_announced_are_not_cut_off_by_the_length() {
    let steps = [Step::Data(9), Step::Trailers];
    let taken = take_all(MergedBody::with_length(Scripted::new(steps), Some(9), true)).await;
    assert_eq!((taken.frames.as_slice(), taken.trailers), ([9].as_slice(), 1));
    assert!(!taken.ended_with_last_byte);
}

#[tokio::test(start_paused = true)]
async fn a_body_of_another_length_than_declared_fails() {
    let short = MergedBody::with_length(Scripted::new([Step::Data(5)]), Some(9), false);
    let taken = take_all(short).await;
    assert_eq!(taken.error.unwrap(), "the body ended 4 bytes before its declared length");
    let long =
        MergedBody::with_length(Scripted::new([Step::Data(5), Step::Data(5)]), Some(9), true);
    let taken = take_all(long).await;
    assert_eq!(taken.error.unwrap(), "the body is longer than its declared length");
    let trailers = [Step::Data(5), Step::Trailers];
    let taken = take_all(MergedBody::with_length(Scripted::new(trailers), Some(9), true)).await;
    assert_eq!((taken.trailers, taken.error.is_some()), (0, true));
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_usize..300).prop_map(Step::Data),
        1 => (0_usize..40_000).prop_map(Step::Data),
        2 => Just(Step::Pending),
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    /// Whatever a body is made of, its bytes come out whole and in order, and no frame is empty.
    #[test]
    fn no_byte_is_lost_doubled_or_moved(mut steps in steps(), ends_with_trailers: bool) {
        let bytes = steps.iter().map(|step| match step { Step::Data(bytes) => *bytes, _ => 0 }).sum();
        if ends_with_trailers {
            steps.push(Step::Trailers);
        }
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time().start_paused(true).build().unwrap();
        for length in [None, Some(bytes as u64)] {
            let body = Scripted::new(steps.clone());
            let body = MergedBody::with_length(body, length, ends_with_trailers);
            let taken = runtime.block_on(take_all(body));
            prop_assert_eq!(&taken.bytes, &counted(bytes));
            prop_assert_eq!(taken.trailers, usize::from(ends_with_trailers));
            prop_assert!(taken.error.is_none());
            prop_assert!(taken.frames.iter().all(|bytes| *bytes > 0));
        }
    }
}

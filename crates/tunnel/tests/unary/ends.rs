//! What each end makes of a frame, in order and out of it.

use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use natsway_tunnel::unary::{
    ControlAnswer, Fate, GatewayEnd, GatewayHeard, PINGS_MISSED, TICK, UNSENT_BYTES, Unsendable,
    Violation, WorkerEnd, WorkerHeard,
};
use natsway_wire::frame::{Frame, FrameKind, FrameQueue, FrameReader, Hello};

const MOST: u32 = 1 << 20;
const MS: u64 = 1_000_000;

type Gateway = GatewayEnd<u32>;

fn hello() -> Hello {
    Hello { name: "k3v9".to_owned(), requests: 8, payload_bytes: MOST, heard_ms: 0 }
}

fn frame(kind: FrameKind, key: u64) -> Frame {
    Frame { kind, detail: 0, key, payload: Bytes::new() }
}

/// Takes what is to be written.
fn written(queue: &mut FrameQueue) -> Vec<Frame> {
    let mut reader = FrameReader::new(2 * MOST as usize);
    while queue.has_remaining() {
        let bytes = queue.chunk().len();
        reader.buffer().put_slice(queue.chunk());
        queue.advance(bytes);
    }
    std::iter::from_fn(|| reader.next_frame().unwrap()).collect()
}

/// Two ends that have said hello.
fn opened() -> (Gateway, WorkerEnd) {
    let (mut gateway, mut worker) =
        (Gateway::new("Q7Fz".to_owned(), MOST), WorkerEnd::new(&hello(), MS));
    assert_eq!(gateway.send(0, &Bytes::new(), 1), Err(Unsendable::NotOpen));
    let mut said = written(worker.out());
    assert_eq!(gateway.hear(said.remove(0), 7).unwrap(), GatewayHeard::Opened);
    let mut answered = written(gateway.out());
    assert_eq!(worker.hear(answered.remove(0), MS + 1, 0).unwrap(), WorkerHeard::Opened);
    assert_eq!((gateway.worker(), worker.gateway().unwrap().heard_ms), (Some(&hello()), MS));
    assert!(gateway.is_usable());
    (gateway, worker)
}

/// Lets the worker hear all that the gateway wrote; returns the requests.
fn taken(gateway: &mut Gateway, worker: &mut WorkerEnd) -> Vec<WorkerHeard> {
    let heard = written(gateway.out()).into_iter();
    heard.map(|frame| worker.hear(frame, MS + 1, 0).unwrap()).collect()
}

#[test]
fn a_request_is_answered_once() {
    let (mut gateway, mut worker) = opened();
    let key = gateway.send(3, &Bytes::from_static(b"one"), 41).unwrap();
    let other = gateway.send(0, &Bytes::from_static(b"two"), 42).unwrap();
    assert_ne!(key, other);
    let mut requests = taken(&mut gateway, &mut worker);
    let WorkerHeard::Request(second, 0, _) = requests.remove(1) else { panic!("{requests:?}") };
    let WorkerHeard::Request(first, 3, payload) = requests.remove(0) else { panic!("a request") };
    assert_eq!((&payload[..], worker.held()), (&b"one"[..], 2));
    assert!(worker.answer(first, &Bytes::from_static(b"1"), 9));
    worker.drop_request(second);
    let reply = written(worker.out()).remove(0);
    let heard = gateway.hear(reply.clone(), 7).unwrap();
    assert_eq!(heard, GatewayHeard::Reply(41, Bytes::from_static(b"1")));
    assert_eq!((gateway.in_hand(), gateway.in_flight(), worker.held()), (9, 1, 0));
    assert_eq!(gateway.hear(reply, 7).unwrap(), GatewayHeard::Late);
}

#[test]
fn what_was_cancelled_is_told_and_not_waited_for() {
    let (mut gateway, mut worker) = opened();
    let key = gateway.send(0, &Bytes::new(), 1).unwrap();
    let WorkerHeard::Request(request, ..) = taken(&mut gateway, &mut worker).remove(0) else {
        panic!("a request")
    };
    gateway.cancel(key);
    gateway.cancel(key);
    let heard = taken(&mut gateway, &mut worker);
    assert_eq!(heard, [WorkerHeard::Cancel(request.key())]);
    assert!(worker.answer(request, &Bytes::new(), 0));
    let reply = written(worker.out()).remove(0);
    assert_eq!(gateway.hear(reply, 7).unwrap(), GatewayHeard::Late);
    // Another has its place, and is not answered by that.
    gateway.send(0, &Bytes::new(), 2).unwrap();
    gateway.cancel(key);
    assert_eq!(gateway.in_flight(), 1);
}

#[test]
fn what_was_not_written_to_its_last_byte_never_ran() {
    let (mut gateway, _) = opened();
    let payload = Bytes::from(vec![7; 100]);
    for waiter in 1..=3 {
        gateway.send(0, &payload, waiter).unwrap();
    }
    // The second one but for its last byte.
    gateway.out().advance(2 * 116 - 1);
    let (unknown, never_ran) = (Fate::Unknown, Fate::NeverRan);
    assert_eq!(gateway.lost(), [(1, unknown), (2, never_ran), (3, never_ran)]);
    assert!(gateway.has_ended() && gateway.in_flight() == 0);
    assert_eq!(gateway.send(0, &payload, 4), Err(Unsendable::NotOpen));
}

#[test]
fn a_goodbye_says_what_never_ran() {
    let (mut gateway, mut worker) = opened();
    for waiter in 1..=3 {
        gateway.send(0, &Bytes::new(), waiter).unwrap();
    }
    let frames = written(gateway.out());
    for frame in frames.into_iter().take(2) {
        let WorkerHeard::Request(request, ..) = worker.hear(frame, MS, 0).unwrap() else {
            panic!("a request")
        };
        worker.drop_request(request);
    }
    worker.goodbye();
    worker.goodbye();
    let mut said = written(worker.out());
    assert_eq!(said.len(), 1);
    let left = [(1, Fate::Unknown), (2, Fate::Unknown), (3, Fate::NeverRan)];
    assert_eq!(gateway.hear(said.remove(0), 7).unwrap(), GatewayHeard::Left(left.to_vec()));
    assert_eq!(gateway.hear(frame(FrameKind::Ping, 0), 7), Err(Violation::OutOfPlace));
    // What comes after it is not heard, and nothing is said any more.
    assert_eq!(worker.hear(frame(FrameKind::Ping, 1), MS, 0).unwrap(), WorkerHeard::Nothing);
    assert!(!worker.out().has_remaining());
}

#[test]
fn who_drains_answers_what_it_has_and_leaves_when_the_other_has_stopped() {
    let (mut gateway, mut worker) = opened();
    gateway.send(0, &Bytes::new(), 1).unwrap();
    worker.drain();
    worker.drain();
    let mut said = written(worker.out());
    assert_eq!((said.len(), worker.may_leave()), (1, false));
    assert_eq!(gateway.hear(said.remove(0), 7).unwrap(), GatewayHeard::Draining);
    assert!(!gateway.is_usable());
    assert_eq!(gateway.send(0, &Bytes::new(), 2), Err(Unsendable::NotOpen));
    let mut heard = taken(&mut gateway, &mut worker);
    assert_eq!(heard.pop(), Some(WorkerHeard::Drained));
    let WorkerHeard::Request(request, ..) = heard.remove(0) else { panic!("{heard:?}") };
    assert!(!worker.may_leave());
    assert!(worker.answer(request, &Bytes::new(), 0));
    assert!(worker.may_leave());
    worker.goodbye();
    let mut said = written(worker.out());
    let goodbye = said.pop().unwrap();
    assert!(matches!(gateway.hear(said.remove(0), 7), Ok(GatewayHeard::Reply(1, _))));
    assert_eq!(gateway.hear(goodbye, 7).unwrap(), GatewayHeard::Left(Vec::new()));
}

#[test]
fn a_gateway_that_leaves_before_the_hello_is_understood() {
    let (mut gateway, mut worker) =
        (Gateway::new("Q7Fz".to_owned(), MOST), WorkerEnd::new(&hello(), MS));
    gateway.drain();
    let mut said = written(gateway.out());
    assert_eq!(worker.hear(said.remove(0), MS, 0).unwrap(), WorkerHeard::Drained);
    let mut said = written(worker.out());
    assert_eq!(gateway.hear(said.remove(0), 7).unwrap(), GatewayHeard::Opened);
    assert!(!gateway.is_usable() && worker.may_leave());
}

#[test]
fn what_waits_to_be_written_is_bounded() {
    let (mut gateway, _) = opened();
    let too_large = Bytes::from(vec![0; MOST as usize + 1]);
    assert_eq!(gateway.send(0, &too_large, 1), Err(Unsendable::TooLarge));
    // The longest goes if nothing waits.
    gateway.send(0, &too_large.slice(1..), 1).unwrap();
    assert_eq!(gateway.send(0, &Bytes::new(), 2), Err(Unsendable::Full));
    let half = Bytes::from(vec![0; UNSENT_BYTES / 2]);
    written(gateway.out());
    gateway.send(0, &half, 3).unwrap();
    assert_eq!(gateway.send(0, &half, 4), Err(Unsendable::Full));
    assert_eq!(gateway.in_flight(), 2, "what was refused is not out");
    let mut pings = (0..).map(|_| gateway.hear(frame(FrameKind::Ping, 0), 7));
    assert_eq!(pings.find_map(Result::err), Some(Violation::Flood));
}

#[test]
fn who_does_not_keep_to_the_protocol_is_found_out() {
    let reply = |key: u64| frame(FrameKind::Reply, key);
    let (mut gateway, mut worker) = opened();
    gateway.send(0, &Bytes::new(), 1).unwrap();
    assert_eq!(gateway.hear(reply(1 << 32), 7), Err(Violation::Unasked), "it was not written");
    written(gateway.out());
    assert_eq!(gateway.hear(reply(2 << 32), 7), Err(Violation::Unasked));
    assert_eq!(gateway.hear(reply(0), 7), Err(Violation::Unasked));
    assert_eq!(gateway.hear(frame(FrameKind::Goodbye, 2), 7), Err(Violation::Miscounted));
    for kind in [FrameKind::Request, FrameKind::Cancel, FrameKind::Hello] {
        assert_eq!(gateway.hear(frame(kind, 0), 7), Err(Violation::OutOfPlace), "{kind:?}");
    }
    assert_eq!(gateway.hear(frame(FrameKind::Ignorable(0x8000), 0), 7), Ok(GatewayHeard::Nothing));
    for kind in [FrameKind::Reply, FrameKind::Goodbye, FrameKind::Hello] {
        assert_eq!(worker.hear(frame(kind, 0), MS, 0), Err(Violation::OutOfPlace), "{kind:?}");
    }
    worker.hear(frame(FrameKind::Drain, 0), MS, 0).unwrap();
    let late = worker.hear(frame(FrameKind::Request, 1), MS, 0);
    assert_eq!(late, Err(Violation::OutOfPlace), "it said that it sends none");
    let mut new = WorkerEnd::new(&hello(), MS);
    assert_eq!(new.hear(frame(FrameKind::Request, 1), MS, 0), Err(Violation::OutOfPlace));
    let mut new = Gateway::new("Q7Fz".to_owned(), MOST);
    assert_eq!(new.hear(frame(FrameKind::Ping, 1), 7), Err(Violation::OutOfPlace));
    assert_eq!(new.hear(frame(FrameKind::Hello, 1), 7), Err(Violation::Unreadable));
}

/// A worker that does not answer, and the ticks at which it is asked.
struct Silence {
    gateway: Gateway,
    now: Instant,
}

impl Silence {
    fn new() -> Self {
        Self { gateway: opened().0, now: Instant::now() }
    }

    fn until_stalled(&mut self) {
        for _ in 0..=PINGS_MISSED {
            self.tick_after(TICK);
        }
        assert!(self.gateway.is_stalled());
    }

    fn tick_after(&mut self, pause: Duration) -> bool {
        self.now += pause;
        self.gateway.tick(self.now, 7);
        self.gateway.is_stalled()
    }
}

#[test]
fn a_worker_that_misses_three_pings_is_stalled_until_it_says_anything() {
    let mut silence = Silence::new();
    let stalled: Vec<bool> = (0..5).map(|_| silence.tick_after(TICK)).collect();
    assert_eq!(stalled, [false, false, false, true, true]);
    silence.gateway.send(0, &Bytes::new(), 1).unwrap();
    assert!(!silence.gateway.is_usable() && silence.gateway.in_flight() == 1);
    silence.gateway.hear(frame(FrameKind::Ping, 1), 7).unwrap();
    assert!(silence.gateway.is_usable());
}

#[test]
fn a_worker_that_does_not_leave_in_time_gets_no_more_requests_and_is_closed() {
    let (mut gateway, mut worker) = opened();
    let start = Instant::now();
    let tick_at = |gateway: &mut Gateway, seconds| {
        let is_over = gateway.tick(start + Duration::from_secs(seconds), 7);
        // It is there, and answers all pings.
        gateway.hear(frame(FrameKind::Pong, 7), 7).unwrap();
        is_over
    };
    tick_at(&mut gateway, 0);
    assert!(!tick_at(&mut gateway, 300) && gateway.is_usable(), "it has some time more");
    gateway.send(0, &Bytes::new(), 1).unwrap();
    assert!(!tick_at(&mut gateway, 330));
    assert_eq!(gateway.send(0, &Bytes::new(), 2), Err(Unsendable::NotOpen));
    let heard = taken(&mut gateway, &mut worker);
    assert!(heard.contains(&WorkerHeard::Drained), "it is told so: {heard:?}");
    assert!(!tick_at(&mut gateway, 1_000), "what is out is waited for");
    let Some(WorkerHeard::Request(request, ..)) =
        heard.into_iter().find(|heard| matches!(heard, WorkerHeard::Request(..)))
    else {
        panic!("a request")
    };
    assert!(worker.answer(request, &Bytes::new(), 0));
    for said in written(worker.out()) {
        gateway.hear(said, 7).unwrap();
    }
    assert_eq!(gateway.in_flight(), 0);
    assert!(tick_at(&mut gateway, 1_001), "it stays for ever");
}

#[test]
fn a_gateway_that_stood_still_blames_nobody() {
    let mut silence = Silence::new();
    for _ in 0..2 {
        silence.tick_after(TICK);
    }
    for _ in 0..50 {
        assert!(!silence.tick_after(TICK + Duration::from_millis(101)));
    }
    assert!(!silence.tick_after(TICK) && silence.tick_after(TICK), "punctual ones count on");
}

#[test]
fn a_stalled_worker_is_lost_when_its_control_thread_is_silent_too() {
    use ControlAnswer::{Lives, Nobody, Silent};
    let mut silence = Silence::new();
    assert!(!silence.gateway.asked_by_broker(Nobody), "it is not stalled");
    silence.until_stalled();
    for (answer, is_lost) in
        [(Silent, false), (Silent, false), (Lives, false), (Silent, false), (Silent, false)]
    {
        assert_eq!(silence.gateway.asked_by_broker(answer), is_lost);
    }
    assert!(silence.gateway.asked_by_broker(Silent));
    let mut silence = Silence::new();
    silence.until_stalled();
    assert!(silence.gateway.asked_by_broker(Nobody), "at once");
}

#[test]
fn a_worker_asks_for_the_clock_and_gives_up_a_gateway_that_says_nothing() {
    let (_, mut worker) = opened();
    let ticks = (1..).find(|_| worker.tick(MS)).unwrap();
    assert_eq!(ticks, 60);
    let pings = written(worker.out()).len();
    assert_eq!(pings, 1, "an answer is waited for");
    let (mut gateway, mut worker) = opened();
    for round in 0..100 {
        for frame in written(worker.out()) {
            gateway.hear(frame, MS / 2 + round).unwrap();
        }
        gateway.tick(Instant::now(), MS / 2 + round);
        for frame in written(gateway.out()) {
            worker.hear(frame, MS + round, 5).unwrap();
        }
        assert!(!worker.tick(MS + round));
    }
    assert_eq!(gateway.in_hand(), 5);
    assert_eq!(worker.age_ms(MS / 2 + 100, 50, MS + 149), None);
    assert!(worker.age_ms(MS / 2 + 100, 50, MS + 140).is_some());
}

#[test]
fn what_is_older_than_a_lease_does_not_run_whatever_its_deadline() {
    let (_, mut worker) = opened();
    assert!(worker.age_ms(7 + 1_000, 3_600_000, MS + 10_900).is_some());
    assert_eq!(worker.age_ms(7 + 1_000, 3_600_000, MS + 11_010), None);
    // From the future: the clock was moved, and is asked for at once.
    assert_eq!(worker.age_ms(7 + 1_000, 3_600_000, MS + 900), None);
    assert_eq!(written(worker.out()).pop().map(|frame| frame.kind), Some(FrameKind::Ping));
}

#[test]
fn without_a_lease_no_request_is_written() {
    let (mut gateway, _) = opened();
    gateway.tick(Instant::now(), 7);
    assert!(gateway.may_write(false), "a ping harms nobody");
    gateway.send(0, &Bytes::from_static(b"x"), 1).unwrap();
    assert!(gateway.may_write(true) && !gateway.may_write(false));
    written(gateway.out());
    gateway.tick(Instant::now(), 7);
    assert!(gateway.may_write(false));
}

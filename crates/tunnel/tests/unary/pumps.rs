//! Two ends on one connection, each moved by its task.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use natsway_tunnel::tls::{Acceptor, connect};
use natsway_tunnel::unary::{
    Fate, GatewayEnd, GatewayHeard, PumpError, TunnelEnd, Violation, WorkerEnd, WorkerHeard, pump,
};
use natsway_wire::frame::{Frame, FrameKind, FrameQueue, Hello};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

const MOST: u32 = 1 << 20;

struct Gateway {
    end: RefCell<GatewayEnd<u32>>,
    answered: RefCell<Vec<(u32, Bytes)>>,
    fates: RefCell<Vec<(u32, Fate)>>,
    waker: RefCell<Option<Waker>>,
    has_lease: Cell<bool>,
    /// How often what waits was looked at and something was there.
    writes: Cell<u32>,
}

struct Worker {
    end: RefCell<WorkerEnd>,
    waker: RefCell<Option<Waker>>,
    is_given_up: Cell<bool>,
}

impl Gateway {
    fn new() -> Self {
        Self {
            end: RefCell::new(GatewayEnd::new("Q7Fz".to_owned(), MOST)),
            answered: RefCell::default(),
            fates: RefCell::default(),
            waker: RefCell::default(),
            has_lease: Cell::new(true),
            writes: Cell::new(0),
        }
    }

    fn send(&self, payload: &Bytes, waiter: u32) {
        self.end.borrow_mut().send(0, payload, waiter).unwrap();
        self.wake();
    }

    fn wake(&self) {
        self.waker.take().inspect(Waker::wake_by_ref);
    }
}

impl TunnelEnd for Gateway {
    fn hear(&self, frame: Frame) -> Result<(), Violation> {
        match self.end.borrow_mut().hear(frame, 7)? {
            GatewayHeard::Reply(waiter, payload) => {
                self.answered.borrow_mut().push((waiter, payload));
            }
            GatewayHeard::Left(fates) => self.fates.borrow_mut().extend(fates),
            _ => {}
        }
        Ok(())
    }

    fn tick(&self) -> ControlFlow<()> {
        self.end.borrow_mut().tick(Instant::now(), 7);
        ControlFlow::Continue(())
    }

    fn with_out<R>(&self, waker: &Waker, write: impl FnOnce(&mut FrameQueue) -> R) -> R {
        *self.waker.borrow_mut() = Some(waker.clone());
        write(self.end.borrow_mut().out())
    }

    fn may_write(&self) -> bool {
        self.writes.set(self.writes.get() + 1);
        self.end.borrow().may_write(self.has_lease.get())
    }

    fn expects_more(&self) -> bool {
        self.end.borrow().in_flight() > 1
    }

    fn has_left(&self) -> bool {
        false
    }

    fn is_left(&self) -> bool {
        self.end.borrow().has_ended()
    }
}

impl Worker {
    fn new() -> Self {
        let hello =
            Hello { name: "k3v9".to_owned(), requests: 8, payload_bytes: MOST, heard_ms: 0 };
        let end = RefCell::new(WorkerEnd::new(&hello, 1_000));
        Self { end, waker: RefCell::default(), is_given_up: Cell::new(false) }
    }

    fn change(&self, change: impl FnOnce(&mut WorkerEnd)) {
        change(&mut self.end.borrow_mut());
        self.waker.take().inspect(Waker::wake_by_ref);
    }
}

/// Answers each request by itself, at once.
impl TunnelEnd for Worker {
    fn hear(&self, frame: Frame) -> Result<(), Violation> {
        let mut end = self.end.borrow_mut();
        match end.hear(frame, 1_000, 0)? {
            WorkerHeard::Request(taken, 0, payload) if payload.starts_with(b"never") => {
                end.drop_request(taken);
            }
            WorkerHeard::Request(taken, 0, payload) => {
                end.answer(taken, &payload, 0);
            }
            _ => {}
        }
        if end.may_leave() {
            end.goodbye();
        }
        Ok(())
    }

    fn tick(&self) -> ControlFlow<()> {
        match self.is_given_up.get() || self.end.borrow_mut().tick(1_000) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn with_out<R>(&self, waker: &Waker, write: impl FnOnce(&mut FrameQueue) -> R) -> R {
        *self.waker.borrow_mut() = Some(waker.clone());
        write(self.end.borrow_mut().out())
    }

    fn may_write(&self) -> bool {
        true
    }

    fn expects_more(&self) -> bool {
        self.end.borrow().held() > 1
    }

    fn has_left(&self) -> bool {
        self.end.borrow().has_left()
    }

    fn is_left(&self) -> bool {
        false
    }
}

/// Waits until something is so.
async fn until(is_so: impl Fn() -> bool) {
    let reached = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reached).await.expect("it is so in time");
}

#[tokio::test]
async fn requests_of_any_length_are_answered_over_tls_and_all_is_left_in_order() {
    let acceptor = Acceptor::generate().unwrap();
    // Less than a frame, so that writes are cut short.
    let (near, far) = duplex(5_000);
    let (near, far) = tokio::join!(acceptor.accept(near), connect(far, acceptor.hash()));
    let (gateway, worker) = (Gateway::new(), Worker::new());
    let most = MOST as usize;
    let play = async {
        until(|| gateway.end.borrow().is_usable()).await;
        let payload = |number: u32| Bytes::from(vec![number as u8; number as usize * 997]);
        for number in 0..100 {
            gateway.send(&payload(number), number);
            if number % 9 == 0 {
                until(|| gateway.end.borrow().in_flight() < 4).await;
            }
        }
        until(|| gateway.answered.borrow().len() == 100).await;
        for (number, answer) in gateway.answered.borrow().iter() {
            assert_eq!(*answer, payload(*number));
        }
        worker.change(WorkerEnd::drain);
    };
    let pumps = async {
        tokio::join!(pump(near.unwrap(), &gateway, most), pump(far.unwrap(), &worker, most))
    };
    let ((by_gateway, by_worker), ()) = tokio::join!(pumps, play);
    by_gateway.unwrap();
    by_worker.unwrap();
    assert!(gateway.fates.borrow().is_empty() && gateway.end.borrow().has_ended());
}

#[tokio::test]
async fn requests_that_are_sent_in_one_turn_are_written_at_once() {
    let (near, mut far) = duplex(1 << 20);
    let (gateway, worker) = (Gateway::new(), Worker::new());
    let play = async {
        let mut hello = Vec::new();
        worker.change(|end| {
            let out = end.out();
            hello.resize(bytes::Buf::remaining(out), 0);
            bytes::Buf::copy_to_slice(out, &mut hello);
        });
        far.write_all(&hello).await.unwrap();
        until(|| gateway.end.borrow().is_usable()).await;
        gateway.writes.set(0);
        let senders = (0..50).map(|number| {
            let gateway = &gateway;
            async move {
                tokio::task::yield_now().await;
                gateway.send(&Bytes::from_static(b"x"), number);
            }
        });
        futures_util::future::join_all(senders).await;
        let mut heard = [0; 50 * 17 + 42];
        far.read_exact(&mut heard).await.unwrap();
        // Each write is looked at before and after, and a tick may come in between.
        assert!(gateway.writes.get() <= 8, "{} looks", gateway.writes.get());
    };
    tokio::select! {
        ended = pump(near, &gateway, MOST as usize) => panic!("{ended:?}"),
        () = play => {}
    }
}

/// A gateway whose pump runs until the peer's `play` ends the connection.
async fn ends_by(gateway: &Gateway, play: impl AsyncFnOnce(DuplexStream)) -> Result<(), PumpError> {
    let (near, far) = duplex(1 << 16);
    tokio::join!(pump(near, gateway, MOST as usize), play(far)).0
}

fn frame_bytes(kind: FrameKind, key: u64) -> Vec<u8> {
    let mut queue = FrameQueue::default();
    queue.put_empty(kind, 0, key);
    bytes::Buf::copy_to_bytes(&mut queue, 16).to_vec()
}

async fn say_hello(far: &mut DuplexStream) {
    let worker = Worker::new();
    let out = bytes::Buf::copy_to_bytes(worker.end.borrow_mut().out(), 42);
    far.write_all(&out).await.unwrap();
}

#[tokio::test]
async fn what_was_cut_in_the_middle_of_a_frame_is_told_by_what_was_written() {
    let gateway = Gateway::new();
    let ended = ends_by(&gateway, async |mut far| {
        say_hello(&mut far).await;
        until(|| gateway.end.borrow().is_usable()).await;
        gateway.send(&Bytes::from_static(b"whole"), 1);
        // More than the connection takes while nobody reads.
        gateway.send(&Bytes::from(vec![7; 100_000]), 2);
        let mut some = [0; 70];
        far.read_exact(&mut some).await.unwrap();
        // Half of a frame.
        far.write_all(&frame_bytes(FrameKind::Ping, 1)[..9]).await.unwrap();
    })
    .await;
    // The peer's end is closed both ways.
    assert!(matches!(ended, Ok(()) | Err(PumpError::Broken(_))), "{ended:?}");
    let fates = gateway.end.borrow_mut().lost();
    assert_eq!(fates, [(1, Fate::Unknown), (2, Fate::NeverRan)]);
}

#[tokio::test]
async fn who_does_not_keep_to_the_protocol_is_not_listened_to() {
    let gateway = Gateway::new();
    let ended = ends_by(&gateway, async |mut far| {
        far.write_all(&frame_bytes(FrameKind::Pong, 0)).await.unwrap();
        far.write_all(&frame_bytes(FrameKind::Ping, 0)).await.unwrap();
    });
    let ended = ended.await;
    assert!(matches!(ended, Err(PumpError::Violated(Violation::Unreadable))), "{ended:?}");
}

#[tokio::test]
async fn without_a_lease_what_waits_is_not_written() {
    let gateway = Gateway::new();
    let mut heard = Vec::new();
    let ended = ends_by(&gateway, async |mut far| {
        say_hello(&mut far).await;
        until(|| gateway.end.borrow().is_usable()).await;
        gateway.has_lease.set(false);
        gateway.send(&Bytes::from_static(b"stale"), 1);
        far.read_to_end(&mut heard).await.unwrap();
    });
    let ended = ended.await;
    assert!(matches!(ended, Err(PumpError::NotAllowed)), "{ended:?}");
    assert_eq!(gateway.end.borrow_mut().lost(), [(1, Fate::NeverRan)]);
    assert!(!heard.windows(5).any(|bytes| bytes == b"stale"));
}

#[tokio::test(start_paused = true)]
async fn an_end_that_is_given_up_closes_its_connection() {
    let worker = Worker::new();
    worker.is_given_up.set(true);
    let (near, mut far) = duplex(1 << 10);
    let ended = pump(near, &worker, MOST as usize).await;
    assert!(matches!(ended, Err(PumpError::GivenUp)), "{ended:?}");
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_close_after_the_goodbye_is_not_waited_for() {
    let worker = Worker::new();
    worker.change(WorkerEnd::goodbye);
    let (near, mut far) = duplex(1 << 10);
    let begun = tokio::time::Instant::now();
    pump(near, &worker, MOST as usize).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(2));
    let mut said = Vec::new();
    far.read_to_end(&mut said).await.unwrap();
    assert!(said.ends_with(&frame_bytes(FrameKind::Goodbye, 0)));
}

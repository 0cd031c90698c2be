//! Gateways and workers over tunnels that lose, hold up and break off at any byte, with a broker
//! beside them that holds messages up as well.
//!
//! Every request is one that must not run twice. Whatever happens: none runs twice, none begins
//! after its client was told that its time is over, none goes elsewhere that may have run, none
//! runs that was sent by routes from before a lapsed lease, and in the end nothing is held.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use natsway_tunnel::unary::{
    Fate, GatewayEnd, GatewayHeard, RequestKey, TICK, Taken, WorkerEnd, WorkerHeard,
};
use natsway_wire::frame::{FrameReader, Hello, LEASE};
use proptest::prelude::*;

const MOST: u32 = 1 << 20;
const EXPIRED: &[u8] = b"expired";

/// What a client was told, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Answered,
    NeverRan,
    Unknown,
    TimedOut { at_ms: u64 },
}

struct Request {
    sent_ms: u64,
    deadline_ms: u64,
    /// The tunnel that it is out on.
    on: Option<(usize, RequestKey)>,
    attempts: u32,
    ran: u32,
    told: Option<Told>,
}

struct Tunnel {
    gateway: GatewayEnd<usize>,
    worker: WorkerEnd,
    /// What the network and both kernels hold.
    to_worker: VecDeque<u8>,
    to_gateway: VecDeque<u8>,
    worker_reads: FrameReader,
    gateway_reads: FrameReader,
    /// Requests that its worker runs.
    running: Vec<(Taken, usize)>,
    /// The connection is gone at this end.
    gateway_is_cut: bool,
    worker_is_cut: bool,
    /// How far the worker's clock is ahead of the gateway's.
    worker_ahead_ms: u64,
}

struct World {
    start: Instant,
    now_ms: u64,
    tunnels: Vec<Tunnel>,
    requests: Vec<Request>,
    /// Requests that the broker holds.
    at_broker: VecDeque<usize>,
    /// When the gateway last heard that its routes are the newest.
    confirmed_ms: u64,
    /// Until when that was, at the last request.
    written_by_ms: u64,
}

#[derive(Clone, Debug)]
enum Step {
    Send {
        body_bytes: usize,
        deadline_ms: u64,
    },
    /// An end hands so many bytes to its kernel.
    Write {
        tunnel: usize,
        to_worker: bool,
        bytes: usize,
    },
    /// So many bytes arrive.
    Arrive {
        tunnel: usize,
        to_worker: bool,
        bytes: usize,
    },
    Finish {
        tunnel: usize,
    },
    ClientLeaves {
        request: usize,
    },
    Broker {
        loses: bool,
    },
    /// The gateway finds its connection gone. What is under way may still arrive.
    Cut {
        tunnel: usize,
        loses: bool,
    },
    Drain {
        tunnel: usize,
        by_gateway: bool,
    },
    /// A worker whose time is over.
    Leave {
        tunnel: usize,
    },
    Dial {
        ahead_ms: u64,
    },
    Pass {
        ms: u64,
    },
    /// The clock of a worker is moved ahead.
    Jump {
        tunnel: usize,
        ms: u64,
    },
    Confirm,
}

fn step() -> impl Strategy<Value = Step> {
    let tunnel = 0..4_usize;
    prop_oneof![
        8 => (
            prop_oneof![3 => 0..40_usize, 1 => 0..30_000_usize],
            prop_oneof![Just(700_u64), Just(4_000), Just(60_000)],
        )
            .prop_map(|(body_bytes, deadline_ms)| Step::Send { body_bytes, deadline_ms }),
        8 => (tunnel.clone(), any::<bool>(), prop_oneof![1..200_usize, Just(100_000)])
            .prop_map(|(tunnel, to_worker, bytes)| Step::Write { tunnel, to_worker, bytes }),
        8 => (tunnel.clone(), any::<bool>(), prop_oneof![1..100_usize, Just(100_000)])
            .prop_map(|(tunnel, to_worker, bytes)| Step::Arrive { tunnel, to_worker, bytes }),
        4 => tunnel.clone().prop_map(|tunnel| Step::Finish { tunnel }),
        1 => (0..40_usize).prop_map(|request| Step::ClientLeaves { request }),
        3 => any::<bool>().prop_map(|loses| Step::Broker { loses }),
        1 => (tunnel.clone(), any::<bool>())
            .prop_map(|(tunnel, loses)| Step::Cut { tunnel, loses }),
        1 => (tunnel.clone(), any::<bool>())
            .prop_map(|(tunnel, by_gateway)| Step::Drain { tunnel, by_gateway }),
        1 => tunnel.clone().prop_map(|tunnel| Step::Leave { tunnel }),
        2 => (0..100_000_u64).prop_map(|ahead_ms| Step::Dial { ahead_ms }),
        2 => prop_oneof![4 => 1..600_u64, 1 => 600..15_000_u64].prop_map(|ms| Step::Pass { ms }),
        1 => (tunnel, 1..10_000_u64).prop_map(|(tunnel, ms)| Step::Jump { tunnel, ms }),
        1 => Just(Step::Confirm),
    ]
}

impl Request {
    fn until_ms(&self) -> u64 {
        self.sent_ms + self.deadline_ms
    }
}

impl World {
    fn new() -> Self {
        Self {
            start: Instant::now(),
            now_ms: 1_000_000,
            tunnels: Vec::new(),
            requests: Vec::new(),
            at_broker: VecDeque::new(),
            confirmed_ms: 1_000_000,
            written_by_ms: 0,
        }
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.now_ms)
    }

    fn has_lease(&self) -> bool {
        self.now_ms < self.confirmed_ms + LEASE.as_millis() as u64
    }

    /// The place of one of the tunnels, if there is any.
    fn place(&self, number: usize) -> Option<usize> {
        number.checked_rem(self.tunnels.len())
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Send { body_bytes, deadline_ms } => {
                let request = self.requests.len();
                self.requests.push(Request {
                    sent_ms: self.now_ms,
                    deadline_ms,
                    on: None,
                    attempts: 0,
                    ran: 0,
                    told: None,
                });
                self.attempt(request, body_bytes);
            }
            Step::Write { tunnel, to_worker, bytes } => self.write(tunnel, to_worker, bytes),
            Step::Arrive { tunnel, to_worker, bytes } => self.arrive(tunnel, to_worker, bytes),
            Step::Finish { tunnel } => self.finish(tunnel),
            Step::ClientLeaves { request } => {
                if let Some(place) = request.checked_rem(self.requests.len()) {
                    self.leave_waiting(place, Told::Unknown);
                }
            }
            Step::Broker { loses } => {
                if let Some(request) = self.at_broker.pop_front()
                    && !loses
                {
                    self.run_by_broker(request);
                }
            }
            Step::Cut { tunnel, loses } => {
                if let Some(tunnel) = self.place(tunnel) {
                    if loses {
                        self.tunnels[tunnel].to_worker.clear();
                    }
                    self.cut(tunnel);
                }
            }
            Step::Drain { tunnel, by_gateway } => {
                if let Some(tunnel) = self.place(tunnel) {
                    match by_gateway {
                        true => self.tunnels[tunnel].gateway.drain(),
                        false => self.tunnels[tunnel].worker.drain(),
                    }
                }
            }
            Step::Leave { tunnel } => {
                if let Some(tunnel) = self.place(tunnel) {
                    let Tunnel { worker, running, .. } = &mut self.tunnels[tunnel];
                    worker.goodbye();
                    // Its handlers are dropped.
                    running.drain(..).for_each(|(taken, _)| worker.drop_request(taken));
                }
            }
            Step::Dial { ahead_ms } => self.dial(ahead_ms),
            Step::Pass { ms } => self.pass(ms),
            Step::Jump { tunnel, ms } => {
                if let Some(tunnel) = self.place(tunnel) {
                    self.tunnels[tunnel].worker_ahead_ms += ms;
                }
            }
            Step::Confirm => self.confirmed_ms = self.now_ms,
        }
    }

    fn dial(&mut self, worker_ahead_ms: u64) {
        if self.tunnels.iter().filter(|tunnel| !tunnel.gateway_is_cut).count() >= 4 {
            return;
        }
        let hello =
            Hello { name: "k3v9".to_owned(), requests: 8, payload_bytes: MOST, heard_ms: 0 };
        self.tunnels.push(Tunnel {
            gateway: GatewayEnd::new("Q7Fz".to_owned(), MOST),
            worker: WorkerEnd::new(&hello, self.now_ms + worker_ahead_ms),
            to_worker: VecDeque::new(),
            to_gateway: VecDeque::new(),
            worker_reads: FrameReader::new(MOST as usize),
            gateway_reads: FrameReader::new(MOST as usize),
            running: Vec::new(),
            gateway_is_cut: false,
            worker_is_cut: false,
            worker_ahead_ms,
        });
    }

    /// Sends a request by the first tunnel that takes it, else by the broker.
    fn attempt(&mut self, request: usize, body_bytes: usize) {
        self.requests[request].attempts += 1;
        let mut payload = BytesMut::new();
        payload.put_u64_le(request as u64);
        payload.put_u64_le(self.now_ms);
        payload.put_u64_le(self.requests[request].until_ms() - self.now_ms);
        payload.put_bytes(7, body_bytes);
        let (payload, has_lease) = (payload.freeze(), self.has_lease());
        // Another tunnel each time, so that all have some.
        let count = self.tunnels.len();
        let order = (0..count).map(|step| (request + step) % count);
        for place in order.filter(|_| has_lease) {
            let gateway = &mut self.tunnels[place].gateway;
            self.written_by_ms = self.confirmed_ms + LEASE.as_millis() as u64;
            if gateway.is_usable()
                && let Ok(key) = gateway.send(0, &payload, request)
            {
                self.requests[request].on = Some((place, key));
                return;
            }
        }
        self.at_broker.push_back(request);
    }

    fn write(&mut self, tunnel: usize, to_worker: bool, bytes: usize) {
        let Some(place) = self.place(tunnel) else { return };
        let has_lease = self.has_lease();
        let tunnel = &mut self.tunnels[place];
        if to_worker && !tunnel.gateway_is_cut && !tunnel.gateway.may_write(has_lease) {
            return self.cut(place);
        }
        let (out, pipe, is_cut) = match to_worker {
            true => (tunnel.gateway.out(), &mut tunnel.to_worker, tunnel.gateway_is_cut),
            false => (tunnel.worker.out(), &mut tunnel.to_gateway, tunnel.worker_is_cut),
        };
        if is_cut {
            return;
        }
        for _ in 0..bytes.min(out.remaining()) {
            pipe.push_back(out.get_u8());
        }
    }

    fn arrive(&mut self, tunnel: usize, to_worker: bool, bytes: usize) {
        let Some(place) = self.place(tunnel) else { return };
        let tunnel = &mut self.tunnels[place];
        let (pipe, reader) = match to_worker {
            true => (&mut tunnel.to_worker, &mut tunnel.worker_reads),
            false => (&mut tunnel.to_gateway, &mut tunnel.gateway_reads),
        };
        let arrived: Vec<u8> = pipe.drain(..bytes.min(pipe.len())).collect();
        reader.buffer().put_slice(&arrived);
        match to_worker {
            true => self.worker_hears(place),
            false => self.gateway_hears(place),
        }
    }

    fn worker_hears(&mut self, place: usize) {
        let now_ms = self.now_ms;
        loop {
            let tunnel = &mut self.tunnels[place];
            let Some(frame) = tunnel.worker_reads.next_frame().unwrap() else { return };
            let clock_ms = now_ms + tunnel.worker_ahead_ms;
            match tunnel.worker.hear(frame, clock_ms, tunnel.running.len() as u16).unwrap() {
                WorkerHeard::Request(taken, 0, mut payload) => {
                    let request = payload.get_u64_le() as usize;
                    let (sent_ms, left_ms) = (payload.get_u64_le(), payload.get_u64_le());
                    let worker = &mut tunnel.worker;
                    if worker.age_ms(sent_ms, left_ms as u32, clock_ms).is_none() {
                        worker.answer(taken, &Bytes::from_static(EXPIRED), 0);
                        continue;
                    }
                    tunnel.running.push((taken, request));
                    // The gateway's routes were confirmed when it wrote this.
                    let lease_ms = LEASE.as_millis() as u64;
                    assert!(now_ms < self.written_by_ms + lease_ms, "routes from before");
                    self.run(request);
                }
                WorkerHeard::Request(..) => panic!("there is one subject"),
                WorkerHeard::Cancel(key) => {
                    let found = tunnel.running.iter().position(|(taken, _)| taken.key() == key);
                    if let Some(found) = found {
                        tunnel.worker.drop_request(tunnel.running.swap_remove(found).0);
                    }
                }
                WorkerHeard::Opened | WorkerHeard::Drained | WorkerHeard::Nothing => {}
            }
        }
    }

    fn gateway_hears(&mut self, place: usize) {
        while !self.tunnels[place].gateway_is_cut {
            let clock_ms = self.now_ms;
            let tunnel = &mut self.tunnels[place];
            let Some(frame) = tunnel.gateway_reads.next_frame().unwrap() else { return };
            match tunnel.gateway.hear(frame, clock_ms).unwrap() {
                GatewayHeard::Reply(request, payload) => {
                    assert_eq!(self.requests[request].on.take().map(|(on, _)| on), Some(place));
                    match &payload[..] {
                        EXPIRED => self.retry(request),
                        _ => self.tell(request, Told::Answered),
                    }
                }
                GatewayHeard::Left(unanswered) => {
                    self.settle(unanswered);
                    self.tunnels[place].gateway_is_cut = true;
                }
                GatewayHeard::Late
                | GatewayHeard::Opened
                | GatewayHeard::Draining
                | GatewayHeard::Nothing => {}
            }
        }
    }

    fn cut(&mut self, place: usize) {
        self.tunnels[place].gateway_is_cut = true;
        let unanswered = self.tunnels[place].gateway.lost();
        self.settle(unanswered);
    }

    fn settle(&mut self, unanswered: Vec<(usize, Fate)>) {
        for (request, fate) in unanswered {
            self.requests[request].on = None;
            match fate {
                Fate::NeverRan => {
                    assert_eq!(self.requests[request].ran, 0, "it was said that it never ran");
                    self.retry(request);
                }
                Fate::Unknown => self.tell(request, Told::Unknown),
            }
        }
    }

    /// What never ran is sent again, if there is time.
    fn retry(&mut self, request: usize) {
        let Request { attempts, .. } = self.requests[request];
        match self.now_ms < self.requests[request].until_ms() && attempts < 5 {
            true => self.attempt(request, 0),
            false => self.tell(request, Told::NeverRan),
        }
    }

    fn run(&mut self, request: usize) {
        let request = &mut self.requests[request];
        assert!(self.now_ms < request.until_ms(), "it began too late");
        assert!(!matches!(request.told, Some(Told::TimedOut { .. } | Told::NeverRan)));
        request.ran += 1;
        assert_eq!(request.ran, 1, "it ran twice");
    }

    fn run_by_broker(&mut self, request: usize) {
        // Somebody else's clocks.
        let is_old = self.now_ms >= self.requests[request].until_ms();
        if self.requests[request].told.is_some() || is_old {
            return;
        }
        self.run(request);
        self.tell(request, Told::Answered);
    }

    fn finish(&mut self, tunnel: usize) {
        let Some(place) = self.place(tunnel) else { return };
        let Tunnel { worker, running, .. } = &mut self.tunnels[place];
        if let Some((taken, _)) = running.pop() {
            worker.answer(taken, &Bytes::from_static(b"done"), running.len() as u16);
        }
        if worker.may_leave() {
            worker.goodbye();
        }
    }

    fn tell(&mut self, request: usize, told: Told) {
        let request = &mut self.requests[request];
        assert_eq!(request.told, None, "a client is told once");
        request.told = Some(told);
    }

    fn leave_waiting(&mut self, request: usize, told: Told) {
        if self.requests[request].told.is_some() {
            return;
        }
        if let Some((on, key)) = self.requests[request].on.take() {
            self.tunnels[on].gateway.cancel(key);
        }
        self.tell(request, told);
    }

    fn pass(&mut self, ms: u64) {
        self.now_ms += ms;
        let (now, now_ms) = (self.now(), self.now_ms);
        for request in 0..self.requests.len() {
            if self.requests[request].until_ms() <= now_ms {
                self.leave_waiting(request, Told::TimedOut { at_ms: now_ms });
            }
        }
        if u128::from(ms) < TICK.as_millis() {
            return;
        }
        for tunnel in &mut self.tunnels {
            tunnel.gateway.tick(now, now_ms);
            tunnel.worker.tick(now_ms + tunnel.worker_ahead_ms);
        }
    }

    /// All that is under way arrives, all that runs ends, all time passes.
    fn end(&mut self) {
        for _ in 0..6 {
            for place in 0..self.tunnels.len() {
                self.tunnels[place].worker.drain();
                for to_worker in [false, true, false] {
                    self.write(place, to_worker, usize::MAX);
                    self.arrive(place, to_worker, usize::MAX);
                }
                while !self.tunnels[place].running.is_empty() {
                    self.finish(place);
                }
                self.finish(place);
            }
            while let Some(request) = self.at_broker.pop_front() {
                self.run_by_broker(request);
            }
        }
        self.pass(120_000);
        for place in 0..self.tunnels.len() {
            self.write(place, false, usize::MAX);
            self.arrive(place, false, usize::MAX);
            self.cut(place);
        }
        for tunnel in &self.tunnels {
            assert_eq!((tunnel.gateway.in_flight(), tunnel.worker.held()), (0, 0));
        }
        for request in &self.requests {
            match request.told.unwrap() {
                Told::Answered => assert_eq!(request.ran, 1),
                Told::NeverRan => assert_eq!(request.ran, 0),
                Told::Unknown | Told::TimedOut { .. } => assert!(request.ran <= 1),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn none_runs_twice_and_none_too_late(steps in prop::collection::vec(step(), 0..150)) {
        let mut world = World::new();
        world.dial(0);
        world.dial(1_000);
        // The first two are open, after round trips of different lengths.
        for tunnel in 0..2 {
            for to_worker in [false, true] {
                world.write(tunnel, to_worker, usize::MAX);
                world.now_ms += tunnel as u64 * 20;
                world.arrive(tunnel, to_worker, usize::MAX);
            }
        }
        steps.into_iter().for_each(|step| world.step(step));
        world.end();
    }
}

/// A run in which most requests are answered by a tunnel: the invariants are not kept by doing
/// nothing.
#[test]
fn requests_do_go_by_tunnels() {
    let mut world = World::new();
    (0..3).for_each(|number| world.dial(number * 1_000));
    for round in 0..200 {
        world.step(Step::Send { body_bytes: round * 100, deadline_ms: 4_000 });
        for tunnel in 0..3 {
            for to_worker in [false, true] {
                world.step(Step::Write { tunnel, to_worker, bytes: 5_000 });
                world.step(Step::Arrive { tunnel, to_worker, bytes: 100_000 });
            }
            world.step(Step::Finish { tunnel });
        }
        world.step(Step::Pass { ms: 3 });
    }
    assert!(world.at_broker.len() <= 2, "{} by the broker", world.at_broker.len());
    let answered = world.requests.iter().filter(|request| request.told == Some(Told::Answered));
    assert!(answered.count() >= 190);
    world.end();
}

//! Every order in which two messages of one queue can be delivered, settled, delivered again,
//! finished, and their pin or consumer changed under them: the flow's books have to agree after
//! each step.

use super::*;

/// How many steps follow on the first message's start.
const DEPTH: u32 = 5;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// Delivered, for the first time or again.
    Deliver(u64),
    Settling,
    Done,
    Again,
    Finish,
    /// The server says that everything it holds is in hand.
    Position,
    Unpin,
    /// Delivered under another pin.
    NewPin(u64),
    /// Delivered by the consumer after it was set back.
    Reset(u64),
    Drain,
}

const STEPS: [Step; 12] = [
    Step::Deliver(1),
    Step::Deliver(2),
    Step::Settling,
    Step::Done,
    Step::Again,
    Step::Finish,
    Step::Position,
    Step::Unpin,
    Step::NewPin(1),
    Step::Reset(1),
    Step::Reset(2),
    Step::Drain,
];

#[derive(Clone)]
struct State {
    flow: Flow<u64>,
    consumer_seq: u64,
    pins: u64,
    deliveries: u64,
    /// The handlers that have not ended, oldest first; one queue has one, and those that outlived a
    /// pin.
    live: Vec<u64>,
}

impl State {
    fn new() -> Self {
        let mut flow = Flow::new(config());
        flow.step_all([Event::Attach], Duration::ZERO, &mut Vec::new());
        Self { flow, consumer_seq: 0, pins: 0, deliveries: 0, live: Vec::new() }
    }

    fn deliver(&mut self, stream_seq: u64) -> Event<u64> {
        self.consumer_seq += 1;
        self.deliveries += 1;
        Event::Delivered(Delivery {
            stream_seq,
            consumer_seq: self.consumer_seq,
            deliveries: self.deliveries,
            queue: 1,
            pin: Some(format!("pin-{}", self.pins).into()),
            content: stream_seq,
        })
    }

    fn event(&mut self, step: Step) -> Event<u64> {
        let oldest = self.live.first().copied().unwrap_or_default();
        let newest = self.live.last().copied().unwrap_or_default();
        match step {
            Step::Deliver(seq) => self.deliver(seq),
            Step::Settling => Event::Settling { run: newest },
            Step::Done => Event::Settled { run: newest, settlement: Settlement::Done },
            Step::Again => Event::Settled { run: newest, settlement: Settlement::Again },
            Step::Finish => {
                self.live.retain(|run| *run != oldest);
                Event::Finished { run: oldest }
            }
            Step::Position => Event::Position(Position {
                question: self.flow.questions,
                delivered_stream_seq: 2,
                delivered_consumer_seq: self.consumer_seq,
                ack_floor_stream_seq: 0,
                ack_pending: self.flow.held.len() + self.flow.awaited,
                pinned: Some(format!("pin-{}", self.pins)),
            }),
            Step::Unpin => Event::Status {
                pull: (0..100).rev().find(|pull| self.flow.knows_pull(*pull)).unwrap_or_default(),
                status: PullStatus::WrongPin,
                unused: 0,
            },
            Step::NewPin(seq) => {
                self.pins += 1;
                self.deliver(seq)
            }
            Step::Reset(seq) => {
                (self.consumer_seq, self.deliveries) = (0, 0);
                self.deliver(seq)
            }
            Step::Drain => Event::Drain,
        }
    }

    fn take(&mut self, step: Step) {
        let event = self.event(step);
        let mut out = Vec::new();
        self.flow.step_all([event], Duration::ZERO, &mut out);
        self.flow.check();
        while let Some(run) = self.flow.next_run(Duration::ZERO, &mut out) {
            assert!(
                self.live.is_empty(),
                "{:?} are at work in the queue of {}",
                self.live,
                run.content
            );
            self.live.push(run.run);
        }
        self.flow.check();
    }
}

fn explore(state: &State, depth: u32, trail: &mut Vec<Step>, seen: &mut u64) {
    if depth == 0 {
        return;
    }
    for step in STEPS {
        let mut next = state.clone();
        trail.push(step);
        *seen += 1;
        let taken = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| next.take(step)));
        assert!(taken.is_ok(), "after {trail:?}");
        explore(&next, depth - 1, trail, seen);
        trail.pop();
    }
}

#[test]
fn every_order_of_delivery_settlement_and_end_keeps_the_books() {
    let mut state = State::new();
    let mut trail = vec![Step::Deliver(1), Step::Position];
    trail.iter().for_each(|step| state.take(*step));
    assert_eq!(state.live, [1]);
    let mut seen = 0;
    explore(&state, DEPTH, &mut trail, &mut seen);
    println!("{seen} steps");
}

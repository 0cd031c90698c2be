//! The flow against hand-written events, and against a model of the server under random faults.

use std::collections::BTreeSet;
use std::time::Duration;

use super::*;

mod model;
mod orders;

const MS: fn(u64) -> Duration = Duration::from_millis;

fn config() -> FlowConfig {
    FlowConfig {
        pinned_ttl: MS(2000),
        redelivery_after: MS(2000),
        max_ack_pending: Some(100),
        buffer: 1024,
        concurrency: 4,
        acks: true,
        dead_letter_after: None,
    }
}

struct Bench {
    flow: Flow<u64>,
    now: Duration,
    /// What was delivered before: the second time, the server counts 2.
    delivered: BTreeSet<u64>,
}

#[derive(Debug)]
struct Outcome {
    actions: Vec<Action<u64>>,
    started: Vec<u64>,
}

impl std::ops::Deref for Outcome {
    type Target = [Action<u64>];

    fn deref(&self) -> &[Action<u64>] {
        &self.actions
    }
}

impl Bench {
    fn new() -> Self {
        let mut bench =
            Self { flow: Flow::new(config()), now: Duration::ZERO, delivered: BTreeSet::new() };
        bench.step(Event::Attach);
        bench
    }

    /// What an event leads to: handlers start as soon as they may.
    fn step(&mut self, event: Event<u64>) -> Outcome {
        let (mut actions, mut started) = (Vec::new(), Vec::new());
        self.flow.step_all([event], self.now, &mut actions);
        while let Some(run) = self.flow.next_run(self.now, &mut actions) {
            started.push(run.content);
        }
        Outcome { actions, started }
    }

    /// A delivery whose place among the consumer's deliveries is its stream sequence.
    fn deliver(&mut self, seq: u64, queue: u64) -> Outcome {
        self.deliver_as(seq, seq, queue, "pin")
    }

    fn deliver_as(&mut self, stream_seq: u64, consumer_seq: u64, queue: u64, pin: &str) -> Outcome {
        let pin = Some(pin.into());
        let deliveries = 1 + u64::from(!self.delivered.insert(stream_seq));
        self.step(Event::Delivered(Delivery {
            stream_seq,
            consumer_seq,
            deliveries,
            queue,
            pin,
            content: stream_seq,
        }))
    }

    fn position(&mut self, question: u64, delivered: u64, pending: usize) -> Outcome {
        self.step(Event::Position(Position {
            question,
            delivered_stream_seq: delivered,
            // As in `deliver`.
            delivered_consumer_seq: delivered,
            ack_floor_stream_seq: 0,
            ack_pending: pending,
            pinned: Some("pin".into()),
        }))
    }

    /// The newest pull.
    fn newest_pull(&self) -> u64 {
        (0..1000).rev().find(|number| self.flow.knows_pull(*number)).unwrap_or_default()
    }

    fn hold_off_is_over(&self) -> bool {
        self.flow.hold_off <= self.now
    }

    fn finish(&mut self, run: u64, settlement: Settlement) -> Outcome {
        self.step(Event::Settled { run, settlement });
        self.step(Event::Finished { run })
    }
}

fn started(outcome: &Outcome) -> Vec<u64> {
    outcome.started.clone()
}

fn lost(actions: &[Action<u64>]) -> Option<PinLoss> {
    actions
        .iter()
        .find_map(|action| if let Action::PinLost(why) = action { Some(*why) } else { None })
}

#[test]
fn nothing_starts_before_all_that_is_pending_is_in_hand() {
    let mut bench = Bench::new();
    let actions = bench.deliver(7, 1);
    assert!(actions.iter().any(|a| matches!(a, Action::AskPosition(1))), "{actions:?}");
    assert!(started(&actions).is_empty());
    // The server holds 5 as well, which the holder before left in flight.
    assert!(started(&bench.position(1, 7, 2)).is_empty());
    assert!(started(&bench.deliver_as(5, 8, 1, "pin")).is_empty());
    bench.now = MS(50);
    bench.step(Event::Tick);
    assert_eq!(started(&bench.position(2, 7, 2)), [5]);
    assert_eq!(started(&bench.finish(1, Settlement::Done)), [7]);
}

#[test]
fn lanes_run_side_by_side_and_each_in_order() {
    let mut bench = Bench::new();
    bench.deliver(1, 1);
    assert_eq!(started(&bench.position(1, 1, 1)), [1]);
    assert!(started(&bench.deliver(2, 1)).is_empty());
    assert_eq!(started(&bench.deliver(3, 2)), [3]);
    assert_eq!(started(&bench.finish(1, Settlement::Done)), [2]);
}

#[test]
fn a_refused_message_holds_its_lane_until_it_is_back() {
    let mut bench = Bench::new();
    bench.deliver(1, 1);
    bench.position(1, 1, 1);
    bench.deliver(2, 1);
    assert!(started(&bench.finish(1, Settlement::Again)).is_empty());
    assert_eq!(started(&bench.deliver(3, 2)), [3]);
    assert_eq!(started(&bench.deliver_as(1, 4, 1, "pin")), [1]);
    assert_eq!(started(&bench.finish(3, Settlement::Done)), [2]);
}

#[test]
fn a_lane_does_not_wait_for_a_message_that_is_no_longer_pending() {
    let mut bench = Bench::new();
    bench.deliver(1, 1);
    bench.position(1, 1, 1);
    bench.deliver(2, 1);
    bench.finish(1, Settlement::Again);
    bench.now = MS(1500);
    bench.step(Event::Status { pull: 2, status: PullStatus::Accepted { ended: false }, unused: 0 });
    let asked = bench.step(Event::Tick);
    assert!(lost(&asked).is_none(), "{asked:?}");
    // Only 2 is pending still: 1 has used up its deliveries.
    assert_eq!(started(&bench.position(2, 2, 1)), [2]);
}

#[test]
fn the_lease_ends_counted_from_when_the_pull_was_sent() {
    let mut bench = Bench::new();
    let actions = bench.deliver(1, 1);
    let probe = actions.iter().find_map(|a| {
        if let Action::Pull(pull) = a { pull.probe.then_some(pull.number) } else { None }
    });
    bench.position(1, 1, 1);
    bench.now = MS(1900);
    // The answer came late, but it answers a pull that was sent at 0.
    bench.step(Event::Status {
        pull: probe.unwrap(),
        status: PullStatus::Accepted { ended: false },
        unused: 0,
    });
    bench.now = MS(2000);
    let actions = bench.step(Event::Tick);
    assert_eq!(lost(&actions), Some(PinLoss::Lapsed));
    assert!(actions.iter().any(|a| matches!(a, Action::Cancel)));
}

#[test]
fn a_wrong_pin_ends_everything_at_once() {
    let mut bench = Bench::new();
    bench.deliver(1, 1);
    bench.position(1, 1, 1);
    assert_eq!(
        lost(&bench.step(Event::Status { pull: 2, status: PullStatus::WrongPin, unused: 0 })),
        Some(PinLoss::Taken)
    );
    // A handler that does not let go keeps its queue, even for the next pin.
    bench.deliver_as(1, 9, 1, "other");
    bench.deliver_as(2, 10, 2, "other");
    let position = Position {
        question: 2,
        delivered_stream_seq: 2,
        delivered_consumer_seq: 10,
        ack_floor_stream_seq: 0,
        ack_pending: 2,
        pinned: Some("other".into()),
    };
    assert_eq!(started(&bench.step(Event::Position(position))), [2]);
    assert_eq!(started(&bench.step(Event::Finished { run: 1 })), [1]);
}

#[test]
fn a_lost_acknowledgement_is_repeated_not_the_work() {
    let mut bench = Bench::new();
    bench.deliver(1, 1);
    bench.position(1, 1, 1);
    bench.finish(1, Settlement::Done);
    let actions = bench.deliver_as(1, 2, 1, "pin");
    assert!(
        actions.iter().any(|a| matches!(a, Action::Confirm(1))) && started(&actions).is_empty(),
        "{actions:?}"
    );
}

#[test]
fn a_gap_in_the_deliveries_holds_everything_back() {
    let mut bench = Bench::new();
    bench.deliver(1, 1);
    bench.position(1, 1, 1);
    bench.finish(1, Settlement::Done);
    // Delivery 2 never came: it may be an older message of this very queue.
    let actions = bench.deliver(3, 1);
    assert!(
        started(&actions).is_empty() && actions.iter().any(|a| matches!(a, Action::AskPosition(_))),
        "{actions:?}"
    );
    assert!(started(&bench.position(2, 3, 2)).is_empty());
    bench.deliver_as(2, 4, 1, "pin");
    bench.now = MS(100);
    bench.step(Event::Tick);
    assert_eq!(started(&bench.position(3, 3, 2)), [2]);
}

#[test]
fn a_poison_message_is_buried_when_its_deliveries_are_used_up() {
    let mut bench = Bench::new();
    bench.flow.config_mut().dead_letter_after = Some(2);
    let pin = Some("pin".into());
    bench.step(Event::Delivered(Delivery {
        stream_seq: 1,
        consumer_seq: 1,
        deliveries: 3,
        queue: 1,
        pin,
        content: 1,
    }));
    let actions = bench.position(1, 1, 1);
    assert!(actions.iter().any(|a| matches!(a, Action::DeadLetter(_))), "{actions:?}");
}

#[test]
fn a_drain_ends_with_the_last_handler_and_starts_nothing() {
    let mut bench = Bench::new();
    bench.deliver(1, 1);
    bench.position(1, 1, 1);
    bench.deliver(2, 1);
    assert!(!bench.step(Event::Drain).iter().any(|a| matches!(a, Action::Drained)));
    let actions = bench.finish(1, Settlement::Done);
    assert!(
        started(&actions).is_empty() && actions.iter().any(|a| matches!(a, Action::Drained)),
        "{actions:?}"
    );
    assert_eq!(bench.flow.buffered().collect::<Vec<_>>(), [&2]);
    assert_eq!(bench.flow.take_buffered(), [2]);
}

#[test]
fn a_paused_flow_keeps_its_pin_and_starts_nothing() {
    let mut bench = Bench::new();
    bench.step(Event::Pause(true));
    bench.deliver(1, 1);
    assert!(started(&bench.position(1, 1, 1)).is_empty());
    bench.now = MS(600);
    let probes = bench.step(Event::Tick);
    assert!(probes.iter().any(|a| matches!(a, Action::Pull(pull) if pull.probe)), "{probes:?}");
    assert_eq!(started(&bench.step(Event::Pause(false))), [1]);
}

#[test]
fn nothing_starts_on_a_lost_connection_until_the_pin_is_confirmed() {
    let mut bench = Bench::new();
    bench.deliver(1, 1);
    bench.position(1, 1, 1);
    bench.step(Event::Disconnected);
    assert!(started(&bench.deliver(2, 2)).is_empty());
    assert!(
        started(&bench.position(1, 2, 2)).is_empty(),
        "an answer from before the loss counts for nothing"
    );
    bench.step(Event::Reconnected);
    let question = bench.flow.questions;
    assert_eq!(started(&bench.position(question, 2, 2)), [2]);
}

#[test]
fn after_a_restart_only_the_holder_goes_on_at_once() {
    let mut holder = Bench::new();
    holder.deliver(1, 1);
    holder.position(1, 1, 1);
    holder.step(Event::Disconnected);
    holder.step(Event::Reconnected);
    holder.deliver_as(2, 1, 1, "new");
    assert!(holder.hold_off_is_over(), "nobody else was at work");

    let mut standby = Bench::new();
    standby.now = MS(1000);
    standby.step(Event::Disconnected);
    standby.step(Event::Reconnected);
    standby.now = MS(2000);
    standby.deliver(1, 1);
    assert!(
        started(&standby.position(1, 1, 1)).is_empty(),
        "the holder's handlers have their lease"
    );
    assert!(standby.flow.wake_at().is_some_and(|at| at <= MS(3000)));
    standby.now = MS(3000);
    assert_eq!(started(&standby.step(Event::Tick)), [1]);
}

#[test]
fn a_refused_message_that_is_back_before_its_handler_has_ended_waits_for_it() {
    let mut bench = Bench::new();
    bench.deliver(1, 1);
    bench.position(1, 1, 1);
    bench.deliver(2, 1);
    assert!(
        started(&bench.step(Event::Settled { run: 1, settlement: Settlement::Again })).is_empty()
    );
    assert!(started(&bench.deliver_as(1, 3, 1, "pin")).is_empty(), "its handler is still at work");
    assert_eq!(started(&bench.step(Event::Finished { run: 1 })), [1]);
    assert_eq!(started(&bench.finish(2, Settlement::Done)), [2]);
}

#[test]
fn what_a_reset_consumer_delivers_is_handled_again() {
    let mut bench = Bench::new();
    for seq in 1..=3 {
        bench.deliver(seq, 1);
    }
    bench.position(1, 3, 3);
    bench.finish(1, Settlement::Done);
    bench.finish(2, Settlement::Done);
    // 3 is at work, 4 is in hand; somebody sets the consumer back to 1.
    bench.deliver(4, 1);
    bench.delivered.clear();
    let back = bench.deliver_as(1, 1, 1, "pin");
    assert!(back.iter().any(|action| matches!(action, Action::Reset)), "{back:?}");
    assert!(
        !back.iter().any(|action| matches!(action, Action::Confirm(_) | Action::Cancel)),
        "{back:?}"
    );
    // The server's answer counts anew as well, and that is no second reset.
    let settled = bench.position(bench.flow.questions, 1, 1);
    assert!(!settled.iter().any(|action| matches!(action, Action::Reset)), "{settled:?}");
    assert_eq!(started(&bench.finish(3, Settlement::Done)), [1]);
    for (seq, run) in (2..=4).zip(4..) {
        assert!(started(&bench.deliver_as(seq, seq, 1, "pin")).is_empty());
        assert_eq!(started(&bench.finish(run, Settlement::Done)), [seq]);
    }
}

#[test]
fn a_consumer_that_was_set_forward_leaves_nothing_behind() {
    let mut bench = Bench::new();
    bench.deliver(1, 1);
    bench.position(1, 1, 1);
    bench.deliver(2, 1);
    let position = |question, delivered_consumer_seq, ack_pending| {
        Event::Position(Position {
            question,
            delivered_stream_seq: 100,
            delivered_consumer_seq,
            ack_floor_stream_seq: 0,
            ack_pending,
            pinned: Some("pin".into()),
        })
    };
    for (delivered, pending) in [(2, 2), (0, 0)] {
        bench.now += MS(1000);
        bench.step(Event::Tick);
        let number = bench.newest_pull();
        bench.step(Event::Status {
            pull: number,
            status: PullStatus::Accepted { ended: false },
            unused: 0,
        });
        let told = bench.step(position(bench.flow.questions, delivered, pending));
        assert_eq!(
            told.iter().any(|action| matches!(action, Action::Reset)),
            delivered == 0,
            "{told:?}"
        );
    }
    assert!(started(&bench.finish(1, Settlement::Done)).is_empty(), "2 was skipped");
}

#[test]
fn a_message_that_was_never_handled_is_never_confirmed() {
    let mut bench = Bench::new();
    bench.deliver(2, 1);
    bench.position(1, 2, 1);
    bench.finish(1, Settlement::Done);
    // Older than what was handled last, and unknown: late is bad, lost would be worse.
    let actions = bench.deliver_as(1, 3, 1, "pin");
    assert!(!actions.iter().any(|a| matches!(a, Action::Confirm(_))), "{actions:?}");
}

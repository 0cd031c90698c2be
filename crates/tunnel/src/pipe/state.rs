//! What one end of a pipe has sent, heard and may send. Pure: time comes as ticks.

use bytes::Bytes;
use natsway_wire::pipe::{CHUNK_BYTES, LEAST_COST, PipeMessage, ResetReason, Status, cost};

/// Ticks without a word after which the other end is gone. Counted in ticks and not in time, for a
/// process that stood still has not listened either. The other end says how far it is at every
/// second tick.
const MOST_QUIET_TICKS: u32 = 10;

/// A status at every so many ticks.
const TICKS_PER_STATUS: u32 = 2;

/// One end of a pipe.
#[derive(Debug)]
pub struct PipeState {
    /// What the other end may be ahead of our reader.
    window: u64,
    /// The same, the other way.
    peer_window: u64,
    sent: u64,
    /// What that cost.
    spent: u64,
    /// What the other end lets us spend, since the beginning.
    credit: u64,
    has_ended: bool,
    is_leaving: bool,
    received: u64,
    /// What that cost.
    charged: u64,
    /// What the reader took of it.
    taken: u64,
    /// What we let the other end spend, since the beginning.
    granted: u64,
    peer_has_ended: bool,
    peer_is_leaving: bool,
    ticks: u32,
    quiet_ticks: u32,
}

/// Why a pipe is broken. Nothing mends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PipeError {
    /// The other end is further than what came.
    #[error("something was lost on the way: {came} bytes came, and the other end is at {at}")]
    Gap {
        /// Bytes that came.
        came: u64,
        /// Where the other end is.
        at: u64,
    },
    /// What came is behind what came before it, or was sent by somebody else.
    #[error("something came twice or out of order: {came} bytes came, and this is of {at}")]
    Repeated {
        /// Bytes that came.
        came: u64,
        /// Where it belongs.
        at: u64,
    },
    /// More came than the other end may send.
    #[error("the other end sent more than it may")]
    Overrun,
    /// A credit that is less than before, or more than a window.
    #[error("the other end lets us send {credit}, after {before}")]
    Credit {
        /// What it says.
        credit: u64,
        /// What it said.
        before: u64,
    },
    /// Data behind the end, or an end that was none.
    #[error("the other end went on after its end")]
    AfterEnd,
    /// A message that is none of a pipe, or not at this time.
    #[error("what came is no message of a pipe that is open")]
    Unexpected,
    /// The other end has not spoken for seconds.
    #[error("the other end says nothing any more")]
    Silent,
    /// The broker says that nobody hears what we send.
    #[error("the other end is gone")]
    Gone,
    /// The connection to the broker is lost.
    #[error("the connection to the broker is lost")]
    ConnectionLost,
    /// The other end says that it is over.
    #[error("the other end gave the pipe up: {0:?}")]
    Reset(ResetReason),
}

impl PipeState {
    /// Returns an end that has sent and heard nothing. The other end may be `window` ahead of our
    /// reader, and we `peer_window` ahead of its; both in [costs](cost).
    pub fn new(window: u32, peer_window: u32) -> Self {
        let (window, peer_window) = (u64::from(window), u64::from(peer_window));
        Self {
            window,
            peer_window,
            sent: 0,
            spent: 0,
            credit: peer_window,
            has_ended: false,
            is_leaving: false,
            received: 0,
            charged: 0,
            taken: 0,
            granted: window,
            peer_has_ended: false,
            peer_is_leaving: false,
            ticks: 0,
            quiet_ticks: 0,
        }
    }

    /// Returns how many bytes may be sent in one message now.
    pub fn sendable(&self) -> usize {
        let left = self.credit.saturating_sub(self.spent);
        match left {
            _ if self.has_ended => 0,
            left if left < LEAST_COST => 0,
            left => CHUNK_BYTES.min(usize::try_from(left).unwrap_or(CHUNK_BYTES)),
        }
    }

    /// Makes bytes a message that is to be sent before any other.
    ///
    /// # Panics
    /// If they are more than [`sendable`](Self::sendable), or none.
    pub fn send(&mut self, bytes: Bytes) -> PipeMessage {
        let length = bytes.len();
        assert!((1..=self.sendable()).contains(&length), "no more is sent than may be");
        let offset = self.sent;
        self.sent += length as u64;
        self.spent += cost(length);
        PipeMessage::Data { offset, bytes }
    }

    /// Sends no more data from now on; returns what says so.
    pub fn end(&mut self) -> PipeMessage {
        self.has_ended = true;
        self.status()
    }

    /// Says at every status from now on that the way to the broker will end.
    pub fn leave(&mut self) -> PipeMessage {
        self.is_leaving = true;
        self.status()
    }

    /// Returns how far this end is.
    pub fn status(&self) -> PipeMessage {
        let (sent, credit) = (self.sent, self.granted);
        let (has_ended, is_leaving) = (self.has_ended, self.is_leaving);
        PipeMessage::Status(Status { sent, credit, has_ended, is_leaving })
    }

    /// Takes what the other end says; returns the bytes among that.
    ///
    /// # Errors
    /// The pipe is broken, and of no use any more.
    pub fn receive(&mut self, message: PipeMessage) -> Result<Option<Bytes>, PipeError> {
        let data = match message {
            PipeMessage::Hello { .. } => return Err(PipeError::Unexpected),
            PipeMessage::Reset(reason) => return Err(PipeError::Reset(reason)),
            PipeMessage::Data { offset, bytes } => {
                self.is_next(offset)?;
                if self.peer_has_ended {
                    return Err(PipeError::AfterEnd);
                }
                let cost = cost(bytes.len());
                if self.charged + cost > self.granted {
                    return Err(PipeError::Overrun);
                }
                self.received += bytes.len() as u64;
                self.charged += cost;
                Some(bytes)
            }
            PipeMessage::Status(Status { sent, credit, has_ended, is_leaving }) => {
                self.is_next(sent)?;
                if self.peer_has_ended && !has_ended {
                    return Err(PipeError::AfterEnd);
                }
                if credit < self.credit || credit > self.spent + self.peer_window {
                    return Err(PipeError::Credit { credit, before: self.credit });
                }
                self.credit = credit;
                self.peer_has_ended = has_ended;
                self.peer_is_leaving |= is_leaving;
                None
            }
        };
        self.quiet_ticks = 0;
        Ok(data)
    }

    fn is_next(&self, at: u64) -> Result<(), PipeError> {
        let came = self.received;
        match at.cmp(&came) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Greater => Err(PipeError::Gap { came, at }),
            std::cmp::Ordering::Less => Err(PipeError::Repeated { came, at }),
        }
    }

    /// Takes note that the reader took what one message brought.
    pub fn taken(&mut self, bytes: usize) {
        self.taken += cost(bytes);
    }

    /// Returns how much more the other end may be let send, once that is worth a message.
    pub fn due(&self) -> Option<u64> {
        let due = (self.taken + self.window).saturating_sub(self.granted);
        (due >= self.window / 4 && !self.peer_has_ended).then_some(due)
    }

    /// Lets the other end send so much more, at most what is due; returns what says so.
    pub fn grant(&mut self, cost: u64) -> PipeMessage {
        self.granted = (self.granted + cost).min(self.taken + self.window);
        self.status()
    }

    /// Lets half a second pass; returns what is to be said then.
    ///
    /// # Errors
    /// The other end has said nothing for too long.
    pub fn tick(&mut self) -> Result<Option<PipeMessage>, PipeError> {
        self.ticks = self.ticks.wrapping_add(1);
        self.quiet_ticks += 1;
        if self.quiet_ticks > MOST_QUIET_TICKS {
            return Err(PipeError::Silent);
        }
        Ok(self.ticks.is_multiple_of(TICKS_PER_STATUS).then(|| self.status()))
    }

    /// Whether this end sends no more data.
    pub fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether all that the other end will ever send is here.
    pub fn peer_has_ended(&self) -> bool {
        self.peer_has_ended
    }

    /// Whether the other end's way to the broker will end.
    pub fn peer_is_leaving(&self) -> bool {
        self.peer_is_leaving
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const WINDOW: u32 = 16 << 10;

    /// Two ends, and what is between them.
    struct Scene {
        ends: [PipeState; 2],
        /// What is on its way to each.
        on_the_way: [VecDeque<PipeMessage>; 2],
        /// What came to each, and what of it was read.
        came: [Vec<u8>; 2],
        unread: [VecDeque<usize>; 2],
        /// What each was given to send.
        given: [Vec<u8>; 2],
        broken: [Option<PipeError>; 2],
        next: u8,
    }

    impl Scene {
        fn new() -> Self {
            Self {
                ends: [PipeState::new(WINDOW, WINDOW), PipeState::new(WINDOW, WINDOW)],
                on_the_way: Default::default(),
                came: Default::default(),
                unread: Default::default(),
                given: Default::default(),
                broken: [None, None],
                next: 0,
            }
        }

        fn is_broken(&self) -> bool {
            self.broken.iter().any(Option::is_some)
        }

        fn say(&mut self, end: usize, message: PipeMessage) {
            // As on the wire.
            let message = PipeMessage::decode(&message.encode()).expect("what was written");
            self.on_the_way[1 - end].push_back(message);
        }

        fn send(&mut self, end: usize, bytes: usize) {
            let bytes = bytes.min(self.ends[end].sendable());
            if bytes == 0 || self.broken[end].is_some() {
                return;
            }
            self.next = self.next.wrapping_add(1);
            let piece = vec![self.next; bytes];
            self.given[end].extend(&piece);
            let message = self.ends[end].send(piece.into());
            self.say(end, message);
        }

        fn deliver(&mut self, end: usize) {
            let Some(message) = self.on_the_way[end].pop_front() else { return };
            if self.broken[end].is_some() {
                return;
            }
            match self.ends[end].receive(message) {
                Ok(Some(bytes)) => {
                    self.came[end].extend(&bytes);
                    self.unread[end].push_back(bytes.len());
                    let unread = self.unread[end].iter().map(|bytes| cost(*bytes)).sum::<u64>();
                    assert!(unread <= u64::from(WINDOW), "{unread}");
                }
                Ok(None) => {}
                Err(error) => self.broken[end] = Some(error),
            }
        }

        fn read(&mut self, end: usize) {
            let Some(bytes) = self.unread[end].pop_front() else { return };
            self.ends[end].taken(bytes);
            if let Some(due) = self.ends[end].due().filter(|_| self.broken[end].is_none()) {
                let message = self.ends[end].grant(due);
                self.say(end, message);
            }
        }

        fn tick(&mut self, end: usize) {
            if self.broken[end].is_some() {
                return;
            }
            match self.ends[end].tick() {
                Ok(message) => message.into_iter().for_each(|message| self.say(end, message)),
                Err(error) => self.broken[end] = Some(error),
            }
        }

        /// Lets all that is under way arrive, and all that came be read.
        fn settle(&mut self) {
            while self.on_the_way.iter().any(|way| !way.is_empty())
                || self.unread.iter().any(|unread| !unread.is_empty())
            {
                for end in [0, 1] {
                    self.deliver(end);
                    self.read(end);
                }
            }
        }

        fn is_honest(&self) {
            for end in [0, 1] {
                let came = &self.came[end];
                assert!(self.given[1 - end].starts_with(came), "end {end} read what was not sent");
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Send(usize, usize),
        Deliver(usize),
        Read(usize),
        Tick(usize),
        End(usize),
    }

    #[derive(Clone, Copy, Debug)]
    enum Fault {
        Lose,
        Repeat,
        Swap,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let end = 0..2_usize;
        let step = prop_oneof![
            6 => (end.clone(), 1..20_000_usize).prop_map(|(end, bytes)| Step::Send(end, bytes)),
            6 => end.clone().prop_map(Step::Deliver),
            6 => end.clone().prop_map(Step::Read),
            1 => end.clone().prop_map(Step::Tick),
            1 => end.prop_map(Step::End),
        ];
        proptest::collection::vec(step, 1..120)
    }

    fn take(scene: &mut Scene, step: &Step) {
        match *step {
            Step::Send(end, bytes) => scene.send(end, bytes),
            Step::Deliver(end) => scene.deliver(end),
            Step::Read(end) => scene.read(end),
            // Nobody is let wait for so long that the other one is silent.
            Step::Tick(end) => {
                scene.tick(end);
                scene.deliver(1 - end);
            }
            Step::End(end) if scene.given[end].len() > 50_000 => {
                let message = scene.ends[end].end();
                scene.say(end, message);
            }
            Step::End(_) => {}
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        #[test]
        fn what_is_sent_arrives_and_nothing_is_ever_held_beyond_the_window(steps in steps()) {
            let mut scene = Scene::new();
            for step in &steps {
                take(&mut scene, step);
                scene.is_honest();
            }
            let silent = scene.broken.contains(&Some(PipeError::Silent));
            prop_assert!(silent || !scene.is_broken(), "{:?}", scene.broken);
            if silent {
                return Ok(());
            }
            scene.settle();
            for end in [0, 1] {
                prop_assert_eq!(&scene.came[end], &scene.given[1 - end]);
                // All was read, so as much may be sent as at the beginning, or nearly so.
                let least = if scene.ends[end].has_ended() { 0 } else { 1 };
                prop_assert!(scene.ends[end].sendable() >= least, "nobody waits for ever");
            }
        }

        #[test]
        fn one_fault_at_any_step_breaks_the_pipe_and_nobody_reads_past_it(
            steps in steps(),
            at in any::<prop::sample::Index>(),
            end in 0..2_usize,
            fault in prop_oneof![Just(Fault::Lose), Just(Fault::Repeat), Just(Fault::Swap)],
        ) {
            let mut scene = Scene::new();
            let at = at.index(steps.len());
            let mut was_data = false;
            for (number, step) in steps.iter().enumerate() {
                if number == at {
                    let way = &mut scene.on_the_way[end];
                    let is_data = |message: Option<&PipeMessage>| {
                        matches!(message, Some(PipeMessage::Data { .. }))
                    };
                    was_data = is_data(way.front());
                    match fault {
                        Fault::Lose => drop(way.pop_front()),
                        Fault::Repeat => {
                            if let Some(first) = way.front().cloned() {
                                way.push_front(first);
                            }
                        }
                        Fault::Swap if way.len() > 1 => {
                            was_data |= is_data(way.get(1));
                            way.swap(0, 1);
                        }
                        Fault::Swap => was_data = false,
                    }
                }
                take(&mut scene, step);
                scene.is_honest();
            }
            // Nothing may follow by itself, but a status does.
            scene.settle();
            for _ in 0..TICKS_PER_STATUS {
                scene.tick(0);
                scene.tick(1);
            }
            scene.settle();
            scene.is_honest();
            if was_data {
                prop_assert!(scene.is_broken(), "{fault:?} of data at step {at} was not noticed");
            } else if !scene.is_broken() {
                // What was lost of the rest is said again.
                for end in [0, 1] {
                    prop_assert_eq!(&scene.came[end], &scene.given[1 - end]);
                }
            }
        }

        #[test]
        fn silence_at_any_step_breaks_the_pipe(steps in steps(), end in 0..2_usize) {
            let mut scene = Scene::new();
            steps.iter().for_each(|step| take(&mut scene, step));
            // From here on nothing reaches this end.
            for _ in 0..=MOST_QUIET_TICKS {
                scene.tick(end);
                scene.on_the_way[end].clear();
            }
            prop_assert!(scene.broken[end].is_some());
            scene.is_honest();
        }
    }

    #[test]
    fn what_nobody_may_send_breaks_the_pipe() {
        let fresh = || PipeState::new(WINDOW, WINDOW);
        let status =
            |sent, credit| PipeMessage::Status(Status { sent, credit, ..Status::default() });
        let data =
            |offset, bytes: usize| PipeMessage::Data { offset, bytes: vec![0; bytes].into() };
        let window = u64::from(WINDOW);
        for (message, error) in [
            (data(1, 1), PipeError::Gap { came: 0, at: 1 }),
            (status(7, window), PipeError::Gap { came: 0, at: 7 }),
            (status(0, window - 1), PipeError::Credit { credit: window - 1, before: window }),
            (status(0, window + 1), PipeError::Credit { credit: window + 1, before: window }),
            (PipeMessage::Hello { window: 1 }, PipeError::Unexpected),
            (PipeMessage::Reset(ResetReason::Full), PipeError::Reset(ResetReason::Full)),
        ] {
            assert_eq!(fresh().receive(message), Err(error));
        }
        let mut end = fresh();
        assert!(end.receive(data(0, 1)).is_ok());
        assert_eq!(end.receive(data(0, 1)), Err(PipeError::Repeated { came: 1, at: 0 }));
        let ended = Status { sent: 1, credit: window, has_ended: true, is_leaving: false };
        assert_eq!(end.receive(PipeMessage::Status(ended)), Ok(None));
        assert_eq!(end.receive(data(1, 1)), Err(PipeError::AfterEnd));
        assert_eq!(end.receive(status(1, window)), Err(PipeError::AfterEnd));
    }

    #[test]
    fn small_messages_cost_more_than_their_bytes() {
        let (mut end, mut messages) = (PipeState::new(WINDOW, WINDOW), 0);
        while end.sendable() > 0 {
            end.send(Bytes::from_static(b"x"));
            messages += 1;
        }
        assert_eq!(messages, u64::from(WINDOW) / LEAST_COST);
        let mut other = PipeState::new(WINDOW, WINDOW);
        for offset in 0..messages {
            let data = PipeMessage::Data { offset, bytes: Bytes::from_static(b"x") };
            assert!(other.receive(data).is_ok());
        }
        let data = PipeMessage::Data { offset: messages, bytes: Bytes::from_static(b"x") };
        assert_eq!(other.receive(data), Err(PipeError::Overrun));
    }
}

//! Which tunnel a request goes by, once its version is chosen, or whether it goes by the broker.
//!
//! The least loaded of all tunnels to the version, ties at random; of more than [`LOOKED_AT`] the
//! better of two that are drawn (Mitzenmacher, "The Power of Two Choices in Randomized Load
//! Balancing", 2001). Load is what is out on a tunnel, what its worker has of other senders, and
//! what has failed there of late: whoever fails fast would look idle otherwise.
//!
//! The broker draws a member at random, and its answer says whether that one has a tunnel. So the
//! share of such answers is known, and the broker gets the more requests the more members there are
//! without: nearly all of them after a start, a few for ever where some worker makes no tunnel, and
//! one now and then in any case.

use std::time::{Duration, Instant};

/// Up to so many tunnels all are looked at.
pub const LOOKED_AT: usize = 64;

/// The longest time between two requests by the broker, where there are requests.
pub const BROKER_INTERVAL: Duration = Duration::from_secs(1);

/// Requests by the broker for each member that is known, to learn who else there is. The broker
/// draws members at random: so many miss a certain one but one time in fifty.
const PER_MEMBER: u32 = 4;

/// Answers that a share is learned from, where few members are known.
const FEWEST_ANSWERS: u32 = 16;

/// After this time a failure weighs a third of a request that is out.
const FAILURE_MEMORY: Duration = Duration::from_secs(1);

/// Parts of a request that loads are compared in.
const FINENESS: f32 = 16.0;

/// A share of members without a tunnel that counts as some.
const SOME: f32 = 1.0 / 128.0;

/// How much a tunnel's worker has to do, as one thread of a gateway knows it.
#[derive(Clone, Debug)]
pub struct Load {
    in_flight: u32,
    /// What the worker had in hand beside ours, when it last said so.
    elsewhere: u32,
    /// How many the worker takes.
    limit: u32,
    failures: f32,
    failures_at: Instant,
}

/// What a tunnel is for the next request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Candidate {
    /// It takes none: stalled, leaving, not open yet.
    Unusable,
    /// Its worker has as much as it takes, or as much is to be written as may.
    Full,
    /// It takes one, and so much speaks against it.
    Free(u32),
}

/// What a request goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The tunnel of this index.
    Tunnel(usize),
    /// The broker, with an offer.
    Broker,
    /// None: all members are full that are known.
    Nowhere,
}

/// When requests to one version go by the broker although there are tunnels.
#[derive(Clone, Debug)]
pub struct BrokerTurns {
    due: Instant,
    /// Requests that go by the broker next.
    owed: u32,
    /// The share of answers by the broker, of late, whose worker has no tunnel that is open.
    without_tunnel: f32,
}

impl Load {
    /// Returns that of a worker that takes so many requests at a time, 0 for any number.
    pub fn new(limit: u32, now: Instant) -> Self {
        let limit = if limit == 0 { u32::MAX } else { limit };
        Self { in_flight: 0, elsewhere: 0, limit, failures: 0.0, failures_at: now }
    }

    /// One more is out.
    pub fn begun(&mut self) {
        self.in_flight += 1;
    }

    /// One that was out is not any more. `failed` if it was answered by a 5xx or not at all.
    pub fn ended(&mut self, failed: bool, now: Instant) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if failed {
            self.failures = self.failures_now(now) + 1.0;
            self.failures_at = now;
        }
    }

    /// The worker said how many it has in hand, ours included.
    pub fn occupied(&mut self, in_hand: u16) {
        self.elsewhere = u32::from(in_hand).saturating_sub(self.in_flight);
    }

    /// Returns how many of ours are out.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Returns what speaks against the worker.
    pub fn candidate(&self, now: Instant) -> Candidate {
        let requests = self.in_flight.saturating_add(self.elsewhere);
        if requests >= self.limit {
            return Candidate::Full;
        }
        Candidate::Free(((requests as f32 + self.failures_now(now)) * FINENESS) as u32)
    }

    fn failures_now(&self, now: Instant) -> f32 {
        if self.failures == 0.0 {
            return 0.0;
        }
        let passed = now.saturating_duration_since(self.failures_at);
        self.failures * (-passed.as_secs_f32() / FAILURE_MEMORY.as_secs_f32()).exp()
    }
}

impl BrokerTurns {
    /// Returns those of a version of which nobody is known.
    pub fn new(now: Instant) -> Self {
        Self { due: now, owed: 0, without_tunnel: 1.0 }
    }

    /// A member has come to the `members` that are known.
    pub fn arrived(&mut self, members: usize) {
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        self.owed = self.owed.max(members.saturating_add(1).saturating_mul(PER_MEMBER));
    }

    /// A request that went by the broker was answered, by a worker whose tunnel is open or by one
    /// that has none or dials one; `members` are those whose tunnels are open.
    pub fn answered(&mut self, has_open_tunnel: bool, members: usize) {
        let without = if has_open_tunnel { 0.0 } else { 1.0 };
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        let answers = members.saturating_mul(PER_MEMBER).max(FEWEST_ANSWERS);
        self.without_tunnel += (without - self.without_tunnel) / answers as f32;
    }

    /// Whether some members have no tunnel.
    fn knows_others(&self) -> bool {
        self.without_tunnel > SOME
    }

    /// Takes a turn of the broker's, if it is time for one.
    fn take(&mut self, now: Instant, random: u32) -> bool {
        if self.owed > 0 || self.due <= now {
            self.owed = self.owed.saturating_sub(1);
            self.due = now + BROKER_INTERVAL;
            return true;
        }
        // The broker gives a request to any member, also to those with a tunnel. So twice the share
        // of the others; where they are half of all, everything.
        (random as f32 / u32::MAX as f32) < 2.0 * self.without_tunnel
    }
}

/// Chooses what the next request to a version goes by, of `count` tunnels. While the broker does
/// not answer, it has no turns: only what no tunnel takes goes there.
pub fn choose(
    turns: &mut BrokerTurns,
    broker_answers: bool,
    count: usize,
    candidate: impl Fn(usize) -> Candidate,
    now: Instant,
    mut random: impl FnMut() -> u32,
) -> Way {
    if count == 0 {
        return Way::Broker;
    }
    if broker_answers && turns.take(now, random()) {
        return Way::Broker;
    }
    let mut best = Best::default();
    if count <= LOOKED_AT {
        (0..count).for_each(|index| best.look(index, candidate(index), &mut random));
    } else {
        let two = two_of(count, &mut random);
        two.into_iter().for_each(|index| best.look(index, candidate(index), &mut random));
        if best.index.is_none() {
            // Bad luck must not look like a version that is full or gone.
            let is_free = |index: &usize| matches!(candidate(*index), Candidate::Free(_));
            let free: Vec<usize> = (0..count).filter(is_free).collect();
            match free.len() {
                0 => (0..count).for_each(|index| best.look(index, candidate(index), &mut random)),
                1 => best.look(free[0], candidate(free[0]), &mut random),
                several => two_of(several, &mut random).into_iter().for_each(|place| {
                    best.look(free[place], candidate(free[place]), &mut random);
                }),
            }
        }
    }
    match best.index {
        Some(index) => Way::Tunnel(index),
        None if best.is_some_full && !turns.knows_others() => Way::Nowhere,
        None => Way::Broker,
    }
}

/// The best of those looked at.
#[derive(Default)]
struct Best {
    index: Option<usize>,
    against: u32,
    /// How many are as good.
    ties: u32,
    is_some_full: bool,
}

impl Best {
    fn look(&mut self, index: usize, candidate: Candidate, random: &mut impl FnMut() -> u32) {
        let against = match candidate {
            Candidate::Unusable => return,
            Candidate::Full => {
                self.is_some_full = true;
                return;
            }
            Candidate::Free(against) => against,
        };
        match self.index {
            Some(_) if against > self.against => return,
            // Each of those that are as good is left standing with the same probability.
            Some(_) if against == self.against => {
                self.ties += 1;
                if !random().is_multiple_of(self.ties) {
                    return;
                }
            }
            _ => self.ties = 1,
        }
        (self.index, self.against) = (Some(index), against);
    }
}

/// Draws two that differ, of at least two.
fn two_of(count: usize, random: &mut impl FnMut() -> u32) -> [usize; 2] {
    let first = random() as usize % count;
    let second = random() as usize % (count - 1);
    [first, if second >= first { second + 1 } else { second }]
}

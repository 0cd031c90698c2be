//! The memory that one shard holds for its clients: counted at its real cost, bounded, and shared
//! out fairly. Pure.
//!
//! Three sums are bounded. What is *held*: requests, answers that are asked for, answers that wait
//! to be taken, and what connections keep beyond the least. What is *arriving*, half of that at the
//! most: requests that are not here whole, so that slow senders cannot keep out whole requests.
//! What is *coming*: answers that the broker may have for this shard, because it drops a client for
//! which too much is pending.
//!
//! No connection may hold more than it leaves free for all others. That is the dynamic threshold of
//! shared-memory switches (Choudhury and Hahne, 1998): one busy connection gets half, a hundred
//! greedy ones get a hundredth each. The last eighth is for connections that hold little, half of
//! it shared out among all that there are, and while it is used, the one that holds most is closed.
//!
//! [`cost`] says what things cost, [`sizes`] how large an answer is expected to be,
//! [`admission_queue`] lets requests wait for room, [`plan`] is the sum for the process, and
//! [`container`] the memory that it may have.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use natsway_caller::counter::{Counter, Gauge};
use slab::Slab;
use tokio::sync::Notify;

pub mod admission_queue;
pub mod container;
pub mod cost;
pub mod plan;
pub mod sizes;

use self::cost::SMALL_REPLY_BYTES;

/// How long a guess counts in full. An answer that takes longer than this does not come with a
/// burst of others, and requests that wait for minutes, as for an event, would otherwise keep all
/// others waiting.
pub const GUESS_LIMIT: Duration = Duration::from_millis(250);

/// The bounds of what a connection may hold to take of the reserve: a request of the usual size,
/// and a few of them.
const LITTLE_BYTES: Range<usize> = 20 * 1024..128 * 1024;

/// How often it is looked whether the reserve is in use.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// The looks in a row after which a connection is closed: what is used for a moment only costs
/// nobody anything.
const LOW_LOOKS: u32 = 5;

/// The bounds of a shard's memory.
#[derive(Clone, Copy, Debug)]
pub struct MemoryLimits {
    /// What it may hold.
    pub held_bytes: usize,
    /// What its answers may come to that the broker has not delivered yet.
    pub coming_bytes: usize,
}

/// What a shard holds, for others to read.
#[derive(Debug, Default)]
pub struct MemoryMetrics {
    /// Bytes held.
    pub held_bytes: Gauge,
    /// Bytes of these for what is not here whole.
    pub arriving_bytes: Gauge,
    /// Bytes of answers that are asked for.
    pub coming_bytes: Gauge,
    /// Requests that had to wait for room.
    pub waits: Counter,
    /// Connections that were closed since there was no room for what they began.
    pub closed: Counter,
}

/// The memory of one shard.
#[derive(Debug)]
pub struct MemoryBudget {
    limits: MemoryLimits,
    held: Cell<usize>,
    arriving: Cell<usize>,
    coming: Cell<usize>,
    /// Grows whenever something is given back.
    freed: Cell<u64>,
    accounts: RefCell<Slab<Weak<Account>>>,
    /// Checks in a row at which the reserve was in use.
    low_looks: Cell<u32>,
    /// The connection that was told to close, until it has.
    evicted: Cell<Option<usize>>,
    /// Those that count in full, the oldest first.
    guesses: RefCell<VecDeque<(Instant, Weak<Guess>)>>,
    metrics: Arc<MemoryMetrics>,
}

impl MemoryBudget {
    /// Returns a budget of which nothing is used.
    pub fn new(limits: MemoryLimits, metrics: Arc<MemoryMetrics>) -> Rc<Self> {
        let (held, arriving, coming, freed) = Default::default();
        let (accounts, low_looks, evicted, guesses) = Default::default();
        Rc::new(Self {
            limits,
            held,
            arriving,
            coming,
            freed,
            accounts,
            low_looks,
            evicted,
            guesses,
            metrics,
        })
    }

    /// Opens the account of a connection.
    pub fn open(self: &Rc<Self>) -> Rc<Account> {
        let mut accounts = self.accounts.borrow_mut();
        let place = accounts.vacant_entry();
        let (held, unflushed, eviction) = Default::default();
        let account =
            Account { budget: Rc::clone(self), key: place.key(), held, unflushed, eviction };
        let account = Rc::new(account);
        place.insert(Rc::downgrade(&account));
        account
    }

    /// Returns a number that grows whenever something is given back.
    pub fn freed(&self) -> u64 {
        self.freed.get()
    }

    /// The metrics that it writes.
    pub fn metrics(&self) -> &MemoryMetrics {
        &self.metrics
    }

    /// Has guesses that are older than [`GUESS_LIMIT`] count for no more than a small answer.
    pub fn age(&self, now: Instant) {
        let mut guesses = self.guesses.borrow_mut();
        while let Some((made, guess)) = guesses.front() {
            match guess.upgrade() {
                Some(_) if *made + GUESS_LIMIT > now => return,
                Some(guess) => guess.shrink(),
                None => {}
            }
            guesses.pop_front();
        }
    }

    fn free(&self) -> usize {
        self.limits.held_bytes - self.held.get()
    }

    fn add_held(&self, bytes: usize) {
        self.held.set(self.held.get() + bytes);
        self.metrics.held_bytes.set(signed(self.held.get()));
    }

    /// What is left to connections that hold little.
    fn reserve(&self) -> usize {
        self.limits.held_bytes / 8
    }

    /// Checks whether the reserve is in use: to be called every [`LOOK_INTERVAL`]. When it has been
    /// for some looks, the connection that holds most is told to close, unless one is about to or
    /// all hold little.
    pub fn tick(&self) {
        let looks = if self.free() < self.reserve() { self.low_looks.get() + 1 } else { 0 };
        self.low_looks.set(looks);
        if looks < LOW_LOOKS || self.evicted.get().is_some() {
            return;
        }
        let accounts = self.accounts.borrow();
        let largest =
            accounts.iter().filter_map(|(_, account)| account.upgrade()).max_by_key(|of| of.held());
        if let Some(account) = largest.filter(|account| account.held() > self.little()) {
            self.evicted.set(Some(account.key));
            account.eviction.notify_one();
        }
    }

    /// What a connection may hold to take of the reserve: its share of that.
    fn little(&self) -> usize {
        let share = self.reserve() / self.accounts.borrow().len().max(1);
        share.clamp(LITTLE_BYTES.start, LITTLE_BYTES.end)
    }

    /// What a connection may hold to take of the reserve when so much is `left`: little of its
    /// first half, and of the other its own share. So there is something for each, however many
    /// come.
    fn least(&self, left: usize) -> usize {
        let half = self.reserve() / 2;
        match left >= half {
            true => self.little(),
            false => half / self.accounts.borrow().len().max(1),
        }
    }

    fn give_held(&self, bytes: usize) {
        self.held.set(self.held.get() - bytes);
        self.freed.set(self.freed.get() + 1);
        self.metrics.held_bytes.set(signed(self.held.get()));
    }

    fn set_arriving(&self, bytes: usize) {
        self.arriving.set(bytes);
        self.metrics.arriving_bytes.set(signed(bytes));
    }

    fn set_coming(&self, bytes: usize) {
        self.coming.set(bytes);
        self.metrics.coming_bytes.set(signed(bytes));
    }

    /// Whether the broker may have so many bytes more for us. Large answers leave a quarter to
    /// small ones; one answer may always come.
    fn may_come(&self, bytes: usize) -> bool {
        let limit = match bytes > SMALL_REPLY_BYTES {
            true => self.limits.coming_bytes - self.limits.coming_bytes / 4,
            false => self.limits.coming_bytes,
        };
        self.coming.get() == 0 || self.coming.get().saturating_add(bytes) <= limit
    }
}

/// What is held for one connection.
#[derive(Debug)]
pub struct Account {
    budget: Rc<MemoryBudget>,
    key: usize,
    held: Cell<usize>,
    /// Of what is held, that which is given back once the socket has taken all that was written.
    unflushed: Cell<usize>,
    eviction: Notify,
}

impl Account {
    /// The budget that it is part of.
    pub fn budget(&self) -> &Rc<MemoryBudget> {
        &self.budget
    }

    /// Returns the bytes that are held for the connection.
    pub fn held(&self) -> usize {
        self.held.get()
    }

    /// The socket has taken all that was written.
    pub fn flushed(&self) {
        let bytes = self.unflushed.take();
        if bytes > 0 {
            self.give(bytes);
        }
    }

    /// Whether the connection alone is why there is no room for an answer: it holds what its client
    /// does not take, while a quarter of the budget is free.
    pub fn is_in_its_own_way(&self, expected: Expectation) -> bool {
        let budget = &self.budget;
        let has_room =
            budget.free() >= budget.limits.held_bytes / 4 && budget.may_come(expected.bytes);
        has_room && !self.may_hold(cost::reply_bytes(expected.bytes))
    }

    /// Waits until the connection is to be closed because it holds most and others need the room.
    ///
    /// # Cancel safety
    /// Cancelling loses nothing.
    pub async fn evicted(&self) {
        self.eviction.notified().await;
    }

    /// Whether the connection may hold so many bytes more: then it holds no more than it leaves to
    /// all others, and little if it takes of the reserve.
    fn may_hold(&self, bytes: usize) -> bool {
        let (budget, holds) = (&self.budget, self.held.get().saturating_add(bytes));
        let left = budget.free().checked_sub(bytes);
        left.is_some_and(|left| {
            holds <= left && (left >= budget.reserve() || holds <= budget.least(left))
        })
    }

    fn add(&self, bytes: usize) {
        self.held.set(self.held.get() + bytes);
        self.budget.add_held(bytes);
    }

    fn give(&self, bytes: usize) {
        self.held.set(self.held.get() - bytes);
        self.budget.give_held(bytes);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // All else has a guard that keeps the account.
        self.flushed();
        let budget = &self.budget;
        budget.accounts.borrow_mut().remove(self.key);
        if budget.evicted.get() == Some(self.key) {
            budget.evicted.set(None);
        }
    }
}

/// Bytes that are held for a connection until this is dropped.
#[derive(Debug)]
pub struct BodyBudget {
    account: Rc<Account>,
    bytes: usize,
    /// Whether they are for something that is not here whole.
    arriving: bool,
}

impl BodyBudget {
    /// Holds `bytes` of something that is here whole, if there is room.
    pub fn take(account: &Rc<Account>, bytes: usize) -> Option<Self> {
        if !account.may_hold(bytes) {
            return None;
        }
        account.add(bytes);
        Some(Self { account: Rc::clone(account), bytes, arriving: false })
    }

    /// Holds nothing yet, of something that is not here whole.
    pub fn arriving(account: &Rc<Account>) -> Self {
        Self { account: Rc::clone(account), bytes: 0, arriving: true }
    }

    /// The account that it is part of.
    pub fn account(&self) -> &Rc<Account> {
        &self.account
    }

    /// Returns what it holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Holds `bytes` in all, if there is room for as many more as that takes; otherwise nothing
    /// changes. It never holds less than before.
    #[must_use]
    pub fn reach(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        let budget = &self.account.budget;
        let arriving = budget.arriving.get() + more;
        if !self.account.may_hold(more)
            || (self.arriving && arriving > budget.limits.held_bytes / 2)
        {
            return false;
        }
        if self.arriving {
            budget.set_arriving(arriving);
        }
        self.account.add(more);
        self.bytes = bytes;
        true
    }

    /// It is here whole now.
    pub fn arrived(&mut self) {
        if std::mem::take(&mut self.arriving) {
            let budget = &self.account.budget;
            budget.set_arriving(budget.arriving.get() - self.bytes);
        }
    }

    /// Takes over what another guard of the same account holds.
    pub fn absorb(&mut self, mut other: Self) {
        debug_assert!(Rc::ptr_eq(&self.account, &other.account) && !self.arriving);
        other.arrived();
        self.bytes += std::mem::take(&mut other.bytes);
    }

    /// Gives back all but `bytes`.
    pub fn shrink_to(&mut self, bytes: usize) {
        debug_assert!(!self.arriving);
        let less = self.bytes.saturating_sub(bytes);
        if less > 0 {
            self.bytes -= less;
            self.account.give(less);
        }
    }

    /// Gives it back once the socket has taken all that was written.
    pub fn until_flushed(mut self) {
        self.arrived();
        let bytes = std::mem::take(&mut self.bytes);
        let unflushed = &self.account.unflushed;
        unflushed.set(unflushed.get() + bytes);
    }
}

impl Drop for BodyBudget {
    fn drop(&mut self) {
        self.arrived();
        if self.bytes > 0 {
            self.account.give(self.bytes);
        }
    }
}

/// How large an answer is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expectation {
    /// Its bytes on the wire.
    pub bytes: usize,
    /// Whether nobody has seen one of its kind.
    pub is_guess: bool,
}

/// AdmissionQueue for an answer that is asked for. Dropping it says that the answer does not come.
#[derive(Debug)]
pub struct Reservation {
    account: Rc<Account>,
    room: Reserved,
}

#[derive(Debug)]
enum Reserved {
    Known { held: usize, coming: usize },
    Guess(Rc<Guess>),
}

/// What is reserved for an answer of unknown size.
#[derive(Debug)]
struct Guess {
    account: Rc<Account>,
    held: Cell<usize>,
    coming: Cell<usize>,
}

impl Guess {
    /// Counts it as a small answer.
    fn shrink(&self) {
        let small = cost::reply_bytes(SMALL_REPLY_BYTES);
        let (held, coming) = (self.held.get(), self.coming.get());
        if held > small {
            self.account.give(held - small);
            self.held.set(small);
        }
        if coming > SMALL_REPLY_BYTES {
            let budget = &self.account.budget;
            budget.set_coming(budget.coming.get() - (coming - SMALL_REPLY_BYTES));
            self.coming.set(SMALL_REPLY_BYTES);
        }
    }
}

impl Reservation {
    /// Reserves room for an answer, if there is any.
    pub fn make(account: &Rc<Account>, expected: Expectation, now: Instant) -> Option<Self> {
        let budget = &account.budget;
        // However small the budget is, an answer can be asked for.
        let held = cost::reply_bytes(expected.bytes).min(budget.limits.held_bytes / 4);
        let coming = expected.bytes;
        if !budget.may_come(coming) || !account.may_hold(held) {
            return None;
        }
        account.add(held);
        budget.set_coming(budget.coming.get() + coming);
        let room = if expected.is_guess {
            let account = Rc::clone(account);
            let guess =
                Rc::new(Guess { account, held: Cell::new(held), coming: Cell::new(coming) });
            budget.age(now);
            budget.guesses.borrow_mut().push_back((now, Rc::downgrade(&guess)));
            Reserved::Guess(guess)
        } else {
            Reserved::Known { held, coming }
        };
        Some(Self { account: Rc::clone(account), room })
    }

    /// The answer is here and costs `bytes`: it is held at that instead. `None` when it is larger
    /// than was expected and there is no room for what it has more.
    pub fn arrived(mut self, bytes: usize) -> Option<BodyBudget> {
        let (reserved, coming) = self.take();
        self.account.budget.come(coming);
        if bytes > reserved {
            if bytes - reserved > self.account.budget.free() {
                self.account.give(reserved);
                return None;
            }
            self.account.add(bytes - reserved);
        } else if reserved > bytes {
            self.account.give(reserved - bytes);
        }
        Some(BodyBudget { account: Rc::clone(&self.account), bytes, arriving: false })
    }

    /// Takes what is reserved, held and coming, out of this.
    fn take(&mut self) -> (usize, usize) {
        match &mut self.room {
            Reserved::Known { held, coming } => (std::mem::take(held), std::mem::take(coming)),
            Reserved::Guess(guess) => (guess.held.take(), guess.coming.take()),
        }
    }
}

impl MemoryBudget {
    /// So many bytes that were to come are here, or do not come.
    fn come(&self, bytes: usize) {
        if bytes > 0 {
            self.set_coming(self.coming.get() - bytes);
            self.freed.set(self.freed.get() + 1);
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let (held, coming) = self.take();
        self.account.budget.come(coming);
        if held > 0 {
            self.account.give(held);
        }
    }
}

/// Bytes in memory are fewer than half of what a `usize` counts.
fn signed(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;

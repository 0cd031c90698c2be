//! Requests that wait until there is room for their answers.
//!
//! One task looks after all that wait, a few hundred times a second and only when something was
//! given back: each of them looking for itself would cost more the more wait. Who has waited
//! longest is asked first; who does not fit is passed over, so that a connection that waits for its
//! own answers to be taken keeps nobody waiting.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::cost::SMALL_REPLY_BYTES;
use super::sizes::{Kind, ReplySizes};
use super::{Account, GUESS_LIMIT, MemoryBudget, Reservation};

/// How long a request waits for room that others take. One whose own connection takes it waits
/// until its deadline.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Reserves room for answers, and has requests wait for it.
#[derive(Debug)]
pub struct AdmissionQueue {
    budget: Rc<MemoryBudget>,
    /// How large answers are.
    pub sizes: ReplySizes,
    waiting: RefCell<VecDeque<Waiting>>,
    /// Whether somebody has begun to wait since the last look.
    is_new: Cell<bool>,
    began_to_wait: Notify,
}

#[derive(Debug)]
struct Waiting {
    account: Rc<Account>,
    kind: Kind,
    most_bytes: usize,
    /// There until it is used.
    granted: Option<oneshot::Sender<Reservation>>,
}

impl AdmissionQueue {
    /// Returns a room in which nobody waits.
    pub fn new(budget: Rc<MemoryBudget>, now: Instant) -> Self {
        let (waiting, is_new, began_to_wait) = Default::default();
        Self { budget, sizes: ReplySizes::new(now), waiting, is_new, began_to_wait }
    }

    /// Reserves room for the answer to a request, unless it has to [wait](AdmissionQueue::wait).
    /// Small ones need not stand behind those that wait.
    pub fn reserve(
        &self,
        account: &Rc<Account>,
        kind: Kind,
        most_bytes: usize,
        now: Instant,
    ) -> Option<Reservation> {
        let expected = self.sizes.expected(kind, most_bytes, now);
        if expected.bytes > SMALL_REPLY_BYTES && !self.waiting.borrow().is_empty() {
            return None;
        }
        Reservation::make(account, expected, now)
    }

    /// Waits for room, until the deadline at the latest.
    ///
    /// # Cancel safety
    /// Cancelling gives the place up.
    pub async fn wait(
        &self,
        account: &Rc<Account>,
        kind: Kind,
        most_bytes: usize,
        deadline: Instant,
    ) -> Option<Reservation> {
        self.budget.metrics().waits.inc();
        let (granted, mut reserved) = oneshot::channel();
        let place =
            Waiting { account: Rc::clone(account), kind, most_bytes, granted: Some(granted) };
        self.waiting.borrow_mut().push_back(place);
        self.is_new.set(true);
        self.began_to_wait.notify_one();
        let soon = deadline.min(Instant::now() + PATIENCE);
        if let Ok(granted) = tokio::time::timeout_at(soon.into(), &mut reserved).await {
            return granted.ok();
        }
        let expected = self.sizes.expected(kind, most_bytes, Instant::now());
        if !account.is_in_its_own_way(expected) {
            return None;
        }
        tokio::time::timeout_at(deadline.into(), reserved).await.ok()?.ok()
    }

    /// Looks after those that wait, for ever.
    pub async fn look_after(&self) {
        loop {
            if self.waiting.borrow().is_empty() {
                self.began_to_wait.notified().await;
            }
            let (mut freed, mut looked) = (self.budget.freed(), Instant::now());
            while !self.waiting.borrow().is_empty() {
                let now = Instant::now();
                self.budget.age(now);
                // Who waits no more is forgotten in time, though nothing is given back.
                let is_due = freed != self.budget.freed() || now >= looked + GUESS_LIMIT;
                if self.is_new.take() || is_due {
                    (freed, looked) = (self.budget.freed(), now);
                    self.grant(now);
                }
                tokio::time::sleep(LOOK_INTERVAL).await;
            }
        }
    }

    /// Gives room to those for whom there is some, and forgets those that wait no more.
    fn grant(&self, now: Instant) {
        self.waiting.borrow_mut().retain_mut(|waiting| {
            let Some(granted) = waiting.granted.take_if(|granted| !granted.is_closed()) else {
                return false;
            };
            let expected = self.sizes.expected(waiting.kind, waiting.most_bytes, now);
            match Reservation::make(&waiting.account, expected, now) {
                // Who has left in between drops it, which gives it back.
                Some(reservation) => drop(granted.send(reservation)),
                None => waiting.granted = Some(granted),
            }
            waiting.granted.is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::memory::MemoryLimits;

    const MIB: usize = 1 << 20;

    fn room() -> (Rc<MemoryBudget>, Rc<AdmissionQueue>) {
        let limits = MemoryLimits { held_bytes: 64 * MIB, coming_bytes: 8 * MIB };
        let budget = MemoryBudget::new(limits, Default::default());
        let room = Rc::new(AdmissionQueue::new(Rc::clone(&budget), Instant::now()));
        (budget, room)
    }

    /// Runs on one thread whose clock jumps when nothing else is to be done.
    fn run(test: impl Future<Output = ()>) {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_time().start_paused(true).build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    fn look_after(room: &Rc<AdmissionQueue>) {
        let room = Rc::clone(room);
        tokio::task::spawn_local(async move { room.look_after().await });
    }

    #[test]
    fn who_waits_gets_what_is_given_back_and_small_ones_pass() {
        run(async {
            let (budget, room) = room();
            look_after(&room);
            let (large, small) =
                (Kind::of(1, &Method::GET, "/large"), Kind::of(1, &Method::GET, "/small"));
            let now = Instant::now();
            room.sizes.record(large, MIB, now);
            room.sizes.record(small, 100, now);
            let account = budget.open();
            let mut taken: Vec<_> =
                std::iter::from_fn(|| room.reserve(&account, large, MIB, now)).collect();
            assert_eq!(taken.len(), 6);
            let other = budget.open();
            let deadline = now + Duration::from_secs(60);
            let waiting = async { room.wait(&other, large, MIB, deadline).await.is_some() };
            let giving = async {
                tokio::time::sleep(Duration::from_millis(100)).await;
                assert!(room.reserve(&account, small, MIB, now).is_some());
                taken.pop();
                assert!(room.reserve(&account, large, MIB, now).is_none(), "others came before");
            };
            assert!(tokio::join!(waiting, giving).0);
            drop(taken);
            assert_eq!((budget.held.get(), budget.coming.get()), (0, 0));
        });
    }

    #[test]
    fn a_guess_that_turns_out_small_lets_all_others_go() {
        run(async {
            let (budget, room) = room();
            look_after(&room);
            let kind = Kind::of(1, &Method::GET, "/");
            let (account, now) = (budget.open(), Instant::now());
            let mut first: Vec<_> =
                std::iter::from_fn(|| room.reserve(&account, kind, MIB, now)).collect();
            let waiting = (0..1_000).map(|_| room.wait(&account, kind, MIB, now + PATIENCE));
            let answering = async {
                tokio::time::sleep(Duration::from_millis(5)).await;
                drop(first.pop().unwrap().arrived(1_200));
                room.sizes.record(kind, 200, now);
            };
            let (granted, ()) = tokio::join!(futures_util::future::join_all(waiting), answering);
            assert!(granted.iter().all(Option::is_some));
        });
    }

    #[test]
    fn waiting_ends_sooner_where_others_take_the_room() {
        run(async {
            let (budget, room) = room();
            look_after(&room);
            let kind = Kind::of(1, &Method::GET, "/");
            room.sizes.record(kind, MIB, Instant::now());
            let account = budget.open();
            let now = Instant::now();
            let out: Vec<_> =
                std::iter::from_fn(|| room.reserve(&account, kind, MIB, now)).collect();
            let began = tokio::time::Instant::now();
            let deadline = now + Duration::from_secs(60);
            assert!(room.wait(&budget.open(), kind, MIB, deadline).await.is_none());
            assert_eq!(began.elapsed().as_secs(), PATIENCE.as_secs());
            drop(out);
            // Who gave up is forgotten by now.
            tokio::time::sleep(Duration::from_secs(1)).await;
            // Its own answers, which its client does not take.
            let mine: Vec<_> = std::iter::from_fn(|| {
                room.reserve(&account, kind, MIB, now).map(|asked| asked.arrived(MIB).unwrap())
            })
            .collect();
            assert!(mine.len() > 20, "{}", mine.len());
            let began = tokio::time::Instant::now();
            assert!(room.wait(&account, kind, MIB, deadline).await.is_none());
            assert!(began.elapsed() > PATIENCE);
        });
    }
}

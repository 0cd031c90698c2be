//! The requests that wait for a reply on one connection: a slab whose entries carry a random
//! secret, so that neither a late reply to an entry's former owner nor a forged one is taken for
//! the answer. Pure but for wakers.

use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use slab::Slab;

/// Where a request waits, and the last token of its reply subject.
///
/// Whoever may publish to the role's inboxes and knows the token can answer in the worker's stead,
/// and the rest of the subject is shown with every request. So the token is a secret between the
/// caller and the one worker that gets the request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    index: u32,
    secret: u64,
}

/// The waiting requests; `T` is what each waits for.
#[derive(Debug)]
pub struct PendingRequests<T> {
    slab: Slab<Pending<T>>,
}

#[derive(Debug)]
struct Pending<T> {
    secret: u64,
    state: State<T>,
    /// The instance that said it runs the request.
    instance: Option<Rc<str>>,
    policy: ReplyPolicy,
    deadline: Instant,
    /// Whether [`PendingRequests::expire`] found it past its deadline.
    expired: bool,
    accept_timeout: AcceptTimeout,
}

/// When a request counts as lost that nobody has answered or accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AcceptTimeout {
    Never,
    At(Instant),
    /// It has passed: it is for the owner to say what becomes of the request.
    Passed,
}

/// What may come back for a request, and what becomes of it when nobody waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReplyPolicy {
    /// Its worker sends signals: replies are envelopes.
    pub signals: bool,
    /// The work is cancelled when nobody waits any more. Needs `signals`.
    pub cancel: bool,
    /// It may run twice, so it can be given up here and tried elsewhere.
    pub repeatable: bool,
}

#[derive(Debug)]
enum State<T> {
    Waiting(Option<Waker>),
    Ready(T),
    /// Nobody waits, but whoever accepts the request shall be told to drop it.
    Abandoned,
}

/// What an `accepted` signal means for its request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepted {
    /// It is waited for.
    Noted,
    /// It was abandoned: cancel it at that instance.
    Cancel,
    /// It was answered or given up long ago.
    Late,
}

impl Key {
    /// Characters in a token: 96 bits, six in each.
    pub const TOKEN_BYTES: usize = 16;

    /// The key as a token of a subject.
    pub fn token(self) -> [u8; Self::TOKEN_BYTES] {
        let value = u128::from(self.secret) << 32 | u128::from(self.index);
        std::array::from_fn(|index| DIGITS[(value >> (90 - 6 * index) & 0x3f) as usize])
    }

    /// Where it waits; another may wait there later.
    pub fn index(self) -> usize {
        self.index as usize
    }

    /// Reads what [`token`](Key::token) wrote.
    pub fn parse(token: &str) -> Option<Self> {
        let token: &[u8; Self::TOKEN_BYTES] = token.as_bytes().try_into().ok()?;
        let mut value = 0_u128;
        for byte in token {
            let digit = VALUES[usize::from(*byte)];
            if digit == NO_DIGIT {
                return None;
            }
            value = value << 6 | u128::from(digit);
        }
        Some(Self { index: value as u32, secret: (value >> 32) as u64 })
    }
}

/// What it shows is no secret, since it may end in a log.
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.index)
    }
}

/// The digits of base64url (RFC 4648, section 5): all of them may stand in a subject.
const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

const NO_DIGIT: u8 = u8::MAX;

/// The value of each byte that is a digit.
const VALUES: [u8; 256] = {
    let mut values = [NO_DIGIT; 256];
    let mut value = 0;
    while value < DIGITS.len() {
        values[DIGITS[value] as usize] = value as u8;
        value += 1;
    }
    values
};

impl<T> PendingRequests<T> {
    /// No requests yet.
    pub fn new() -> Self {
        Self { slab: Slab::new() }
    }

    /// Requests that have an entry, abandoned ones included.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether nobody waits for anything.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// Takes an entry for a request that is given up at `deadline`. Nobody can guess `secret` from
    /// earlier ones.
    pub fn insert(&mut self, deadline: Instant, policy: ReplyPolicy, secret: u64) -> Key {
        let state = State::Waiting(None);
        let accept_timeout = AcceptTimeout::Never;
        let request = Pending {
            secret,
            state,
            instance: None,
            policy,
            deadline,
            expired: false,
            accept_timeout,
        };
        let index = u32::try_from(self.slab.insert(request))
            .expect("requests in flight are bounded far below 2^32");
        Key { index, secret }
    }

    /// From this moment on a request counts as lost if it was neither answered nor accepted.
    pub fn accept_by(&mut self, key: Key, moment: Instant) {
        if let Some(request) = self.get(key) {
            request.accept_timeout = AcceptTimeout::At(moment);
        }
    }

    /// Whether a request that somebody waits for counts as lost now; says so once.
    pub fn accept_timed_out(&mut self, key: Key) -> bool {
        let waiting = self.get(key).filter(|request| matches!(request.state, State::Waiting(_)));
        let Some(request) =
            waiting.filter(|request| request.accept_timeout == AcceptTimeout::Passed)
        else {
            return false;
        };
        request.accept_timeout = AcceptTimeout::Never;
        true
    }

    fn get(&mut self, key: Key) -> Option<&mut Pending<T>> {
        self.slab.get_mut(key.index as usize).filter(|request| request.secret == key.secret)
    }

    fn remove(&mut self, key: Key) {
        self.slab.remove(key.index as usize);
    }

    /// Whether replies to a request are envelopes; `None` when nothing waits there.
    pub fn expects_signals(&mut self, key: Key) -> Option<bool> {
        self.get(key).map(|request| request.policy.signals)
    }

    /// Gives a request what it waits for; `false` when nobody waits (a late, second or forged
    /// reply).
    pub fn deliver(&mut self, key: Key, value: T) -> bool {
        let Some(request) = self.get(key) else { return false };
        match &mut request.state {
            State::Waiting(waker) => {
                let waker = waker.take();
                request.state = State::Ready(value);
                waker.inspect(Waker::wake_by_ref);
                true
            }
            State::Ready(_) => false,
            State::Abandoned => {
                self.remove(key);
                false
            }
        }
    }

    /// Notes that an instance runs a request.
    pub fn accept(&mut self, key: Key, instance: &str) -> Accepted {
        let Some(request) = self.get(key) else { return Accepted::Late };
        match request.state {
            State::Waiting(_) => {
                request.instance = Some(instance.into());
                request.accept_timeout = AcceptTimeout::Never;
                Accepted::Noted
            }
            State::Ready(_) => Accepted::Late,
            State::Abandoned => {
                self.remove(key);
                Accepted::Cancel
            }
        }
    }

    /// What a request waits for, if it is there; then its entry is free. `None` when its deadline
    /// has passed: then it is for its owner to [`abandon`](PendingRequests::abandon) it.
    ///
    /// # Panics
    /// When the key was given up before: each key is polled by its one owner.
    pub fn poll(&mut self, key: Key, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let request = self.get(key).expect("a key is polled by its one owner, until it is ready");
        if let State::Waiting(waker) = &mut request.state {
            if request.expired {
                return Poll::Ready(None);
            }
            match waker {
                Some(waker) if waker.will_wake(cx.waker()) => {}
                _ => *waker = Some(cx.waker().clone()),
            }
            return Poll::Pending;
        }
        match self.slab.remove(key.index as usize).state {
            State::Ready(value) => Poll::Ready(Some(value)),
            State::Waiting(_) | State::Abandoned => unreachable!("its one owner polls it"),
        }
    }

    /// Nobody waits for a request any more; gives the instance at which to cancel it, if that is
    /// known and wanted. When it is wanted and not yet known, the entry is kept until
    /// [`accept`](PendingRequests::accept) or the deadline.
    pub fn abandon(&mut self, key: Key) -> Option<Rc<str>> {
        let request = self.get(key)?;
        let may_be_accepted = request.policy.cancel
            && request.instance.is_none()
            && matches!(request.state, State::Waiting(_));
        if may_be_accepted {
            request.state = State::Abandoned;
            return None;
        }
        let running = request.policy.cancel && matches!(request.state, State::Waiting(_));
        let instance = request.instance.take().filter(|_| running);
        self.remove(key);
        instance
    }

    /// Looks for deadlines that have passed: wakes the owners of those requests, and frees the
    /// entries of those that were abandoned. Wakes the owners of those that nobody accepted as
    /// well, unless this look comes `late`: then what has arrived may not have been read. A walk
    /// over all of them every few milliseconds costs less than a timer for each.
    pub fn expire(&mut self, now: Instant, late: bool) {
        self.slab.retain(|_, request| {
            if request.deadline > now {
                if let (AcceptTimeout::At(moment), State::Waiting(waker)) =
                    (request.accept_timeout, &mut request.state)
                    && moment <= now
                    && !late
                {
                    request.accept_timeout = AcceptTimeout::Passed;
                    waker.take().inspect(Waker::wake_by_ref);
                }
                return true;
            }
            request.expired = true;
            if let State::Waiting(waker) = &mut request.state {
                waker.take().inspect(Waker::wake_by_ref);
            }
            !matches!(request.state, State::Abandoned)
        });
    }

    /// The instances that run requests somebody waits for, each once.
    pub fn instances(&self) -> Vec<Rc<str>> {
        let waited = |request: &&Pending<T>| matches!(request.state, State::Waiting(_));
        let mut instances: Vec<Rc<str>> = self
            .slab
            .iter()
            .map(|(_, request)| request)
            .filter(waited)
            .filter_map(|request| request.instance.clone())
            .collect();
        instances.sort_unstable();
        instances.dedup();
        instances
    }

    /// Gives `value` to every request that waits, or to every one that `instance` runs.
    pub fn fail(&mut self, instance: Option<&str>, value: impl FnMut() -> T) -> usize {
        self.fail_those(
            |request| instance.is_none() || request.instance.as_deref() == instance,
            value,
        )
    }

    /// Gives `value` to every request that waits and may run twice.
    pub fn fail_repeatable(&mut self, value: impl FnMut() -> T) -> usize {
        self.fail_those(|request| request.policy.repeatable, value)
    }

    fn fail_those(
        &mut self,
        is_meant: impl Fn(&Pending<T>) -> bool,
        mut value: impl FnMut() -> T,
    ) -> usize {
        let mut failed = 0;
        for (_, request) in &mut self.slab {
            let is_meant = is_meant(request);
            if let State::Waiting(waker) = &mut request.state
                && is_meant
            {
                let waker = waker.take();
                request.state = State::Ready(value());
                waker.inspect(Waker::wake_by_ref);
                failed += 1;
            }
        }
        failed
    }
}

impl<T> Default for PendingRequests<T> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    /// Takes an entry with a secret that no other has.
    fn insert(pending: &mut PendingRequests<u32>, deadline: Instant, policy: ReplyPolicy) -> Key {
        pending.insert(deadline, policy, natsway_boot::random_u64())
    }

    fn poll(pending: &mut PendingRequests<u32>, key: Key) -> Option<u32> {
        match pending.poll(key, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => None,
        }
    }

    const CANCELLED: ReplyPolicy = ReplyPolicy { signals: true, cancel: true, repeatable: false };
    const PLAIN: ReplyPolicy = ReplyPolicy { signals: false, cancel: false, repeatable: true };

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn a_reply_reaches_its_request_once() {
        let mut pending = PendingRequests::new();
        let key = insert(&mut pending, later(), CANCELLED);
        assert_eq!(poll(&mut pending, key), None);
        assert!(pending.deliver(key, 7));
        assert!(!pending.deliver(key, 8), "the first reply wins");
        assert_eq!(poll(&mut pending, key), Some(7));
        assert!(pending.is_empty());
    }

    #[test]
    fn a_late_reply_does_not_reach_the_next_owner_of_the_place() {
        let mut pending = PendingRequests::new();
        let old = insert(&mut pending, later(), PLAIN);
        pending.abandon(old);
        let new = insert(&mut pending, later(), PLAIN);
        assert_eq!(old.index, new.index, "the index is used again");
        assert!(!pending.deliver(old, 1));
        assert!(pending.deliver(new, 2));
        assert_eq!(poll(&mut pending, new), Some(2));
    }

    #[test]
    fn a_reply_that_guesses_the_place_and_not_its_secret_is_nobodys() {
        let mut pending = PendingRequests::new();
        let key = insert(&mut pending, later(), CANCELLED);
        for bit in 0..64 {
            let forged = Key { secret: key.secret ^ 1 << bit, ..key };
            assert!(!pending.deliver(forged, 1));
            assert_eq!(pending.accept(forged, "a"), Accepted::Late);
            assert_eq!(pending.expects_signals(forged), None);
        }
        assert!(pending.deliver(key, 2));
        assert_eq!(poll(&mut pending, key), Some(2));
    }

    #[test]
    fn an_abandoned_request_is_cancelled_where_it_runs_whenever_that_becomes_known() {
        let mut pending = PendingRequests::<u32>::new();
        let known = insert(&mut pending, later(), CANCELLED);
        assert_eq!(pending.accept(known, "a"), Accepted::Noted);
        assert_eq!(pending.abandon(known).as_deref(), Some("a"));

        let unknown = insert(&mut pending, later(), CANCELLED);
        assert_eq!(pending.abandon(unknown), None);
        assert_eq!(pending.accept(unknown, "b"), Accepted::Cancel);
        assert_eq!(pending.accept(unknown, "b"), Accepted::Late);

        let unwanted = insert(&mut pending, later(), PLAIN);
        pending.accept(unwanted, "c");
        assert_eq!(pending.abandon(unwanted), None);
        assert!(pending.is_empty());
    }

    #[test]
    fn an_abandoned_request_that_nobody_accepts_is_forgotten_at_its_deadline() {
        let mut pending = PendingRequests::<u32>::new();
        let deadline = later();
        let key = insert(&mut pending, deadline, CANCELLED);
        pending.abandon(key);
        pending.expire(deadline - Duration::from_millis(1), false);
        assert_eq!(pending.len(), 1);
        pending.expire(deadline, false);
        assert!(pending.is_empty());
    }

    #[test]
    fn a_request_past_its_deadline_is_woken_and_given_up_unless_its_reply_is_there() {
        let mut pending = PendingRequests::<u32>::new();
        let deadline = later();
        let (late, answered, early) = (
            insert(&mut pending, deadline, CANCELLED),
            insert(&mut pending, deadline, CANCELLED),
            insert(&mut pending, deadline + Duration::from_secs(1), CANCELLED),
        );
        pending.accept(late, "a");
        assert!(pending.deliver(answered, 1));
        pending.expire(deadline, false);
        let cx = &mut Context::from_waker(Waker::noop());
        assert_eq!(pending.poll(late, cx), Poll::Ready(None));
        assert_eq!(pending.poll(answered, cx), Poll::Ready(Some(1)));
        assert_eq!(pending.poll(early, cx), Poll::Pending);
        assert_eq!(pending.abandon(late).as_deref(), Some("a"), "it is cancelled where it runs");
        assert_eq!(pending.len(), 1);
    }

    #[test]
    fn what_is_neither_answered_nor_accepted_counts_as_lost_once() {
        let mut pending = PendingRequests::<u32>::new();
        let moment = Instant::now() + Duration::from_secs(1);
        let [lost, accepted, answered, unasked] =
            [(); 4].map(|()| insert(&mut pending, later(), CANCELLED));
        for key in [lost, accepted, answered] {
            pending.accept_by(key, moment);
        }
        pending.accept(accepted, "a");
        pending.deliver(answered, 1);
        pending.expire(moment - Duration::from_millis(1), false);
        pending.expire(moment, true);
        assert!(!pending.accept_timed_out(lost), "too early, and then too late to know");
        pending.expire(moment, false);
        assert_eq!(
            [lost, accepted, answered, unasked].map(|key| pending.accept_timed_out(key)),
            [true, false, false, false]
        );
        pending.expire(moment, false);
        assert!(!pending.accept_timed_out(lost), "its owner waits on");
        assert!(pending.deliver(lost, 2));
        assert_eq!(poll(&mut pending, lost), Some(2));
    }

    #[test]
    fn only_the_requests_of_a_lost_instance_fail() {
        let mut pending = PendingRequests::new();
        let (a, b, c) = (
            insert(&mut pending, later(), CANCELLED),
            insert(&mut pending, later(), CANCELLED),
            insert(&mut pending, later(), CANCELLED),
        );
        pending.accept(a, "x");
        pending.accept(b, "y");
        assert_eq!(pending.instances().iter().map(|id| &**id).collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(pending.fail(Some("x"), || 1), 1);
        assert_eq!(
            (poll(&mut pending, a), poll(&mut pending, b), poll(&mut pending, c)),
            (Some(1), None, None)
        );
        assert_eq!(pending.fail(None, || 2), 2);
        assert_eq!((poll(&mut pending, b), poll(&mut pending, c)), (Some(2), Some(2)));
    }

    #[test]
    fn on_a_silent_connection_only_what_may_run_twice_is_given_up() {
        let mut pending = PendingRequests::new();
        let (once, repeatable) =
            (insert(&mut pending, later(), CANCELLED), insert(&mut pending, later(), PLAIN));
        assert_eq!(pending.fail_repeatable(|| 1), 1);
        assert_eq!((poll(&mut pending, once), poll(&mut pending, repeatable)), (None, Some(1)));
    }

    proptest! {
        #[test]
        fn tokens_round_trip(index: u32, secret: u64) {
            let key = Key { index, secret };
            let token = key.token();
            let token = std::str::from_utf8(&token).unwrap();
            prop_assert_eq!(Key::parse(token), Some(key));
            prop_assert!(!token.contains(['.', '*', '>', ' ']), "{} is a token of a subject", token);
        }

        #[test]
        fn any_text_is_a_token_or_none(text in "[A-Za-z0-9_.*>-]{16}|.{0,20}") {
            // Each key has one token, so no two subjects mean the same request.
            if let Some(key) = Key::parse(&text) {
                prop_assert_eq!(key.token(), text.as_bytes());
            }
        }
    }
}

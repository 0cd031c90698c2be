//! One unary tunnel.

use std::cell::{Cell, RefCell};
use std::ops::ControlFlow;
use std::rc::{Rc, Weak};
use std::task::Waker;
use std::time::Instant;

use bytes::Bytes;
use natsway_tunnel::unary::choice::{Candidate, Load};
use natsway_tunnel::unary::{
    Fate, GatewayEnd, GatewayHeard, RequestKey, TunnelEnd, Unsendable, Violation,
};
use natsway_wire::Limits;
use natsway_wire::envelope::decode_reply;
use natsway_wire::frame::{Frame, FrameQueue};
use tracing::warn;

use super::UnaryTunnels;
use crate::attempt::Answer;
use crate::connection::{Connection, answer_of};
use crate::pending::Key;

/// Ticks within which a worker says hello: 5 s.
const HELLO_TICKS: u32 = 10;

/// See the module.
pub(super) struct Tunnel {
    end: RefCell<GatewayEnd<Key>>,
    load: RefCell<Load>,
    /// Wakes the task that moves its frames.
    waker: RefCell<Option<Waker>>,
    /// Its worker is lost.
    is_given_up: Cell<bool>,
    ticks: Cell<u32>,
    /// When a request was last sent.
    used: Cell<Instant>,
    tunnels: Weak<UnaryTunnels>,
}

impl Tunnel {
    pub(super) fn new(tunnels: &Rc<UnaryTunnels>) -> Self {
        let config = &tunnels.config;
        Self {
            end: RefCell::new(GatewayEnd::new(config.gateway.clone(), config.payload_bytes)),
            load: RefCell::new(Load::new(0, Instant::now())),
            waker: RefCell::default(),
            is_given_up: Cell::new(false),
            ticks: Cell::new(0),
            used: Cell::new(Instant::now()),
            tunnels: Rc::downgrade(tunnels),
        }
    }

    pub(super) fn is_usable(&self) -> bool {
        self.end.borrow().is_usable()
    }

    pub(super) fn is_stalled(&self) -> bool {
        self.end.borrow().is_stalled()
    }

    /// Asks by the broker whether its worker lives, and gives it up if it does not.
    pub(super) async fn ask_by(self: Rc<Self>, connection: Rc<Connection>) {
        let Some(instance) = self.end.borrow().worker().map(|worker| worker.name.clone()) else {
            return;
        };
        let answer = connection.asks(&instance).await;
        if self.end.borrow_mut().asked_by_broker(answer) && !self.is_given_up.replace(true) {
            let requests = self.end.borrow().in_flight();
            warn!(instance, requests, "worker lost: it is silent on its tunnel and by the broker");
        }
    }

    pub(super) fn candidate(&self, now: Instant) -> Candidate {
        match self.is_usable() {
            true => self.load.borrow().candidate(now),
            false => Candidate::Unusable,
        }
    }

    pub(super) fn send(
        &self,
        subject: u16,
        payload: &Bytes,
        waiter: Key,
    ) -> Result<RequestKey, Unsendable> {
        let key = self.end.borrow_mut().send(subject, payload, waiter)?;
        self.load.borrow_mut().begun();
        self.used.set(Instant::now());
        self.wake();
        Ok(key)
    }

    /// Nobody waits for a request any more.
    pub(super) fn forget(&self, request: RequestKey, cancels: bool) {
        match cancels {
            true => self.end.borrow_mut().cancel(request),
            false => self.end.borrow_mut().abandon(request),
        }
        self.wake();
    }

    /// A request is not out any more.
    pub(super) fn ended(&self, has_failed: bool) {
        self.load.borrow_mut().ended(has_failed, Instant::now());
    }

    /// Whether nothing is out on it.
    pub(super) fn is_idle(&self) -> bool {
        !self.is_given_up.get() && self.end.borrow().in_flight() == 0
    }

    pub(super) fn used(&self) -> Instant {
        self.used.get()
    }

    /// Takes no request any more, and is closed within a tick.
    pub(super) fn give_up(&self) {
        self.end.borrow_mut().drain();
        self.is_given_up.set(true);
        self.wake();
    }

    /// Returns what is not answered.
    pub(super) fn lost(&self) -> Vec<(Key, Fate)> {
        self.end.borrow_mut().lost()
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl TunnelEnd for Tunnel {
    fn hear(&self, frame: Frame) -> Result<(), Violation> {
        let Some(tunnels) = self.tunnels.upgrade() else { return Ok(()) };
        let clock_ms = tunnels.unix_ms_at(Instant::now());
        let heard = self.end.borrow_mut().hear(frame, clock_ms)?;
        match heard {
            GatewayHeard::Reply(key, payload) => {
                let answer = match decode_reply(&payload, Limits::DEFAULT) {
                    Ok(reply) => answer_of(reply, tunnels.stream_events()),
                    Err(error) => Answer::Unreadable(error.to_string()),
                };
                if !tunnels.deliver(key, answer) {
                    tunnels.counts.unary_late.inc();
                }
            }
            GatewayHeard::Late => tunnels.counts.unary_late.inc(),
            GatewayHeard::Opened => {
                let limit = self.end.borrow().worker().map_or(0, |hello| hello.requests);
                *self.load.borrow_mut() = Load::new(limit, Instant::now());
            }
            GatewayHeard::Left(unanswered) => tunnels.settle(unanswered),
            GatewayHeard::Draining | GatewayHeard::Nothing => {}
        }
        self.load.borrow_mut().occupied(self.end.borrow().in_hand());
        Ok(())
    }

    fn tick(&self) -> ControlFlow<()> {
        let Some(tunnels) = self.tunnels.upgrade() else { return ControlFlow::Break(()) };
        self.ticks.set(self.ticks.get().saturating_add(1));
        let says_nothing = self.ticks.get() > HELLO_TICKS && self.end.borrow().worker().is_none();
        if self.is_given_up.get() || says_nothing {
            return ControlFlow::Break(());
        }
        let now = Instant::now();
        if self.end.borrow_mut().tick(now, tunnels.unix_ms_at(now)) {
            let end = self.end.borrow();
            let instance = end.worker().map(|worker| worker.name.as_str());
            warn!(instance, "tunnel closed: its worker did not leave it in time");
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    }

    fn with_out<R>(&self, waker: &Waker, write: impl FnOnce(&mut FrameQueue) -> R) -> R {
        let mut known = self.waker.borrow_mut();
        if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            *known = Some(waker.clone());
        }
        write(self.end.borrow_mut().out())
    }

    fn may_write(&self) -> bool {
        let now = Instant::now();
        let has_lease = self.tunnels.upgrade().is_some_and(|tunnels| tunnels.has_lease(now));
        self.end.borrow().may_write(has_lease)
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

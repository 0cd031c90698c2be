//! The requests of one client's connection that are not answered, or whose answers go on.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use crate::stall::Inbound;

/// The requests of one connection.
pub(crate) struct OpenRequests {
    inbound: Rc<Inbound>,
    open: Cell<usize>,
    /// When the last of them was answered.
    idle_since: Cell<Instant>,
}

/// A request of a connection, until it is answered or given up, or its answer does not go on any
/// more.
pub(crate) struct OpenRequest(Rc<OpenRequests>);

impl OpenRequests {
    /// Returns those of a connection that begins; `inbound` is told of each.
    pub(crate) fn new(inbound: Rc<Inbound>) -> Rc<Self> {
        Rc::new(Self { inbound, open: Cell::new(0), idle_since: Cell::new(Instant::now()) })
    }

    /// Begins one.
    pub(crate) fn begin(self: &Rc<Self>) -> OpenRequest {
        self.inbound.begin_request();
        self.open.set(self.open.get() + 1);
        OpenRequest(Rc::clone(self))
    }

    /// Whether there are any.
    pub(crate) fn are_open(&self) -> bool {
        self.open.get() > 0
    }

    /// Since when there is none.
    pub(crate) fn idle_since(&self) -> Instant {
        self.idle_since.get()
    }

    /// Counts the time without one anew.
    pub(crate) fn idle_from_now(&self) {
        self.idle_since.set(Instant::now());
    }
}

impl OpenRequest {
    /// A body broke off whose end its client would see in the end of the connection alone, as in
    /// HTTP/1.0: that must not look in order.
    pub(crate) fn reset_on_close(&self) {
        self.0.inbound.reset_on_close();
    }
}

impl std::fmt::Debug for OpenRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenRequest").finish_non_exhaustive()
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let Self(requests) = self;
        requests.open.set(requests.open.get() - 1);
        if requests.open.get() == 0 {
            requests.inbound.end_request();
            requests.idle_from_now();
        }
    }
}

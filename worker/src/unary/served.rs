//! One tunnel: what comes by it is admitted, and what its outlet has is written.

use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use bytes::Buf;
use natsway_tunnel::unary::{TunnelEnd, UNSENT_BYTES, Violation, WorkerHeard};
use natsway_wire::frame::{Frame, FrameQueue};

use super::lock;
use super::outlet::Outlet;
use super::reply::TunnelReply;
use crate::admission::{Admission, Start};

/// A tunnel's end: an [`Outlet`], and where requests go.
pub(super) struct Served<F> {
    pub(super) outlet: Arc<Outlet>,
    pub(super) admission: Rc<Admission<F>>,
}

impl<F: Start> TunnelEnd for Served<F> {
    fn hear(&self, frame: Frame) -> Result<(), Violation> {
        let (now_ms, in_hand) = (self.outlet.now_ms(), self.outlet.in_hand());
        let heard = {
            let mut state = lock(&self.outlet.state);
            // Who sends and does not read has us hold refusals.
            if state.end.out().remaining() > 2 * UNSENT_BYTES {
                return Err(Violation::Flood);
            }
            let heard = state.end.hear(frame, now_ms, in_hand)?;
            if state.end.may_leave() {
                state.end.goodbye();
            }
            if matches!(heard, WorkerHeard::Request(..)) {
                state.used = Instant::now();
            }
            heard
        };
        match heard {
            WorkerHeard::Request(taken, subject, payload) => {
                let reply = TunnelReply::new(Arc::clone(&self.outlet), taken);
                self.admission.accept_by_tunnel(usize::from(subject), &payload, reply);
            }
            WorkerHeard::Cancel(key) => self.admission.cancel_on_tunnel(self.outlet.id(), key),
            WorkerHeard::Opened | WorkerHeard::Drained | WorkerHeard::Nothing => {}
        }
        Ok(())
    }

    fn tick(&self) -> ControlFlow<()> {
        let now_ms = self.outlet.now_ms();
        match lock(&self.outlet.state).end.tick(now_ms) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn with_out<R>(&self, waker: &Waker, write: impl FnOnce(&mut FrameQueue) -> R) -> R {
        let mut state = lock(&self.outlet.state);
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        let had_room = state.end.has_room();
        let written = write(state.end.out());
        let has_room_again = !had_room && state.end.has_room();
        drop(state);
        if has_room_again {
            self.outlet.changed.notify_waiters();
        }
        written
    }

    fn may_write(&self) -> bool {
        true
    }

    fn expects_more(&self) -> bool {
        lock(&self.outlet.state).end.held() > 0
    }

    fn has_left(&self) -> bool {
        lock(&self.outlet.state).end.has_left()
    }

    fn is_left(&self) -> bool {
        false
    }
}

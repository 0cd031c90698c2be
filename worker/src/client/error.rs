//! Why a call gave no response.

use std::borrow::Cow;

use http::StatusCode;
use natsway_caller::attempt::AttemptError;

/// A call that gave no response.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("call of {route:?}: {reason}")]
pub struct CallError {
    kind: CallErrorKind,
    route: String,
    reason: Cow<'static, str>,
    may_have_run: bool,
}

/// The kinds of [`CallError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum CallErrorKind {
    /// The request cannot be sent: it names no route, or is above a limit.
    Refused,
    /// No route has that name.
    NoRoute,
    /// The route is there, but none of its versions takes traffic.
    NoVersion,
    /// It did not run: no worker, workers full, no broker, or too much out here.
    Unavailable,
    /// There was no answer in time; see [`CallError::may_have_run`].
    TimedOut,
    /// The connection or the worker was lost while the request was out: it may have run.
    OutcomeUnknown,
    /// The answer cannot be read.
    BadReply,
    /// The client was closed.
    Closed,
}

impl CallError {
    pub(super) fn new(
        kind: CallErrorKind,
        route: &str,
        reason: impl Into<Cow<'static, str>>,
    ) -> CallError {
        let may_have_run = matches!(
            kind,
            CallErrorKind::TimedOut | CallErrorKind::OutcomeUnknown | CallErrorKind::BadReply
        );
        CallError { kind, route: route.to_owned(), reason: reason.into(), may_have_run }
    }

    /// The call cannot be sent.
    pub(super) fn refused(route: &str, reason: impl Into<Cow<'static, str>>) -> CallError {
        CallError::new(CallErrorKind::Refused, route, reason)
    }

    /// The last error of a call for which there is no other attempt.
    pub(super) fn given_up(route: &str, error: AttemptError, may_have_run: bool) -> CallError {
        use CallErrorKind::{OutcomeUnknown, TimedOut, Unavailable};
        let (kind, reason) = match error {
            AttemptError::NotConnected => {
                (Unavailable, "there is no connection to the broker; is it running?")
            }
            AttemptError::NoResponders | AttemptError::Moved => {
                (Unavailable, "no worker of this service is there; start one")
            }
            AttemptError::Overloaded => {
                (Unavailable, "the workers of this service are full; start more")
            }
            AttemptError::Expired => (Unavailable, "the request reached no worker in time"),
            AttemptError::InstanceLost => {
                (OutcomeUnknown, "the worker that ran the request is gone")
            }
            AttemptError::ConnectionLost => {
                (OutcomeUnknown, "the connection to the broker broke with the request out")
            }
            AttemptError::NotAccepted | AttemptError::TimedOut => (TimedOut, "no answer in time"),
        };
        // An earlier attempt may have.
        let kind = if kind == Unavailable && may_have_run { OutcomeUnknown } else { kind };
        CallError { may_have_run, ..CallError::new(kind, route, reason) }
    }

    /// There was no time left to begin with.
    pub(super) fn too_late(route: &str) -> CallError {
        let reason = "the deadline of the request that it follows from has passed";
        CallError { may_have_run: false, ..CallError::new(CallErrorKind::TimedOut, route, reason) }
    }

    pub(super) fn closed() -> CallError {
        CallError::new(CallErrorKind::Closed, "", "the client was closed")
    }

    /// What kind of failure this is.
    pub fn kind(&self) -> CallErrorKind {
        self.kind
    }

    /// The name of the route that was called; empty when there was none.
    pub fn route(&self) -> &str {
        &self.route
    }

    /// Whether a worker may have run the request, or a part of it. If not, it is safe to send it
    /// again.
    pub fn may_have_run(&self) -> bool {
        self.may_have_run
    }

    /// What a gateway would have answered: the status for a handler that can do no better than to
    /// pass it on.
    pub fn status(&self) -> StatusCode {
        match self.kind {
            CallErrorKind::Refused | CallErrorKind::NoRoute => StatusCode::INTERNAL_SERVER_ERROR,
            CallErrorKind::NoVersion | CallErrorKind::Unavailable | CallErrorKind::Closed => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            CallErrorKind::TimedOut | CallErrorKind::OutcomeUnknown => StatusCode::GATEWAY_TIMEOUT,
            CallErrorKind::BadReply => StatusCode::BAD_GATEWAY,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_miss_that_never_ran_is_unknown_when_an_earlier_try_may_have() {
        for error in AttemptError::ALL {
            let alone = CallError::given_up("math", error, error.may_have_run());
            assert_eq!(alone.may_have_run(), error.may_have_run());
            assert_eq!(
                alone.kind() == CallErrorKind::Unavailable,
                !error.may_have_run(),
                "{error:?}"
            );
            let after_another = CallError::given_up("math", error, true);
            assert!(
                after_another.kind() != CallErrorKind::Unavailable && after_another.may_have_run()
            );
        }
    }
}

//! Why a call gave no response.

use std::borrow::Cow;

use http::StatusCode;
use natsway_caller::attempt::AttemptError;

use crate::BodyError;

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

/// A response whose body broke off cannot be read.
impl From<BodyError> for CallError {
    fn from(error: BodyError) -> Self {
        Self::new(CallErrorKind::BadReply, "", error.to_string())
    }
}

impl CallError {
    pub(super) fn new(
        kind: CallErrorKind,
        route: &str,
        reason: impl Into<Cow<'static, str>>,
    ) -> Self {
        let may_have_run = matches!(
            kind,
            CallErrorKind::TimedOut | CallErrorKind::OutcomeUnknown | CallErrorKind::BadReply
        );
        Self { kind, route: route.to_owned(), reason: reason.into(), may_have_run }
    }

    /// The call cannot be sent.
    pub(super) fn refused(route: &str, reason: impl Into<Cow<'static, str>>) -> Self {
        Self::new(CallErrorKind::Refused, route, reason)
    }

    /// The last error of a call for which there is no other attempt.
    pub(super) fn given_up(route: &str, error: AttemptError, may_have_run: bool) -> Self {
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
            AttemptError::UpstreamDown => {
                (Unavailable, "no app of this service takes a connection")
            }
            AttemptError::UpstreamBroken => (OutcomeUnknown, "the app behind the worker broke"),
            AttemptError::ConnectionLost => {
                (OutcomeUnknown, "the connection to the broker broke with the request out")
            }
            AttemptError::NotAccepted | AttemptError::TimedOut => (TimedOut, "no answer in time"),
            AttemptError::StreamNotOpened => {
                (Unavailable, "no tunnel came from the worker to take the request's body")
            }
            AttemptError::StreamLost => {
                (OutcomeUnknown, "the tunnel from the worker was lost before the response")
            }
        };
        // An earlier attempt may have.
        let kind = if kind == Unavailable && may_have_run { OutcomeUnknown } else { kind };
        Self { may_have_run, ..Self::new(kind, route, reason) }
    }

    /// The same of a call that was sent, at least in part.
    pub(super) fn that_may_have_run(self) -> Self {
        Self { may_have_run: true, ..self }
    }

    /// There was no time left to begin with.
    pub(super) fn too_late(route: &str) -> Self {
        let reason = "the deadline of the request that it follows from has passed";
        Self { may_have_run: false, ..Self::new(CallErrorKind::TimedOut, route, reason) }
    }

    /// A body took longer than its call may.
    pub(super) fn body_too_late(route: &str) -> Self {
        let reason = "the request's body did not come in time";
        Self { may_have_run: false, ..Self::new(CallErrorKind::TimedOut, route, reason) }
    }

    pub(super) fn closed() -> Self {
        Self::new(CallErrorKind::Closed, "", "the client was closed")
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

//! What a request that is being handled hands on to the calls that it makes.

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Extensions, Request};

use crate::Deadline;

pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
pub(super) const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The deadline, trace (W3C Trace Context) and request id of a request, for those that follow from
/// it.
///
/// ```
/// use std::time::Duration;
/// use natsway_worker::{Context, Deadline};
///
/// let handled = http::Request::get("/total")
///     .header("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
///     .extension(Deadline::after(Duration::from_secs(1)))
///     .body(())?;
/// let mut call = http::Request::get("http://math/sum?n=1").body(())?;
/// Context::from(&handled).apply(&mut call);
/// assert_eq!(call.headers()["traceparent"], handled.headers()["traceparent"]);
/// assert_eq!(call.extensions().get::<Deadline>(), handled.extensions().get());
/// # Ok::<(), http::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Context {
    deadline: Option<Deadline>,
    traceparent: Option<HeaderValue>,
    /// As many fields as there were: a long state may come in several.
    tracestate: Vec<HeaderValue>,
    request_id: Option<HeaderValue>,
}

impl Context {
    /// The context of a request by its two parts that have it.
    pub fn new(headers: &HeaderMap, extensions: &Extensions) -> Self {
        let field = |name| headers.get(name).cloned();
        Self {
            deadline: extensions.get().copied(),
            traceparent: field(TRACEPARENT),
            tracestate: headers.get_all(TRACESTATE).iter().cloned().collect(),
            request_id: field(REQUEST_ID),
        }
    }

    /// Gives it to a request. What that has of its own stands; of two deadlines the earlier one
    /// does.
    pub fn apply<B>(&self, request: &mut Request<B>) {
        let own = request.extensions().get::<Deadline>().copied();
        if let Some(deadline) = own.into_iter().chain(self.deadline).min() {
            request.extensions_mut().insert(deadline);
        }
        let headers = request.headers_mut();
        if let Some(id) = &self.request_id {
            headers.entry(REQUEST_ID).or_insert_with(|| id.clone());
        }
        // A state belongs to its parent.
        if !headers.contains_key(TRACEPARENT)
            && let Some(parent) = &self.traceparent
        {
            headers.insert(TRACEPARENT, parent.clone());
            headers.remove(TRACESTATE);
            for state in &self.tracestate {
                headers.append(TRACESTATE, state.clone());
            }
        }
    }
}

impl<B> From<&Request<B>> for Context {
    fn from(request: &Request<B>) -> Self {
        Self::new(request.headers(), request.extensions())
    }
}

impl From<&Parts> for Context {
    fn from(parts: &Parts) -> Self {
        Self::new(&parts.headers, &parts.extensions)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn deadline(seconds: u64) -> Deadline {
        Deadline::after(Duration::from_secs(seconds))
    }

    fn handled(deadline: Deadline) -> Request<()> {
        Request::get("/")
            .header("traceparent", "parent")
            .header("tracestate", "a=1")
            .header("tracestate", "b=2")
            .header("x-request-id", "id")
            .header("authorization", "secret")
            .extension(deadline)
            .body(())
            .unwrap()
    }

    #[test]
    fn a_call_gets_what_it_lacks_and_no_more() {
        let mut call = Request::new(());
        let at = deadline(5);
        Context::from(&handled(at)).apply(&mut call);
        let names: Vec<&str> = call.headers().keys().map(HeaderName::as_str).collect();
        assert_eq!(names.len(), 3, "{names:?}");
        let states: Vec<_> = call.headers().get_all("tracestate").iter().collect();
        assert_eq!(states, ["a=1", "b=2"]);
        assert_eq!(call.extensions().get(), Some(&at));
    }

    #[test]
    fn what_a_call_has_of_its_own_stands() {
        let own = Request::get("/")
            .header("traceparent", "own")
            .header("x-request-id", "own")
            .body(())
            .unwrap();
        let mut call = own;
        Context::from(&handled(deadline(5))).apply(&mut call);
        assert_eq!(call.headers()["traceparent"], "own");
        assert_eq!(call.headers()["x-request-id"], "own");
        assert!(!call.headers().contains_key("tracestate"), "the state of another parent");
    }

    #[test]
    fn of_two_deadlines_the_earlier_stands() {
        let (early, late) = (deadline(1), deadline(5));
        for (own, inherited) in [(early, late), (late, early)] {
            let mut call = Request::builder().extension(own).body(()).unwrap();
            Context::from(&handled(inherited)).apply(&mut call);
            assert_eq!(call.extensions().get(), Some(&early));
        }
    }
}

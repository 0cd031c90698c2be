//! Requests that come in messages of another protocol than HTTP: each is the POST that it would be
//! there, with its arguments for a body.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{Request, Response, StatusCode};
use natsway_caller::trace::AttemptSpans;
use natsway_routes::table::Route;

use crate::body::ReplyBody;
use crate::call::{Call, From};
use crate::client_address::Client;
use crate::fields::Survey;
use crate::headers::Caller;
use crate::inspect::{RequestAuthority, inspect};
use crate::memory::{Account, BodyBudget, cost};
use crate::problem::{Problem, memory_full, too_large};
use crate::proxy::log_access;
use crate::shard::Shard;
use crate::trace::RequestSpan;

/// Who sends such requests, and to where.
#[derive(Clone, Copy)]
pub(crate) struct Poster<'p> {
    pub(crate) shard: &'p Shard,
    pub(crate) account: &'p Rc<Account>,
    pub(crate) caller: &'p Caller,
    pub(crate) client: &'p Client,
    pub(crate) authority: &'p RequestAuthority,
}

/// One of them.
pub(crate) struct Posted {
    /// Its head, as a POST would have it.
    pub(crate) head: Parts,
    /// Its arguments, in the format that its head says.
    pub(crate) body: Bytes,
    /// What it came by.
    pub(crate) by: Protocol,
    /// How long its client waits, if it said so.
    pub(crate) patience: Option<Duration>,
}

/// A protocol whose messages are requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    WebSocket,
}

impl Protocol {
    /// Whether a route answers such requests.
    fn is_answered(self, route: &Route) -> bool {
        match self {
            Self::WebSocket => route.args.websocket.is_some(),
        }
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::WebSocket => "WebSocket",
        }
    }
}

impl Poster<'_> {
    /// Sends a request, and counts it as any other.
    ///
    /// # Errors
    /// The [`Problem`] that says why there is no answer.
    pub(crate) async fn post(
        &self,
        posted: Posted,
        request_id: &str,
    ) -> Result<Response<ReplyBody>, Problem> {
        let (shard, started) = (self.shard, Instant::now());
        shard.metrics.requests.inc();
        shard.dispatcher.deposit();
        let survey = Survey::of(&posted.head.headers);
        let (caller, client) = (self.caller, self.client);
        let from = From { caller, client, request_id, survey: &survey };
        let span = shard.spans.as_ref().map(|spans| {
            let request = Request::from_parts(posted.head.clone(), ());
            RequestSpan::begin(spans, &request, caller, client)
        });
        let method = posted.head.method.clone();
        let logged = shard.settings.access_log.then(|| posted.head.uri.path().to_owned());
        let served = self.serve(posted, from, span.as_ref(), started).await;
        let (status, problem_code) = match &served {
            Ok(response) => (response.status(), None),
            Err(problem) => (problem.status, Some(problem.code)),
        };
        if let Some(code) = problem_code {
            shard.metrics.problem(code);
        }
        if let Some(path) = logged {
            log_access(from, &method, &path, status, started, span.as_ref());
        }
        if let Some(span) = span {
            span.end(status, problem_code);
        }
        served
    }

    /// The same for a request that is counted already.
    ///
    /// # Errors
    /// As [`post`](Self::post).
    pub(crate) async fn serve(
        &self,
        posted: Posted,
        from: From<'_>,
        span: Option<&RequestSpan>,
        started: Instant,
    ) -> Result<Response<ReplyBody>, Problem> {
        let Posted { head, body, by, patience } = posted;
        let (shard, account) = (self.shard, self.account);
        inspect(&head, from.survey, &shard.settings.client)?;
        let path_bytes = head.uri.path_and_query().map_or(0, |path| path.as_str().len());
        let text_bytes = path_bytes + from.survey.text_bytes;
        let bytes = cost::head_bytes(head.headers.len(), text_bytes) + cost::body_bytes(body.len());
        let _held = BodyBudget::take(account, bytes).ok_or_else(memory_full)?;
        let mut call = Call {
            shard,
            account,
            started,
            head,
            body,
            from,
            authority: self.authority.clone(),
            span,
            spans: AttemptSpans::default(),
            timeout: Duration::ZERO,
            patience,
            up: None,
            was_not_opened: false,
        };
        let first = shard.dispatcher.resolve(&call)?;
        let route = first.route();
        if !by.is_answered(route) {
            return Err(not_answered(by));
        }
        let most_bytes = route.limits.inline_body_bytes;
        if call.body.len() > most_bytes {
            return Err(too_large(most_bytes as u64));
        }
        call.send(first).await
    }
}

/// The route may have changed since its client came.
fn not_answered(by: Protocol) -> Problem {
    let detail = format!("the route of this path answers nobody by {}", by.as_str());
    Problem::new(StatusCode::NOT_FOUND, "no_route", detail)
}

//! A worker that opens and drains subscription sets as it is told to.
//!
//! A directive is a message of a queue group, so one worker of the service gets it. Workers that
//! cannot obey it are not in its queue group: those at their ceiling hear no scale-out, those at
//! their floor of one set no scale-in. So when nobody can obey, whoever asks is told at once that
//! there is nobody.
//!
//! The message must say what its subject says. What does not is refused, answered with an `error`,
//! and counted.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use natsway_boot::BrokerConfig;
use natsway_wire::Subject;
use natsway_wire::control::{Directive, directive_subject, is_inbox};
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::Service;
use tracing::{info, warn};

use crate::{Body, BoxError, Error, Options, Summary, serve};

/// So much of a wrong directive is told.
const LONGEST_SHOWN: usize = 40;

/// The queue group of directives.
const QUEUE_GROUP: &str = "scale";

/// Serves as [`serve`] does, and opens and drains further subscription sets when it is told to
/// ([`directive_subject`]): from one up to `most_sets`. Each set is an instance of its own, with
/// its own limits, connection and thread, and leaves by the same fence.
///
/// # Errors
/// [`Error`] of the first set. Another one that fails is given up, with a word in the log.
///
/// # Cancel safety
/// As [`serve`], for all sets.
pub async fn serve_scaled<S, B>(
    options: Options,
    most_sets: NonZeroUsize,
    service: S,
    shutdown: impl Future<Output = ()>,
) -> Result<Summary, Error>
where
    S: Service<http::Request<Body>, Response = http::Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: http_body::Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    // The first set, which is never told to leave, tells what was refused.
    let config = options.clone().check()?;
    let further = options.clone().without_instance();
    let open = move |options: Options| {
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(options, service.clone(), stop.clone().cancelled_owned()));
        Set { serving, stop: stop.drop_guard() }
    };
    let first = open(options);
    let mut sets = Sets {
        open: || open(further.clone()),
        most: most_sets.get(),
        open_sets: Vec::new(),
        left: Vec::new(),
        refused: Arc::clone(&config.refused_directives),
    };
    let obeying = sets.obey(&config.broker, &config.subjects[0], &config.instance);
    let mut first_ended = first.serving;
    let mut outcome = None;
    tokio::select! {
        ended = &mut first_ended => outcome = Some(ended),
        () = shutdown => {}
        () = obeying => {}
    }
    drop(first.stop);
    let ended = match outcome {
        Some(ended) => ended,
        None => first_ended.await,
    };
    let mut summary = ended.map_err(|_| Error::ReaderPanicked)??;
    summary += sets.leave().await;
    Ok(summary)
}

/// One subscription set. Dropped, it is told to leave.
struct Set {
    serving: JoinHandle<Result<Summary, Error>>,
    stop: DropGuard,
}

/// The sets beyond the first.
struct Sets<F> {
    open: F,
    /// The first one included.
    most: usize,
    open_sets: Vec<Set>,
    /// Those that were told to leave.
    left: Vec<JoinHandle<Result<Summary, Error>>>,
    /// Directives that were refused.
    refused: Arc<AtomicU64>,
}

impl<F: Fn() -> Set> Sets<F> {
    /// Obeys directives for as long as it is polled.
    async fn obey(&mut self, broker: &BrokerConfig, subject: &Subject, instance: &str) {
        let client =
            match broker.connect(&format!("worker {instance} scale"), "_INBOX_worker").await {
                Ok(client) => client,
                Err(error) => {
                    warn!(%error, "no directives are heard");
                    return std::future::pending().await;
                }
            };
        let (mut outs, mut ins) = (None, None);
        loop {
            let count = 1 + self.open_sets.len();
            listen(&client, &mut outs, count < self.most, Directive::ScaleOut, subject).await;
            listen(&client, &mut ins, count > 1, Directive::ScaleIn, subject).await;
            let (directive, message) = tokio::select! {
                message = next(&mut outs) => (Directive::ScaleOut, message),
                message = next(&mut ins) => (Directive::ScaleIn, message),
            };
            // The client has ended, with the process.
            let Some(message) = message else { return std::future::pending().await };
            let said = match check(directive, &message.payload, message.reply.as_deref()) {
                Ok(()) => {
                    self.act(directive);
                    json!({ "instance": instance, "sets": 1 + self.open_sets.len() })
                }
                Err(error) => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    warn!(subject = %message.subject, %error, "directive refused");
                    json!({ "instance": instance, "sets": 1 + self.open_sets.len(), "error": error })
                }
            };
            answer(&client, message, said).await;
        }
    }

    fn act(&mut self, directive: Directive) {
        match directive {
            Directive::ScaleOut => self.open_sets.push((self.open)()),
            Directive::ScaleIn => {
                if let Some(newest) = self.open_sets.pop() {
                    drop(newest.stop);
                    self.left.push(newest.serving);
                }
            }
        }
        info!(%directive, sets = 1 + self.open_sets.len(), "directive obeyed");
    }

    /// Has all of them leave, and adds up what they did.
    async fn leave(self) -> Summary {
        let mut summary = Summary::default();
        let open = self.open_sets.into_iter().map(|set| {
            drop(set.stop);
            set.serving
        });
        for serving in open.chain(self.left).collect::<Vec<_>>() {
            match serving.await {
                Ok(Ok(of_set)) => summary += of_set,
                Ok(Err(error)) => warn!(%error, "a subscription set failed"),
                Err(error) => warn!(%error, "a subscription set failed"),
            }
        }
        summary
    }
}

/// Whether a message says what its subject says, and where to answer. Others are not from who gives
/// directives.
fn check(directive: Directive, message: &[u8], reply: Option<&str>) -> Result<(), String> {
    #[derive(Deserialize)]
    struct Said {
        directive: String,
    }
    if !reply.is_some_and(is_inbox) {
        return Err("it wants no answer, or not in an inbox: expected a request".to_owned());
    }
    let expected = || format!("expected {{\"directive\":\"{directive}\"}} on this subject");
    let Ok(said) = serde_json::from_slice::<Said>(message) else {
        return Err(format!("{} bytes that are no directive: {}", message.len(), expected()));
    };
    if said.directive == directive.to_string() {
        return Ok(());
    }
    let other: String = said.directive.chars().take(LONGEST_SHOWN).collect();
    Err(format!("directive {other:?}: {}", expected()))
}

async fn answer(client: &Client, message: Message, answer: serde_json::Value) {
    let Some(reply) = message.reply.filter(|reply| is_inbox(reply)) else { return };
    if let Err(error) = client.publish(reply, Bytes::from(answer.to_string())).await {
        warn!(%error, "directive not answered");
    }
}

/// The next message; never, when there is nothing to listen to.
async fn next(subscriber: &mut Option<Subscriber>) -> Option<Message> {
    match subscriber {
        Some(subscriber) => subscriber.next().await,
        None => std::future::pending().await,
    }
}

/// Joins or leaves the queue group of a directive.
async fn listen(
    client: &Client,
    subscriber: &mut Option<Subscriber>,
    wanted: bool,
    directive: Directive,
    subject: &Subject,
) {
    if !wanted {
        // A directive that comes this very moment is lost; whoever sent it counts again.
        *subscriber = None;
    } else if subscriber.is_none() {
        let group = QUEUE_GROUP.to_owned();
        match client.queue_subscribe(directive_subject(directive, subject), group).await {
            Ok(subscribed) => *subscriber = Some(subscribed),
            Err(error) => warn!(%error, %directive, "directives are not heard"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directive_says_what_its_subject_says() {
        let out = Directive::ScaleOut;
        let check =
            |directive, message: &[u8]| check(directive, message, Some("_INBOX_provisioner.x"));
        assert_eq!(check(out, br#"{"directive":"scale-out","by":"somebody"}"#), Ok(()));
        for rubbish in ["", "scale-out", "{}", r#"{"directive":7}"#, "\u{0}"] {
            let error = check(out, rubbish.as_bytes()).unwrap_err();
            assert!(
                error.contains(
                    "bytes that are no directive: expected {\"directive\":\"scale-out\"}"
                ),
                "{error}"
            );
        }
        let error = check(Directive::ScaleIn, br#"{"directive":"scale-out"}"#).unwrap_err();
        assert!(
            error.contains("\"scale-out\": expected {\"directive\":\"scale-in\"} on this subject"),
            "{error}"
        );
    }

    #[test]
    fn a_directive_wants_an_answer_in_an_inbox() {
        let message = br#"{"directive":"scale-out"}"#;
        for reply in [None, Some("svc.demo.blue")] {
            let error = check(Directive::ScaleOut, message, reply).unwrap_err();
            assert!(error.contains("expected a request"), "{error}");
        }
    }
}

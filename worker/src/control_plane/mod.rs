//! What a worker listens to besides requests: commands to it, questions about it, and whether it is
//! there.

pub(crate) mod discovery;

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use async_nats::{Client, HeaderMap, Message, Subscriber};
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::SelectAll;
use natsway_wire::control::{self, WorkerCommand};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::discovery::{Instance, Question};
use crate::OnCancel;
use crate::admission::{Admission, Start};

/// The subscriptions of one session that are not for requests.
pub(crate) struct ControlPlane<F> {
    pub(crate) instance: Arc<Instance>,
    pub(crate) admission: Rc<Admission<F>>,
    pub(crate) leaving: Rc<Cell<bool>>,
    /// Whether this reader answers for the whole process.
    pub(crate) speaks: bool,
    /// Has the whole process leave.
    pub(crate) leave: CancellationToken,
}

impl<F: Start> ControlPlane<F> {
    /// Subscribes on a session.
    pub(crate) async fn open(
        &self,
        client: &Client,
    ) -> Result<SelectAll<Subscriber>, async_nats::Error> {
        let config = &self.instance.config;
        let mut subjects = vec![control::worker_subject(&config.full_instance())];
        subjects.extend(config.subjects.iter().map(control::presence_subject));
        if self.speaks {
            subjects.extend(self.instance.question_subjects());
            subjects.extend(config.subjects.iter().map(control::drain_subject));
        }
        let mut messages = SelectAll::new();
        for subject in subjects {
            messages.push(client.subscribe(subject).await?);
        }
        Ok(messages)
    }

    /// Answers until the session is lost.
    pub(crate) async fn keep(self, client: Arc<Client>, mut messages: SelectAll<Subscriber>) {
        while let Some(message) = messages.next().await {
            // Whoever wants an answer elsewhere wants something else.
            if message.reply.as_ref().is_some_and(|reply| !control::is_inbox(reply)) {
                debug!(subject = %message.subject, "ignored: it wants its answer where no inbox \
                                                    is");
                continue;
            }
            let Some(answer) = self.answer(&message) else { continue };
            let Some(reply) = message.reply else { continue };
            if let Err(error) = client.publish(reply, answer).await {
                debug!(%error, subject = %message.subject, "question not answered");
            }
        }
    }

    fn answer(&self, message: &Message) -> Option<Bytes> {
        if let Some(question) = Question::of_subject(&message.subject) {
            return Some(Bytes::from(self.instance.answer(question)));
        }
        let id = || Bytes::copy_from_slice(self.instance.id().as_bytes());
        if *message.subject == *control::worker_subject(&self.instance.config.full_instance()) {
            return match WorkerCommand::decode(&message.payload) {
                Ok(WorkerCommand::Ping) => Some(id()),
                Ok(WorkerCommand::Cancel { reply }) => {
                    if self.instance.config.on_cancel == OnCancel::Drop {
                        self.admission.cancel(&reply);
                    }
                    None
                }
                Err(error) => {
                    debug!(%error, "command not understood");
                    None
                }
            };
        }
        if self.is_drain(&message.subject) {
            // An answer of JetStream's to another question, sent here by whoever asked that, says
            // something.
            if !message.payload.is_empty() || !says_nothing(message.headers.as_ref()) {
                debug!(subject = %message.subject, "ignored: a request to leave says nothing");
                return None;
            }
            return self.drain(&message.subject).then(id);
        }
        // What is left is the question who is there; those who leave keep silent.
        (!self.leaving.get()).then(id)
    }

    fn is_drain(&self, subject: &str) -> bool {
        self.instance
            .config
            .subjects
            .iter()
            .any(|service| control::drain_subject(service) == subject)
    }

    /// Leaves, as asked, unless there are other subjects to serve; says whether it does.
    fn drain(&self, subject: &str) -> bool {
        if self.instance.config.subjects.len() > 1 {
            warn!(subject, "asked to leave, and staying: this worker serves other subjects too");
            return false;
        }
        if !self.leave.is_cancelled() {
            info!(instance = %self.instance.id(), "asked to leave");
            self.leave.cancel();
        }
        true
    }
}

/// What a broker adds to a question from another account.
const REQUEST_INFO: &str = "Nats-Request-Info";

/// Whether all that headers say was added by the broker on the way.
fn says_nothing(headers: Option<&HeaderMap>) -> bool {
    headers.is_none_or(|headers| {
        headers.iter().all(|(name, _)| AsRef::<str>::as_ref(name) == REQUEST_INFO)
    })
}

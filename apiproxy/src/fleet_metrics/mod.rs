//! What workers and provisioners tell of themselves, for `/metrics`: they have no port of their own
//! to be asked at, so the gateway asks them over the broker whenever somebody wants its page, and
//! not otherwise.

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod registry;
mod targets;
mod workers;

use std::time::Duration;

use async_nats::{Client, Message, StatusCode, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use natsway_boot::random_id;
use natsway_wire::CONTROL_PREFIX;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::{debug, warn};

use self::registry::Registry;
use self::targets::TargetStatus;
use self::workers::Worker;

/// How long answers are waited for. Those that come later are taken in with the next question.
const PATIENCE: Duration = Duration::from_millis(250);

/// How old answers may be that are told again: however many ask for the page, others are asked once
/// a second.
const FRESH: Duration = Duration::from_secs(1);

/// Pages that may be waited for at a time; more are told without the others.
const WAITING: usize = 8;

/// Asks for the others' part of the page.
#[derive(Clone, Debug)]
pub struct FleetMetrics(mpsc::Sender<oneshot::Sender<String>>);

impl FleetMetrics {
    /// Asks over `client`, for as long as the future runs.
    pub fn by(client: Client) -> (Self, impl Future<Output = ()> + use<>) {
        let (wanted, wants) = mpsc::channel(WAITING);
        (Self(wanted), keep(client, wants))
    }

    /// The others' metrics in the text format of Prometheus; empty when they cannot be asked.
    pub async fn page(&self) -> String {
        let (give, page) = oneshot::channel();
        match self.0.try_send(give) {
            Ok(()) => page.await.unwrap_or_default(),
            Err(_) => String::new(),
        }
    }
}

async fn keep(client: Client, mut wants: mpsc::Receiver<oneshot::Sender<String>>) {
    let inbox = client.new_inbox();
    let mut answers = match client.subscribe(format!("{inbox}.*")).await {
        Ok(answers) => answers,
        Err(error) => return warn!(%error, "others are not asked for their metrics"),
    };
    // Who is asked one question is not told where the other is answered.
    let (of_workers, of_targets) = (random_id(), random_id());
    let mut others = Others { inbox, of_workers, of_targets, ..Others::default() };
    let mut asked: Option<Instant> = None;
    while let Some(wanted) = wants.recv().await {
        if asked.is_none_or(|at| at.elapsed() >= FRESH) {
            others.ask(&client, &mut answers).await;
            asked = Some(Instant::now());
        }
        // Whoever wanted it may have gone.
        wanted.send(workers::page(&others.workers) + &targets::page(&others.targets)).ok();
    }
}

/// Everybody who is asked, and where they answer.
#[derive(Debug, Default)]
struct Others {
    inbox: String,
    /// The last token of where workers answer, and that of where provisioners do.
    of_workers: String,
    of_targets: String,
    workers: Registry<Worker>,
    targets: Registry<TargetStatus>,
}

impl Others {
    /// Asks, and takes in what is answered until all have who are known, or time is up.
    async fn ask(&mut self, client: &Client, answers: &mut Subscriber) {
        while let Some(Some(late)) = answers.next().now_or_never() {
            self.take_in(&late);
        }
        self.workers.begin();
        self.targets.begin();
        let until = Instant::now() + PATIENCE;
        let questions = [
            (&self.of_workers, "$SRV.STATS".to_owned()),
            (&self.of_targets, format!("{CONTROL_PREFIX}.provisioner.status")),
        ];
        for (token, question) in questions {
            let reply = format!("{}.{token}", self.inbox);
            let asked = client.publish_with_reply(question.clone(), reply, Bytes::new());
            if !matches!(tokio::time::timeout_at(until, asked).await, Ok(Ok(()))) {
                return debug!(question, "not asked: no connection to the broker");
            }
        }
        while !(self.workers.is_complete() && self.targets.is_complete()) {
            match tokio::time::timeout_at(until, answers.next()).await {
                Ok(Some(answer)) => self.take_in(&answer),
                Ok(None) | Err(_) => break,
            }
        }
        self.workers.end();
        self.targets.end();
    }

    fn take_in(&mut self, answer: &Message) {
        let is_nobody = answer.status == Some(StatusCode::NO_RESPONDERS);
        let token = answer.subject.rsplit('.').next().unwrap_or_default();
        if token == self.of_workers {
            match is_nobody {
                true => self.workers.nobody(),
                false => self.workers.note(workers::read(&answer.payload)),
            }
        } else if token == self.of_targets {
            match is_nobody {
                true => self.targets.nobody(),
                false => self.targets.note(targets::read(&answer.payload)),
            }
        }
    }
}

//! The results of stored requests, as a shard reads them: over the control plane's connection, a
//! few at a time.

use std::rc::Rc;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use natsway_stores::results::{Kept, ResultKey, Results, ResultsError};
use tokio::sync::Semaphore;
use tracing::warn;

use crate::problem::{Problem, unavailable};

/// Entries that a shard looks up at the same time. Each may be as long as a message, and none is
/// counted among what is held before it is here: this bounds them.
const LOOKS: usize = 4;

/// How long who looks waits for a turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// Between two tries to begin an entry while the bucket cannot be reached.
const PAUSE: Duration = Duration::from_millis(200);

/// How long who waits for a result goes without looking, at first. News come sooner, as a rule.
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// The same later: what a lost word costs.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// The bucket of the results, for all shards: there once the control plane is connected.
#[derive(Clone, Debug, Default)]
pub(crate) struct SharedResults(Arc<OnceLock<Results>>);

impl SharedResults {
    /// Has the bucket be reached by a client. Needs a runtime that outlives the shards.
    pub(crate) fn connect(&self, client: Client) {
        self.0.get_or_init(|| Results::new(client));
    }
}

/// The bucket as one shard reaches it.
#[derive(Clone, Debug)]
pub struct ShardResults {
    shared: SharedResults,
    looks: Rc<Semaphore>,
}

impl ShardResults {
    pub(crate) fn new(shared: SharedResults) -> Self {
        Self { shared, looks: Rc::new(Semaphore::new(LOOKS)) }
    }

    /// Begins an entry, and waits for the bucket until `deadline`.
    pub(crate) async fn begin(&self, key: &ResultKey, deadline: Instant) -> Result<(), Problem> {
        loop {
            let error = match self.bucket()?.begin(key).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            // A bucket without a leader looks as if there were none.
            let is_refusal = matches!(error, ResultsError::Refused(_));
            if is_refusal || Instant::now() + PAUSE >= deadline {
                return Err(no_results(&error));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Looks an entry up.
    pub(crate) async fn look(&self, key: &ResultKey) -> Result<Kept, Problem> {
        let turn = tokio::time::timeout(TURN_TIMEOUT, self.looks.acquire()).await;
        let _look = turn.map_err(|_| not_answering())?.expect("nobody closes it");
        self.bucket()?.look(key).await.map_err(|error| no_results(&error))
    }

    /// Looks an entry up until it is not pending any more, or until `until`. A bucket that cannot
    /// be reached is waited for.
    ///
    /// # Cancel safety
    /// Cancelling loses nothing.
    pub(crate) async fn wait(&self, key: &ResultKey, until: Instant) -> Result<Kept, Problem> {
        let heard = self.bucket()?.news(key).await;
        let mut news = heard.map_err(|error| no_results(&error))?;
        let mut pause = FIRST_PAUSE;
        loop {
            // After the subscription, so that nothing is missed in between.
            let kept = self.look(key).await;
            let is_settled = matches!(kept, Ok(Kept::Done(_) | Kept::Nothing { .. }));
            let left = until.saturating_duration_since(Instant::now());
            if is_settled || left.is_zero() {
                return kept;
            }
            tokio::time::timeout(pause.min(left), heard_of(&mut news)).await.ok();
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    fn bucket(&self) -> Result<&Results, Problem> {
        self.shared.0.get().ok_or_else(|| {
            unavailable("not_connected", "the gateway has no connection to the broker")
        })
    }
}

/// Waits for news; of a connection that ended there never are any.
async fn heard_of(news: &mut Subscriber) {
    if news.next().await.is_none() {
        std::future::pending().await
    }
}

fn no_results(error: &ResultsError) -> Problem {
    warn!(%error, "results not reached");
    match error {
        ResultsError::NoBucket => unavailable(
            "no_results",
            "there is no bucket for the results of this route, or none with a leader",
        ),
        ResultsError::Unavailable(_) => not_answering(),
        ResultsError::Refused(_) => unavailable(
            "results_full",
            "the bucket of the results takes no more entries; nothing is stored",
        ),
    }
}

fn not_answering() -> Problem {
    unavailable("results_unavailable", "the bucket of the results does not answer now")
}

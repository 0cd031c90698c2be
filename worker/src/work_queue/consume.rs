//! Takes stored requests from their stream, as many as there are places.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, PullConsumer, pull};
use async_nats::jetstream::stream::{ConsumerError, ConsumerErrorKind};
use async_nats::jetstream::{self, Context, ErrorCode};
use futures_util::StreamExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

use super::Work;
use super::delivery::Stored;
use crate::admission::Start;

/// How long a pull waits for requests at the broker: leaving waits for the last one.
const PULL_EXPIRES: Duration = Duration::from_secs(2);

/// Between two tries while the stream or the broker cannot be reached.
const PAUSE: Duration = Duration::from_secs(1);

/// How long JetStream may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

impl<F: Start> Work<F> {
    /// Takes requests until it is time to leave. What was pulled and comes later goes back.
    pub(super) async fn run(self: Rc<Self>) {
        let places = Arc::new(Semaphore::new(self.config.at_once.get()));
        let mut is_told = false;
        while let Some(first) = self.place(&places).await {
            match self.pull(first, &places).await {
                Ok(()) => is_told = false,
                Err(error) => {
                    // Once, for it may last.
                    if !std::mem::replace(&mut is_told, true) {
                        let stream = &self.config.stream;
                        warn!(stream, error, "stored requests cannot be taken, trying again");
                    }
                    self.leaving.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
                }
            }
        }
    }

    /// A place for one more request; none when it is time to leave.
    async fn place(&self, places: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(places).acquire_owned();
        self.leaving.run_until_cancelled(place).await?.ok()
    }

    /// Pulls as many requests as there are places now, and starts each.
    async fn pull(
        self: &Rc<Self>,
        first: OwnedSemaphorePermit,
        places: &Arc<Semaphore>,
    ) -> Result<(), String> {
        let Some(client) = self.leaving.run_until_cancelled(self.client()).await else {
            return Ok(());
        };
        let mut context = jetstream::new((*client).clone());
        // The session may be left while this waits.
        drop(client);
        context.set_timeout(PATIENCE);
        let consumer = self.consumer(&context).await?;
        let ack_wait = consumer.cached_info().config.ack_wait;
        let mut taken = vec![first];
        while let Ok(one) = Arc::clone(places).try_acquire_owned() {
            taken.push(one);
        }
        let pull = consumer.batch().max_messages(taken.len()).expires(PULL_EXPIRES);
        let mut messages = pull.messages().await.map_err(|error| error.to_string())?;
        while let Some(message) = messages.next().await {
            let message = message.map_err(|error| error.to_string())?;
            let Some(stored) = Stored::read(&message, ack_wait) else {
                warn!(subject = %message.subject, "what the stream delivers cannot be answered");
                continue;
            };
            let (work, place) = (Rc::clone(self), taken.pop());
            self.tasks.spawn_local(async move {
                work.settle(stored).await;
                drop(place);
            });
        }
        Ok(())
    }

    /// The consumer that the workers share; it is made where there is none.
    async fn consumer(&self, context: &Context) -> Result<PullConsumer, String> {
        let (stream, name) = (&self.config.stream, &self.config.consumer);
        match context.get_consumer_from_stream::<pull::Config, _, _>(name, stream).await {
            Ok(consumer) => return Ok(consumer),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(error.to_string()),
        }
        let config = pull::Config {
            durable_name: Some(name.clone()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.config.ack_wait,
            filter_subject: self.config.subject.clone().unwrap_or_default(),
            ..pull::Config::default()
        };
        info!(stream, consumer = name, "making the consumer of stored requests");
        let made = context.create_consumer_strict_on_stream(config, stream).await;
        match made {
            Ok(consumer) => Ok(consumer),
            // Another worker was faster.
            Err(error) => {
                let found = context.get_consumer_from_stream(name, stream).await;
                found.map_err(|_| error.to_string())
            }
        }
    }
}

fn is_missing(error: &ConsumerError) -> bool {
    matches!(error.kind(), ConsumerErrorKind::JetStream(error) if error.error_code() == ErrorCode::CONSUMER_NOT_FOUND)
}

//! A session's queue subscriptions, and the fence by which they are left without losing a message.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use async_nats::{Client, Message, Subscriber};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use natsway_boot::Session;
use tokio_util::sync::CancellationToken;

use crate::admission::{Admission, Start};
use crate::options::Config;

/// Messages that a subscription may hold: more than the broker can have on the wire to us, since
/// what does not fit is dropped. They are taken out in microseconds, so this is room for a pause,
/// not a queue.
pub(crate) const SUBSCRIPTION_MESSAGES: usize = 1 << 18;

/// Messages taken in one go before other tasks of the reader get a turn.
const BATCH: usize = 256;

/// How long the broker may take to give a message back to its sender.
const ECHO_LIMIT: Duration = Duration::from_secs(5);

/// The queue subscriptions of one session, and an echo to oneself on the same connection.
pub(crate) struct Subscriptions {
    client: Arc<Client>,
    requests: Requests,
    fence: String,
    echo: Subscriber,
}

/// How serving on a subscriptions ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServingEnd {
    /// Left by the fence: whatever the broker sent was started or refused.
    Left,
    /// The connection went away.
    Lost,
}

impl Subscriptions {
    /// Subscribes to every subject, and returns once the broker has seen that.
    pub(crate) async fn open(
        session: &Session,
        config: &Config,
    ) -> Result<Self, async_nats::Error> {
        let client = Arc::new(session.client().clone());
        let fence = client.new_inbox();
        let echo = client.subscribe(fence.clone()).await?;
        let mut subscribers = Vec::with_capacity(config.subjects.len());
        let queue_group = config.queue_group.as_str();
        for subject in &config.subjects {
            let subject = subject.as_str().to_owned();
            subscribers.push(client.queue_subscribe(subject, queue_group.to_owned()).await?);
        }
        let mut subscriptions =
            Self { client, requests: Requests { subscribers, turn: 0 }, fence, echo };
        subscriptions.client.publish(subscriptions.fence.clone(), Bytes::new()).await?;
        match tokio::time::timeout(ECHO_LIMIT, subscriptions.echo.next()).await {
            Ok(Some(_)) => Ok(subscriptions),
            Ok(None) => Err("the connection was lost at once".into()),
            Err(_) => {
                Err("no answer to a message to ourselves: may we subscribe below our inbox?".into())
            }
        }
    }

    pub(crate) fn client(&self) -> &Arc<Client> {
        &self.client
    }

    /// Serves until `leave` is cancelled, then leaves by the fence.
    pub(crate) async fn serve<F: Start>(
        mut self,
        admission: Rc<Admission<F>>,
        leave: CancellationToken,
    ) -> (Self, ServingEnd) {
        let mut leaving = std::pin::pin!(leave.cancelled());
        loop {
            let first = tokio::select! {
                biased;
                () = &mut leaving => {
                    let outcome = self.leave(&admission).await;
                    return (self, outcome);
                }
                first = self.requests.next() => first,
            };
            let Some((endpoint, message)) = first else { return (self, ServingEnd::Lost) };
            deliver(&admission, endpoint, message).await;
            if self.deliver_arrived(&admission, BATCH).await == BATCH {
                tokio::task::yield_now().await;
            }
        }
    }

    /// Leaves the queue groups so that every message that the broker sends us until then is taken.
    ///
    /// The broker refuses a maximum of more than nine digits and unsubscribes at once, while the
    /// client keeps the subscription until that many have come: so messages that are on their way
    /// still arrive, and the echo, which the broker handles after the UNSUB on the same connection,
    /// is behind the last of them. A plain `unsubscribe` or `drain` gives up the subscription
    /// before they arrive, and loses them. See the contract test.
    async fn leave<F: Start>(&mut self, admission: &Admission<F>) -> ServingEnd {
        for subscriber in &mut self.requests.subscribers {
            if subscriber.unsubscribe_after(u64::MAX).await.is_err() {
                return ServingEnd::Lost;
            }
        }
        if self.client.publish(self.fence.clone(), Bytes::new()).await.is_err() {
            return ServingEnd::Lost;
        }
        loop {
            tokio::select! {
                biased;
                echo = self.echo.next() => match echo {
                    Some(_) => break,
                    None => return ServingEnd::Lost,
                },
                message = self.requests.next() => match message {
                    Some((endpoint, message)) => deliver(admission, endpoint, message).await,
                    None => return ServingEnd::Lost,
                },
            }
        }
        self.deliver_arrived(admission, usize::MAX).await;
        ServingEnd::Left
    }

    /// Delivers what has arrived already, `limit` messages at the most, and says how many.
    async fn deliver_arrived<F: Start>(&mut self, admission: &Admission<F>, limit: usize) -> usize {
        for delivered in 0..limit {
            // Without `unconstrained`, tokio's budget of a task would end this with messages left.
            let next = tokio::task::unconstrained(self.requests.next()).now_or_never();
            let Some(Some((endpoint, message))) = next else { return delivered };
            deliver(admission, endpoint, message).await;
        }
        limit
    }
}

async fn deliver<F: Start>(admission: &Admission<F>, endpoint: usize, message: Message) {
    if let Some(refusal) = admission.accept(endpoint, message) {
        admission.refuse(refusal).await;
    }
}

/// Sends a message to oneself: when it is back, the broker has handled all that `client` sent
/// before it.
pub(crate) async fn echo(client: &Client) -> Result<(), async_nats::Error> {
    let inbox = client.new_inbox();
    let mut echo = client.subscribe(inbox.clone()).await?;
    client.publish(inbox, Bytes::new()).await?;
    match tokio::time::timeout(ECHO_LIMIT, echo.next()).await? {
        Some(_) => Ok(()),
        None => Err("the connection was lost".into()),
    }
}

/// Several subscriptions read in turn.
struct Requests {
    subscribers: Vec<Subscriber>,
    turn: usize,
}

impl Requests {
    /// The next message and the index of its subscription; `None` when all of them have ended.
    async fn next(&mut self) -> Option<(usize, Message)> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<(usize, Message)>> {
        let count = self.subscribers.len();
        let mut ended = 0;
        for step in 0..count {
            let index = (self.turn + step) % count;
            match self.subscribers[index].poll_next_unpin(cx) {
                Poll::Ready(Some(message)) => {
                    self.turn = (index + 1) % count;
                    return Poll::Ready(Some((index, message)));
                }
                Poll::Ready(None) => ended += 1,
                Poll::Pending => {}
            }
        }
        if ended == count { Poll::Ready(None) } else { Poll::Pending }
    }
}

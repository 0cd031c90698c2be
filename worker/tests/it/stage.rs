//! Workers in this process, in both forms.

use std::future::Future;
use std::time::Duration;

use async_nats::Client;
use axum::Router;
use natsway_testkit::eventually;
use natsway_wire::control;
use natsway_worker::{BrokerConfig, Error, Options, Summary, serve, serve_local};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const SUBJECT: &str = "svc.test.blue";

/// How a worker runs its handlers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Spawned,
    PerCore,
}

pub(crate) const FORMS: [Form; 2] = [Form::Spawned, Form::PerCore];

/// A worker that serves.
pub(crate) struct Worker {
    pub(crate) id: String,
    stop: CancellationToken,
    serving: JoinHandle<Result<Summary, Error>>,
}

/// Options for the broker at `url`.
pub(crate) fn options(url: &str) -> Options {
    Options::new(SUBJECT).broker(BrokerConfig::new(url).unwrap())
}

impl Worker {
    /// Starts a worker, and returns when `client` can reach it.
    pub(crate) async fn start(
        client: &Client,
        form: Form,
        options: Options,
        router: Router,
    ) -> Self {
        let id = natsway_boot::random_id();
        let options = options.instance(id.clone());
        let stop = CancellationToken::new();
        let stopped = stop.clone().cancelled_owned();
        let serving = match form {
            Form::Spawned => tokio::spawn(serve(options, router, stopped)),
            Form::PerCore => tokio::spawn(serve_local(options, move || router, stopped)),
        };
        let worker = Self { id, stop, serving };
        worker.wait_until_reached(client).await;
        worker
    }

    async fn wait_until_reached(&self, client: &Client) {
        eventually(Duration::from_secs(60), async || {
            assert!(!self.serving.is_finished(), "the worker ended at once");
            client
                .request(control::worker_subject(&self.id), control::WorkerCommand::Ping.encode())
                .await
        })
        .await;
    }

    /// Tells the worker to leave, and gives a future of what it has done.
    pub(crate) fn leave(self) -> impl Future<Output = Summary> {
        self.stop.cancel();
        self.ends()
    }

    /// Waits until the worker leaves, and gives what it has done.
    pub(crate) async fn ends(self) -> Summary {
        let limit = Duration::from_secs(60);
        let ended = tokio::time::timeout(limit, self.serving).await.expect("the worker leaves");
        ended.unwrap().unwrap()
    }
}

//! What the commands that work on the routes bucket have in common.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use clap::Args;
use natsway_boot::{BrokerArgs, Dial, Dialer, Session};
use natsway_routes::store::{BUCKET, RouteStore, StoreError, StoreErrorKind};

/// The inbox prefix of people and pipelines, so that their permissions do not include the gateways' replies.
const INBOX_PREFIX: &str = "_INBOX_operator";

/// Exit code: somebody else wrote in between.
pub(super) const CONFLICT: u8 = 3;

/// Exit code: there is no such route, or none that answers.
pub(super) const NOT_FOUND: u8 = 4;

/// Which bucket, at which broker, and how to print.
#[derive(Args, Clone)]
#[command(next_help_heading = "Bucket")]
pub(super) struct BucketArgs {
    /// Bucket that holds the routes
    #[arg(long, env = "NATSWAY_ROUTES_BUCKET", value_name = "NAME", default_value = BUCKET, global = true)]
    routes_bucket: String,

    /// Copies of the bucket in a cluster, when it has to be made
    #[arg(long, env = "NATSWAY_ROUTES_REPLICAS", value_name = "COUNT", default_value = "1", global = true)]
    routes_replicas: NonZeroUsize,

    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,

    #[command(flatten)]
    broker: BrokerArgs,
}

impl BucketArgs {
    /// Connects under a name and opens the bucket.
    pub(super) async fn open(&self, name: &str) -> anyhow::Result<(Session, RouteStore)> {
        let dial = Dial {
            name: name.to_owned(),
            inbox_prefix: INBOX_PREFIX.to_owned(),
            subscription_messages: 4_096,
            publish_messages: 256,
        };
        let session = Dialer::new(self.broker.clone().into_broker()?, dial).dial_once(None).await?;
        let client = session.client().clone();
        let store =
            RouteStore::open_or_create(client, &self.routes_bucket, self.routes_replicas.get()).await?;
        Ok((session, store))
    }
}

/// Whether somebody else wrote in between.
pub(super) fn is_conflict(error: &anyhow::Error) -> bool {
    error.downcast_ref::<StoreError>().is_some_and(|error| error.kind() == StoreErrorKind::Conflict)
}

/// Says that there is no such route.
pub(super) fn no_such_route(name: &str) -> ExitCode {
    eprintln!("apiproxy: there is no route {name:?}; `apiproxy routes ls` lists them");
    ExitCode::from(NOT_FOUND)
}

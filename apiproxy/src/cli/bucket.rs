//! What the commands that work on the routes bucket have in common.

use std::num::NonZeroUsize;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Args;
use natsway_boot::{BrokerArgs, Dial, Dialer, Session};
use natsway_routes::store::{BUCKET, RouteStore, StoreError, StoreErrorKind};

/// The inbox prefix of people and pipelines, so that their permissions do not include the gateways'
/// replies.
const INBOX_PREFIX: &str = "_INBOX_operator";

/// What may be the matter with a bucket that cannot be opened.
const UNREACHED: &str = "the routes are not reached: is JetStream on, are most of the brokers \
                         there, may this user read them";

/// Exit code: somebody else wrote in between.
pub(super) const CONFLICT: u8 = 3;

/// Exit code: there is no such route, or none that answers.
pub(super) const NOT_FOUND: u8 = 4;

/// Which bucket, at which broker, and how to print.
#[derive(Args, Clone)]
#[command(next_help_heading = "Bucket")]
pub(super) struct BucketArgs {
    /// Bucket that holds the routes
    #[arg(
        long, env = "NATSWAY_ROUTES_BUCKET", value_name = "NAME", default_value = BUCKET,
        global = true
    )]
    routes_bucket: String,

    /// Copies of the bucket in a cluster, when it has to be made
    #[arg(
        long,
        env = "NATSWAY_ROUTES_REPLICAS",
        value_name = "COUNT",
        default_value = "1",
        global = true
    )]
    routes_replicas: NonZeroUsize,

    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,

    #[command(flatten)]
    broker: BrokerArgs,
}

impl BucketArgs {
    /// Connects under a name and opens the bucket.
    ///
    /// # Errors
    /// Also when there is none: it is for a gateway to make, or for
    /// [`open_or_make`](Self::open_or_make).
    pub(super) async fn open(&self, name: &str) -> anyhow::Result<(Session, RouteStore)> {
        let session = self.connect(name).await?;
        let opened = RouteStore::open(session.client().clone(), &self.routes_bucket).await;
        let store = opened.map_err(|error| match error.kind() {
            StoreErrorKind::NoBucket => anyhow!(
                "there is no routes bucket {:?} yet: start a gateway, which makes it, or fill it \
                 by `apiproxy routes import FILE`; where neither may make it, run `apiproxy setup` \
                 as an administrator",
                self.routes_bucket
            ),
            _ => anyhow!(error).context(UNREACHED),
        })?;
        Ok((session, store))
    }

    /// The same, and makes the bucket if there is none.
    pub(super) async fn open_or_make(&self, name: &str) -> anyhow::Result<(Session, RouteStore)> {
        let session = self.connect(name).await?;
        let (client, bucket) = (session.client().clone(), self.routes_bucket.as_str());
        match RouteStore::open(client.clone(), bucket).await {
            Ok(store) => return Ok((session, store)),
            Err(error) if error.kind() == StoreErrorKind::NoBucket => {}
            Err(error) => return Err(anyhow!(error).context(UNREACHED)),
        }
        let made = RouteStore::open_or_create(client, bucket, self.routes_replicas.get()).await;
        let store = made.with_context(|| {
            format!(
                "there is no routes bucket {bucket:?} yet, and it could not be made: run `apiproxy \
                 setup` as an administrator, or start a gateway where gateways may make it"
            )
        })?;
        Ok((session, store))
    }

    async fn connect(&self, name: &str) -> anyhow::Result<Session> {
        let dial = Dial {
            name: name.to_owned(),
            inbox_prefix: INBOX_PREFIX.to_owned(),
            subscription_messages: 4_096,
            publish_messages: 256,
        };
        Ok(Dialer::new(self.broker.clone().into_config()?, dial).dial_once(None).await?)
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

//! What the calls of one client share, on its thread: the broker connection, the routes that they
//! go by, and what is told others of this caller.

use std::cell::Cell;
use std::num::NonZeroUsize;
use std::rc::Rc;
use std::sync::Arc;

use natsway_caller::codec_pools::{CodecCounts, CodecPools};
use natsway_caller::dispatch::Dispatcher;
use natsway_caller::identity::Identity;
use natsway_caller::pool;
use natsway_routes::report::{Report, Role};
use natsway_routes::watch::{ActiveRoutes, follow_only};
use tokio::task::spawn_local;

use super::ledger::AttemptLedger;
use super::options::{Config, INBOX_PREFIX};
use super::spans::Spans;
use super::stream_places::StreamPlaces;
use super::tunnels;
use crate::Error;

/// What the calls of one client share.
pub(super) struct ClientThread {
    pub(super) dispatcher: Dispatcher<AttemptLedger>,
    pub(super) spans: Spans,
    pub(super) streams: StreamPlaces,
    /// The revision of the routes by which every call goes that is sent from now on.
    goes_by: Cell<u64>,
    pub(super) identity: Identity,
}

impl ClientThread {
    /// Connects for calls, and once more for the routes and metrics: that connection may come back
    /// by itself.
    pub(super) async fn open(config: &Config) -> Result<(Rc<Self>, async_nats::Client), Error> {
        let role = pool::Role {
            name: format!("caller {}", config.name),
            inbox_prefix: INBOX_PREFIX.to_owned(),
            // What callers need of the routes bucket has no safe way between accounts.
            says_reply_subject: false,
        };
        let pools =
            CodecPools::new(role, NonZeroUsize::MIN, config.limits, &CodecCounts::default());
        pools.connect(&config.broker).await?;
        let control =
            config.broker.connect(&format!("caller {} control", config.name), INBOX_PREFIX).await;
        let control = control.map_err(Error::Unreachable)?;

        let active_routes = ActiveRoutes::unknown();
        spawn_local(follow_only(control.clone(), config.bucket.clone(), active_routes.clone()));
        let (ledger, counts) = (AttemptLedger::default(), Arc::default());
        let thread = Rc::new(Self {
            dispatcher: Dispatcher::new(pools, active_routes, ledger, counts),
            spans: Spans::new(config.traced),
            streams: StreamPlaces::new(config.max_streams),
            goes_by: Cell::new(0),
            identity: Identity::new(Role::Caller, &config.name),
        });
        if let Some(ways) = &config.tunnels {
            let tunnels = tunnels::open(ways, config, &thread.identity.id).await?;
            thread.dispatcher.offer(tunnels);
        }
        let following = Rc::clone(&thread);
        spawn_local(async move {
            let goes_by = |revision| following.goes_by.set(revision);
            following.dispatcher.routes().follow(goes_by).await;
        });
        Ok((thread, control))
    }

    /// Waits for the routes and for a connection.
    pub(super) async fn ready(&self) {
        self.dispatcher.routes().known().await;
        self.dispatcher.pools().connected().await;
    }

    /// What it has counted, and the newest routes by which it goes.
    pub(super) fn report(&self) -> Report {
        let routes = self.dispatcher.routes();
        self.identity.report(self.goes_by.get(), routes.ledger().metrics(), routes.active_routes())
    }
}

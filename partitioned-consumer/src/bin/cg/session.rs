//! What every command needs: the connection, and how to answer.

use std::time::Duration;

use anyhow::Result;
use natsway_partitioned_consumer::{ElasticGroup, Group, GroupKind, StaticGroup};
use tokio_util::sync::CancellationToken;

use crate::args::Group as Names;
use crate::connect::Connection;

/// What every command needs.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) json: bool,
    pub(crate) sleep: Duration,
    /// Ends `consume`; where there is none, a signal to the process does.
    pub(crate) stop: Option<CancellationToken>,
}

impl Session {
    pub(crate) fn group(&self, kind: GroupKind, group: &Names) -> Result<Group> {
        let Connection { jetstream, api_prefix } = &self.connection;
        Ok(Group::new(jetstream.clone(), kind, &group.stream, &group.group)?.api_prefix(api_prefix))
    }

    pub(crate) fn fixed(&self, group: &Names) -> Result<StaticGroup> {
        let Connection { jetstream, api_prefix } = &self.connection;
        Ok(StaticGroup::new(jetstream.clone(), &group.stream, &group.group)?.api_prefix(api_prefix))
    }

    pub(crate) fn elastic(&self, group: &Names) -> Result<ElasticGroup> {
        let Connection { jetstream, api_prefix } = &self.connection;
        Ok(ElasticGroup::new(jetstream.clone(), &group.stream, &group.group)?
            .api_prefix(api_prefix))
    }
}

//! What operators do with a group whose kind is known only as the program runs.

use super::doctor::Finding;
use super::report::GroupReport;
use super::reset::{ResetReport, ResetTo};
use crate::error::Error;
use crate::group::elastic_group::ElasticGroup;
use crate::group::handle::Group;
use crate::group::kind::GroupKind;
use crate::group::static_group::StaticGroup;

impl Group {
    /// How the group stands.
    ///
    /// # Errors
    /// As [`StaticGroup::report`] and [`ElasticGroup::report`].
    pub async fn report(&self) -> Result<GroupReport, Error> {
        match self.kind {
            GroupKind::Static => StaticGroup(self.clone()).report().await,
            GroupKind::Elastic => ElasticGroup(self.clone()).report().await,
        }
    }

    /// What is wrong with the group; nothing, if all is well.
    ///
    /// # Errors
    /// As [`StaticGroup::doctor`] and [`ElasticGroup::doctor`].
    pub async fn doctor(&self) -> Result<Vec<Finding>, Error> {
        match self.kind {
            GroupKind::Static => StaticGroup(self.clone()).doctor().await,
            GroupKind::Elastic => ElasticGroup(self.clone()).doctor().await,
        }
    }

    /// Sets the group to another place in its stream. With `dry_run`, it only says what would
    /// happen.
    ///
    /// # Errors
    /// As [`StaticGroup::reset`] and [`ElasticGroup::reset`].
    pub async fn reset(&self, to: ResetTo, dry_run: bool) -> Result<ResetReport, Error> {
        match self.kind {
            GroupKind::Static => StaticGroup(self.clone()).reset(to, dry_run).await,
            GroupKind::Elastic => ElasticGroup(self.clone()).reset(to, dry_run).await,
        }
    }

    /// Deletes the group. An elastic one goes with everything that it has not handled yet.
    ///
    /// # Errors
    /// As [`StaticGroup::delete`] and [`ElasticGroup::delete`].
    pub async fn delete(&self) -> Result<(), Error> {
        match self.kind {
            GroupKind::Static => StaticGroup(self.clone()).delete().await,
            GroupKind::Elastic => ElasticGroup(self.clone()).delete().await,
        }
    }
}

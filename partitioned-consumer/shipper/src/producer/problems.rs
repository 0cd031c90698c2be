//! What is said of files that are not shipped, or gone: once, and again when that changes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tokio::task::block_in_place;
use tracing::{error, info, warn};

use super::sources::{Problem, ProblemKind};
use super::status::{Metrics, save_problems};

/// See the module.
#[derive(Default)]
pub(super) struct ProblemLog {
    /// What is not shipped, as it was said last.
    said: BTreeSet<Problem>,
    /// Paths of started files that were not there at the last poll.
    gone: BTreeSet<PathBuf>,
}

impl ProblemLog {
    /// Drops from `found` what may only be a rotation. While a file is rotated nothing is at its
    /// path for a moment, so that of one that is `shipped` is taken for missing at the second time.
    pub(super) fn without_rotations(
        &self,
        found: Vec<Problem>,
        is_shipped: impl Fn(&Path) -> bool,
    ) -> BTreeSet<Problem> {
        let is_real = |it: &Problem| {
            it.kind != ProblemKind::Missing || !is_shipped(&it.path) || self.said.contains(it)
        };
        found.into_iter().filter(is_real).collect()
    }

    /// Says what is not shipped, and keeps it in the `state` directory for `status`.
    pub(super) fn report(&mut self, problems: BTreeSet<Problem>, state: &Path, metrics: &Metrics) {
        for problem in problems.difference(&self.said) {
            match problem.kind {
                ProblemKind::Refused(_) => error!("{problem}"),
                ProblemKind::Missing | ProblemKind::NoMatch => warn!("{problem}"),
            }
        }
        for problem in self.said.difference(&problems) {
            info!(path = %problem.path.display(), "no longer missing or refused");
        }
        let refused =
            problems.iter().filter(|it| matches!(it.kind, ProblemKind::Refused(_))).count();
        metrics.refused_files.set(refused as u64);
        metrics.missing_files.set((problems.len() - refused) as u64);
        let is_news = problems != self.said;
        self.said = problems;
        if is_news {
            let rows = self.said.iter().map(|problem| (problem.path.clone(), problem.to_string()));
            if let Err(error) = block_in_place(|| save_problems(state, rows.collect())) {
                warn!(%error, "the status cannot be written");
            }
        }
    }

    /// Says which of the `shipped` files are gone from their path. While one is rotated that is so
    /// for a moment.
    pub(super) fn report_gone<'a>(
        &mut self,
        shipped: impl Iterator<Item = &'a PathBuf>,
        metrics: &Metrics,
    ) {
        let named = |path: &Path| self.said.iter().any(|problem| problem.path == path);
        let gone = shipped.filter(|path| !path.exists() && !named(path));
        let gone: BTreeSet<PathBuf> =
            gone.filter(|path| path.as_os_str() != "-").cloned().collect();
        let (twice, once): (Vec<_>, Vec<_>) =
            gone.into_iter().partition(|path| self.gone.contains(path));
        for path in twice.iter().filter(|path| !metrics.is_gone(path)) {
            warn!(path = %path.display(), "the file is gone; what follows at its path is shipped");
        }
        metrics.set_gone(&twice);
        self.gone = twice.into_iter().chain(once).collect();
    }
}

//! The start of a writer: what earlier runs left uncommitted is cut.

use std::collections::BTreeMap;
use std::io;

use tracing::{error, info, warn};

use super::super::file_index::Entry;
use super::super::offsets::{Committed, Offsets};
use super::super::retention;
use super::super::target::{Changes, committed_bytes};
use super::Writer;
use crate::commit::Commit;
use crate::error::Error;

impl<O: Offsets> Writer<O> {
    /// Cuts what earlier runs left uncommitted.
    ///
    /// # Errors
    /// The disk's; the broker is waited for.
    pub(in super::super) async fn recover(&mut self) -> Result<(), Error> {
        let failed = |error| Error::disk("recovering the directory", error);
        retention::tidy_packed(&mut self.parts.file_index).map_err(failed)?;
        let mut by_source: BTreeMap<String, Vec<(String, Entry)>> = BTreeMap::new();
        for (path, entry) in self.parts.file_index.entries().filter(|(_, entry)| entry.open) {
            by_source.entry(entry.source.clone()).or_default().push((path.clone(), entry.clone()));
        }
        let Some(offset_store) = self.parts.offset_store.clone() else {
            // Without commits all that is there counts.
            let open = by_source.into_values().flatten();
            let changes = open.map(|(path, entry)| self.as_it_is(path, entry, true)).collect();
            return self.parts.file_index.record(changes).map_err(failed);
        };
        if !self.parts.file_index.trusts(&offset_store.identity()).map_err(failed)? {
            error!(
                "the bucket of commits is not the one that this directory knows: files stay as \
                 they are, and lines of the last moments may be repeated"
            );
            let open = by_source.into_values().flatten();
            let changes = open.map(|(path, entry)| self.as_it_is(path, entry, false)).collect();
            self.parts.file_index.record(changes).map_err(failed)?;
            return self.parts.file_index.trust(&offset_store.identity()).map_err(failed);
        }
        let mut changes = Vec::new();
        for (source, files) in by_source {
            let read = || offset_store.read(&source);
            let known = crate::connect::patiently("the commits", &self.parts.give_up, read).await?;
            changes.extend(self.recover_source(&source, files, &known).map_err(failed)?);
        }
        self.parts.file_index.record(changes).map_err(failed)
    }

    /// Cuts the open files of one source to what is committed of them.
    fn recover_source(
        &mut self,
        source: &str,
        files: Vec<(String, Entry)>,
        known: &Committed,
    ) -> io::Result<Changes> {
        let mut changes = Vec::new();
        if known.commit.is_none() && known.revision > 0 {
            warn!(source, "the commits of this source were removed: its files stay as they are");
            changes
                .extend(files.into_iter().map(|(path, entry)| self.as_it_is(path, entry, false)));
            return Ok(changes);
        }
        let writer = self.parts.file_index.writer();
        if known.commit.as_ref().is_some_and(|commit| commit.may_have_forgotten(writer)) {
            warn!(
                source,
                "so many directories had this source since that its commit does not remember this \
                 one: its files stay as they are, and their last lines may be in another directory too"
            );
            changes
                .extend(files.into_iter().map(|(path, entry)| self.as_it_is(path, entry, false)));
            return Ok(changes);
        }
        let last = self.last_begun(&files, known.commit.as_ref());
        for (path, entry) in files {
            if last.as_ref().is_some_and(|last| *last != path) {
                warn!(
                    path,
                    "an earlier version left this file open, and its length is not known: it stays \
                     as it is"
                );
                changes.push(self.as_it_is(path, entry, false));
                continue;
            }
            let index = &self.parts.file_index;
            let bytes = committed_bytes(index, (&path, &entry), None, known.commit.as_ref());
            let length =
                std::fs::metadata(self.parts.file_index.path(&path)).map_or(0, |m| m.len());
            if length > bytes {
                info!(path, length, bytes, "cutting what was not committed");
                self.parts.metrics.cut_bytes.add(length - bytes);
            }
            self.parts.files.cut_to(&path, bytes)?;
            changes.push((path, Some(Entry { bytes, ..entry })));
        }
        Ok(changes)
    }

    /// Of several open files of a source, which only earlier versions left, the one that may have
    /// an uncommitted end: that which the commit names, else the one that was written last.
    fn last_begun(&self, files: &[(String, Entry)], commit: Option<&Commit>) -> Option<String> {
        let writer = self.parts.file_index.writer();
        let is_named =
            |path: &str| commit.is_some_and(|commit| commit.length_of(writer, path).is_some());
        let modified = |path: &str| {
            std::fs::metadata(self.parts.file_index.path(path)).and_then(|it| it.modified()).ok()
        };
        let last =
            files.iter().map(|(path, _)| path).max_by_key(|path| (is_named(path), modified(path)));
        last.filter(|_| files.len() > 1).cloned()
    }

    /// The state of a file all of whose bytes count from now on.
    fn as_it_is(&self, path: String, entry: Entry, open: bool) -> (String, Option<Entry>) {
        let bytes = std::fs::metadata(self.parts.file_index.path(&path))
            .map_or(0, |metadata| metadata.len());
        (path, Some(Entry { bytes, open, ..entry }))
    }
}

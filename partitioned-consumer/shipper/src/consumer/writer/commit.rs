//! Commits: the newest are read, a group's are written by compare-and-set, and its messages are
//! done.

use futures_util::future::join_all;
use tokio::task::block_in_place;
use tracing::{error, warn};

use super::super::offsets::{CommitOutcome, Committed, OffsetStoreError, Offsets};
use super::{GivenUp, SourceState, Work, Writer, added, finish};
use crate::commit::{Commit, Tail};
use crate::name::Source;

impl<O: Offsets> Writer<O> {
    /// Reads the newest commits of sources.
    pub(super) async fn load(&mut self, sources: &[Source]) -> Result<(), GivenUp> {
        let Some(offset_store) = self.parts.offset_store.clone() else {
            for source in sources {
                self.states.entry(source.clone()).or_default();
            }
            return Ok(());
        };
        let mut left = sources.to_vec();
        while !left.is_empty() {
            let names: Vec<String> = left.iter().map(ToString::to_string).collect();
            let read = join_all(names.iter().map(|name| offset_store.read(name))).await;
            let mut failed = Vec::new();
            for (source, read) in left.into_iter().zip(read) {
                match read {
                    Ok(known) => self.note_committed(source, known),
                    Err(error) => {
                        self.trouble(&error);
                        failed.push(source);
                    }
                }
            }
            left = failed;
            if !left.is_empty() {
                self.pause().await?;
            }
        }
        Ok(())
    }

    /// Takes over a commit. Another writer's lines may have come between ours, so the file is
    /// chosen anew.
    fn note_committed(&mut self, source: Source, known: Committed) {
        if self.is_forgotten(&source, &known) {
            return;
        }
        let state = self.states.entry(source).or_default();
        if state.known.revision != known.revision {
            *state = SourceState { known, open: None, searched: None, used: state.used };
        }
    }

    /// Commits a group, source by source and all at once; then its messages are done.
    pub(super) async fn commit(&mut self, mut works: Vec<Work>) -> Result<(), GivenUp> {
        for work in &mut works {
            work.commit = Some(self.next_commit(work));
        }
        while !works.is_empty() {
            let outcomes = self.commit_once(&works).await;
            let mut left = Vec::new();
            for (work, outcome) in works.into_iter().zip(outcomes) {
                match outcome {
                    Ok(CommitOutcome::Done(revision)) => self.committed(work, revision),
                    Ok(CommitOutcome::Overtaken(newest))
                        if self.is_forgotten(&work.source, &newest) =>
                    {
                        left.push(work);
                    }
                    Ok(CommitOutcome::Overtaken(newest)) => self.overtaken(work, newest),
                    Err(error) => {
                        self.trouble(&error);
                        left.push(work);
                    }
                }
            }
            works = left;
            if !works.is_empty() {
                self.pause().await?;
            }
        }
        self.parts.metrics.groups.add(1);
        Ok(())
    }

    fn next_commit(&self, work: &Work) -> Commit {
        let before = self.states[&work.source].known.commit.as_ref();
        let writer = self.parts.file_index.writer().to_owned();
        let tail = match (&work.target, before) {
            (Some(target), _) => Tail {
                writer,
                file: target.path.clone(),
                bytes: target.bytes + added(&work.plan.pieces),
            },
            (None, Some(before)) => before.tail.clone(),
            (None, None) => Tail { writer, file: String::new(), bytes: 0 },
        };
        let mut commit = Commit::after(before, tail, self.parts.bounds.writers);
        commit.mark = work.plan.mark;
        commit.plain.clone_from(&work.plan.plain);
        commit.missing_bytes += work.plan.lost_bytes + work.plan.skipped_bytes;
        commit
    }

    async fn commit_once(&self, works: &[Work]) -> Vec<Result<CommitOutcome, OffsetStoreError>> {
        let Some(offset_store) = &self.parts.offset_store else {
            return works.iter().map(|_| Ok(CommitOutcome::Done(0))).collect();
        };
        let names: Vec<String> = works.iter().map(|work| work.source.to_string()).collect();
        let writes = works.iter().zip(&names).map(|(work, name)| {
            let revision = self.states[&work.source].known.revision;
            offset_store.write(
                name,
                revision,
                work.commit.as_ref().expect("made before the first attempt"),
            )
        });
        join_all(writes).await
    }

    fn committed(&mut self, work: Work, revision: u64) {
        let metrics = &self.parts.metrics;
        let written = added(&work.plan.pieces);
        metrics.bytes.add(written);
        metrics.messages.add(work.deliveries.len() as u64);
        metrics.recovered();
        let state = self.states.entry(work.source).or_default();
        // Without a ledger nothing is compared with it.
        let commit = work.commit.filter(|_| self.parts.offset_store.is_some());
        state.known = Committed { revision, commit };
        state.searched = None;
        if let Some(mut target) = work.target {
            target.bytes += written;
            state.open = Some(target);
        }
        work.deliveries.into_iter().for_each(finish);
    }

    /// Whether the broker lost a commit of ours, as after a power cut. What it stood for is on the
    /// disk, and stays: the next commit goes on from ours.
    fn is_forgotten(&mut self, source: &Source, newest: &Committed) -> bool {
        let Some(state) = self.states.get_mut(source) else { return false };
        let Some(ours) = &state.known.commit else { return false };
        if !ours.is_forgotten_by(newest.commit.as_ref()) {
            return false;
        }
        error!(%source, "the broker forgot what it had stored of this source's commits; going on \
                         from what is on the disk");
        state.known.revision = newest.revision;
        true
    }

    /// Another consumer has the source, or had it: our lines are taken back, and its messages
    /// judged again.
    fn overtaken(&mut self, work: Work, newest: Committed) {
        warn!(source = %work.source, "another consumer committed first, taking back what was \
                                      written");
        self.parts.metrics.overtaken.add(1);
        let (own, writer) = (newest.commit.as_ref(), self.parts.file_index.writer());
        // An attempt of ours that seemed to fail may have been the one, and is not remembered: then
        // nobody knows, and all of it stays.
        let is_known = own.is_none_or(|commit| !commit.may_have_forgotten(writer));
        if let Some(mut target) = work.target.filter(|_| is_known) {
            let own = own.and_then(|commit| commit.length_of(writer, &target.path));
            target.bytes = own.unwrap_or(target.bytes);
            block_in_place(|| self.take_back(&[target]));
        }
        self.note_committed(work.source, newest);
        self.backlog.extend(work.deliveries);
    }

    fn trouble(&self, error: &OffsetStoreError) {
        if self.parts.metrics.failed(error.to_string()) {
            warn!(%error, "commits have to wait");
        }
    }
}

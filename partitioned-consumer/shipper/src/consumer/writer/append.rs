//! Lines on the disk: appended and synced, and taken back where they are not committed.

use std::fs::File;
use std::io;
use std::sync::Arc;

use tokio::task::block_in_place;
use tracing::{error, info, warn};

use super::super::args::Fsync;
use super::super::offsets::Offsets;
use super::super::steps::step;
use super::super::target::{Open, Wanted};
use super::{GivenUp, Parts, Work, Writer, added};

/// Files that are synced at the same time.
const SYNC_THREADS: usize = 4;

impl<O: Offsets> Writer<O> {
    /// Appends and syncs the lines of a group. A disk that is full is waited for: nothing is
    /// acknowledged meanwhile.
    pub(super) async fn append(&mut self, works: &mut [Work]) -> Result<(), GivenUp> {
        let mut waiting = false;
        loop {
            match block_in_place(|| self.try_append(works)) {
                Ok(()) if !waiting => return Ok(()),
                Ok(()) => {
                    info!("lines can be written again");
                    self.parts.metrics.stopped.set(0);
                    self.parts.metrics.recovered();
                    return Ok(());
                }
                Err(error) => {
                    if !std::mem::replace(&mut waiting, true) {
                        let full = error.kind() == io::ErrorKind::StorageFull;
                        let what =
                            if full { "the disk is full" } else { "lines cannot be written" };
                        error!(%error, "{what}: acknowledging nothing until it can be");
                        self.parts.metrics.stopped.set(1);
                        self.parts.metrics.failed(format!("{what}: {error}"));
                    }
                    let begun: Vec<_> =
                        works.iter().filter_map(|work| work.target.clone()).collect();
                    block_in_place(|| self.take_back(&begun));
                    self.pause().await?;
                }
            }
        }
    }

    fn try_append(&mut self, works: &mut [Work]) -> io::Result<()> {
        let Parts { rotation, file_index, files, clock, .. } = &mut self.parts;
        let (mut changes, mut fresh, now) = (Vec::new(), Vec::new(), clock());
        let mut choose_all = || {
            for (index, work) in
                works.iter_mut().enumerate().filter(|(_, work)| !work.plan.pieces.is_empty())
            {
                if let Some(target) = &work.target {
                    // Tried before: from the same length again.
                    files.cut_to(&target.path, target.bytes)?;
                    continue;
                }
                let state = &self.states[&work.source];
                let wanted = Wanted {
                    source: &work.source,
                    present: state.open.as_ref(),
                    commit: state.known.commit.as_ref(),
                    add: added(&work.plan.pieces),
                    now: &now,
                };
                work.target = Some(rotation.choose(&wanted, (file_index, files), &mut changes)?);
                fresh.push(index);
            }
            file_index.record(std::mem::take(&mut changes))
        };
        if let Err(error) = choose_all() {
            // What is not in the file index must not be written: whichever step failed, no file of
            // this round is in it.
            fresh.into_iter().for_each(|index| works[index].target = None);
            return Err(error);
        }
        let mut written = Vec::new();
        for work in works.iter() {
            if let Some(target) = &work.target {
                written.push(files.append(&target.path, &work.plan.pieces)?);
            }
        }
        step(|| {})?;
        if self.parts.fsync == Fsync::Always { sync(&written) } else { Ok(()) }
    }

    /// Cuts files back to what is committed. What cannot be cut now is cut before it is appended
    /// to, or at the next start.
    pub(super) fn take_back(&mut self, targets: &[Open]) {
        for target in targets {
            // A handle on which a write or a sync failed is not trusted again.
            self.parts.files.close(&target.path);
            if let Err(error) = self.parts.files.cut_to(&target.path, target.bytes) {
                warn!(path = target.path, %error, "an uncommitted end of a file stays for now");
            }
        }
    }
}

/// Syncs files, a few at a time: each waits for the disk, and the disk can do several at once.
fn sync(files: &[Arc<File>]) -> io::Result<()> {
    if let [file] = files {
        return file.sync_data();
    }
    std::thread::scope(|scope| {
        let each = files.len().div_ceil(SYNC_THREADS).max(1);
        let threads: Vec<_> = files
            .chunks(each)
            .map(|chunk| scope.spawn(move || chunk.iter().try_for_each(|file| file.sync_data())))
            .collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("syncing does not panic"))
    })
}

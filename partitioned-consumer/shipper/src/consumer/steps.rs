//! The steps in which a consumer changes its disk: at each of them the model of the writer makes
//! the disk fail, or the process die.

/// Comes before a change of the disk. `torn` is what a failure may leave of that change; it happens
/// in tests only.
#[cfg(not(test))]
pub(super) fn step(_torn: impl FnOnce()) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(super) use faults::{Crash, Fault, arm, disarm, step};

#[cfg(test)]
mod faults {
    use std::cell::Cell;
    use std::io;

    /// What goes wrong.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(in super::super) enum Fault {
        /// The process dies in front of the step.
        Dies,
        /// It dies in the middle of it.
        DiesTorn,
        /// The disk refuses so many steps in a row, and keeps a part of each.
        Refuses(u8),
    }

    /// What unwinds the stack in place of a kill.
    #[derive(Debug)]
    pub(in super::super) struct Crash;

    thread_local! {
        static ARMED: Cell<Option<(u32, Fault)>> = const { Cell::new(None) };
    }

    /// Lets `fault` happen `after` so many steps of this thread.
    pub(in super::super) fn arm(after: u32, fault: Fault) {
        ARMED.set(Some((after, fault)));
    }

    /// Nothing goes wrong any more.
    pub(in super::super) fn disarm() {
        ARMED.set(None);
    }

    pub(in super::super) fn step(torn: impl FnOnce()) -> io::Result<()> {
        match ARMED.take() {
            None => Ok(()),
            Some((after @ 1.., fault)) => {
                ARMED.set(Some((after - 1, fault)));
                Ok(())
            }
            Some((0, Fault::Refuses(times))) => {
                torn();
                ARMED.set((times > 1).then(|| (0, Fault::Refuses(times - 1))));
                Err(io::ErrorKind::StorageFull.into())
            }
            Some((0, fault)) => {
                if fault == Fault::DiesTorn {
                    torn();
                }
                std::panic::resume_unwind(Box::new(Crash))
            }
        }
    }
}

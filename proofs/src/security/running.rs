//! The programs of a stage.

use std::cell::RefCell;

use natsway_testkit::Process;

/// As whom the broker runs.
pub(super) const BROKER: &str = "broker";

/// The worker that calls another one.
pub(super) const CALLER: &str = "caller";

/// A program, whose output goes to files.
#[derive(Debug)]
pub(super) struct Running {
    /// As whom it runs; `broker` for the broker.
    pub(super) role: String,
    pub(super) process: RefCell<Process>,
}

impl Running {
    /// Its standard output so far.
    pub(super) fn printed(&self) -> String {
        self.process.borrow().stdout()
    }

    /// All of its output so far, what it printed first.
    pub(super) fn text(&self) -> String {
        let process = self.process.borrow();
        process.stdout() + &process.stderr()
    }

    /// Whether it has said this.
    pub(super) fn says(&self, text: &str) -> bool {
        self.text().contains(text)
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.process.borrow_mut().exit_status().is_some()
    }

    /// With what it has ended, unless by a signal.
    pub(super) fn exit_code(&self) -> Option<i32> {
        self.process.borrow_mut().exit_status().and_then(|status| status.code())
    }

    /// Ends it at once.
    pub(super) fn kill(&self) {
        self.process.borrow_mut().kill9();
    }

    /// Has it stand still.
    pub(super) fn freeze(&self) {
        self.process.borrow_mut().freeze();
    }

    /// Has it go on.
    pub(super) fn thaw(&self) {
        self.process.borrow_mut().thaw();
    }
}

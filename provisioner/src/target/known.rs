//! What is known of a target's instances at one poll: what the backend says of them, and who
//! answered.

use crate::instance::{Instance, InstanceState};
use crate::roll_call::{self, Attendance, Standing};
use crate::sample::Fleet;

/// What is known of the instances at one poll.
pub(super) struct Known {
    pub(super) instances: Vec<Instance>,
    pub(super) standings: Vec<Standing>,
    pub(super) attendance: Attendance,
}

impl Known {
    pub(super) fn fleet(&self) -> Fleet {
        roll_call::fleet(&self.instances, &self.standings)
    }

    /// Whether some have ceased to answer, and nobody else answers.
    pub(super) fn nobody_answers(&self) -> bool {
        !self.attendance.silent.is_empty() && self.attendance.answers == 0
    }

    /// Those that were started by other rules, the oldest first.
    pub(super) fn outdated(&self) -> Vec<String> {
        let is_outdated = |of: &&Instance| of.is_outdated && of.state != InstanceState::Stopping;
        let mut outdated: Vec<&Instance> = self.instances.iter().filter(is_outdated).collect();
        outdated.sort_by(|one, other| (one.since_ms, &one.id).cmp(&(other.since_ms, &other.id)));
        outdated.into_iter().map(|of| of.id.clone()).collect()
    }
}

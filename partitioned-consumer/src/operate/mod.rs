//! What operators do with a group: see how it stands, what is wrong, and put it right.

mod count;
mod doctor;
mod either_kind;
mod repartition;
mod report;
mod reset;

pub use doctor::Finding;
pub use repartition::Repartitioned;
pub use report::{GroupReport, MemberReport, PartitionReport};
pub use reset::{MemberReset, ResetReport, ResetTo};

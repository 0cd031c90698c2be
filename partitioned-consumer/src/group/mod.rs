//! What a group is, who takes part, and where that is kept: the entry of the group in its bucket,
//! which both libraries read and write, and settings beside it that are ours alone.
//!
//! | pure | asks the broker |
//! |---|---|
//! | names and shapes: `name`, `kind`, `membership`, `filter`, `partition`, `config` | the entry: `entry`, `settings` |
//! | | a group of each kind: `handle`, `static_group`, `elastic_group`, `consumers` |
//! | | what must not be lost: `dead_letter`, `source_loss` |

pub(crate) mod config;
pub(crate) mod consumers;
pub(crate) mod dead_letter;
pub(crate) mod elastic_group;
pub(crate) mod entry;
pub(crate) mod filter;
pub(crate) mod handle;
mod json;
pub(crate) mod kind;
pub(crate) mod membership;
pub(crate) mod name;
pub(crate) mod partition;
pub(crate) mod settings;
pub(crate) mod source_loss;
pub(crate) mod static_group;

pub use config::{ElasticConfig, Generation, StaticConfig};
pub use elastic_group::ElasticGroup;
pub use filter::{PartitioningFilter, filters_overlap, subject_matches, transforms};
pub use handle::Group;
pub use kind::GroupKind;
pub use membership::{MemberMapping, Membership};
pub use name::{GroupName, check_member};
pub use partition::{MAX_PARTITIONS, owners, partition_of_key, partitions_of, sticky_mappings};
pub use settings::{DeadLetter, GroupSettings};
pub use source_loss::SourceLoss;
pub use static_group::StaticGroup;

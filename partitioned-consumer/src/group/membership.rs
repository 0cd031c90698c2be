//! Who takes part in a group, and what of the partitions each member gets.

use serde::{Deserialize, Serialize};

use super::json::null_as_default;

/// Partitions that an operator gave to a member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberMapping {
    /// The member.
    pub member: String,
    /// Its partitions, counted from 0.
    #[serde(default, deserialize_with = "null_as_default")]
    pub partitions: Vec<u32>,
}

impl MemberMapping {
    /// Gives `partitions` to `member`.
    pub fn new(member: impl Into<String>, partitions: impl IntoIterator<Item = u32>) -> Self {
        Self { member: member.into(), partitions: partitions.into_iter().collect() }
    }
}

/// How a group's partitions are spread over members.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Membership {
    /// Nobody: an elastic group begins like this, and waits.
    #[default]
    Empty,
    /// Evenly over these names.
    Balanced(Vec<String>),
    /// As the operator wrote it.
    Mapped(Vec<MemberMapping>),
}

impl Membership {
    /// An even spread over `members`.
    pub fn balanced<S: Into<String>>(members: impl IntoIterator<Item = S>) -> Self {
        Self::from_parts(members.into_iter().map(Into::into).collect(), Vec::new())
    }

    pub(super) fn from_parts(members: Vec<String>, mappings: Vec<MemberMapping>) -> Self {
        match (members.is_empty(), mappings.is_empty()) {
            (_, false) => Self::Mapped(mappings),
            (false, true) => Self::Balanced(members),
            (true, true) => Self::Empty,
        }
    }

    /// Whether the name is in the membership, with or without partitions.
    pub fn contains(&self, member: &str) -> bool {
        match self {
            Self::Empty => false,
            Self::Balanced(names) => names.iter().any(|n| n == member),
            Self::Mapped(mappings) => mappings.iter().any(|m| m.member == member),
        }
    }

    /// All names, in the order in which they are stored, each once.
    pub fn names(&self) -> Vec<String> {
        let mut seen = std::collections::BTreeSet::new();
        let all: Vec<&String> = match self {
            Self::Empty => Vec::new(),
            Self::Balanced(names) => names.iter().collect(),
            Self::Mapped(mappings) => mappings.iter().map(|m| &m.member).collect(),
        };
        all.into_iter().filter(|n| seen.insert(n.as_str())).cloned().collect()
    }

    /// Lists every rule that the mappings break.
    pub(super) fn faults(&self, partitions: u32) -> Vec<String> {
        let Self::Mapped(mappings) = self else { return Vec::new() };
        let mut faults = Vec::new();
        if mappings.len() > partitions as usize {
            faults.push(format!(
                "member_mappings: {} for {partitions} partitions: expected at most one each",
                mappings.len()
            ));
        }
        let mut owner: Vec<Option<&str>> = vec![None; partitions as usize];
        for (at, mapping) in mappings.iter().enumerate() {
            if mappings[..at].iter().any(|m| m.member == mapping.member) {
                faults.push(format!("member_mappings: member {:?} is given twice", mapping.member));
            }
            for partition in &mapping.partitions {
                match owner.get_mut(*partition as usize) {
                    None => faults.push(format!(
                        "member_mappings: partition {partition}: expected 0..{partitions}"
                    )),
                    Some(Some(other)) => {
                        faults.push(format!(
                            "member_mappings: partition {partition} is given twice, first to \
                             {other:?}"
                        ));
                    }
                    Some(free) => *free = Some(&mapping.member),
                }
            }
        }
        let uncovered: Vec<String> = owner
            .iter()
            .enumerate()
            .filter(|(_, o)| o.is_none())
            .map(|(p, _)| p.to_string())
            .collect();
        if !uncovered.is_empty() {
            faults.push(format!("member_mappings: nobody has partition {}", uncovered.join(", ")));
        }
        faults
    }
}

/// The two fields of an entry that hold the membership, of which one at most is there.
#[derive(Serialize)]
pub(super) struct MembershipFields<'a> {
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub(super) members: &'a [String],
    #[serde(skip_serializing_if = "<[MemberMapping]>::is_empty")]
    pub(super) member_mappings: &'a [MemberMapping],
}

impl<'a> MembershipFields<'a> {
    pub(super) fn of(membership: &'a Membership) -> Self {
        match membership {
            Membership::Empty => Self { members: &[], member_mappings: &[] },
            Membership::Balanced(members) => Self { members, member_mappings: &[] },
            Membership::Mapped(member_mappings) => Self { members: &[], member_mappings },
        }
    }
}

//! Which partition a subject belongs to, and which partitions a member gets.
//!
//! Both rules are part of the wire: members written in Go compute the same answers from the same
//! entry.

use std::collections::{BTreeMap, BTreeSet};

use super::membership::{MemberMapping, Membership};

/// The largest number of partitions accepted; a consumer carries one filter subject per partition
/// it owns.
pub const MAX_PARTITIONS: u32 = 100_000;

const FNV_OFFSET: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;

/// The partition of a key: FNV-1a (32 bit) of its parts, joined with nothing between them, modulo
/// `partitions`.
///
/// This is the server's `partition(n, …)` transform, so `["ab", "c"]` and `["a", "bc"]` meet in one
/// partition.
///
/// # Panics
/// When `partitions` is 0.
///
/// ```
/// use natsway_partitioned_consumer::partition_of_key;
/// assert_eq!(partition_of_key(["customer-7"], 1), 0);
/// assert_eq!(partition_of_key(["ab", "c"], 10), partition_of_key(["a", "bc"], 10));
/// ```
pub fn partition_of_key<'a>(parts: impl IntoIterator<Item = &'a str>, partitions: u32) -> u32 {
    let hash = parts
        .into_iter()
        .flat_map(str::bytes)
        .fold(FNV_OFFSET, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(FNV_PRIME));
    hash % partitions
}

/// Splits `7.orders.new` into `(Some(7), "orders.new")`; a subject without a dot stays whole.
pub(crate) fn split_partition(subject: &str) -> (Option<u32>, &str) {
    match subject.split_once('.') {
        Some((partition, rest)) => (partition.parse().ok(), rest),
        None => (None, subject),
    }
}

/// The members that a balanced group of `partitions` uses: no duplicates, in byte order, at most
/// one per partition.
fn seated(partitions: u32, members: &[String]) -> Vec<&str> {
    let unique: BTreeSet<&str> = members.iter().map(String::as_str).collect();
    unique.into_iter().take(partitions as usize).collect()
}

/// The partitions of `member`, in the order in which its filter subjects are listed.
///
/// Balanced groups give each member `partitions / members` neighbours and then one left-over each
/// to the first members. A name that is no member, or one past the last partition, gets none.
pub fn partitions_of(partitions: u32, membership: &Membership, member: &str) -> Vec<u32> {
    match membership {
        Membership::Empty => Vec::new(),
        Membership::Mapped(mappings) => mappings
            .iter()
            .filter(|m| m.member == member)
            .flat_map(|m| m.partitions.iter().copied())
            .collect(),
        Membership::Balanced(names) => {
            let seats = seated(partitions, names);
            let Some(seat) = seats.iter().position(|name| *name == member) else {
                return Vec::new();
            };
            let count = seats.len() as u32;
            (0..partitions).filter(|p| seat_of(*p, partitions, count) == seat as u32).collect()
        }
    }
}

fn seat_of(partition: u32, partitions: u32, seats: u32) -> u32 {
    let each = partitions / seats;
    let evenly = seats * each;
    if partition < evenly { partition / each } else { partition - evenly }
}

/// Who owns each partition; `None` where nobody does.
pub fn owners(partitions: u32, membership: &Membership) -> Vec<Option<String>> {
    let mut owners = vec![None; partitions as usize];
    for member in membership.names() {
        for partition in partitions_of(partitions, membership, &member) {
            if let Some(owner) = owners.get_mut(partition as usize) {
                *owner = Some(member.clone());
            }
        }
    }
    owners
}

/// Mappings for `members` that spread `partitions` evenly and move as few of them as possible from
/// `current`.
///
/// A balanced group that grows from 2 to 3 members at 10 partitions moves 6 of them where 3 would
/// do; writing these mappings instead moves 3. Returns nothing when there are no members.
///
/// ```
/// use natsway_partitioned_consumer::{Membership, sticky_mappings, partitions_of};
/// let two = Membership::balanced(["a", "b"]);
/// let three = Membership::Mapped(sticky_mappings(10, &two, &["a", "b", "c"].map(String::from)));
/// let (before, after) = (partitions_of(10, &two, "a"), partitions_of(10, &three, "a"));
/// let kept = after.iter().filter(|partition| before.contains(partition)).count();
/// assert_eq!(kept, partitions_of(10, &three, "a").len());
/// ```
pub fn sticky_mappings(
    partitions: u32,
    current: &Membership,
    members: &[String],
) -> Vec<MemberMapping> {
    let seats = seated(partitions, members);
    if seats.is_empty() {
        return Vec::new();
    }
    let (each, mut extra) = (partitions as usize / seats.len(), partitions as usize % seats.len());
    let mut kept: BTreeMap<&str, Vec<u32>> =
        seats.iter().map(|name| (*name, partitions_of(partitions, current, name))).collect();
    // Whoever owns most now keeps the odd ones: that moves the fewest.
    let mut by_load = seats.clone();
    by_load.sort_by_key(|name| std::cmp::Reverse(kept[name].len()));
    let mut quota: BTreeMap<&str, usize> = BTreeMap::new();
    for name in by_load {
        let bonus = usize::from(extra > 0);
        extra -= bonus;
        quota.insert(name, each + bonus);
    }
    for (name, owned) in &mut kept {
        owned.retain(|p| *p < partitions);
        owned.truncate(quota[name]);
    }
    let taken: BTreeSet<u32> = kept.values().flatten().copied().collect();
    let mut free = (0..partitions).filter(|p| !taken.contains(p));
    seats
        .iter()
        .map(|name| {
            let mut owned = kept.remove(name).unwrap_or_default();
            owned.extend(free.by_ref().take(quota[name] - owned.len()));
            owned.sort_unstable();
            MemberMapping { member: (*name).to_owned(), partitions: owned }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_partition_has_one_owner(partitions in 1u32..40, count in 1usize..12) {
            let names: Vec<String> = (0..count).map(|i| format!("m{i:02}")).collect();
            let membership = Membership::Balanced(names.clone());
            let mut all: Vec<u32> = names.iter().flat_map(|n| partitions_of(partitions, &membership, n)).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..partitions).collect::<Vec<_>>());
        }

        #[test]
        fn sticky_mappings_cover_and_stay_even(partitions in 1u32..40, before in 0usize..8, after in 1usize..8) {
            let names = |n: usize| (0..n).map(|i| format!("m{i:02}")).collect::<Vec<_>>();
            let current = Membership::Balanced(names(before));
            let mappings = sticky_mappings(partitions, &current, &names(after));
            let mut all: Vec<u32> = mappings.iter().flat_map(|m| m.partitions.clone()).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..partitions).collect::<Vec<_>>());
            let sizes: Vec<usize> = mappings.iter().map(|m| m.partitions.len()).collect();
            prop_assert!(sizes.iter().max().unwrap() - sizes.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn growing_from_two_to_three_moves_three_of_ten() {
        let two = Membership::balanced(["m1", "m2"]);
        let members = ["m1", "m2", "m3"].map(String::from);
        let three = Membership::Mapped(sticky_mappings(10, &two, &members));
        let (before, after) = (owners(10, &two), owners(10, &three));
        assert_eq!(before.iter().zip(&after).filter(|(a, b)| a != b).count(), 3);
    }

    #[test]
    fn the_partition_leaves_the_subject() {
        assert_eq!(split_partition("7.orders.new"), (Some(7), "orders.new"));
        assert_eq!(split_partition("orders.new"), (None, "new"));
        assert_eq!(split_partition("orders"), (None, "orders"));
    }

    #[test]
    fn a_name_that_is_no_member_gets_nothing() {
        assert!(partitions_of(4, &Membership::balanced(["m1"]), "m2").is_empty());
        assert!(partitions_of(4, &Membership::Empty, "m1").is_empty());
    }
}

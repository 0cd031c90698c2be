//! Partitioning filters of elastic groups: which subjects are taken, what their key is, and the
//! transform that puts the partition in front.

use serde::{Deserialize, Serialize};

use super::json::null_as_default;
use super::partition::partition_of_key;
use crate::error::{Error, ErrorKind};

/// Subjects that an elastic group takes from its stream, and the `*` tokens that make up the key.
///
/// ```
/// use natsway_partitioned_consumer::PartitioningFilter;
/// let filter = PartitioningFilter::new("orders.*.*", [1]);
/// assert_eq!(filter.key_of("orders.alice.created").as_deref(), Some("alice"));
/// assert_eq!(filter.key_of("payments.alice.created"), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitioningFilter {
    /// A subject with at least one `*`, or with `>` as its last token.
    pub filter: String,
    /// Which `*` tokens are hashed, counted from 1; empty hashes the whole subject.
    #[serde(default, rename = "partitioning_wildcards", deserialize_with = "null_as_default")]
    pub wildcards: Vec<u32>,
}

impl PartitioningFilter {
    /// A filter and its key positions; nothing is checked until it becomes part of a configuration.
    pub fn new(filter: impl Into<String>, wildcards: impl IntoIterator<Item = u32>) -> Self {
        Self { filter: filter.into(), wildcards: wildcards.into_iter().collect() }
    }

    /// Every rule this filter breaks, as sentences.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        let name = &self.filter;
        if name.is_empty() {
            return vec!["filter \"\": expected a subject".into()];
        }
        let stars = name.split('.').filter(|t| *t == "*").count();
        if stars == 0 && !name.ends_with(".>") && name != ">" {
            faults.push(format!(
                "filter {name:?}: expected at least one '*' token or a trailing '>'"
            ));
        }
        if self.wildcards.len() > stars {
            faults.push(format!(
                "filter {name:?}: {} wildcard indexes for {stars} '*' tokens",
                self.wildcards.len()
            ));
        }
        for (at, index) in self.wildcards.iter().enumerate() {
            if self.wildcards[..at].contains(index) {
                faults.push(format!("filter {name:?}: wildcard index {index} is given twice"));
            }
            if stars > 0 && (*index == 0 || *index as usize > stars) {
                faults
                    .push(format!("filter {name:?}: wildcard index {index}: expected 1..={stars}"));
            }
        }
        faults
    }

    /// The key of a subject (its chosen tokens, or the whole subject), or `None` where the filter
    /// does not match.
    pub fn key_of(&self, subject: &str) -> Option<String> {
        if !subject_matches(&self.filter, subject) {
            return None;
        }
        if self.wildcards.is_empty() {
            return Some(subject.to_owned());
        }
        let starred: Vec<&str> = self
            .filter
            .split('.')
            .zip(subject.split('.'))
            .filter(|(f, _)| *f == "*")
            .map(|(_, s)| s)
            .collect();
        Some(self.wildcards.iter().map(|i| starred[*i as usize - 1]).collect())
    }

    /// The partition of a subject, or `None` where the filter does not match.
    pub fn partition_of(&self, subject: &str, partitions: u32) -> Option<u32> {
        self.key_of(subject).map(|key| partition_of_key([key.as_str()], partitions))
    }

    /// The subject transform `(source, destination)` that writes the partition in front of the
    /// subject.
    pub fn transform(&self, partitions: u32) -> (String, String) {
        let mut stars = 0;
        let kept: Vec<String> = self
            .filter
            .split('.')
            .map(|token| match token {
                "*" => {
                    stars += 1;
                    format!("{{{{Wildcard({stars})}}}}")
                }
                other => other.to_owned(),
            })
            .collect();
        let indexes: String = self.wildcards.iter().map(|i| format!(",{i}")).collect();
        (
            self.filter.clone(),
            format!("{{{{Partition({partitions}{indexes})}}}}.{}", kept.join(".")),
        )
    }
}

/// The transforms of a group's work-queue stream, in the order of its filters; no filter takes
/// every subject.
pub fn transforms(partitions: u32, filters: &[PartitioningFilter]) -> Vec<(String, String)> {
    if filters.is_empty() {
        return vec![(">".into(), format!("{{{{Partition({partitions})}}}}.>"))];
    }
    filters.iter().map(|filter| filter.transform(partitions)).collect()
}

/// Whether a subject is one that a filter with `*` and a trailing `>` takes.
pub fn subject_matches(filter: &str, subject: &str) -> bool {
    let (mut wanted, mut given) = (filter.split('.'), subject.split('.'));
    loop {
        match (wanted.next(), given.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (Some("*"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

/// Whether a filter takes each subject that another one takes.
pub(crate) fn takes_all_of(filter: &str, other: &str) -> bool {
    let (mut wide, mut narrow) = (filter.split('.'), other.split('.'));
    loop {
        match (wide.next(), narrow.next()) {
            (Some(">"), Some(_)) | (None, None) => return true,
            (_, Some(">")) => return false,
            (Some("*"), Some(_)) => {}
            (Some(a), Some(b)) if a == b => {}
            _ => return false,
        }
    }
}

/// Whether some subject matches both filters: a message there would be copied, or refused, twice.
pub fn filters_overlap(one: &str, other: &str) -> bool {
    let (mut a, mut b) = (one.split('.'), other.split('.'));
    loop {
        match (a.next(), b.next()) {
            (None, None) | (Some(">"), Some(_)) | (Some(_), Some(">")) => return true,
            (Some(x), Some(y)) if x == "*" || y == "*" || x == y => {}
            _ => return false,
        }
    }
}

/// Whether a text is a subject that may be subscribed to: no empty token, no white space, `>` only
/// at the end.
pub(crate) fn check_filter_subject(filter: &str) -> Result<(), Error> {
    let tokens: Vec<&str> = filter.split('.').collect();
    let broken = filter.chars().any(|c| c.is_whitespace() || c.is_control())
        || tokens.iter().any(|t| t.is_empty())
        || tokens[..tokens.len() - 1].contains(&">");
    if broken {
        return Err(ErrorKind::InvalidConfig.with(format!(
            "filter {filter:?}: expected a subject without empty tokens, with '>' only at its end"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transforms_put_the_partition_in_front() {
        let cases: [(u32, &str, &[u32], &str); 4] = [
            (4, "foo.*.*.>", &[1, 2], "{{Partition(4,1,2)}}.foo.{{Wildcard(1)}}.{{Wildcard(2)}}.>"),
            (10, "foo.*", &[], "{{Partition(10)}}.foo.{{Wildcard(1)}}"),
            (3, "*.x.*", &[2], "{{Partition(3,2)}}.{{Wildcard(1)}}.x.{{Wildcard(2)}}"),
            (2, ">", &[], "{{Partition(2)}}.>"),
        ];
        for (partitions, filter, indexes, destination) in cases {
            let filter = PartitioningFilter::new(filter, indexes.iter().copied());
            assert_eq!(
                filter.transform(partitions),
                (filter.filter.clone(), destination.to_owned())
            );
        }
        assert_eq!(transforms(7, &[]), [(">".to_owned(), "{{Partition(7)}}.>".to_owned())]);
    }

    #[test]
    fn filters_that_cannot_partition_are_refused() {
        let faults = |filter: &str, indexes: &[u32]| {
            PartitioningFilter::new(filter, indexes.iter().copied()).faults()
        };
        assert_eq!(faults("foo.*", &[1]), Vec::<String>::new());
        assert_eq!(faults("foo.>", &[]), Vec::<String>::new());
        assert_eq!(faults("", &[]).len(), 1);
        assert_eq!(faults("foo.bar", &[]).len(), 1);
        assert_eq!(faults("foo.*", &[0]).len(), 1);
        assert_eq!(faults("foo.*", &[2]).len(), 1);
        assert_eq!(faults("foo.*.*", &[1, 1]).len(), 1);
        assert!(!faults("foo.*", &[1, 2]).is_empty());
    }

    #[test]
    fn a_filter_takes_all_of_what_is_narrower() {
        for (wide, narrow) in
            [(">", "a.>"), ("a.*", "a.b"), ("a.*", "a.*"), ("a.>", "a.*.c"), ("*.>", "a.b")]
        {
            assert!(takes_all_of(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in
            [("a.*", "a.>"), ("a.b", "a.*"), ("*.>", ">"), ("a.*", "a.b.c"), ("a.>", "a")]
        {
            assert!(!takes_all_of(wide, narrow), "{wide} {narrow}");
        }
    }

    #[test]
    fn overlap_is_seen_through_wildcards() {
        for (a, b) in [("a.*", "*.b"), ("a.>", "a.b.c"), (">", "x"), ("a.*.c", "a.b.*")] {
            assert!(filters_overlap(a, b) && filters_overlap(b, a), "{a} {b}");
        }
        for (a, b) in [("a.*", "b.*"), ("a", "a.b"), ("a.>", "a"), ("a.*", "a.b.c")] {
            assert!(!filters_overlap(a, b) && !filters_overlap(b, a), "{a} {b}");
        }
    }
}

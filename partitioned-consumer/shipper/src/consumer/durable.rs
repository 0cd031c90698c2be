//! The durable consumers of a list's partitions.

/// The name of the durable consumer of a partition.
pub(super) fn consumer_name(cluster: &str, partition: u32) -> String {
    format!("{cluster}-p{partition}")
}

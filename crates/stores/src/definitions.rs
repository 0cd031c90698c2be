//! What each bucket and stream is made with.

use std::time::Duration;

use async_nats::jetstream::stream::{Config, DiscardPolicy};

/// The bucket of the routes, unless another is named.
pub const ROUTES: &str = "natsway-routes";

/// The bucket of the lease by which one gateway drives the rollouts.
pub const ROLLOUT_LEASE: &str = "natsway-lease";

/// The bucket of the leases by which one provisioner of several leads, unless another is named.
pub const PROVISIONER_LEASES: &str = "natsway-leases";

/// The bucket of elastic consumer groups. The name is the Go library's.
pub const ELASTIC_GROUPS: &str = "elastic-consumer-groups";

/// The bucket of static consumer groups. The name is the Go library's.
pub const STATIC_GROUPS: &str = "static-consumer-groups";

/// The bucket of what only we know of consumer groups: paused or not, dead letters.
pub const GROUP_SETTINGS: &str = "natsway-consumer-groups";

/// The bucket in which a member's instances take turns at making its consumer.
pub const CONSUMER_LOCKS: &str = "natsway-consumer-makers";

/// The bucket of the shipper's commits.
pub const SHIPPER_COMMITS: &str = "natsway-shipper";

/// The bucket in which consumers that share a stream say that they live.
pub const SHIPPER_MEMBERS: &str = "natsway-shipper-members";

/// The bucket of the results of stored requests.
pub const RESULTS: &str = "natsway-results";

/// How long a lease to drive the rollouts lives that is not renewed.
const ROLLOUT_LEASE_LASTS: Duration = Duration::from_secs(3);

/// How long a provisioner's lease lives that is not renewed.
const PROVISIONER_LEASE_LASTS: Duration = Duration::from_secs(4);

/// How long a turn at a consumer lasts that is never given back: longer than any request waits.
pub const CONSUMER_TURN_LASTS: Duration = Duration::from_secs(10);

/// The largest route document, in bytes: hundreds of versions and rules.
const ROUTE_BYTES: i32 = 256 * 1024;

/// Earlier revisions of a route that the bucket keeps, for looking back.
const ROUTE_HISTORY: i64 = 16;

/// The stream of a bucket.
pub fn stream_of(bucket: &str) -> String {
    format!("KV_{bucket}")
}

/// The bucket of the routes, one document each.
pub fn routes(bucket: &str, replicas: usize) -> Config {
    Config {
        description: Some("natsway routes, one document each".to_owned()),
        max_messages_per_subject: ROUTE_HISTORY,
        max_message_size: ROUTE_BYTES,
        ..bucket_named(bucket, replicas)
    }
}

/// The lease of the gateway that drives the rollouts.
pub fn rollout_lease(replicas: usize) -> Config {
    Config {
        description: Some("natsway: which gateway drives the rollouts".to_owned()),
        max_age: ROLLOUT_LEASE_LASTS,
        ..bucket_named(ROLLOUT_LEASE, replicas)
    }
}

/// The leases of provisioners.
pub fn provisioner_leases(bucket: &str, replicas: usize) -> Config {
    Config {
        description: Some("who of the natsway provisioners acts".to_owned()),
        max_age: PROVISIONER_LEASE_LASTS,
        ..bucket_named(bucket, replicas)
    }
}

/// The configurations of elastic consumer groups, as the Go library makes it.
pub fn elastic_groups(replicas: usize) -> Config {
    bucket_named(ELASTIC_GROUPS, replicas)
}

/// The configurations of static consumer groups, as the Go library makes it.
pub fn static_groups(replicas: usize) -> Config {
    bucket_named(STATIC_GROUPS, replicas)
}

/// The settings of consumer groups that are ours alone.
pub fn group_settings(replicas: usize) -> Config {
    bucket_named(GROUP_SETTINGS, replicas)
}

/// The turns at making consumers.
pub fn consumer_locks(replicas: usize) -> Config {
    Config {
        description: Some("whose turn it is to create or delete a member's consumer".to_owned()),
        max_age: CONSUMER_TURN_LASTS,
        ..bucket_named(CONSUMER_LOCKS, replicas)
    }
}

/// The commits of the shipper's consumers.
pub fn shipper_commits(replicas: usize) -> Config {
    bucket_named(SHIPPER_COMMITS, replicas)
}

/// The shipper's consumers that live: entries last as long as a consumer may be silent.
pub fn shipper_members(silence: Duration, replicas: usize) -> Config {
    Config { max_age: silence, ..bucket_named(SHIPPER_MEMBERS, replicas) }
}

/// The results of stored requests, each for `lasts` after it was written. A full bucket refuses
/// requests rather than forgets results.
pub fn results(lasts: Duration, max_bytes: Option<u64>, replicas: usize) -> Config {
    Config {
        description: Some("natsway: what became of stored requests".to_owned()),
        max_age: lasts,
        max_bytes: max_bytes.and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(-1),
        ..bucket_named(RESULTS, replicas)
    }
}

/// The shipper's lines: everything below the subject `prefix`, within `max_bytes` and for `max_age`
/// where those are given.
pub fn lines(
    stream: &str,
    prefix: &str,
    max_bytes: Option<u64>,
    max_age: Option<Duration>,
    replicas: usize,
) -> Config {
    Config {
        name: stream.to_owned(),
        subjects: vec![format!("{prefix}.>")],
        // A full stream makes producers wait. Discarding the oldest would lose lines that nobody
        // has read.
        discard: DiscardPolicy::New,
        max_bytes: max_bytes.and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(-1),
        max_age: max_age.unwrap_or_default(),
        num_replicas: replicas,
        allow_direct: true,
        ..Config::default()
    }
}

/// The shipper's stream where none is named: the subject `prefix` in capitals, `_` for what a
/// stream's name cannot have.
pub fn default_stream(prefix: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    prefix.chars().map(letter).collect()
}

/// A key-value bucket (ADR-8) with one revision of each key.
///
/// It is kept in files, also where its entries last for seconds: a broker that stands alone forgets
/// a stream in memory when it restarts, and whoever uses it may not make it anew.
///
/// It allows no direct gets. The broker answers one with the message as it was stored, on whatever
/// subject the question names for the answer: who may write a key and get it directly has the
/// broker publish what he likes wherever he likes, also where a permission says that he may not.
/// The leader's own answer is a document of the broker's, which nothing takes for its own.
fn bucket_named(bucket: &str, replicas: usize) -> Config {
    Config {
        name: stream_of(bucket),
        subjects: vec![format!("$KV.{bucket}.>")],
        max_messages_per_subject: 1,
        discard: DiscardPolicy::New,
        num_replicas: replicas,
        allow_rollup: true,
        deny_delete: true,
        allow_direct: false,
        ..Config::default()
    }
}

//! Partitioned consumer groups for NATS JetStream: work that must stay in order per key, in
//! parallel, with fail-over.
//!
//! A *group* splits a stream into partitions by a hash of the key. Each *member* owns some
//! partitions and has a consumer of its own; any number of *instances* may run as one member, of
//! which the broker pins one at a time and keeps the others as hot standbys. Groups, streams and
//! consumers are those of the Go library `pcgroups`, so members of both can share a group.
//!
//! | | [`StaticGroup`] | [`ElasticGroup`] |
//! |---|---|---|
//! | stream | its subjects begin with the partition already | any |
//! | membership | fixed when the group is created | added, dropped and mapped at any time |
//! | consumers | durable, on the stream itself | on a work-queue stream that copies from it |
//!
//! # What holds, and what cannot
//!
//! While an instance can renew its pin, no other handles a message of its partitions, messages of
//! one partition run one at a time in stream order, and none is lost. When it cannot (the
//! connection, the broker or the process is gone), its handlers are cancelled and its buffer is
//! dropped before the pin lapses. The next holder starts nothing until everything that the first
//! left unacknowledged is in its hands, so order holds across the change.
//!
//! A frozen process, or blocking work that ignores [`Message::cancellation`], may overlap with its
//! successor: no client can prevent that. [`Message::fencing_token`] grows along each key; a store
//! that refuses smaller tokens is safe even then. With Go instances of the *same member*, only
//! `max_ack_pending` 1 keeps order.
//!
//! # Example
//!
//! ```
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let broker = natsway_testkit::TestBroker::builder().jetstream().start().await;
//! # let client = broker.connect().await;
//! # let subjects = vec!["orders.>".to_owned()];
//! # let name = "ORDERS".into();
//! # let config =
//! #     async_nats::jetstream::stream::Config { name, subjects, ..Default::default() };
//! # async_nats::jetstream::new(client.clone()).create_stream(config).await?;
//! use natsway_partitioned_consumer::{ElasticConfig, ElasticGroup, Message};
//!
//! async fn bill(message: Message) -> Result<(), std::io::Error> {
//!     println!("{} {:?}", message.subject(), message.payload());
//!     Ok(()) // acknowledged; an error would have it delivered again
//! }
//!
//! let jetstream = async_nats::jetstream::new(client); // a client of `async_nats::connect`
//! let group = ElasticGroup::new(jetstream, "ORDERS", "billing")?;
//! group.create(&ElasticConfig::new(12).filter("orders.*.>", [1])).await?;
//! group.add_members(["m1"]).await?;
//! let member = group.consume("m1").max_ack_pending(500).concurrency(8).handle(bill).await?;
//! // … until it is time to go:
//! member.stopped().await?;
//! # Ok(())
//! # }
//! ```

mod api;
mod error;
#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod member;
mod operate;
mod order;

pub use error::{Error, ErrorKind};
pub use group::{
    DeadLetter, ElasticConfig, ElasticGroup, Generation, Group, GroupKind, GroupName,
    GroupSettings, MAX_PARTITIONS, MemberMapping, Membership, PartitioningFilter, SourceLoss,
    StaticConfig, StaticGroup, check_member, filters_overlap, owners, partition_of_key,
    partitions_of, sticky_mappings, subject_matches, transforms,
};
pub use member::{
    Consume, End, HandlerOutcome, MemberEvent, MemberHandle, MemberState, Message, Messages,
    OrderBy,
};
pub use operate::{
    Finding, GroupReport, MemberReport, MemberReset, PartitionReport, Repartitioned, ResetReport,
    ResetTo,
};
pub use order::PinLoss;

/// The examples of the README are tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

//! Real brokers, real processes and a breakable network for tests.
//!
//! A test starts what it needs and drops it: [`TestBroker`] and [`Cluster`] are real `nats-server`
//! processes with ports and a store of their own, [`Process`] is one of this workspace's binaries
//! ([`workspace_binary`] builds it), and [`TcpLink`] is the network between two of them, as long,
//! narrow and breakable as a test wants it. Everything dies with the value that holds it, and with
//! the test's process, however that ends. Waiting is done by [`eventually`], never by sleeping for
//! luck.
//!
//! Setting up panics with a sentence when it cannot be done: a test has nothing better to do with
//! such an error.
//!
//! ```
//! # use futures_util::StreamExt;
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let broker = natsway_testkit::TestBroker::start().await;
//! let client = broker.connect().await;
//! let mut greetings = client.subscribe("greet").await?;
//! client.publish("greet", "hello".into()).await?;
//! assert_eq!(greetings.next().await.expect("the subscription is open").payload, "hello");
//! # Ok(()) }
//! ```

mod binaries;
mod broker;
mod cluster;
mod eventually;
mod group;
mod guard;
pub mod http2;
mod link;
mod ports;
mod process;
mod tools;

pub use binaries::{repository_root, workspace_binary, workspace_example};
pub use broker::{BrokerBuilder, TestBroker};
pub use cluster::Cluster;
pub use eventually::{Probe, eventually};
pub use link::{LinkShape, TcpLink};
pub use nix::sys::signal::Signal;
pub use ports::free_port;
pub use process::{Process, ProcessBuilder, ProcessMemory};
pub use tools::{h2spec, nats_cli, nats_server};

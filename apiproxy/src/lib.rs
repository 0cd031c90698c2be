//! The gateway: HTTP in, NATS request/reply out.
//!
//! A request's way through the modules: [`listener`] accepts and hands the socket to a shard;
//! [`connection`] speaks HTTP; [`proxy`] has the head inspected ([`inspect`], [`target`],
//! [`client_address`]) and reads the body; `call` is the request as the dispatcher sends it,
//! [`headers`] says what crosses; `answer` makes of its end what the client gets, or a [`problem`].
//! Where no worker is asked, `durable` has a stream store it.
//!
//! [`shard`] holds what one thread has for itself ([`memory`] bounds what it holds),
//! `shard_threads` starts them all. [`stall`] ends connections whose clients take too little,
//! [`linger`] those of clients that still send. [`gateway`] starts and stops everything
//! ([`descriptors`] says how many clients fit), `control_plane` does what is no request:
//! [`tombstone`] stands in for workers that left, [`rollout`] drives changes of version, [`admin`]
//! answers probes.
//!
//! `client_address`, `grpc`, `headers`, `inspect` and `target` are pure. The routes have a crate of
//! their own, [`natsway_routes`], and so has the sending of a request, its waiting and its retries:
//! [`natsway_caller`].

pub mod admin;
mod answer;
mod arguments;
pub mod body;
mod call;
pub mod cli;
pub mod client_address;
pub mod connection;
mod control_plane;
pub mod descriptors;
pub mod drain;
mod durable;
pub mod fields;
pub mod fleet_metrics;
pub mod gateway;
pub mod grpc;
pub mod headers;
pub mod inspect;
pub mod linger;
pub mod listener;
pub mod memory;
pub mod metrics;
mod open_requests;
mod posted;
pub mod problem;
pub mod proxy;
pub mod results;
pub mod rollout;
pub mod route_file;
pub mod session;
pub mod settings;
pub mod shard;
pub mod shard_handle;
mod shard_threads;
pub mod stall;
pub mod start_error;
mod status;
pub mod stream;
pub mod target;
pub mod tombstone;
pub mod trace;
mod tunnel_listener;

//! The gateway: HTTP in, NATS request/reply out.
//!
//! A request's way through the modules: [`listener`] accepts and hands the socket to a core; [`connection`] speaks
//! HTTP; [`proxy`] carries the request ([`inspect`] and the route table decide, [`headers`] says what crosses, [`problem`]
//! what went wrong; [`target`] reads what it is for, [`client_address`] who sent it). [`core`] holds what one thread has for itself ([`memory`] bounds what it holds), [`stall`] ends
//! connections whose clients take too little, [`linger`] those of clients that still send, [`gateway`] starts and
//! stops them all ([`descriptors`] says how many clients fit). [`tombstone`] stands in for workers that left.
//!
//! `client_address`, `headers`, `inspect` and `target` are pure. The routes have a crate of their own, [`natsway_routes`], and so has the sending of a
//! request, its waiting and its retries, [`natsway_caller`].

pub mod admin;
pub mod body;
pub mod cli;
pub mod client_address;
pub mod config;
pub mod connection;
pub mod core;
pub mod descriptors;
pub mod gateway;
pub mod headers;
pub mod identity;
pub mod inspect;
pub mod linger;
pub mod listener;
pub mod memory;
pub mod metrics;
pub mod problem;
pub mod proxy;
pub mod rollout;
pub mod settings;
pub mod stall;
pub mod target;
pub mod told;
pub mod tombstone;
pub mod trace;

//! The gateway: HTTP in, NATS request/reply out.
//!
//! A request's way through the modules: [`listener`] accepts and hands the socket to a core; [`connection`] speaks
//! HTTP; [`proxy`] carries the request ([`inspect`] and the route table decide, [`headers`] says what crosses, [`problem`]
//! what went wrong). [`core`] holds what one thread has for itself ([`held`] bounds its memory), [`stall`] ends
//! connections whose clients take nothing, [`gateway`] starts and
//! stops them all ([`descriptors`] says how many clients fit). [`tombstone`] stands in for workers that left.
//!
//! `headers` and `inspect` are pure. The routes have a crate of their own, [`natsway_routes`], and so has the sending of a
//! request, its waiting and its retries, [`natsway_caller`].

pub mod admin;
pub mod body;
pub mod cli;
pub mod config;
pub mod connection;
pub mod core;
pub mod descriptors;
pub mod gateway;
pub mod headers;
pub mod held;
pub mod identity;
pub mod inspect;
pub mod listener;
pub mod metrics;
pub mod problem;
pub mod proxy;
pub mod rollout;
pub mod settings;
pub mod stall;
pub mod told;
pub mod tombstone;
pub mod trace;

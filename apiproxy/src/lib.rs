//! The gateway: HTTP in, NATS request/reply out.
//!
//! A request's way through the modules: [`listener`] accepts and hands the socket to a core; [`connection`] speaks
//! HTTP; [`proxy`] carries the request ([`inspect`] and the route table decide, [`headers`] and [`encode`] write, [`link`]
//! publishes and waits in [`slots`], [`retry`] decides again, [`problem`] says what went wrong). [`core`] holds what
//! one thread has for itself ([`held`] bounds its memory), [`gateway`] starts and stops them all ([`descriptors`] says
//! how many clients fit). [`tombstone`] stands in for workers that left.
//!
//! `retry`, `slots`, `headers` and `inspect` are pure: time and randomness are arguments. The routes have a crate of their
//! own, [`natsway_routes`].

pub mod admin;
pub mod body;
pub mod cli;
pub mod config;
pub mod connection;
pub mod core;
pub mod descriptors;
pub mod encode;
pub mod gateway;
pub mod headers;
pub mod held;
pub mod identity;
pub mod inspect;
pub mod link;
pub mod listener;
pub mod metrics;
pub mod problem;
pub mod proxy;
pub mod retry;
pub mod settings;
pub mod slots;
pub mod tombstone;

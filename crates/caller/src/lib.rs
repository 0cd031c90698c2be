//! The sending side: how a request reaches a worker and comes back, for the gateway and for
//! services that call others.
//!
//! [`dispatch`] is the one place that walks the whole way; a gateway and a client differ in what
//! they say of a request ([`outbound::Outbound`]) and in how they tell its end. Its parts in the
//! order of a request: [`route_view`] has the routes that a thread goes by; [`codec_pools`] keeps
//! connections to backends of another make apart from the others, [`pool`] keeps connections up;
//! [`encode`] writes a request once and stamps it anew for each attempt; [`connection`] publishes
//! it and waits in [`pending`]; what does not fit in a message goes on by a [`stream`] on one of
//! the [`tunnels`], and whole requests go by the [`unary`] ones where there are some; [`attempt`]
//! says how that ended, and [`retry`] whether there is another attempt. What no worker is asked
//! for, and a stream stores, goes by [`publish`]. [`duplicates`] notices
//! requests that were answered twice, [`counter`] has what is counted, [`identity`] says who the
//! sender is.
//!
//! All of it is for one thread: there is no lock on the way, and no counter has a second writer.
//! [`pending`] and [`retry`] are pure: time and randomness are arguments.

pub mod attempt;
pub mod codec_pools;
pub mod connection;
pub mod counter;
pub mod dispatch;
pub mod duplicates;
pub mod encode;
pub mod identity;
pub mod outbound;
pub mod pending;
pub mod pool;
pub mod publish;
pub mod retry;
pub mod route_view;
pub mod stream;
#[cfg(feature = "trace")]
pub mod trace;
pub mod tunnels;
pub mod unary;

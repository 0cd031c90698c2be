//! The sending side: how a request reaches a worker and comes back, for the gateway and for services that call others.
//!
//! [`link`] publishes on one broker connection and waits in [`slots`]; [`links`] keeps such connections up, [`lanes`]
//! those to backends of another make apart from the others; [`encode`] writes a request once and stamps it anew for each
//! try; [`retry`] decides whether there is another one; [`seconds`]
//! notices requests that were answered twice. All of it is for one thread: there is no lock on the way, and no
//! counter has a second writer. [`slots`] and [`retry`] are pure: time and randomness are arguments.

pub mod counter;
pub mod encode;
pub mod lanes;
pub mod link;
pub mod links;
pub mod retry;
pub mod seconds;
pub mod slots;
#[cfg(feature = "trace")]
pub mod trace;

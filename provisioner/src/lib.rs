//! Starts and stops instances as the traffic asks for, and kills no work in hand.
//!
//! # Map
//!
//! The core is pure; time is an argument everywhere:
//!
//! - [`sample`]: what a signal says of a target at one moment, or why it says nothing.
//! - [`window`]: the last polls, what may be believed of them, and the rates between them.
//! - [`service_rate`]: how much one instance can do, learned.
//! - [`startup`]: how long one takes to start, learned.
//! - [`policy`]: how many instances there should be, one small type for each way to say so.
//! - [`scale`]: what stands between that and the number that is set.
//! - [`controller`]: all of it together: a poll in, a [`decision`] with its reasons out.
//! - [`roll_call`]: which instances answer; who does not counts no more, and is stopped first.
//! - [`renewal`]: instances of a former command or environment are replaced, one at a time.
//! - [`restarts`]: what is started and ends at once is started ever more rarely.
//! - [`simulate`]: the core and its rivals on seeded traffic, by a virtual clock; [`replay`]: on
//!   recorded polls.
//!
//! Around it is what does I/O and decides nothing: [`signal`]s poll, [`backend`]s start and stop, a
//! [`target`] is one of each and a controller. [`run`] keeps the targets of a [`config`] while it
//! holds the [lease](natsway_stores::lease), and reports it all as [`events`]; [`reload`] follows
//! the file, [`graph`] draws.

pub mod backend;
#[cfg(feature = "cli")]
pub mod cli;
pub mod config;
pub mod controller;
pub mod decision;
pub mod events;
pub mod graph;
pub mod instance;
pub mod policy;
pub mod reload;
pub mod renewal;
pub mod replay;
pub mod restarts;
pub mod roll_call;
pub mod run;
pub mod sample;
pub mod scale;
pub mod service_rate;
pub mod signal;
pub mod simulate;
pub mod startup;
pub mod target;
pub mod window;

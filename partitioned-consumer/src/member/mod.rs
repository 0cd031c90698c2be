//! One instance of a member at work.
//!
//! A change of the membership goes through these files from the top to the bottom:
//!
//! | file | what it does |
//! |---|---|
//! | `builder`, `config`, `start` | what a member is told, checked and started with |
//! | `watch` | follows the group's entry and settings |
//! | `assignment` | what a new entry means for this member: its filter subjects |
//! | `engine` | the driver: feeds the two pure machines and does what they say |
//! | `lifecycle` | pure: when the consumer is made, joined, drained, deleted and left |
//! | `plan`, `consumer_lock` | the consumer that is made, one instance at a time |
//! | [`crate::order`] | pure: which message may start |
//! | `received`, `work`, `message`, `handler`, `messages` | the way of a message to its handler and back |
//! | `event`, `handle` | what whoever started the member sees of it |

mod assignment;
mod builder;
mod config;
mod consumer_lock;
mod engine;
mod event;
mod handle;
mod handler;
mod lifecycle;
mod message;
mod messages;
mod panics;
mod plan;
pub(crate) mod received;
mod start;
mod watch;
mod work;

pub use builder::Consume;
pub use config::OrderBy;
pub use event::{MemberEvent, MemberState};
pub use handle::MemberHandle;
pub use handler::HandlerOutcome;
pub use lifecycle::End;
pub use message::Message;
pub use messages::Messages;

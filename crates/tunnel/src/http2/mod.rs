//! HTTP/2 on a tunnel, with its roles reversed: the gateway is the client, the worker the server.

mod gateway;
mod settings;
mod worker;

pub use gateway::{OpenError, StreamPermit, StreamSender, Streams, connect};
pub use settings::Settings;
pub use worker::serve;

//! What a client's connection, or its stream of HTTP/2, becomes once it was told so.

use std::rc::Rc;

use tokio::io::{AsyncRead, AsyncWrite};

use super::splice::{SpliceEnd, Spliced, splice};
use crate::headers::Caller;
use crate::memory::Account;
use crate::session::Session;
use crate::shard::Shard;

/// What it becomes.
#[derive(Debug)]
pub enum Becomes {
    /// A connection to a worker.
    Spliced(Box<Spliced>),
    /// A WebSocket that ends here.
    Session(Box<Session>),
}

/// What it has from the connection that it was.
pub struct Home {
    /// The thread that serves it.
    pub shard: Rc<Shard>,
    /// Who is at the other end.
    pub caller: Rc<Caller>,
    /// What is held for it.
    pub account: Rc<Account>,
    /// Whether it is the whole connection, and not one stream of it.
    pub is_connection: bool,
}

impl Becomes {
    /// Serves it to its end; `first` is what was read of it before.
    pub async fn run<C>(self, client: C, first: &[u8], home: Home) -> SpliceEnd
    where
        C: AsyncRead + AsyncWrite + Unpin,
    {
        match self {
            Self::Spliced(spliced) => splice(client, first, *spliced).await,
            Self::Session(session) => Box::pin(session.run(client, first, home)).await,
        }
    }
}

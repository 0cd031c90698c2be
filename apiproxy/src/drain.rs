//! How the parts of a gateway are told that it leaves.

use tokio_util::sync::CancellationToken;

/// The two steps in which connections are asked to end.
#[derive(Clone, Debug, Default)]
pub struct DrainStages {
    /// Answer what comes, and ask the client to go elsewhere: `Connection: close`, GOAWAY.
    pub draining: CancellationToken,
    /// End as soon as nothing is in hand.
    pub closing: CancellationToken,
}

impl DrainStages {
    /// The same two steps with state of their own, so that shards do not share it.
    pub fn child(&self) -> Self {
        Self { draining: self.draining.child_token(), closing: self.closing.child_token() }
    }
}

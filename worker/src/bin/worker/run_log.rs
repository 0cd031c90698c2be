//! A file with the nonce of every request that ran, for proofs that each ran exactly once.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::map_request_with_state;
use tracing::error;

/// An open run log. Several processes may append to one file.
#[derive(Clone)]
pub(crate) struct RunLog(Arc<File>);

impl RunLog {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().create(true).append(true).open(path)?;
        Ok(Self(Arc::new(file)))
    }

    /// `service`, with every request noted before it runs.
    pub(crate) fn around(self, service: Router) -> Router {
        service.layer(map_request_with_state(self, note))
    }
}

async fn note(State(RunLog(file)): State<RunLog>, request: Request) -> Request {
    if let Some(nonce) = request.headers().get("x-nonce") {
        // One write in append mode, so that lines of several processes do not mix.
        let line = [nonce.as_bytes(), b"\n"].concat();
        if let Err(error) = (&*file).write_all(&line) {
            error!(%error, "run log not written");
        }
    }
    request
}

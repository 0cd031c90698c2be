//! A request that becomes another protocol, say a WebSocket: a connection of its own, and bytes
//! that go both ways.

use http::{Request, Response};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tracing::debug;

/// Bytes read in one go, each way.
const PIECE_BYTES: usize = 16 * 1024;

/// The connection of a request that a client wants to become another protocol.
pub(super) fn take_upgrade<B>(request: &mut Request<B>) -> Option<OnUpgrade> {
    request.extensions_mut().remove::<OnUpgrade>()
}

/// Passes bytes both ways, once both ends are there, until both have ended. An end that breaks ends
/// the other.
pub(super) fn splice<B>(client: OnUpgrade, mut response: Response<B>) -> Response<B> {
    let app = hyper::upgrade::on(&mut response);
    tokio::spawn(async move {
        let (client, app) = match tokio::try_join!(client, app) {
            Ok(ends) => ends,
            Err(error) => return debug!(%error, "not upgraded"),
        };
        let (mut client, mut app) = (TokioIo::new(client), TokioIo::new(app));
        let passed = tokio::io::copy_bidirectional_with_sizes(
            &mut client,
            &mut app,
            PIECE_BYTES,
            PIECE_BYTES,
        );
        if let Err(error) = passed.await {
            debug!(%error, "upgraded connection broke off");
        }
    });
    response
}

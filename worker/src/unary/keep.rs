//! Dials the tunnels that were joined, and serves each to its end.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use natsway_tunnel::dial::{Dialled, dial};
use natsway_tunnel::preface::{Kind, Welcome, welcomed};
use natsway_tunnel::unary::{UNSENT_BYTES, pump};
use natsway_wire::frame::Hello;
use tracing::{debug, info, warn};

use super::outlet::Outlet;
use super::served::Served;
use super::{Dial, lock};
use crate::admission::{Admission, Start};

/// How long a gateway may take to welcome: until it has heard the answer that names the secret.
const WELCOME_TIMEOUT: Duration = Duration::from_secs(5);

/// Attempts to be welcomed: a gateway under attack may close a connection whose secret it has not
/// heard yet.
const WELCOMES: u32 = 3;

/// How long after the first attempt the next one comes; twice as long each time after that.
const WELCOME_PAUSE: Duration = Duration::from_millis(20);

/// The longest request: what a gateway sends in one message.
const PAYLOAD_BYTES: usize = UNSENT_BYTES + (1 << 16);

/// How often it is looked whether a tunnel is of use.
const IDLE_LOOK: Duration = Duration::from_secs(10);

/// Dials and serves the tunnels of a reader for ever, on its thread.
pub(crate) async fn keep<F: Start>(admission: Rc<Admission<F>>, requests: u32) {
    let Some(mut dialler) = lock(&admission.context.unary.dialler).take() else { return };
    while let Some(dial) = dialler.recv().await {
        let served = serve_until_cut(Rc::clone(&admission), dial, requests);
        drop(admission.context.unary.tasks.spawn_local(served));
    }
}

async fn serve_until_cut<F: Start>(admission: Rc<Admission<F>>, dial: Dial, requests: u32) {
    tokio::select! {
        () = dial_and_serve(&admission, &dial, requests) => {}
        () = dial.cut.cancelled() => {}
    }
    admission.context.unary.forget(&dial.offer, dial.secret);
}

async fn dial_and_serve<F: Start>(admission: &Rc<Admission<F>>, to: &Dial, requests: u32) {
    let unary = &admission.context.unary;
    let (gateway, shard) = (&to.offer.gateway, to.offer.shard);
    for attempt in 1..=WELCOMES {
        let dialled = tokio::select! {
            dialled = dial(Kind::Unary, &to.offer, to.secret, &unary.reach) => dialled,
            () = to.retire.cancelled() => return,
        };
        let mut connection = match dialled {
            Ok(connection) => connection,
            Err(error) => {
                let reason = std::error::Error::source(&error).map(ToString::to_string);
                warn!(gateway, shard, %error, reason, "no unary tunnel to this gateway");
                return unary.is_unreachable(&to.offer, to.secret);
            }
        };
        let welcomed = tokio::select! {
            heard = tokio::time::timeout(WELCOME_TIMEOUT, welcomed(&mut connection)) => heard,
            () = to.retire.cancelled() => return,
        };
        match welcomed {
            Ok(Ok(Welcome::Accepted)) => {
                info!(gateway, shard, "unary tunnel opened");
                serve(admission, to, connection, requests).await;
                return debug!(gateway, shard, "unary tunnel ended");
            }
            // Another one would find no place either.
            Ok(Ok(Welcome::Full)) => {
                warn!(gateway, shard, "the gateway has as many unary tunnels as it may");
                return unary.is_unreachable(&to.offer, to.secret);
            }
            refused => debug!(gateway, shard, attempt, ?refused, "unary tunnel not accepted"),
        }
        tokio::time::sleep(WELCOME_PAUSE * (1 << (attempt - 1))).await;
    }
}

async fn serve<F: Start>(
    admission: &Rc<Admission<F>>,
    to: &Dial,
    connection: Dialled,
    requests: u32,
) {
    let hello = Hello {
        name: admission.context.instance.clone(),
        requests,
        payload_bytes: PAYLOAD_BYTES as u32,
        heard_ms: 0,
    };
    let outlet = Outlet::new(&hello, Arc::clone(&admission.load));
    let served = Served { outlet: Arc::clone(&outlet), admission: Rc::clone(admission) };
    let _gone = Gone(&outlet);
    let retired = async {
        loop {
            tokio::select! {
                () = to.retire.cancelled() => return,
                () = tokio::time::sleep_until(to.until.into()) => return,
                () = tokio::time::sleep(IDLE_LOOK) => {}
            }
            if outlet.is_idle() {
                return;
            }
        }
    };
    let mut pumping = std::pin::pin!(pump(connection, &served, PAYLOAD_BYTES));
    let ended = tokio::select! {
        ended = &mut pumping => ended,
        () = retired => {
            // Whoever comes next dials another.
            admission.context.unary.forget(&to.offer, to.secret);
            outlet.drain();
            pumping.await
        }
    };
    if let Err(error) = ended {
        let reason = std::error::Error::source(&error).map(ToString::to_string);
        debug!(%error, reason, "unary tunnel broke");
    }
}

/// Says that a connection is gone, however its task ends.
struct Gone<'o>(&'o Outlet);

impl Drop for Gone<'_> {
    fn drop(&mut self) {
        self.0.gone();
    }
}

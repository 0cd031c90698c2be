//! Apps behind the sidecar: replaced, killed and frozen under load; and real ones of other
//! languages, asked directly and through us.

mod browser;
mod real;
mod struck;

use self::browser::jupyterlab_in_a_browser;
pub use self::real::install_fastapi;
use self::real::{
    express, fastapi, flask, go, gradio, grpc, grpcurl_and_ghz, httpbin, jupyterlab, node_red,
    pocketbase,
};
use self::struck::{app_frozen, app_killed, restarted_in_turn, sidecar_frozen, sidecar_killed};
use super::scenario::{Scenario, run, scenario};
use super::{Report, Size};

/// What is done, and what has to hold then.
pub const SCENARIOS: [Scenario<Size>; 17] = [
    scenario!(
        restarted_in_turn,
        "three apps are replaced under load and streams: no request fails, streams end as documented"
    ),
    scenario!(
        app_killed,
        "one of three apps is killed under load: no GET fails, and it comes back"
    ),
    scenario!(
        app_frozen,
        "one of three apps is frozen under load: no GET fails, and it serves again when thawed"
    ),
    scenario!(
        sidecar_killed,
        "one of three sidecars is killed under load: no GET fails, and its app goes with it"
    ),
    scenario!(
        sidecar_frozen,
        "one of three sidecars is frozen under load: no GET fails, and it serves again when thawed"
    ),
    scenario!(fastapi, "FastAPI under uvicorn: JSON, an upload, events, a WebSocket"),
    scenario!(flask, "Flask under gunicorn: JSON, a form with a file, links"),
    scenario!(express, "Express on Node: JSON and links"),
    scenario!(go, "a service by Go's standard library: JSON and events"),
    scenario!(httpbin, "httpbin: each endpoint answers as it does directly"),
    scenario!(jupyterlab, "JupyterLab: its page, and code that runs in a kernel by a WebSocket"),
    scenario!(
        jupyterlab_in_a_browser,
        "JupyterLab in a browser: cells run; sidecars are switched under it, and its kernel lives"
    ),
    scenario!(gradio, "Gradio: an upload, and an event stream of steps"),
    scenario!(node_red, "Node-RED: the editor's files, its API, and /comms"),
    scenario!(
        pocketbase,
        "PocketBase, an app in Go: its pages, accounts, records, files, and events of changes"
    ),
    scenario!(grpc, "Go's gRPC interop client and server: every form, time-outs, cancellation"),
    scenario!(
        grpcurl_and_ghz,
        "grpcurl lists services and calls them by reflection, and no call of ghz fails"
    ),
];

/// Runs every scenario, or those that were asked for.
///
/// # Errors
/// Something that is not under proof did not work: a program cannot be installed, say.
pub async fn prove(size: &Size) -> anyhow::Result<Report> {
    run("apps", (size.seed, &size.only), size, &SCENARIOS).await
}

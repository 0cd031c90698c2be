//! What becomes of programs whose permissions are taken away while they run, and given back.

use std::rc::Rc;
use std::time::Duration;

use super::page::get;
use super::permissions::{Direction, read, usual, without};
use super::played::{PlayError, Played};
use super::plays::{expect_status, start_gateway, start_worker, write_routes};
use super::running::Running;
use super::stage::Stage;

/// A worker ends when it may not serve for half a minute.
const ENDS: Duration = Duration::from_secs(120);

/// A play without a stage of somebody else's.
type Play = fn() -> Played<()>;

/// What is taken from whom.
pub(super) const PLAYS: [(&str, Play); 4] = [
    ("a worker that may not hear requests", a_worker_ends),
    ("a worker that may hear them again", a_worker_serves_again),
    ("a gateway that may not hear replies", a_gateway_is_not_ready),
    ("a gateway that may not send requests", a_gateway_says_so),
];

/// A gateway and a worker that serve.
fn served() -> Played<(Stage, Rc<Running>, Rc<Running>)> {
    let stage = Stage::new(&usual())?;
    stage.set_up(&[])?;
    write_routes(&stage)?;
    let gateway = start_gateway(&stage, stage.listen, stage.admin, &[]);
    let worker = start_worker(&stage, "blue", &[]);
    expect_status(&stage, 200)?;
    Ok((stage, gateway, worker))
}

/// All permissions but this one.
fn lacking(role: &str, direction: Direction, subject: &str) -> String {
    let all = read(&usual());
    let mut these = all.iter().filter(|permission| {
        permission.role == role
            && permission.direction == direction
            && permission.subject == subject
    });
    without(these.next().expect("the role has the permission"))
}

fn take_requests(stage: &Stage, worker: &Running) -> Played<()> {
    stage.permit(&lacking("worker", Direction::Subscribe, "svc.> q"))?;
    stage.until("the worker says that it does not serve", || Ok(worker.says("not serving")))
}

/// It says so, and ends when that stays.
fn a_worker_ends() -> Played<()> {
    let (stage, _gateway, worker) = served()?;
    take_requests(&stage, &worker)?;
    if worker.has_ended() {
        let why = "it ended at once, and a mistake may be mended within half a minute";
        return Err(PlayError::Failed(why.into()));
    }
    expect_status(&stage, 503)?;
    let ends = stage.wait(ENDS, || Ok(worker.has_ended()))?;
    let text = worker.text();
    let last = text.lines().last().unwrap_or_default();
    match (ends, worker.exit_code()) {
        (true, Some(1)) if last.contains("svc.demo.blue") => Ok(()),
        (_, code) => Err(PlayError::Failed(format!("exit code {code:?}, and it says {last:?}"))),
    }
}

fn a_worker_serves_again() -> Played<()> {
    let (stage, _gateway, worker) = served()?;
    take_requests(&stage, &worker)?;
    stage.permit(&usual())?;
    expect_status(&stage, 200)?;
    stage.stop(&worker)
}

/// It names what it lacks, and is ready again when it has it.
fn a_gateway_is_not_ready() -> Played<()> {
    let (stage, _gateway, _worker) = served()?;
    let ready = || get(stage.admin, "/readyz", Duration::from_secs(10));
    stage.permit(&lacking("gateway", Direction::Subscribe, "_INBOX_apiproxy.>"))?;
    stage.until("it is not ready", || Ok(ready().0 == 503))?;
    let names = || Ok(ready().1.contains("_INBOX_apiproxy"));
    stage.until("it names what it may not hear", names)?;
    expect_status(&stage, 503)?;
    stage.permit(&usual())?;
    stage.until("it is ready again", || Ok(ready().0 == 200))?;
    expect_status(&stage, 200)
}

/// It says so, and sends when it may.
fn a_gateway_says_so() -> Played<()> {
    let (stage, gateway, _worker) = served()?;
    stage.permit(&lacking("gateway", Direction::Publish, "svc.>"))?;
    if get(stage.listen, "/version", Duration::from_secs(3)).0 == 200 {
        return Err(PlayError::Failed("the request was sent".into()));
    }
    let objection = r#"operation="publish" subject="svc.demo.blue""#;
    stage.until("it says why", || Ok(gateway.says(objection)))?;
    stage.permit(&usual())?;
    expect_status(&stage, 200)
}

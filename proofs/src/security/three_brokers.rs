//! Three brokers die in turn under load, and strangers knock at them.

use std::collections::BTreeSet;
use std::fs;
use std::rc::Rc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use natsway_testkit::{Process, nats_server};

use super::page::get;
use super::played::Played;
use super::plays::{
    expect_status, groups, serve, shipping, start_gateway, start_worker, write_routes,
};
use super::running::{BROKER, Running};
use super::stage::{Brokers, Stage, directory};
use super::trio::{NAMES, Trio};

/// Streams of which each broker has a copy.
const COPIED: [&str; 5] =
    ["KV_natsway-routes", "KV_natsway-lease", "KV_natsway-leases", "LOGS", "KV_natsway-shipper"];

/// Threads that ask at once, and how many answers are awaited before a broker is killed and after.
const CLIENTS: usize = 4;
const ANSWERS: usize = 200;

/// Has every program do its job, kills each broker under load and has strangers knock; gives what
/// did not hold, and how many requests were answered while brokers died.
pub(super) fn play() -> Played<(Vec<String>, usize)> {
    let directory = directory()?;
    let trio = Trio::prepare(directory.path())?;
    let stage = Stage::empty(Brokers::Three(trio), directory);
    let Brokers::Three(trio) = &stage.brokers else { unreachable!("it was made of three") };
    let members: Vec<_> =
        trio.members.iter().map(|member| stage.add(BROKER, trio.start(member))).collect();
    stage.until("the brokers have found each other", || Ok(trio.is_whole()))?;
    stage.set_up(&[])?;
    write_routes(&stage)?;
    let gateway = start_ready_gateway(&stage)?;
    serve(&stage, &gateway)?;
    shipping(&stage)?;
    groups(&stage)?;
    for stream in COPIED {
        stage.until(&format!("{stream} has a copy at each"), || {
            Ok(trio.copies(stream) == NAMES.len() as u64)
        })?;
    }
    strangers(&stage, trio)?;
    let (mut faults, answered) = killed_in_turn(&stage, trio, members)?;
    let not_permitted = stage.violations();
    faults.extend(not_permitted.iter().map(|one| format!("the brokers object: {one:?}")));
    faults.extend(stage.told_secrets());
    Ok((faults, answered))
}

fn start_ready_gateway(stage: &Stage) -> Played<Rc<Running>> {
    let gateway = start_gateway(stage, stage.listen, stage.admin, &[]);
    stage.until("the routes are in force", || Ok(gateway.says("routes in force")))?;
    Ok(gateway)
}

/// Kills each broker while requests are made; gives those that failed, and how many were answered.
fn killed_in_turn(
    stage: &Stage,
    trio: &Trio,
    members: Vec<Rc<Running>>,
) -> Played<(Vec<String>, usize)> {
    // The route leads to green since the rollout.
    let gateway = start_ready_gateway(stage)?;
    let workers: Vec<_> = (0..3).map(|_| start_worker(stage, "green", &[])).collect();
    expect_status(stage, 200)?;
    let (answers, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let (ends, listen) = (AtomicBool::new(false), stage.listen);
    let failed = || failures.lock().unwrap_or_else(PoisonError::into_inner);
    let load = || {
        while !ends.load(Ordering::Relaxed) {
            match get(listen, "/version", Duration::from_secs(60)) {
                (200, _) => drop(answers.fetch_add(1, Ordering::Relaxed)),
                (status, text) => failed().push(format!("a request failed: {status} {text}")),
            }
        }
    };
    let more = || {
        let wanted = answers.load(Ordering::Relaxed) + ANSWERS;
        stage.until(&format!("{ANSWERS} more requests are answered"), || {
            Ok(answers.load(Ordering::Relaxed) >= wanted || !failed().is_empty())
        })
    };
    let played = thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(load);
        }
        let played = trio.members.iter().zip(members).try_for_each(|(member, running)| {
            more()?;
            running.kill();
            more()?;
            stage.add(BROKER, trio.start(member));
            stage.until("the broker is back", || Ok(trio.is_whole()))
        });
        ends.store(true, Ordering::Relaxed);
        played
    });
    played?;
    for running in workers.iter().chain([&gateway]) {
        stage.stop(running)?;
    }
    let faults = std::mem::take(&mut *failed());
    Ok((faults, answers.into_inner()))
}

/// Has brokers knock that have not the certificate of the three: none at all, or one by the
/// authority of clients.
fn strangers(stage: &Stage, trio: &Trio) -> Played<()> {
    const REFUSED: &str = "TLS route handshake error";
    let (secrets, route) = (trio.secrets.display(), trio.members[0].route);
    let tls = format!(
        "tls {{ cert_file: \"{secrets}/broker.pem\", key_file: \"{secrets}/broker.key\", ca_file: \
         \"{secrets}/cluster.pem\" }}"
    );
    for (name, tls) in [("plain", ""), ("client", tls.as_str())] {
        let config = stage.file(&format!("stranger-{name}.conf"));
        let text = format!(
            "server_name: {name}\nhost: 127.0.0.1\nport: -1\ncluster {{ name: natsway, host: \
             127.0.0.1, port: -1, routes: [ nats://127.0.0.1:{route} ]\n{tls} }}\n"
        );
        fs::write(&config, text)?;
        let refused = || stage.server_log().matches(REFUSED).count();
        let before = refused();
        let stranger = Process::builder(nats_server()).name(name).arg("--config").arg(config);
        let stranger = stage.add(BROKER, stranger.start());
        stage.until(&format!("{name} is refused"), || Ok(refused() > before))?;
        stage.until("only the others are there", || {
            let page = trio.members[0].look("/routez");
            let routes = page["routes"].as_array().cloned().unwrap_or_default();
            let names: BTreeSet<&str> =
                routes.iter().filter_map(|route| route["remote_name"].as_str()).collect();
            Ok(names == NAMES[1..].iter().copied().collect())
        })?;
        stranger.kill();
    }
    Ok(())
}

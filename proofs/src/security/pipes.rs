//! Pipes on the broker need no permission beyond those for requests: streams go by them with the
//! shipped files, in one account and between two. Nobody of another role hears them, or writes to
//! them without breaking them.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use super::accounts;
use super::attacks::{ALMIGHTY, Tried};
use super::intruder::{Intruder, Verb};
use super::page::get;
use super::permissions::{replaced, roles, text_for};
use super::played::{PlayError, Played};
use super::plays::{start_gateway, start_worker, write_routes};
use super::running::Running;
use super::stage::Stage;

/// A body that is no message, of one letter.
const BYTES: usize = 300_000;

/// So that its streams go by pipes and nothing else.
const GATEWAY: [(&str, &str); 3] = [
    ("NATSWAY_SHARDS", "1"),
    ("NATSWAY_STATIC_ROUTES", "true"),
    ("NATSWAY_TUNNEL_LISTEN", "broker"),
];

/// Data of a pipe begins so (`docs/wire.md`).
const DATA: u8 = 1;

/// Who hears where a worker hears, and where a gateway does: the roles that have these inboxes.
const HEARS: [(&str, &[&str]); 2] =
    [("_INBOX_worker", &["caller", "worker"]), ("_INBOX_apiproxy", &["gateway"])];

/// Who may publish there: those that answer or ask them.
const WRITES: [(&str, &[&str]); 2] = [
    ("_INBOX_worker", &["caller", "gateway", "worker"]),
    ("_INBOX_apiproxy", &["caller", "gateway", "provisioner", "worker"]),
];

/// Has streams go by pipes, and everybody try to take part in them.
pub(super) fn prove() -> Played<Tried> {
    let mut tried = within_an_account()?;
    tried.add(between_accounts()?);
    Ok(tried)
}

fn is_whole(stage: &Stage) -> bool {
    let (status, body) = stage.get(&format!("/download?bytes={BYTES}&chunked=true"));
    status == 200 && body.len() == BYTES
}

fn within_an_account() -> Played<Tried> {
    let stage = Stage::new(&text_for("gateway"))?;
    write_routes(&stage)?;
    start_gateway(&stage, stage.listen, stage.admin, &GATEWAY);
    start_worker(&stage, "blue", &[("NATSWAY_TUNNEL", "broker")]);
    let mut owner = stage.owner("worker")?;
    owner.listen("_INBOX_worker.>")?;
    owner.listen("_INBOX_apiproxy.>")?;
    stage.until("a body comes by a pipe", || Ok(is_whole(&stage)))?;
    owner.settle()?;
    let mut tried = Tried::default();
    if let Some(violation) = stage.violations().first() {
        tried.faults.push(format!("a pipe needs more than is permitted: {violation:?}"));
    }
    let letters = [b'x'; 64];
    let reads = |payload: &[u8]| payload.windows(letters.len()).any(|window| window == letters);
    if owner.heard.iter().any(|heard| is_data(&heard.payload) && reads(&heard.payload)) {
        tried.faults.push("what goes by a pipe can be read".to_owned());
    }
    let ends = [end(&owner, "_INBOX_worker")?, end(&owner, "_INBOX_apiproxy")?];
    let others = roles().into_iter().filter(|role| role != ALMIGHTY && replaced(role).is_none());
    for role in others {
        for (subject, (inboxes, expected)) in ends.iter().zip(HEARS) {
            let mut one = stage.intruder(&role)?;
            let hears = hears(&mut one, subject)?;
            tried.expect(&role, "hears", inboxes, hears, expected);
        }
        for (subject, (inboxes, expected)) in ends.iter().zip(WRITES) {
            let mut one = stage.intruder(&role)?;
            // Beside it: one that is taken is not to break it yet.
            let writes = one.may_publish(&format!("{subject}x"), b"forged", "")?;
            tried.expect(&role, "may write to", inboxes, writes, expected);
        }
    }
    forged(&stage, &ends[1], &mut tried)?;
    Ok(tried)
}

fn is_data(payload: &[u8]) -> bool {
    payload.len() > 9 && payload[0] == DATA
}

/// Where one end of the pipe hears.
fn end(owner: &Intruder, inboxes: &str) -> Played<String> {
    let heard: BTreeSet<_> = owner
        .heard
        .iter()
        .filter(|heard| heard.subject.starts_with(inboxes) && is_data(&heard.payload))
        .map(|heard| heard.subject.clone())
        .collect();
    match heard.len() {
        1 => Ok(heard.into_iter().next().expect("there is one")),
        _ => Err(PlayError::Failed(format!("ends of the pipe below {inboxes}: {heard:?}"))),
    }
}

fn hears(one: &mut Intruder, subject: &str) -> Played<bool> {
    let prefix = subject.split('.').next().unwrap_or_default();
    let all = format!("{prefix}.>");
    one.subscribe(subject, "")?;
    one.subscribe(&all, "")?;
    one.subscribe(">", "")?;
    one.settle()?;
    let is_denied = |subject| one.is_refused(Verb::Subscribe, subject);
    Ok(!is_denied(subject) || !is_denied(&all) || !is_denied(">"))
}

/// Who may write there, and knows where, can break a stream off, and not more.
fn forged(stage: &Stage, subject: &str, tried: &mut Tried) -> Played<()> {
    let listen = stage.listen;
    let reading =
        thread::spawn(move || get(listen, "/events?count=200&ms=25", Duration::from_secs(20)));
    thread::sleep(Duration::from_millis(500));
    let mut one = stage.intruder("worker")?;
    let mut data = vec![DATA];
    data.extend(0_u64.to_be_bytes());
    data.extend(b"forged");
    one.may_publish(subject, &data, "")?;
    let (_, read) = reading.join().expect("a GET does not panic");
    tried.count += 1;
    if read.contains("forged") {
        tried.faults.push("a stranger's bytes reached a client".to_owned());
    }
    if !stage.metrics().contains("natsway_pipes_broken_total 1") {
        tried.faults.push("forged data did not break the pipe".to_owned());
    }
    stage.until("streams go again", || Ok(is_whole(stage)))
}

impl Tried {
    fn expect(&mut self, role: &str, does: &str, inboxes: &str, is_so: bool, expected: &[&str]) {
        self.count += 1;
        if is_so != expected.contains(&role) {
            let not = if is_so { "" } else { "not so: " };
            self.faults.push(format!("{not}{role} {does} pipes below {inboxes}"));
        }
    }
}

/// A worker in its team's account, a gateway in its own. The broker forgets a way back after a
/// second here, and a stream goes on for longer.
fn between_accounts() -> Played<Tried> {
    let text = accounts::text();
    let hasty = text.replace("response_threshold: \"60s\"", "response_threshold: \"1s\"");
    if hasty == text {
        return Err(PlayError::Failed("accounts.conf has another threshold".to_owned()));
    }
    let stage = Stage::with_accounts(&hasty)?;
    let routes = super::plays::ROUTES.replace("svc.demo.", "svc.team-a.demo.");
    std::fs::write(stage.file("routes.toml"), routes)?;
    let variables = [&GATEWAY[..], &[("NATSWAY_ACROSS_ACCOUNTS", "true")]].concat();
    start_gateway(&stage, stage.listen, stage.admin, &variables);
    start_team_worker(&stage);
    stage.until("a body comes by a pipe between accounts", || Ok(is_whole(&stage)))?;
    let (status, events) = get(stage.listen, "/events?count=100&ms=50", Duration::from_secs(20));
    let mut tried = Tried { faults: Vec::new(), count: 2 };
    let count = events.matches("data:").count();
    if (status, count) != (200, 100) {
        tried.faults.push(format!("{count} of 100 events, {status}: the way back is lost"));
    }
    if let Some(violation) = stage.violations().first() {
        tried.faults.push(format!("a pipe needs more than is permitted: {violation:?}"));
    }
    if !is_whole(&stage) || !stage.metrics().contains("natsway_pipes_broken_total 0") {
        tried.faults.push("the pipe between accounts broke".to_owned());
    }
    Ok(tried)
}

fn start_team_worker(stage: &Stage) -> Rc<Running> {
    let arguments = ["--subject", "svc.team-a.demo.blue", "--namespace", "team-a"];
    stage.start("team-a-worker", "worker", &arguments, &[("NATSWAY_TUNNEL", "broker")])
}

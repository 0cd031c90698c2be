//! What each role has to be able to do, as plays on a stage: the whole job of every program, one
//! step after the other.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use natsway_testkit::free_port;

use super::page::get;
use super::played::{PlayError, Played};
use super::running::{CALLER, Running};
use super::stage::Stage;
use super::valve::Valve;

/// The routes of the gateways.
pub(super) const ROUTES: &str = r#"
subject_prefix = "svc"
[[route]]
name = "demo"
path = "/{*rest}"
[[route.target]]
version = "blue"
subject = "svc.demo.blue"
weight = 100
[[route.target]]
version = "green"
subject = "svc.demo.green"
weight = 0
[[route]]
name = "total"
path = "/total"
[[route.target]]
version = "blue"
subject = "svc.total.blue"
"#;

/// Broker losses by which a client has noticed one while it listened.
const LOSSES: usize = 5;
/// Longer than a missing heartbeat takes to be noticed.
const NOTICED: Duration = Duration::from_secs(15);

const PROVISIONER: &str = r#"
[[target]]
name = "demo"
signal = { kind = "services", service = "demo", route = "demo", version = "blue" }
policy = [{ kind = "rate" }]
instance = { service_rate = 1.0 }
scale = { min = <sets>, max = <sets>, in_window = "1s" }
[target.backend]
kind = "directives"
subject = "svc.demo.blue"
[[target]]
name = "calling"
signal = { kind = "services", service = "total" }
instance = { service_rate = 10.0 }
scale = { min = 1, max = 1 }
[target.backend]
kind = "processes"
command = ["sleep", "60"]
state = "<directory>/calling"
[[target]]
name = "queue"
signal = { kind = "consumer", stream = "orders", consumer = "w" }
instance = { service_rate = 10.0 }
scale = { min = 1, max = 2 }
[target.backend]
kind = "processes"
command = ["sleep", "60"]
state = "<directory>/instances"
"#;

const SCOUT: &str = r#"
[[target]]
name = "found"
signal = { kind = "services", service = "de*", route = "demo", version = "blue" }
instance = { service_rate = 10.0 }
scale = { min = <sets>, max = <sets>, in_window = "1s" }
[target.backend]
kind = "directives"
subject = "svc.{name}.blue"
[[target]]
name = "queue"
signal = { kind = "consumer", stream = "orders", consumer = "co*" }
instance = { service_rate = 10.0 }
scale = { min = 0, max = 1 }
[target.backend]
kind = "processes"
command = ["sleep", "60"]
state = "<directory>/{name}"
[[target]]
name = "tally"
signal = { kind = "tally", stream = "orders", consumer = "count" }
instance = { service_rate = 10.0 }
scale = { min = 0, max = 1 }
[target.backend]
kind = "processes"
command = ["sleep", "60"]
state = "<directory>/tally"
"#;

/// A play.
pub(super) type Play = fn(&Stage) -> Played<()>;

/// The plays, each with a role whose permissions are those of all who have a part in it.
pub(super) const PLAYS: [(&str, &str, Play); 5] = [
    ("requests", "gateway", requests),
    ("groups", "groups", groups),
    ("shipping", "producer", shipping),
    ("shared", "shared", shared),
    ("scout", "scout", scout),
];

/// Which play a role is in.
///
/// # Panics
/// When it is in none: a role without a play proves nothing.
pub(super) fn play_of(role: &str) -> Play {
    match role {
        "gateway" | "worker" | "caller" | "operator" | "provisioner" => requests,
        "admin" | "groups" | "member" => groups,
        "producer" | "consumer" => shipping,
        "shared" => shared,
        "scout" => scout,
        role => panic!("{role} is in no play"),
    }
}

/// A gateway and workers: requests, cancellation, routes, a rollout with its drain, the last
/// worker's departure.
fn requests(stage: &Stage) -> Played<()> {
    stage.set_up(&[])?;
    write_routes(stage)?;
    serve(stage, &start_gateways(stage)?)
}

/// The same, with a gateway that has its routes.
pub(super) fn serve(stage: &Stage, gateway: &Rc<Running>) -> Played<()> {
    call_another(stage)?;
    let blue = start_worker(stage, "blue", &[("NATSWAY_MAX_SETS", "3")]);
    expect_status(stage, 200)?;
    // Whoever follows the routes begins anew.
    let caller = stage.start("caller", CALLER, &[], &[]);
    let is_called = || Ok(stage.is_answered("/total", 200));
    stage.until("a call is answered", is_called)?;
    let routes = "natsway-routes";
    lose_broker(stage, &[("gateway", routes), ("caller", routes)])?;
    stage.until("a call is answered again", is_called)?;
    expect_status(stage, 200)?;
    // Its client leaves; a handler that runs for longer has told who runs it.
    get(stage.listen, "/slow?ms=5000", Duration::from_secs(1));
    operate(stage)?;
    scale(stage)?;
    // Leaves with all of its subscription sets, as the last worker; then one comes while a gateway
    // stands in.
    stage.stop(&blue)?;
    expect_status(stage, 503)?;
    // A worker that calls is told by the gateway as well.
    stage.until("a call is not answered", || Ok(stage.get("/total").0 >= 500))?;
    let blue = start_worker(stage, "blue", &[]);
    let green = start_worker(stage, "green", &[]);
    expect_status(stage, 200)?;
    stage.until("green serves", || Ok(green.says("serving")))?;
    // One of the two drives, and the other sees that.
    let other = start_gateway(stage, free_port(), free_port(), &[]);
    let is_in_force = || Ok(other.says("routes in force"));
    stage.until("the routes are at the other gateway", is_in_force)?;
    let strategy = ["--strategy", "blue-green", "--stop-old", "--follow"];
    let start = [&["rollout", "start", "demo", "--to", "green"][..], &strategy].concat();
    stage.run("operator", "apiproxy", &start)?;
    stage.until("the old worker was asked to leave", || Ok(blue.has_ended()))?;
    stage.until("green answers", || Ok(stage.get("/version").1.contains("green")))?;
    // All who send requests answer, the worker that calls among them.
    stage.run("operator", "apiproxy", &["rollout", "status", "demo"])?;
    for running in [&caller, &green, &other, gateway] {
        stage.stop(running)?;
    }
    Ok(())
}

/// Writes the file with the routes.
pub(super) fn write_routes(stage: &Stage) -> Played<()> {
    Ok(fs::write(stage.file("routes.toml"), ROUTES)?)
}

/// Starts a worker of a version of the route `demo`.
pub(super) fn start_worker(
    stage: &Stage,
    version: &str,
    variables: &[(&str, &str)],
) -> Rc<Running> {
    let subject = format!("svc.demo.{version}");
    stage.start("worker", "worker", &["--subject", &subject], variables)
}

/// Has the broker die and come back, until each of these roles has gone on to follow its bucket.
/// That it opens the bucket anew instead is chance.
fn lose_broker(stage: &Stage, followed: &[(&str, &str)]) -> Played<()> {
    let goes_on = |(role, bucket): &(&str, &str)| {
        let asks = |verb| format!("PUB $JS.API.CONSUMER.{verb}.KV_{bucket}.");
        ["DELETE", "CREATE"].iter().all(|verb| stage.count(role, &asks(verb)) > 0)
    };
    for _ in 0..if stage.loses_brokers() { LOSSES } else { 0 } {
        if !followed.iter().all(goes_on) {
            stage.lose_broker()?;
            stage.wait(NOTICED, || Ok(followed.iter().all(goes_on)))?;
        }
    }
    Ok(())
}

/// Two gateways that fill a fresh bucket at once: the first to begin writes last, and finds that
/// another has written.
fn start_gateways(stage: &Stage) -> Played<Rc<Running>> {
    let valve = Valve::new(stage.port(), b"PUB $KV.natsway-routes.")?;
    let held_up = format!("nats://127.0.0.1:{}", valve.port());
    let late = start_gateway(stage, free_port(), free_port(), &[("NATS_URL", &held_up)]);
    stage.until("the first gateway is about to write", || Ok(valve.has_held()))?;
    let gateway = start_gateway(stage, stage.listen, stage.admin, &[]);
    stage.until("the routes are in force", || Ok(gateway.says("routes in force")))?;
    valve.open();
    stage.until("they are at the other as well", || Ok(late.says("routes in force")))?;
    stage.stop(&late)?;
    Ok(gateway)
}

/// Starts a gateway with the routes.
pub(super) fn start_gateway(
    stage: &Stage,
    listen: u16,
    admin: u16,
    variables: &[(&str, &str)],
) -> Rc<Running> {
    let routes = stage.file("routes.toml").display().to_string();
    let [listen, admin] = [listen, admin].map(|port| format!("127.0.0.1:{port}"));
    let arguments = ["--routes", &routes, "--listen", &listen, "--admin-listen", &admin];
    stage.start("gateway", "apiproxy", &arguments, variables)
}

/// A worker that calls another one, in vain when its own client leaves: that cancels the call.
fn call_another(stage: &Stage) -> Played<()> {
    let slow = start_worker(stage, "blue", &[("NATSWAY_MISBEHAVE", "delays=1500")]);
    let caller = stage.start("caller", CALLER, &[], &[]);
    stage.until("a call is answered", || Ok(stage.is_answered("/total", 200)))?;
    get(stage.listen, "/total", Duration::from_millis(700));
    stage.stop(&caller)?;
    stage.stop(&slow)
}

/// Waits until requests are answered like this.
pub(super) fn expect_status(stage: &Stage, status: u16) -> Played<()> {
    let what = format!("a request is answered {status}");
    stage.until(&what, || Ok(stage.is_answered("/version", status)))
}

/// What people do to routes.
fn operate(stage: &Stage) -> Played<()> {
    let routes =
        |arguments: &[&str]| stage.run("operator", "apiproxy", &[&["routes"], arguments].concat());
    routes(&["ls"])?;
    let path = stage.file("demo.json");
    fs::write(&path, routes(&["get", "demo"])?)?;
    routes(&["put", &path.display().to_string()])?;
    routes(&["export"])?;
    routes(&["test", "GET", "http://shop.example/"])?;
    Ok(())
}

/// An autoscaler that opens subscription sets in a worker and closes them, leads, and answers.
fn scale(stage: &Stage) -> Played<()> {
    stage.admin_stream("orders")?;
    let leading = scaled(stage, PROVISIONER, "demo")?;
    stand_by(stage)?;
    stage.until("the gateway's page has the workers and the targets", || {
        Ok(stage.metrics().contains("natsway_target_"))
    })?;
    check_health(stage)?;
    for arguments in
        [&["explain", "demo"][..], &["top", "--count", "1"], &["record", "--count", "1"]]
    {
        stage.run("operator", "provisioner", arguments)?;
    }
    stage.stop(&leading)
}

/// Starts an autoscaler, and waits until it has made three sets of a target and one again.
fn scaled(stage: &Stage, config: &str, target: &str) -> Played<Rc<Running>> {
    let directory = stage.directory().display().to_string();
    let mut leading = None;
    for sets in ["3", "1"] {
        let text = config.replace("<sets>", sets).replace("<directory>", &directory);
        fs::write(stage.file("provisioner.toml"), text)?;
        leading.get_or_insert_with(|| start_provisioner(stage));
        let reached = format!("{target} {sets} {sets}");
        stage.until(&format!("there are {sets} sets"), || {
            let status = status(stage)?;
            Ok(status.split_whitespace().collect::<Vec<_>>().join(" ").contains(&reached))
        })?;
    }
    Ok(leading.expect("it was started for the three sets"))
}

fn start_provisioner(stage: &Stage) -> Rc<Running> {
    let path = stage.file("provisioner.toml").display().to_string();
    stage.start("provisioner", "provisioner", &["run", "--config", &path], &[])
}

fn stand_by(stage: &Stage) -> Played<()> {
    let standby = start_provisioner(stage);
    stage.until("another provisioner stands by", || Ok(standby.says("standing by")))?;
    stage.stop(&standby)
}

fn check_health(stage: &Stage) -> Played<()> {
    let inbox = [("NATS_INBOX_PREFIX", "_INBOX_provisioner")];
    stage.run_with("provisioner", "provisioner", &["status"], &inbox).map(drop)
}

fn status(stage: &Stage) -> Played<String> {
    match stage.run("operator", "provisioner", &["status"]) {
        Err(PlayError::Failed(why)) if why.contains("no provisioner") => Ok(String::new()),
        status => status,
    }
}

/// An autoscaler that finds its targets by patterns, and counts what comes by receiving it.
fn scout(stage: &Stage) -> Played<()> {
    stage.set_up(&[])?;
    stage.admin_stream("orders")?;
    let worker = start_worker(stage, "blue", &[("NATSWAY_MAX_SETS", "3")]);
    stage.until("there is a service to find", || Ok(worker.says("serving")))?;
    let leading = scaled(stage, SCOUT, "found-demo")?;
    stage.until("the tally's consumer is found as well", || {
        Ok(status(stage)?.contains("queue-count"))
    })?;
    // Gateways show the targets.
    write_routes(stage)?;
    let gateway = start_gateway(stage, stage.listen, stage.admin, &[]);
    stage.until("the gateway's page has the targets", || {
        Ok(stage.metrics().contains("natsway_target_"))
    })?;
    stage.stop(&gateway)?;
    stage.admin_traffic("orders")?;
    let counted = "PUB $JS.ACK.orders.count.";
    stage.until("messages are counted", || Ok(stage.count("provisioner", counted) > 0))?;
    stand_by(stage)?;
    check_health(stage)?;
    stage.stop(&leading)?;
    stage.stop(&worker)
}

/// Consumer groups, elastic and static, from their making to their end, with members that leave and
/// come back.
pub(super) fn groups(stage: &Stage) -> Played<()> {
    let cg = |arguments: &[&str]| stage.run("groups", "cg", arguments);
    stage.admin_stream("orders")?;
    stage.admin_partitioned_stream("events", 4)?;
    stage.set_up(&["--groups"])?;
    // An elastic group has a stream of its own, and who makes streams can do anything.
    create_workers(stage)?;
    cg(&["static", "create", "balanced", "events", "readers", "4", ">", "m1"])?;
    cg(&["elastic", "add", "orders", "workers", "m1"])?;
    for (kind, stream, group) in [("elastic", "orders", "workers"), ("static", "events", "readers")]
    {
        let consume = [kind, "consume", stream, group, "m1", "--sleep", "1ms"];
        let member = stage.start("member", "cg", &consume, &[]);
        stage.admin_traffic(stream)?;
        let has_handled = |count| member.text().matches("acknowledged").count() >= count;
        stage.until("the member has handled all", || Ok(has_handled(10)))?;
        cg(&[kind, "info", stream, group])?;
        cg(&[kind, "pause", stream, group])?;
        let mut published = 20;
        if kind == "elastic" {
            // What it has not handled it asks for, to see how far the source was copied.
            stage.admin_traffic(stream)?;
            published += 10;
            let asked = "PUB $JS.API.STREAM.MSG.GET.orders-workers";
            stage.until("the member looks how far its stream was copied", || {
                Ok(stage.count("member", asked) > 0)
            })?;
        }
        cg(&[kind, "resume", stream, group])?;
        lose_broker(stage, &[("member", &format!("{kind}-consumer-groups"))])?;
        lose_broker(stage, &[("member", "natsway-consumer-groups")])?;
        // Hands its partitions over, and is there again.
        cg(&[kind, "step-down", stream, group, "m1"])?;
        stage.admin_traffic(stream)?;
        stage.until("the member goes on", || Ok(has_handled(published)))?;
        stage.stop(&member)?;
    }
    stage.admin_stream("dead")?;
    cg(&["elastic", "dead-letter", "orders", "workers", "dead.orders", "--after", "3"])?;
    cg(&["static", "reset", "events", "readers", "--to-seq", "1"])?;
    cg(&["elastic", "ls", "orders"])?;
    cg(&["static", "ls", "events"])?;
    stage.run_admin("cg", &["elastic", "repartition", "orders", "workers", "8"])?;
    stage.run_admin("cg", &["elastic", "delete", "--force", "orders", "workers"])?;
    cg(&["static", "delete", "--force", "events", "readers"])?;
    Ok(())
}

/// Has an administrator make the elastic group `workers` of `orders`.
pub(super) fn create_workers(stage: &Stage) -> Played<()> {
    let by = ["--filter", "orders.*", "--wildcards", "1"];
    let create = ["elastic", "create", "orders", "workers", "4"];
    stage.run_admin("cg", &[&create[..], &by].concat()).map(drop)
}

/// Has an administrator make the elastic group by which consumers share the lines.
pub(super) fn create_shared(stage: &Stage) -> Played<()> {
    let by = ["--filter", "logs.>", "--wildcards", ""];
    let create = ["elastic", "create", "LOGS", "default", "2"];
    stage.run_admin("cg", &[&create[..], &by].concat()).map(drop)
}

/// Lines by JetStream, over a restart of both sides, and lines in the core.
pub(super) fn shipping(stage: &Stage) -> Played<()> {
    stage.set_up(&["--shipper"])?;
    fs::create_dir(stage.file("logs"))?;
    for mode in ["jetstream", "core"] {
        let source = stage.file(&format!("logs/{mode}.log"));
        let lines = stage.file(&format!("lines-{mode}"));
        let [shown, state, directory] = [&source, &stage.file(&format!("state-{mode}")), &lines]
            .map(|path| path.display().to_string());
        let variables = [
            ("SHIPPER_SUBJECT", "logs"),
            ("SHIPPER_STREAM", "LOGS"),
            ("SHIPPER_PARTITIONS", "2"),
            ("SHIPPER_MODE", mode),
            ("SHIPPER_FILE", &shown),
            ("SHIPPER_STATE", &state),
            ("SHIPPER_READ_PARTITIONS", "0,1"),
            ("SHIPPER_DIRECTORY", &directory),
            ("SHIPPER_OUTPUT", "lines"),
        ];
        fs::write(&source, "")?;
        for line in ["line 1", "line 2"] {
            let sides = start_sides(stage, mode, &variables)?;
            append(&source, line)?;
            stage.until(&format!("{line} arrived"), || Ok(has_line(&lines, line)))?;
            if mode == "jetstream" {
                stage.run_with("consumer", "consumer", &["status"], &variables)?;
            }
            for side in &sides {
                stage.stop(side)?;
            }
        }
    }
    Ok(())
}

/// The consumer first: in the core nothing is kept for it.
fn start_sides(stage: &Stage, mode: &str, variables: &[(&str, &str)]) -> Played<[Rc<Running>; 2]> {
    let listens = || stage.count("consumer", "SUB logs.p1.>");
    let listened = listens();
    let consumer = stage.start("consumer", "consumer", &[], variables);
    if mode == "core" {
        stage.until("the consumer listens", || Ok(listens() > listened))?;
    }
    Ok([stage.start("producer", "producer", &[], variables), consumer])
}

/// Lines to consumers that share the partitions: a second one comes, the first leaves, another is
/// dropped.
fn shared(stage: &Stage) -> Played<()> {
    let (source, lines) = (stage.file("app.log"), stage.file("lines"));
    fs::write(&source, "")?;
    let [shown, state] = [&source, &stage.file("state")].map(|path| path.display().to_string());
    let common = [
        ("SHIPPER_SUBJECT", "logs"),
        ("SHIPPER_STREAM", "LOGS"),
        ("SHIPPER_PARTITIONS", "2"),
        ("SHIPPER_FILE", shown.as_str()),
        ("SHIPPER_STATE", &state),
        ("SHIPPER_READ_PARTITIONS", "auto"),
        ("SHIPPER_OUTPUT", "lines"),
        ("SHIPPER_MEMBER_TIMEOUT", "2s"),
    ];
    let consumer = |name: &str| {
        let own = lines.join(name).display().to_string();
        let variables = [&common[..], &[("SHIPPER_DIRECTORY", own.as_str())]].concat();
        stage.start("consumer", "consumer", &[], &variables)
    };
    let ship = |text: &str| {
        append(&source, text)?;
        stage.until(&format!("{text} arrived"), || Ok(has_line(&lines, text)))
    };
    let takes_part = |consumer: &Running| Ok(consumer.says("Waiting for messages"));

    stage.set_up(&["--shipper", "--member-timeout", "2s"])?;
    create_shared(stage)?;
    let one = consumer("one");
    let producer = stage.start("producer", "producer", &[], &common);
    ship("line 1")?;
    let two = consumer("two");
    stage.until("both take part", || takes_part(&two))?;
    stage.stop(&one)?;
    ship("line 2")?;
    lose_broker(stage, &[("consumer", "elastic-consumer-groups")])?;
    ship("line 3")?;
    let gone = consumer("three");
    stage.until("a third takes part", || takes_part(&gone))?;
    gone.kill();
    stage.until("it is missed", || Ok(two.says("dropping silent members")))?;
    ship("line 4")?;
    let own = lines.join("two").display().to_string();
    let variables = [&common[..], &[("SHIPPER_DIRECTORY", own.as_str())]].concat();
    stage.run_with("consumer", "consumer", &["status"], &variables)?;
    stage.stop(&two)?;
    stage.stop(&producer)
}

fn append(path: &Path, line: &str) -> Played<()> {
    let mut file = OpenOptions::new().append(true).open(path)?;
    Ok(writeln!(file, "{line}")?)
}

/// Whether a file of lines in a directory, or below it, has this text.
fn has_line(directory: &Path, text: &str) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    entries.filter_map(Result::ok).any(|entry| {
        let path = entry.path();
        let is_of_lines = entry.file_name().to_string_lossy().starts_with("lines");
        match path.is_dir() {
            true => has_line(&path, text),
            false => {
                is_of_lines && fs::read_to_string(path).is_ok_and(|lines| lines.contains(text))
            }
        }
    })
}

//! What a role could try that none of our programs does, and what of it the broker lets happen.
//!
//! An attack is tried by a connection of its own with the role's password, on a broker where every
//! bucket and stream is there. [`found`] gives what succeeded. `deploy/nats/remains.json` has what
//! is known to remain and why; what is found and not there, or there and not found, is a fault.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::intruder::{Heard, Intruder, Verb, mark};
use super::permissions::{
    Direction, Permission, concrete, may, of_role, read_all, replaced, roles, shipped, text_for,
};
use super::played::{PlayError, Played};
use super::plays::{create_shared, create_workers};
use super::stage::Stage;

/// What is known to remain.
const REMAINS: &str = "remains.json";

/// An id, the role, and where it matters what is reached.
pub(super) type Fact = (String, String, String);

/// Whoever makes streams can do anything; nothing is tried on his behalf.
pub(super) const ALMIGHTY: &str = "admin";

/// How long to wait for what an attack may cause. What is refused causes nothing, however long one
/// waits.
pub(super) const EFFECT: Duration = Duration::from_secs(1);

/// How long to wait for what is known to happen, however busy the machine is. A stream that copies
/// another asks for its source every few seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// What [`changed`] finds.
const CHANGES: &str = "changes-stream";

/// Questions that change what the other attacks need.
const ORDERS: [&str; 6] = [
    "$JS.API.STREAM.CREATE.",
    "$JS.API.STREAM.UPDATE.",
    "$JS.API.STREAM.DELETE.",
    "$JS.API.CONSUMER.DELETE.",
    "$JS.API.CONSUMER.UNPIN.",
    "$JS.API.CONSUMER.RESET.",
];

/// What nobody of a role should cause, because others act on it: a route, a lease, a request, a
/// directive, the API itself.
pub(super) const TARGETS: [&str; 9] = [
    "$KV.natsway-routes.forged",
    "natsway.figures.forged",
    "svc.demo.forged",
    "natsway.drain.svc.demo.forged",
    "natsway.scale-out.svc.demo.forged",
    "_INBOX_apiproxy.forged.forged",
    "$JS.API.STREAM.PURGE.KV_natsway-routes",
    "$JS.API.STREAM.DELETE.KV_natsway-routes",
    "$JS.API.STREAM.CREATE.FORGED",
];

/// What did not hold, and how much was tried.
#[derive(Debug, Default)]
pub(super) struct Tried {
    /// A sentence for each thing that did not hold.
    pub(super) faults: Vec<String>,
    /// Attempts.
    pub(super) count: usize,
}

impl Tried {
    pub(super) fn add(&mut self, other: Self) {
        self.faults.extend(other.faults);
        self.count += other.count;
    }
}

/// What is known to remain, by its id: `roles`, or `reaches` for each role, and `what` in words.
pub(super) fn remaining() -> Map<String, Value> {
    serde_json::from_str(&shipped(REMAINS)).expect("remains.json is an object")
}

/// The texts of a list; none where there is no list.
pub(super) fn texts(list: &Value) -> Vec<String> {
    let texts = list.as_array().into_iter().flatten().filter_map(Value::as_str);
    texts.map(str::to_owned).collect()
}

/// The roles of an entry and what each of them reaches; nothing where that does not matter.
pub(super) fn facts_of(entry: &Value) -> Vec<(String, String)> {
    let plain = texts(&entry["roles"]).into_iter().map(|role| (role, String::new()));
    let reaches = entry["reaches"].as_object().into_iter().flatten();
    let reached = reaches.flat_map(|(role, details)| {
        texts(details).into_iter().map(|detail| (role.clone(), detail)).collect::<Vec<_>>()
    });
    plain.chain(reached).collect()
}

/// The facts that are known to remain.
pub(super) fn known() -> BTreeSet<Fact> {
    let of = |(name, entry): (String, Value)| {
        facts_of(&entry).into_iter().map(move |(role, detail)| (name.clone(), role, detail))
    };
    remaining().into_iter().flat_map(of).collect()
}

/// What of the facts about these roles is not as it is known.
pub(super) fn differences(
    file: &str,
    found: &BTreeSet<Fact>,
    known: &BTreeSet<Fact>,
    roles: &[String],
) -> Vec<String> {
    let wanted: BTreeSet<Fact> =
        known.iter().filter(|(_, role, _)| roles.contains(role)).cloned().collect();
    let shown =
        |(name, role, detail): &Fact| format!("{name} {role} {detail}").trim_end().to_owned();
    let more = found.difference(&wanted);
    let more = more.map(|fact| format!("POSSIBLE, and not in {file}: {}", shown(fact)));
    let less = wanted.difference(found);
    more.chain(less.map(|fact| format!("NOT POSSIBLE, and in {file}: {}", shown(fact)))).collect()
}

/// The same of what remains within an account.
pub(super) fn differences_within(found: &BTreeSet<Fact>, roles: &[String]) -> Vec<String> {
    differences(REMAINS, found, &known(), roles)
}

/// Tries everything as every role.
pub(super) fn prove() -> Played<Tried> {
    let mut tried = Tried::default();
    let all = roles().into_iter().filter(|role| role != ALMIGHTY);
    let (extra, usual): (Vec<String>, Vec<String>) = all.partition(|role| replaced(role).is_some());
    for cast in [usual].into_iter().chain(extra.into_iter().map(|role| vec![role])) {
        let stage = Stage::new(&text_for(&cast[0]))?;
        furnish(&stage)?;
        let mut facts = BTreeSet::new();
        for role in &cast {
            tried.add(keeps_to_its_own(&stage, role)?);
        }
        for role in &cast {
            facts.extend(found(&stage, role)?);
        }
        tried.faults.extend(differences_within(&facts, &cast));
    }
    Ok(tried)
}

/// Makes every bucket and stream that permissions name.
pub(super) fn furnish(stage: &Stage) -> Played<()> {
    stage.set_up(&["--groups", "--shipper"])?;
    stage.admin_stream("orders")?;
    stage.admin_partitioned_stream("events", 4)?;
    create_workers(stage)?;
    create_shared(stage)?;
    let mut owner = stage.owner("admin")?;
    for subject in ["$KV.natsway-routes.demo", "logs.p0.host", "orders.1", "events.1"] {
        keep(&mut owner, subject)?;
    }
    copied(&mut owner)
}

/// Waits until what copies another stream has a message: an attack on an empty one shows nothing,
/// and what comes late would look like one.
pub(super) fn copied(owner: &mut Intruder) -> Played<()> {
    let deadline = Instant::now() + PATIENCE;
    let is_empty_copy =
        |stream: &Value| stream["config"]["sources"].is_array() && stream["state"]["messages"] == 0;
    while owner.ask_for("$JS.API.STREAM.LIST", &json!({}))?["streams"]
        .as_array()
        .is_some_and(|streams| streams.iter().any(is_empty_copy))
    {
        if Instant::now() > deadline {
            return Err(PlayError::Failed("a stream that copies another stayed empty".into()));
        }
        owner.until(|_| false, EFFECT / 5)?;
    }
    Ok(())
}

/// Has a stream keep a message of the owner's.
pub(super) fn keep(owner: &mut Intruder, subject: &str) -> Played<()> {
    match owner.ask(subject, b"the owner's")? {
        Some(_) => Ok(()),
        None => Err(PlayError::Failed(format!("nobody keeps {subject}"))),
    }
}

/// Who is to be connected for a role.
fn user_of(role: &str) -> &str {
    replaced(role).unwrap_or(role)
}

/// Tries every subject of every other role, as it is and by a reply subject of a message to itself;
/// what the broker let through that is not among the role's own.
fn keeps_to_its_own(stage: &Stage, role: &str) -> Played<Tried> {
    use Direction::{Publish, Subscribe};
    let own = of_role(role);
    let others: Vec<Permission> =
        read_all().into_iter().filter(|permission| permission.role != role).collect();
    let of = |direction| others.iter().filter(move |other| other.direction == direction);
    let publish = of(Publish).map(|other| concrete(other.pattern()));
    let publish: BTreeSet<String> =
        publish.chain(TARGETS.map(str::to_owned)).filter(|s| !may(&own, Publish, s, "")).collect();
    let everything = ["svc.>", "$KV.>", "$JS.>", "_INBOX.>", ">"].map(str::to_owned);
    let hear = of(Subscribe).map(|other| other.pattern().to_owned()).chain(everything);
    let hear: BTreeSet<String> = hear.filter(|s| !may(&own, Subscribe, s, "")).collect();

    let mut one = stage.intruder(user_of(role))?;
    let to_itself = format!("{}.self", one.inbox);
    one.subscribe(&to_itself, "")?;
    for subject in &publish {
        one.publish(subject, b"forged", "")?;
        // Only who may publish to himself can be told by himself where he may publish.
        if may(&own, Publish, &to_itself, "") {
            one.publish(&to_itself, b"", subject)?;
        }
    }
    one.settle()?;
    let before = std::mem::take(&mut one.refused);
    for subject in &publish {
        one.publish(subject, b"forged", "")?;
    }
    for pattern in &hear {
        one.subscribe(pattern, "")?;
        one.subscribe(&concrete(pattern), "another-queue")?;
    }
    one.settle()?;
    let mut faults = Vec::new();
    for subject in &publish {
        if !before.contains(&(Verb::Publish, subject.clone())) {
            faults.push(format!("{role} may publish {subject}"));
        }
        if !one.is_refused(Verb::Publish, subject) {
            faults.push(format!("{role} may publish {subject} after a message to itself"));
        }
    }
    for pattern in &hear {
        if !one.is_refused(Verb::Subscribe, pattern) {
            faults.push(format!("{role} may hear {pattern}"));
        }
        let subject = concrete(pattern);
        if !one.is_refused(Verb::Subscribe, &subject) {
            faults.push(format!("{role} may hear {subject} in another queue"));
        }
    }
    Ok(Tried { faults, count: 2 * publish.len() + 2 * hear.len() })
}

/// What a role gets the broker to do that its permissions do not say.
pub(super) fn found(stage: &Stage, role: &str) -> Played<BTreeSet<Fact>> {
    let own = of_role(role);
    let mut owner = stage.owner(role)?;
    let mut one = stage.intruder(user_of(role))?;
    owner.listen(">")?;
    let mut found = Vec::new();
    let mut plain = |name: &str, is_possible: bool| {
        if is_possible {
            found.push((name.to_owned(), String::new()));
        }
    };
    plain("answered-elsewhere", is_answered_elsewhere(&mut one, &mut owner)?);
    plain("own-words-elsewhere", has_own_words_elsewhere(&own, &mut one, &mut owner)?);
    plain("delivered-elsewhere", is_delivered_elsewhere(stage, role, &mut one)?);
    let read = read_whole(role, &own, &mut one)?;
    found.extend(read.into_iter().map(|stream| ("reads-whole-stream".to_owned(), stream)));
    let expected = known().into_iter().filter(|(name, of, _)| name == CHANGES && of == role);
    let expected = expected.map(|(_, _, stream)| stream).collect();
    let changed = changed(&mut one, &mut owner, &expected)?;
    found.extend(changed.into_iter().map(|stream| (CHANGES.to_owned(), stream)));
    for (name, entry) in remaining() {
        if let Some(attempt) = entry["try"].as_str()
            && is_possible(attempt, &mut one, &mut owner)?
        {
            found.push((name, String::new()));
        }
    }
    if ends_consumers(&mut one, &mut owner)? {
        found.push(("ends-consumers-of-others".to_owned(), String::new()));
    }
    Ok(found.into_iter().map(|(name, detail)| (name, role.to_owned(), detail)).collect())
}

/// Subjects of all roles that JetStream answers or keeps, without wildcards.
pub(super) fn stored_subjects() -> BTreeSet<String> {
    let is_stored = |permission: &Permission| {
        let begins = ["$JS.API.", "$KV.", "logs."];
        permission.direction == Direction::Publish
            && begins.iter().any(|begin| permission.subject.starts_with(begin))
    };
    read_all().iter().filter(|one| is_stored(one)).map(|one| concrete(&one.subject)).collect()
}

/// Whether a question changes what the other attacks need.
pub(super) fn is_order(subject: &str) -> bool {
    ORDERS.iter().any(|order| subject.starts_with(order))
}

/// JetStream answers a question, anybody's, where the role may not publish.
fn is_answered_elsewhere(one: &mut Intruder, owner: &mut Intruder) -> Played<bool> {
    let begin = format!("natsway.drain.{}.", mark());
    let mut asked = stored_subjects();
    asked.retain(|subject| !TARGETS.contains(&subject.as_str()) && !is_order(subject));
    for (number, subject) in asked.iter().enumerate() {
        one.publish(subject, b"", &format!("{begin}{number}"))?;
    }
    one.settle()?;
    owner.until(|owner| owner.heard.iter().any(|heard| heard.subject.starts_with(&begin)), EFFECT)
}

/// The broker publishes what the role has stored, word for word, where the role may not publish: by
/// a direct get.
fn has_own_words_elsewhere(
    own: &[Permission],
    one: &mut Intruder,
    owner: &mut Intruder,
) -> Played<bool> {
    let keeps = |permission: &&Permission| {
        permission.direction == Direction::Publish
            && (permission.subject.starts_with("$KV.") || permission.subject.starts_with("logs."))
    };
    for permission in own.iter().filter(keeps) {
        let (key, text) = (concrete(&permission.subject), mark());
        let stream = match key.strip_prefix("$KV.").and_then(|key| key.split('.').next()) {
            Some(bucket) => format!("KV_{bucket}"),
            None => "LOGS".to_owned(),
        };
        let stored = last(owner, &stream)?;
        one.publish(&key, text.as_bytes(), "")?;
        one.settle()?;
        // What is got before it is stored is another's.
        let deadline = Instant::now() + EFFECT;
        while last(owner, &stream)? == stored && Instant::now() < deadline {}
        let elsewhere = || format!("natsway.drain.{}", mark());
        let direct = format!("$JS.API.DIRECT.GET.{stream}");
        one.publish(&format!("{direct}.{key}"), br#"{"no_hdr": true}"#, &elsewhere())?;
        // By its place in the stream as well.
        let question = json!({ "last_by_subj": key, "no_hdr": true }).to_string();
        one.publish(&direct, question.as_bytes(), &elsewhere())?;
        one.settle()?;
        let is_it = |heard: &Heard| {
            heard.subject.starts_with("natsway.drain.") && heard.payload == text.as_bytes()
        };
        if owner.until(|owner| owner.heard.iter().any(is_it), EFFECT)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The newest message of a stream, by its place; 0 when there is none.
fn last(owner: &mut Intruder, stream: &str) -> Played<u64> {
    let info = owner.ask_for(&format!("$JS.API.STREAM.INFO.{stream}"), &json!({}))?;
    Ok(info["state"]["last_seq"].as_u64().unwrap_or(0))
}

/// A consumer that the role makes, on any stream, delivers to whoever listens on a subject, where
/// the role may not publish.
fn is_delivered_elsewhere(stage: &Stage, role: &str, one: &mut Intruder) -> Played<bool> {
    let asked = creating(&read_all());
    let targets: Vec<String> = asked.iter().map(|_| format!("natsway.drain.{}", mark())).collect();
    let mut listener = stage.owner(role)?;
    // JetStream delivers only where somebody asks for this very subject.
    for target in &targets {
        listener.subscribe(target, "")?;
    }
    listener.settle()?;
    for ((stream, subject), target) in asked.iter().zip(&targets) {
        let question = consumer(stream, subject, target, "").to_string();
        one.publish(subject, question.as_bytes(), "")?;
    }
    one.settle()?;
    listener.until(|listener| !listener.heard.is_empty(), EFFECT)
}

/// The question on `subject` that makes a consumer which delivers the last message of a stream, to
/// a queue group unless that is empty.
pub(super) fn consumer(stream: &str, subject: &str, target: &str, group: &str) -> Value {
    let mut config = json!({
        "deliver_subject": target, "ack_policy": "none", "deliver_policy": "last",
    });
    if !group.is_empty() {
        config["deliver_group"] = json!(group);
    }
    if let Some(name) = subject.split('.').nth(5) {
        config["name"] = json!(name);
    }
    json!({ "stream_name": stream, "config": config })
}

/// Streams on which consumers may be made, and the subject by which.
pub(super) fn creating(own: &[Permission]) -> Vec<(String, String)> {
    let begin = "$JS.API.CONSUMER.CREATE.";
    let of = |permission: &Permission| {
        let rest = permission.subject.strip_prefix(begin)?;
        let stream = rest.split('.').next()?.to_owned();
        let subject = concrete(&permission.subject).replace("x.y", "x");
        (permission.direction == Direction::Publish).then_some((stream, subject))
    };
    own.iter().filter_map(of).collect()
}

/// Streams of which the role reads whatever it likes.
fn read_whole(role: &str, own: &[Permission], one: &mut Intruder) -> Played<BTreeSet<String>> {
    let mut streams: BTreeSet<String> =
        creating(own).into_iter().map(|(stream, _)| stream).collect();
    for permission in own.iter().filter(|one| one.direction == Direction::Publish) {
        let Some(stream) = permission.subject.strip_prefix("$JS.API.STREAM.MSG.GET.") else {
            continue;
        };
        let answer = one.ask(&permission.subject, br#"{"seq": 1}"#)?;
        if answer.is_none_or(|answer| answer.text().contains("not supported")) {
            return Err(PlayError::Failed(format!("{role} does not read {stream}")));
        }
        streams.insert(stream.to_owned());
    }
    Ok(streams)
}

/// Streams that are there and should not be, are not there any more, or are not as they were: made,
/// changed, purged or deleted, also by answers of the broker's that are sent to its own API. What
/// is expected may take its time.
fn changed(
    one: &mut Intruder,
    owner: &mut Intruder,
    expected: &BTreeSet<String>,
) -> Played<BTreeSet<String>> {
    let before = streams(owner)?;
    let evil = json!({ "name": "FORGED", "subjects": ["svc.>"] }).to_string();
    one.publish("$JS.API.STREAM.CREATE.FORGED", evil.as_bytes(), "")?;
    for (stream, (config, _)) in &before {
        let mut config = config.clone();
        config["republish"] = json!({ "src": ">", "dest": "svc.>" });
        let order = |verb: &str| format!("$JS.API.STREAM.{verb}.{stream}");
        one.publish(&order("UPDATE"), config.to_string().as_bytes(), "")?;
        for verb in ["PURGE", "DELETE"] {
            one.publish(&order(verb), b"", "")?;
            // The answer to this question, to the API as a question.
            one.publish(&order("INFO"), b"", &order(verb))?;
        }
    }
    let info = "$JS.API.STREAM.INFO.KV_natsway-routes";
    one.publish(info, b"", "$JS.API.STREAM.CREATE.FORGED")?;
    one.settle()?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        owner.until(|_| false, EFFECT / 5)?;
        let after = streams(owner)?;
        let all = before.keys().chain(after.keys());
        let changed: BTreeSet<String> =
            all.filter(|stream| before.get(*stream) != after.get(*stream)).cloned().collect();
        if changed.is_superset(expected) || Instant::now() > deadline {
            return Ok(changed);
        }
    }
}

/// The settings of every stream, and the first message that it has.
type Streams = BTreeMap<String, (Value, u64)>;

/// The streams that forget nothing by themselves within a proof.
fn streams(owner: &mut Intruder) -> Played<Streams> {
    let answer = owner.ask_for("$JS.API.STREAM.LIST", &json!({}))?;
    let of = |stream: &Value| {
        let config = &stream["config"];
        let age_ns = config["max_age"].as_u64().unwrap_or(0);
        let keeps = age_ns == 0 || age_ns > 3_600_000_000_000;
        let first = stream["state"]["first_seq"].as_u64().unwrap_or(0);
        let name = config["name"].as_str()?.to_owned();
        keeps.then_some((name, (config.clone(), first)))
    };
    Ok(answer["streams"].as_array().into_iter().flatten().filter_map(of).collect())
}

/// Whether the broker lets a role do this: `say SUBJECT`, which somebody hears then, or `hear
/// SUBJECT by PATTERN QUEUE`, what somebody says there.
pub(super) fn is_possible(attempt: &str, one: &mut Intruder, owner: &mut Intruder) -> Played<bool> {
    let words: Vec<&str> = attempt.split(' ').collect();
    let (subject, text) = (words[1], mark());
    let is_said = words[0] == "say";
    if !is_said {
        one.subscribe(words[3], words.get(4).unwrap_or(&""))?;
        one.settle()?;
    }
    let (speaker, listener) = if is_said { (one, owner) } else { (owner, one) };
    speaker.publish(subject, text.as_bytes(), "")?;
    speaker.settle()?;
    listener.settle()?;
    Ok(listener.heard.iter().any(|heard| heard.payload == text.as_bytes()))
}

/// A consumer on the routes that is somebody else's, and is not there any more.
fn ends_consumers(one: &mut Intruder, owner: &mut Intruder) -> Played<bool> {
    let name = format!("another-{}", mark());
    let of = |verb: &str| format!("$JS.API.CONSUMER.{verb}.KV_natsway-routes.{name}");
    let made = json!({
        "stream_name": "KV_natsway-routes",
        "config": { "name": name, "ack_policy": "none", "inactive_threshold": 60_000_000_000_u64 },
    });
    let answer = owner.ask_for(&of("CREATE"), &made)?;
    if answer.get("error").is_some() {
        return Err(PlayError::Failed(format!("the owner makes no consumer: {answer}")));
    }
    if !one.may_publish(&of("DELETE"), b"", "")? {
        return Ok(false);
    }
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if owner.ask(&of("INFO"), b"")?.is_some_and(|left| left.is_error()) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use natsway_testkit::repository_root;

    use super::super::permissions::usual;
    use super::*;

    #[test]
    fn a_worker_does_not_grant_itself_a_subject_by_a_message_to_itself() {
        let stage = Stage::new(&usual()).unwrap();
        let mut owner = stage.owner("worker").unwrap();
        let mut worker = stage.intruder("worker").unwrap();
        let routes = json!({ "name": "KV_natsway-routes", "subjects": ["$KV.natsway-routes.>"] });
        owner.ask_for("$JS.API.STREAM.CREATE.KV_natsway-routes", &routes).unwrap();
        keep(&mut owner, "$KV.natsway-routes.demo").unwrap();
        for target in [
            "$KV.natsway-routes.demo",
            "$JS.API.STREAM.PURGE.KV_natsway-routes",
            "natsway.drain.svc.demo.blue",
        ] {
            let inbox = worker.inbox.clone();
            worker.subscribe(&inbox, "").unwrap();
            worker.publish(&inbox, b"", target).unwrap();
            worker.settle().unwrap();
            let is_it = |heard: &Heard| heard.reply == target;
            let heard = worker.until(|one| one.heard.iter().any(is_it), 5 * EFFECT).unwrap();
            assert!(heard, "it hears itself");
            assert!(!worker.may_publish(target, b"the worker's", "").unwrap(), "{target}");
        }
        let info = "$JS.API.STREAM.INFO.KV_natsway-routes";
        let stored = owner.ask_for(info, &json!({})).unwrap();
        assert_eq!(stored["state"]["messages"], 1);
    }

    #[test]
    fn an_attack_that_succeeds_is_found() {
        let producer = [
            ("$JS.API.DIRECT.GET.LOGS.>", "own-words-elsewhere"),
            ("$JS.API.STREAM.UPDATE.LOGS", "changes-stream"),
        ];
        // One to whom JetStream answers nothing.
        let worker = [
            ("$JS.API.STREAM.INFO.LOGS", "answered-elsewhere"),
            ("$JS.API.CONSUMER.CREATE.LOGS.>", "delivered-elsewhere"),
            ("$JS.API.CONSUMER.DELETE.KV_natsway-routes.*", "ends-consumers-of-others"),
            ("natsway.metrics.gateway.*", "metrics-of-gateways"),
        ];
        for (role, first, more) in
            [("producer", "logs.>", &producer[..]), ("worker", "_INBOX_worker.>", &worker)]
        {
            let text = usual();
            let begin = format!("MAY_{} {{", role.to_uppercase());
            let (before, after) = text.split_once(&begin).unwrap();
            let (first, lines) = (
                format!("    \"{first}\""),
                more.iter().map(|(subject, _)| format!("    \"{subject}\"\n")).collect::<String>(),
            );
            let after = after.replacen(&first, &format!("{lines}{first}"), 1);
            let stage = Stage::new(&format!("{before}{begin}{after}")).unwrap();
            furnish(&stage).unwrap();
            let found: BTreeSet<String> =
                found(&stage, role).unwrap().into_iter().map(|(name, _, _)| name).collect();
            for (_, name) in more {
                assert!(found.contains(*name), "{role}: {name} is not among {found:?}");
            }
        }
    }

    /// The page's rows: the id, whose it is, what it is, and why it remains.
    fn rows() -> BTreeSet<String> {
        let row = |(name, entry): (String, Value)| {
            let reaches = entry["reaches"].as_object().into_iter().flatten();
            let reached: Vec<String> =
                reaches.map(|(role, of)| format!("{role}: {}", texts(of).join(", "))).collect();
            let mut plain = texts(&entry["roles"]);
            plain.sort();
            let whose = if reached.is_empty() { plain.join(", ") } else { reached.join("; ") };
            let word = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
            format!("| `{name}` | {whose} | {} | {} |", word("what"), word("why"))
        };
        remaining().into_iter().map(row).collect()
    }

    #[test]
    fn the_page_shows_what_remains() {
        let page = std::fs::read_to_string(repository_root().join("docs/security.md")).unwrap();
        let remaining = remaining();
        let is_row = |line: &&str| {
            let has_cells = line.starts_with("| `") && line.matches('|').count() == 5;
            has_cells && line.split('`').nth(1).is_some_and(|id| remaining.contains_key(id))
        };
        let shown: BTreeSet<String> = page.lines().filter(is_row).map(str::to_owned).collect();
        assert_eq!(shown, rows());
    }
}

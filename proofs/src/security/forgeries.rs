//! Who answers or reports in the name of somebody else: a worker that guesses where another one's
//! answer goes, and roles that report as a gateway or a caller that is at work.

use std::collections::{BTreeMap, BTreeSet};
use std::thread;
use std::time::{Duration, Instant};

use natsway_testkit::free_port;
use serde_json::{Value, json};

use super::attacks::{ALMIGHTY, EFFECT, Fact, Tried, known};
use super::intruder::Intruder;
use super::page::get;
use super::permissions::{replaced, roles, text_for};
use super::played::{PlayError, Played};
use super::plays::{start_gateway, start_worker, write_routes};
use super::running::CALLER;
use super::stage::Stage;

/// The digits of a token, of now and of once.
const DIGITS: &str = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_";

/// What an answer of the worker's has in it.
const SIGN: &str = "svc.demo.blue";

/// Has a worker that was sent a request answer another one, which somebody else has in hand.
pub(super) fn replies() -> Played<Tried> {
    let stage = Stage::new(&text_for("worker"))?;
    write_routes(&stage)?;
    let variables = [("NATSWAY_SHARDS", "1"), ("NATSWAY_STATIC_ROUTES", "true")];
    start_gateway(&stage, stage.listen, stage.admin, &variables);
    let worker = start_worker(&stage, "blue", &[]);
    let mut owner = stage.owner("worker")?;
    // What a worker is told, and what it answers.
    owner.listen("_INBOX_apiproxy.>")?;
    stage.until("the worker answers", || Ok(stage.is_answered("/version", 200)))?;
    owner.settle()?;
    let answer = owner.heard.iter().rev().find(|heard| heard.text().contains(SIGN));
    let answer = answer.ok_or_else(|| PlayError::Failed("the answer was not heard".into()))?;
    let (session, token) = answer.subject.rsplit_once('.').expect("a session and a token");
    let forged = guesses(token);
    let listen = stage.listen;
    let asking = thread::spawn(move || get(listen, "/slow?ms=1500", Duration::from_secs(20)));
    let mut one = stage.intruder("worker")?;
    while !asking.is_finished() {
        for guess in &forged {
            one.publish(&format!("{session}.{guess}"), &answer.payload, "")?;
        }
        one.settle()?;
    }
    if worker.has_ended() {
        return Err(PlayError::Failed(format!("the worker ended: {}", worker.text())));
    }
    let (_, answered) = asking.join().expect("a GET does not panic");
    let mut faults = Vec::new();
    if answered.contains(SIGN) {
        faults.push(format!("a guessed token was taken for the answer: {answered}"));
    }
    let counted = sample(&stage.metrics(), "natsway_late_replies_total");
    if counted.is_none_or(|counted| counted < forged.len() as u64) {
        faults.push(format!("forged replies are not counted: {counted:?} of {}", forged.len()));
    }
    Ok(Tried { faults, count: forged.len() })
}

/// The value of a counter without labels.
fn sample(page: &str, name: &str) -> Option<u64> {
    let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// Tokens that may come after one that was shown: counted on, and with any one letter another.
fn guesses(token: &str) -> Vec<String> {
    let mut guesses = Vec::new();
    if token.len() == 16
        && let Ok(number) = u64::from_str_radix(token, 16)
    {
        for step in 0..256_u64 {
            for place in -3..=3 {
                let guess = number.wrapping_add(step << 32).wrapping_add_signed(place);
                guesses.push(format!("{guess:016x}"));
            }
        }
    }
    for (place, letter) in token.char_indices() {
        for digit in DIGITS.chars().filter(|digit| *digit != letter) {
            let (before, after) = (&token[..place], &token[place + letter.len_utf8()..]);
            guesses.push(format!("{before}{digit}{after}"));
        }
    }
    guesses
}

/// What is said in another's name: by which source, of which role, and of whom.
const FORGERIES: [(&str, &str, &str); 4] = [
    ("gateway", "gateway", "gateway"),
    ("caller", "gateway", "gateway"),
    ("caller", "caller", "gateway"),
    ("caller", "caller", "caller"),
];

/// Which of them remains, where the gateway takes it for the other's own words.
fn believed(of: &str) -> String {
    format!("metrics-of-{of}s")
}

/// Has every role report in the name of a gateway and of a caller that are at work, and looks what
/// another gateway makes of it.
pub(super) fn metrics() -> Played<Tried> {
    let stage = Stage::new(&text_for("caller"))?;
    stage.set_up(&[])?;
    write_routes(&stage)?;
    let mut reports = Reports::new(stage.owner("gateway")?)?;
    start_gateway(&stage, stage.listen, stage.admin, &[]);
    stage.until("a gateway reports", || Ok(!reports.of("gateway")?.is_empty()))?;
    // This one judges. The others are spoken for.
    let judge = reports.of("gateway")?.into_keys().next().expect("one reports");
    let victim = start_gateway(&stage, free_port(), free_port(), &[]);
    stage.start("caller", CALLER, &[], &[]);
    for version in ["blue", "green"] {
        start_worker(&stage, version, &[]);
    }
    stage.until("another gateway and a caller report", || {
        Ok(reports.of("gateway")?.len() == 2 && !reports.of("caller")?.is_empty())
    })?;
    let other = reports.of("gateway")?.into_keys().find(|sender| *sender != judge);
    let caller = reports.of("caller")?.into_keys().next();
    reports.gateway = other.expect("there are two");
    reports.caller = caller.expect("there is one");
    reports.judge = judge;
    stage.until("it has its routes", || Ok(victim.says("routes in force")))?;
    let mut tried = disbelieved(&stage, &reports)?;
    victim.freeze();
    let still = stands_still(&stage, &mut reports);
    victim.thaw();
    tried.faults.extend(still?);
    Ok(tried)
}

/// The newest whole report of each sender, as whoever may hear everything has it.
struct Reports {
    owner: Intruder,
    /// The gateway that judges.
    judge: String,
    /// The gateway that is spoken for.
    gateway: String,
    /// The caller that is.
    caller: String,
    /// By source and sender.
    newest: BTreeMap<(String, String), (Value, Instant)>,
    numbers: BTreeMap<(String, String), u64>,
}

impl Reports {
    fn new(mut owner: Intruder) -> Played<Self> {
        owner.listen("natsway.metrics.*.*")?;
        Ok(Self {
            owner,
            judge: String::new(),
            gateway: String::new(),
            caller: String::new(),
            newest: BTreeMap::new(),
            numbers: BTreeMap::new(),
        })
    }

    fn victim(&self, of: &str) -> &str {
        if of == "gateway" { &self.gateway } else { &self.caller }
    }

    /// Those of a source, by who sent them.
    fn of(&mut self, source: &str) -> Played<BTreeMap<String, Value>> {
        self.owner.settle()?;
        for heard in std::mem::take(&mut self.owner.heard) {
            let mut words = heard.subject.split('.').skip(2).map(str::to_owned);
            let (Some(of), Some(sender)) = (words.next(), words.next()) else { continue };
            let (report, key) = (heard.json(), (of, sender));
            let number = self.numbers.entry(key.clone()).or_default();
            *number = report["number"].as_u64().unwrap_or(0).max(*number);
            if report["whole"] == true {
                self.newest.insert(key, (report, Instant::now()));
            }
        }
        let of = self.newest.iter().filter(|((of, _), _)| of == source);
        Ok(of.map(|((_, sender), (report, _))| (sender.clone(), report.clone())).collect())
    }

    /// What the victim of a source could say next: it goes by the judge's routes.
    fn continued(&mut self, source: &str, claimed: &str) -> Played<Vec<u8>> {
        let key = (source.to_owned(), self.victim(source).to_owned());
        self.of(source)?;
        let judges = self.of("gateway")?.remove(&self.judge).unwrap_or_default();
        let (mut report, heard_at) = self.newest[&key].clone();
        let number = self.numbers.entry(key).or_default();
        *number += 1;
        let age_ms = report["age_ms"].as_u64().unwrap_or(0);
        report["age_ms"] = json!(age_ms + heard_at.elapsed().as_millis() as u64);
        report["number"] = json!(*number);
        report["revision"] = judges["revision"].clone();
        report["bucket"] = judges["bucket"].clone();
        report["role"] = json!(claimed);
        Ok(report.to_string().into_bytes())
    }
}

/// Every forgery as every role: which are counted against the one who is meant, and which as
/// nobody's.
fn disbelieved(stage: &Stage, reports: &Reports) -> Played<Tried> {
    let (mut facts, mut faults) = (BTreeSet::<Fact>::new(), Vec::new());
    let mut roles = roles();
    roles.retain(|role| role != ALMIGHTY && replaced(role).is_none());
    for role in &roles {
        let mut one = stage.intruder(role)?;
        for (source, claimed, of) in FORGERIES {
            let (before, victim) = (disbeliefs(stage), reports.victim(of));
            // It has been there for an hour, which the victim has not, and leaves.
            let said = json!({
                "id": victim, "role": claimed, "age_ms": 3_600_000, "number": 1, "parts": 1,
                "whole": true, "leaving": true,
            });
            let subject = format!("natsway.metrics.{source}.{victim}");
            let permitted = one.may_publish(&subject, said.to_string().as_bytes(), "")?;
            let counted = || -> BTreeSet<String> {
                let more = disbeliefs(stage).into_iter();
                let is_more = |(reason, count): &(String, u64)| {
                    *count > before.get(reason).copied().unwrap_or(0)
                };
                more.filter(is_more).map(|(reason, _)| reason).collect()
            };
            let patience = if permitted { EFFECT } else { Duration::ZERO };
            stage.wait(patience, || Ok(!counted().is_empty()))?;
            let counted = counted();
            if counted.contains("contradiction") {
                facts.insert((believed(of), role.clone(), String::new()));
            }
            if permitted && claimed != source && !counted.contains("foreign") {
                faults.push(format!(
                    "{role}: a {claimed}'s report is not counted as nobody's where a {source} \
                     speaks"
                ));
            }
        }
    }
    let is_wanted = |(name, role, _): &Fact| {
        ["gateway", "caller"].iter().any(|of| *name == believed(of)) && roles.contains(role)
    };
    let wanted: BTreeSet<Fact> = known().into_iter().filter(is_wanted).collect();
    let differing = facts.symmetric_difference(&wanted);
    faults.extend(differing.map(|fact| {
        format!("a report is taken for another's own, or is not, against what remains: {fact:?}")
    }));
    Ok(Tried { faults, count: roles.len() * FORGERIES.len() })
}

/// How many reports the judge has not believed, by why.
fn disbeliefs(stage: &Stage) -> BTreeMap<String, u64> {
    let of = |line: &str| {
        let rest = line.strip_prefix("natsway_reports_rejected_total{reason=\"")?;
        let (reason, count) = rest.split_once("\"} ")?;
        Some((reason.to_owned(), count.trim().parse().ok()?))
    };
    stage.metrics().lines().filter_map(of).collect()
}

/// A gateway stands still while a version is left, and may wake and send it a request. A caller
/// says in its name that it goes by the new routes, and the gateway that drives does not believe
/// it. In the mouth of a gateway it is believed: that the caller may not say it there is what keeps
/// it from that.
fn stands_still(stage: &Stage, reports: &mut Reports) -> Played<Vec<String>> {
    let mut faults = Vec::new();
    for (role, target, ways) in
        [("caller", "green", &FORGERIES[1..3]), ("gateway", "blue", &FORGERIES[..1])]
    {
        let strategy = ["--to", target, "--strategy", "blue-green"];
        let start = [&["rollout", "start", "demo"][..], &strategy].concat();
        stage.run("operator", "apiproxy", &start)?;
        let mut one = stage.intruder(role)?;
        stage.until(&format!("the rollout to {target} is over"), || {
            for (source, claimed, of) in ways {
                let said = reports.continued(of, claimed)?;
                let subject = format!("natsway.metrics.{source}.{}", reports.victim(of));
                one.publish(&subject, &said, "")?;
            }
            one.settle()?;
            Ok(rollout(stage)?["phase"] == "promoted")
        })?;
        let rollout = rollout(stage)?;
        let is_named = rollout["behind"].as_array().is_some_and(|behind| !behind.is_empty());
        if is_named != (role == "caller") {
            let not = if is_named { "" } else { "not " };
            faults.push(format!("{role}: a gateway that stands still is {not}named: {rollout}"));
        }
    }
    Ok(faults)
}

/// The rollout of the route `demo`, as its document has it.
fn rollout(stage: &Stage) -> Played<Value> {
    let document = stage.run("operator", "apiproxy", &["routes", "get", "demo"])?;
    let document: Value = serde_json::from_str(&document)
        .map_err(|error| PlayError::Failed(format!("the route is no document: {error}")))?;
    Ok(document["rollout"].clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_guessed_by_counting_on_and_letter_by_letter() {
        let guesses = guesses("00000001ffffffff");
        assert!(guesses.contains(&"0000000200000000".to_owned()));
        assert!(guesses.contains(&"00000002ffffffff".to_owned()));
        assert!(guesses.contains(&"Z0000001ffffffff".to_owned()));
        assert_eq!(guesses.len(), 256 * 7 + 16 * 63);
    }
}

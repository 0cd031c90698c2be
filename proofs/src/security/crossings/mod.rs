//! What crosses the accounts of `deploy/nats/accounts.conf`, by trying: everything, from each
//! account and as each of its users.
//!
//! `deploy/nats/crossings.json` has the exact list: what is said where and heard elsewhere, who
//! says it, who hears it, how many answers come back, and what else remains possible. What crosses
//! and is not there, or is there and does not cross, is a fault.

mod users;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;

use serde_json::{Map, Value, json};

pub(super) use self::users::prove;
use super::accounts::{self, Line};
use super::attacks::{EFFECT, Fact, TARGETS, Tried, facts_of, texts};
use super::intruder::{Intruder, mark};
use super::permissions::{Permission, concrete, matches, read_all, shipped};
use super::played::{PlayError, Played};
use super::stage::Stage;

/// What is known to cross.
const CROSSINGS: &str = "crossings.json";

/// How many answers come back to what crosses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Answers {
    None,
    One,
    Many,
}

/// One thing that is said in one account and heard in another.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Crossing {
    what: String,
    source: String,
    sink: String,
    said: String,
    heard: String,
    answers: Answers,
    said_by: Vec<String>,
    heard_by: Vec<String>,
}

/// What was said in an account and heard in another one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Passage {
    source: String,
    said: String,
    sink: String,
    heard: String,
}

impl Crossing {
    fn read(entry: &Value) -> Self {
        let text = |key: &str| entry[key].as_str().expect("a crossing has its texts").to_owned();
        Self {
            what: text("what"),
            source: text("from"),
            sink: text("to"),
            said: text("said"),
            heard: text("heard"),
            answers: match text("answers").as_str() {
                "none" => Answers::None,
                "one" => Answers::One,
                "many" => Answers::Many,
                other => panic!("{other} answers: expected none, one or many"),
            },
            said_by: texts(&entry["said_by"]),
            heard_by: texts(&entry["heard_by"]),
        }
    }

    fn name(&self) -> String {
        let is_to_a_team = self.sink.starts_with("TEAM");
        format!("{} {}", self.what, if is_to_a_team { &self.sink } else { &self.source })
    }

    /// How a subject that is said in an account is heard by this crossing, if it is.
    fn passage(&self, account: &str, subject: &str) -> Option<Passage> {
        if account != self.source || !matches(&self.said, subject) {
            return None;
        }
        Some(Passage {
            source: account.to_owned(),
            said: subject.to_owned(),
            sink: self.sink.clone(),
            heard: mapped(&self.said, &self.heard, subject),
        })
    }

    /// Whether it needs an import. That stands in the account that begins, but for a stream's,
    /// which stands where it is heard.
    fn crosses_by(&self, line: &Line) -> bool {
        let (imports, exports) = match self.answers {
            Answers::None => (&self.sink, &self.source),
            Answers::One | Answers::Many => (&self.source, &self.sink),
        };
        line.account == *imports
            && line.subject == self.said
            && line.source().contains(&format!("account: {exports},"))
    }
}

/// A subject of one pattern in the form of another, whose wildcards are the same.
fn mapped(pattern: &str, onto: &str, subject: &str) -> String {
    if pattern == onto {
        return subject.to_owned();
    }
    let pairs = subject.split('.').zip(pattern.split('.'));
    let mut wild = pairs.filter(|(_, wanted)| *wanted == "*").map(|(token, _)| token);
    let token = |token| if token == "*" { wild.next().unwrap_or(token) } else { token };
    onto.split('.').map(token).collect::<Vec<_>>().join(".")
}

fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        serde_json::from_str(&shipped(CROSSINGS)).expect("crossings.json is a document")
    })
}

/// The accounts of teams, and their names.
fn teams() -> Vec<(String, String)> {
    let teams = document()["teams"].as_object().into_iter().flatten();
    teams.map(|(account, name)| (account.clone(), name.as_str().unwrap_or("").to_owned())).collect()
}

/// An entry for each team, where it speaks of teams.
fn for_teams(entry: &Value) -> Vec<Value> {
    let text = entry.to_string();
    if !text.contains("<team>") && !text.contains("<TEAM>") {
        return vec![entry.clone()];
    }
    let of = |(account, name): (String, String)| {
        let text = text.replace("<TEAM>", &account).replace("<team>", &name);
        serde_json::from_str(&text).expect("names of teams are plain")
    };
    teams().into_iter().map(of).collect()
}

/// All that crosses, of each team.
pub(super) fn crossings() -> &'static [Crossing] {
    static CROSSINGS: OnceLock<Vec<Crossing>> = OnceLock::new();
    CROSSINGS.get_or_init(|| {
        let entries = document()["crossings"].as_array().into_iter().flatten();
        entries.flat_map(for_teams).map(|entry| Crossing::read(&entry)).collect()
    })
}

/// What else remains, by its id, as for one account.
fn remaining() -> &'static Map<String, Value> {
    document()["remains"].as_object().expect("crossings.json has what remains")
}

/// What remains that no line of `accounts.conf` is for.
pub(super) fn remaining_facts() -> BTreeSet<Fact> {
    let of = |(name, entry): (&String, &Value)| {
        let part = json!({ "roles": entry["roles"], "reaches": entry["reaches"] });
        let facts = for_teams(&part).into_iter().flat_map(|part| facts_of(&part));
        facts.map(|(role, detail)| (name.clone(), role, detail)).collect::<Vec<_>>()
    };
    remaining().iter().flat_map(of).collect()
}

/// The facts of `crossings.json`.
fn known() -> BTreeSet<Fact> {
    let mut facts = remaining_facts();
    for crossing in crossings() {
        for (verb, roles) in [("says", &crossing.said_by), ("hears", &crossing.heard_by)] {
            let of = |role: &String| (verb.to_owned(), role.clone(), crossing.name());
            facts.extend(roles.iter().map(of));
        }
    }
    facts
}

/// Everything that anybody says or hears in any account, and what is close to what crosses.
fn subjects() -> &'static BTreeSet<String> {
    static SUBJECTS: OnceLock<BTreeSet<String>> = OnceLock::new();
    SUBJECTS.get_or_init(|| {
        let mut known: BTreeSet<String> = texts(&document()["never"]).into_iter().collect();
        known.extend(TARGETS.map(str::to_owned));
        known.extend(all_permissions().iter().map(|one| one.pattern().to_owned()));
        for crossing in crossings() {
            known.extend([crossing.said.clone(), crossing.heard.clone()]);
        }
        known.iter().map(|subject| concrete(subject)).collect()
    })
}

/// The permissions of all files.
fn all_permissions() -> Vec<Permission> {
    [read_all(), super::permissions::read(&accounts::text())].concat()
}

/// Whoever may do anything, of each account.
type Owners = BTreeMap<String, Intruder>;

fn owners(stage: &Stage) -> Played<Owners> {
    let owner = |account: String| {
        let owner = stage.owner_of_account(&account)?;
        Ok((account, owner))
    };
    accounts::names().into_iter().map(owner).collect()
}

/// What is heard in another account, when somebody who may do anything says everything in each.
fn passages(stage: &Stage) -> Played<BTreeSet<Passage>> {
    let mut owners = owners(stage)?;
    for owner in owners.values_mut() {
        owner.listen(">")?;
    }
    for (account, owner) in &mut owners {
        for subject in subjects() {
            owner.publish(subject, format!("{account} {subject}").as_bytes(), "")?;
        }
        owner.settle()?;
    }
    for owner in owners.values_mut() {
        owner.settle()?;
    }
    let mut found = BTreeSet::new();
    for (sink, owner) in &owners {
        for heard in &owner.heard {
            let text = heard.text();
            let Some((source, said)) = text.split_once(' ') else { continue };
            if owners.contains_key(source) && source != sink {
                let [source, said, sink] = [source, said, sink].map(str::to_owned);
                found.insert(Passage { source, said, sink, heard: heard.subject.clone() });
            }
        }
    }
    Ok(found)
}

fn expected_passages<'c>(of: impl IntoIterator<Item = &'c Crossing>) -> BTreeSet<Passage> {
    let mut expected = BTreeSet::new();
    for crossing in of {
        let passage = |subject: &String| crossing.passage(&crossing.source, subject);
        expected.extend(subjects().iter().filter_map(passage));
    }
    expected
}

/// What crosses and should not, and what should and does not.
fn differing(found: &BTreeSet<Passage>, expected: &BTreeSet<Passage>) -> Vec<String> {
    let shown = |passage: &Passage| {
        let Passage { source, said, sink, heard } = passage;
        format!("{source} {said} {sink} {heard}")
    };
    let more = found.difference(expected);
    let more = more.map(|passage| format!("CROSSES, and not in {CROSSINGS}: {}", shown(passage)));
    let less = expected.difference(found);
    let less = less.map(|one| format!("DOES NOT CROSS, and in {CROSSINGS}: {}", shown(one)));
    more.chain(less).collect()
}

/// Tries all subjects from each account, and the answers to what crosses.
pub(super) fn boundaries() -> Played<Tried> {
    let stage = Stage::with_accounts(&accounts::text())?;
    let mut faults = differing(&passages(&stage)?, &expected_passages(crossings()));
    for crossing in crossings() {
        faults.extend(answered(&stage, crossing)?);
    }
    faults.extend(stored(&stage)?);
    let count = subjects().len() * accounts::names().len() + 3 * crossings().len();
    Ok(Tried { faults, count })
}

/// Whether as many answers come back as should, and none from a third account that knows where they
/// go.
fn answered(stage: &Stage, crossing: &Crossing) -> Played<Vec<String>> {
    const THIRD: &[u8] = b"a third one's";
    let name = crossing.name();
    let wanted = match crossing.answers {
        Answers::None => 0,
        Answers::One => 1,
        Answers::Many => 2,
    };
    let mut owners = owners(stage)?;
    let mut asker = owners.remove(&crossing.source).expect("a crossing is between accounts");
    let mut answerer = owners.remove(&crossing.sink).expect("a crossing is between accounts");
    let inbox = format!("{}.{}", asker.inbox, mark());
    asker.listen(&inbox)?;
    answerer.listen(&crossing.heard)?;
    asker.publish(&concrete(&crossing.said), b"?", &inbox)?;
    asker.settle()?;
    if !answerer.until(|answerer| !answerer.heard.is_empty(), EFFECT)? {
        return Ok(vec![format!("{name}: the question is not heard")]);
    }
    let shown = answerer.heard[0].reply.clone();
    let target = if shown.is_empty() { &inbox } else { &shown };
    for third in owners.values_mut() {
        third.publish(target, THIRD, "")?;
        third.settle()?;
    }
    for _ in 0..2 {
        answerer.publish(target, b"!", "")?;
    }
    answerer.settle()?;
    asker.settle()?;
    let mut faults = Vec::new();
    if asker.heard.len() != wanted {
        let came = asker.heard.len();
        faults.push(format!("{name}: {came} answers come back, not {wanted}"));
    }
    if asker.heard.iter().any(|heard| heard.payload == THIRD) {
        faults.push(format!("{name}: a third account answers"));
    }
    if wanted > 0 && !shown.starts_with("_R_.") {
        faults.push(format!("{name}: the asker's own reply subject is shown: {shown}"));
    }
    Ok(faults)
}

/// Whether a stream over everything that an administrator of an account makes has what others say,
/// but for what crosses.
fn stored(stage: &Stage) -> Played<Vec<String>> {
    let patterns = [
        "svc.>",
        "natsway.>",
        "logs.>",
        "orders.>",
        "events.>",
        "_INBOX.>",
        "_INBOX_apiproxy.>",
        "_INBOX_worker.>",
    ];
    let mut faults = Vec::new();
    for tap in accounts::users().into_iter().filter(|user| user.permissions == "admin") {
        let mut one = stage.intruder(&tap.name)?;
        let config = json!({ "name": "TAP", "subjects": patterns, "storage": "memory" });
        let made = one.ask_for("$JS.API.STREAM.CREATE.TAP", &config)?;
        if made.get("error").is_some() {
            return Ok(vec![format!("{} makes no stream: {made}", tap.name)]);
        }
        for account in accounts::names().iter().filter(|account| **account != tap.account) {
            let mut owner = stage.owner_of_account(account)?;
            // No order to JetStream, in whichever account.
            for subject in subjects().iter().filter(|s| !s.starts_with("$JS.API.STREAM.")) {
                owner.publish(subject, b"another's", "")?;
            }
            owner.settle()?;
        }
        let kept = one.ask_for("$JS.API.STREAM.INFO.TAP", &json!({ "subjects_filter": ">" }))?;
        let found = kept["state"]["subjects"].as_object().into_iter().flatten();
        let found: BTreeSet<String> = found.map(|(subject, _)| subject.clone()).collect();
        let of = crossings().iter().filter(|crossing| crossing.sink == tap.account);
        let expected = expected_passages(of).into_iter().map(|passage| passage.heard);
        let expected: BTreeSet<String> = expected
            .filter(|heard| patterns.iter().any(|pattern| matches(pattern, heard)))
            .collect();
        if found != expected {
            let differing: Vec<&String> = found.symmetric_difference(&expected).collect();
            faults.push(format!("{} stores {differing:?} of others", tap.name));
        }
        one.ask("$JS.API.STREAM.DELETE.TAP", b"")?;
    }
    Ok(faults)
}

/// Leaves one export or import out: the broker refuses what is imported and not exported, and what
/// is not imported does not cross.
pub(super) fn leave_out(line: &Line) -> Vec<String> {
    match (Stage::with_accounts(&accounts::without(line)), line.is_export) {
        (Ok(_), true) => {
            vec![format!("NOT NOTICED  {line}: the broker takes an import of what is not exported")]
        }
        (Err(PlayError::Failed(why)), true)
            if why.contains(&format!("{:?}", line.subject)) && why.contains("not authorized") =>
        {
            Vec::new()
        }
        (Err(error), _) => vec![format!("NOT TOLD  {line}: {error}")],
        (Ok(stage), false) => match passages(&stage) {
            Ok(found) => lost_by(line, &found),
            Err(error) => vec![format!("NOT TRIED  {line}: {error}")],
        },
    }
}

/// Whether what was found is all that crosses but for what goes by an import.
fn lost_by(line: &Line, found: &BTreeSet<Passage>) -> Vec<String> {
    let (lost, kept): (Vec<&Crossing>, Vec<&Crossing>) =
        crossings().iter().partition(|crossing| crossing.crosses_by(line));
    if lost.len() != 1 {
        return vec![format!("{line}: {} crossings of {CROSSINGS} go by it", lost.len())];
    }
    let faults = differing(found, &expected_passages(kept));
    faults.into_iter().map(|fault| format!("{line} left out: {fault}")).collect()
}

#[cfg(test)]
mod tests {
    use natsway_testkit::repository_root;

    use super::*;

    #[test]
    fn every_export_is_imported_once_and_both_are_one_crossing() {
        let lines = accounts::lines();
        for line in lines.iter().filter(|line| !line.is_export) {
            let crossing = crossings().iter().filter(|crossing| crossing.crosses_by(line));
            assert_eq!(crossing.count(), 1, "{line}");
        }
        assert_eq!(lines.len(), 2 * crossings().len());
    }

    #[test]
    fn a_subject_is_mapped_by_its_wildcards() {
        let (said, heard) = ("natsway.metrics.caller.*", "natsway.metrics.team-a.*");
        assert_eq!(mapped(said, heard, "natsway.metrics.caller.x"), "natsway.metrics.team-a.x");
        assert_eq!(mapped("svc.>", "svc.>", "svc.a.b"), "svc.a.b");
    }

    #[test]
    fn what_crosses_beyond_that_is_found() {
        let text = accounts::text();
        let metrics = "      { stream: { account: TEAM_A, subject: \"natsway.metrics.caller.*\" }, \
                       to: \"natsway.metrics.team-a.*\" }\n";
        // An import that hands on what a team says as if a gateway had.
        let forged = metrics.replace("natsway.metrics.team-a.*", "natsway.metrics.gateway.*");
        // A team that hears what another one does.
        let exports = "exports: [\n      { service: \"svc.team-b.>\"";
        let taps = "imports: [{ stream: { account: SHIPPER, subject: \"logs.>\" } }]\n    ";
        let shipper = "  SHIPPER {\n    exports: [{ stream: \"logs.>\", accounts: [TEAM_B] }]\n";
        assert!(text.contains(metrics) && text.contains(exports) && text.contains("  SHIPPER {\n"));
        for changed in [
            text.replace(metrics, &forged),
            text.replace(exports, &format!("{taps}{exports}")).replace("  SHIPPER {\n", shipper),
        ] {
            let stage = Stage::with_accounts(&changed).unwrap();
            let found = passages(&stage).unwrap();
            let faults = differing(&found, &expected_passages(crossings()));
            assert!(faults.iter().any(|fault| fault.starts_with("CROSSES")), "{faults:?}");
        }
    }

    /// The page's rows: what crosses, and what else remains.
    fn rows() -> BTreeSet<String> {
        let mut rows = BTreeSet::new();
        for entry in document()["crossings"].as_array().unwrap() {
            let word = |key: &str| entry[key].as_str().unwrap();
            let shown = |names: &Value| {
                let names = texts(names).into_iter();
                names.map(|name| name.replace("<team>-", "its ")).collect::<Vec<_>>().join(", ")
            };
            let account = |name| match name {
                "<TEAM>" => "the team".to_owned(),
                name => format!("`{name}`"),
            };
            rows.insert(format!(
                "| {} | {}: {} | `{}` | {}: {} | {} |",
                word("what"),
                account(word("from")),
                shown(&entry["said_by"]),
                word("said"),
                account(word("to")),
                shown(&entry["heard_by"]),
                word("answers"),
            ));
        }
        for (name, entry) in remaining() {
            let reaches = entry["reaches"].as_object().into_iter().flatten();
            let mut whose: Vec<String> = reaches
                .map(|(role, details)| {
                    // What is reached of each team is one word; where it is the team alone, none.
                    let details = texts(details).into_iter();
                    let details: Vec<String> =
                        details.map(|one| one.replace("<TEAM>", "").trim().to_owned()).collect();
                    match details.iter().any(|detail| !detail.is_empty()) {
                        true => format!("{role}: {}", details.join(", ")),
                        false => role.clone(),
                    }
                })
                .collect();
            whose.extend(texts(&entry["roles"]));
            let word = |key: &str| entry[key].as_str().unwrap_or_default();
            let row =
                format!("| `{name}` | {} | {} | {} |", whose.join("; "), word("what"), word("why"));
            rows.insert(row.replace("<team>-", "its "));
        }
        rows
    }

    #[test]
    fn the_page_shows_what_crosses_and_what_remains() {
        let page = std::fs::read_to_string(repository_root().join("docs/security.md")).unwrap();
        let (_, section) = page.split_once("\n### What crosses\n").unwrap();
        let section = section.split("\n## ").next().unwrap();
        let is_head = |line: &&str| line.starts_with("| what |") || line.starts_with("| id |");
        let shown = section.lines().filter(|line| line.starts_with("| ") && !is_head(line));
        assert_eq!(shown.map(str::to_owned).collect::<BTreeSet<_>>(), rows());
    }
}

//! What each user of an account says and hears of the others, and what it has others or the broker
//! say there.

use std::collections::BTreeSet;

use super::super::accounts::{User, owner_name, permissions_of};
use super::super::attacks::{
    ALMIGHTY, consumer, copied, creating, differences, differences_within, found, is_order,
    is_possible, keep, stored_subjects,
};
use super::super::intruder::{Heard, Verb};
use super::super::permissions::{Direction, ROLES, may};
use super::*;

/// Everybody but those who make streams: they can do anything in their account, as [`boundaries`]
/// does.
fn who() -> Vec<User> {
    accounts::users().into_iter().filter(|user| user.permissions != ALMIGHTY).collect()
}

/// Tries everything as every user of every account; or as so many that chance chooses, with one of
/// each kind that reaches another account.
pub(in super::super) fn prove(random: &mut fastrand::Rng, sample: Option<usize>) -> Played<Tried> {
    let mut chosen = who();
    if let Some(sample) = sample {
        random.shuffle(&mut chosen);
        // Stable, so these come first and the others by chance.
        chosen.sort_by_key(|user| !["caller", "team-a-worker"].contains(&user.name.as_str()));
        chosen.truncate(sample);
    }
    let stage = Stage::with_accounts(&accounts::text())?;
    furnish(&stage)?;
    let mut tried = Tried::default();
    let mut facts = BTreeSet::new();
    for user in &chosen {
        eprintln!("  as {} of {}", user.name, user.account);
        let own = permissions_of(user);
        tried.faults.extend(says(&stage, user, &own, &mut facts)?);
        tried.faults.extend(hears(&stage, user, &own, &mut facts)?);
        by_other_means(&stage, user, &own, &mut facts)?;
        tried.count += 3 * subjects().len();
    }
    let names: Vec<String> = chosen.iter().map(|user| user.name.clone()).collect();
    tried.faults.extend(differences(CROSSINGS, &facts, &known(), &names));
    // Within an account, what remains is what remains without accounts.
    let is_usual = |user: &&User| ROLES.contains(&user.permissions.as_str());
    let usual: Vec<String> = chosen.iter().filter(is_usual).map(|user| user.name.clone()).collect();
    let mut inside = BTreeSet::new();
    for role in &usual {
        inside.extend(found(&stage, role)?);
    }
    tried.faults.extend(differences_within(&inside, &usual));
    Ok(tried)
}

/// Makes every bucket and stream, each in its account.
fn furnish(stage: &Stage) -> Played<()> {
    for (admin, more) in
        [("admin", None), ("shipper-admin", Some("--shipper")), ("groups-admin", Some("--groups"))]
    {
        let arguments: Vec<&str> = ["setup"].into_iter().chain(more).collect();
        stage.run(admin, "apiproxy", &arguments)?;
    }
    let elastic = ["elastic", "setup", "orders"];
    let partitioned = ["static", "setup", "events", "--partitions", "4"];
    for (account, arguments) in
        [("NATSWAY", &elastic[..]), ("GROUPS", &elastic), ("GROUPS", &partitioned)]
    {
        stage.run(&owner_name(account), "cg", arguments)?;
    }
    let create = ["elastic", "create", "orders", "workers", "4"];
    let create = [&create[..], &["--filter", "orders.*", "--wildcards", "1"]].concat();
    let inbox = [("NATS_INBOX_PREFIX", "_INBOX_admin")];
    stage.run_with("groups-admin", "cg", &create, &inbox)?;
    for (account, subject) in [
        ("NATSWAY", "$KV.natsway-routes.demo"),
        ("SHIPPER", "logs.p0.host"),
        ("GROUPS", "orders.1"),
        ("GROUPS", "events.1"),
    ] {
        let mut owner = stage.owner_of_account(account)?;
        keep(&mut owner, subject)?;
        copied(&mut owner)?;
    }
    Ok(())
}

/// A fact of a user's and a crossing.
fn fact(verb: &str, user: &User, crossing: String) -> Fact {
    (verb.to_owned(), user.name.clone(), crossing)
}

/// Whoever may do anything, of each account but the user's.
fn others(stage: &Stage, user: &User) -> Played<Owners> {
    let mut others = owners(stage)?;
    others.remove(&user.account);
    Ok(others)
}

/// Has a user say everything: what the broker lets through beyond the user's lines, and what other
/// accounts hear of the rest.
fn says(
    stage: &Stage,
    user: &User,
    own: &[Permission],
    facts: &mut BTreeSet<Fact>,
) -> Played<Vec<String>> {
    let text = mark();
    let mut one = stage.intruder(&user.name)?;
    let mut others = others(stage, user)?;
    for other in others.values_mut() {
        other.listen(">")?;
    }
    for subject in subjects() {
        one.publish(subject, text.as_bytes(), "")?;
    }
    one.settle()?;
    for (account, other) in &mut others {
        other.settle()?;
        for heard in other.heard.iter().filter(|heard| heard.payload == text.as_bytes()) {
            let ways = ways(&user.account, account, heard);
            facts.extend(ways.into_iter().map(|way| fact("says", user, way)));
        }
    }
    let fault = |subject: &String| {
        let permitted = may(own, Direction::Publish, subject, "");
        let refused = one.is_refused(Verb::Publish, subject);
        let name = &user.name;
        match (permitted, refused) {
            (false, false) => Some(format!("{name} may publish {subject}")),
            (true, true) => Some(format!("{name} may not publish {subject}")),
            _ => None,
        }
    };
    Ok(subjects().iter().filter_map(fault).collect())
}

/// The crossings by which a message came; what no one explains is shown as it is.
fn ways(source: &str, sink: &str, heard: &Heard) -> Vec<String> {
    let is_way = |crossing: &&Crossing| {
        crossing.source == source
            && crossing.sink == sink
            && matches(&crossing.heard, &heard.subject)
    };
    let ways: Vec<String> =
        crossings().iter().filter(is_way).map(|crossing| crossing.name()).collect();
    match ways.is_empty() {
        true => vec![format!("{source} to {sink}: {}", heard.subject)],
        false => ways,
    }
}

/// Has a user ask to hear everything, in each of its queue groups: what the broker lets it beyond
/// its lines, and what it hears of all that is said in other accounts.
fn hears(
    stage: &Stage,
    user: &User,
    own: &[Permission],
    facts: &mut BTreeSet<Fact>,
) -> Played<Vec<String>> {
    let mut patterns = subjects().clone();
    patterns.extend(all_permissions().iter().map(|one| one.pattern().to_owned()));
    patterns.extend(["svc.>", "natsway.>", ">"].map(str::to_owned));
    let of = own.iter().filter(|one| one.direction == Direction::Subscribe);
    let queues: BTreeSet<&str> = of.map(Permission::queue).chain([""]).collect();
    let mut one = stage.intruder(&user.name)?;
    let mut faults = Vec::new();
    for queue in queues {
        one.refused.clear();
        for pattern in &patterns {
            one.subscribe(pattern, queue)?;
        }
        one.settle()?;
        let refused: BTreeSet<&String> = one.refused.iter().map(|(_, subject)| subject).collect();
        let is_beyond = |pattern: &&String| {
            !may(own, Direction::Subscribe, pattern, queue) && !refused.contains(pattern)
        };
        let shown = |pattern: &String| {
            format!("{} may hear {pattern} {queue}", user.name).trim_end().to_owned()
        };
        faults.extend(patterns.iter().filter(is_beyond).map(shown));
    }
    one.heard.clear();
    let mut others = others(stage, user)?;
    for (account, other) in &mut others {
        for subject in subjects() {
            other.publish(subject, account.as_bytes(), "")?;
        }
        other.settle()?;
    }
    one.settle()?;
    for heard in &one.heard {
        let source = heard.text();
        if others.contains_key(&source) {
            let ways = ways(&source, &user.account, heard);
            facts.extend(ways.into_iter().map(|way| fact("hears", user, way)));
        }
    }
    Ok(faults)
}

/// What a user has others or the broker say in another account, or where it may not say it.
fn by_other_means(
    stage: &Stage,
    user: &User,
    own: &[Permission],
    facts: &mut BTreeSet<Fact>,
) -> Played<()> {
    let mut one = stage.intruder(&user.name)?;
    let mut owners = owners(stage)?;
    for owner in owners.values_mut() {
        owner.listen(">")?;
    }
    for (name, crossings) in [
        ("answered-in-another-account", answered_across(stage, user, own, &mut one)?),
        ("delivered-to-another-account", delivered_across(stage, user, own, &mut one)?),
        ("lends-answers", answers_lent(user, own, &mut one, &mut owners)?),
        ("answers-for-others", answers_forged(&mut one, &mut owners)?),
    ] {
        facts.extend(crossings.into_iter().map(|crossing| fact(name, user, crossing.name())));
    }
    let owner = owners.get_mut(&user.account).expect("a user is in an account");
    // What a user says in another's name in its account, and what it hears of others. What has
    // nothing to do with teams is among the attacks within an account.
    for (account, team) in teams() {
        for (name, entry) in remaining() {
            let Some(attempt) = entry["try"].as_str() else { continue };
            // Within the team, or towards it.
            let towards = entry["in"].as_str();
            let attempt = attempt.replace("<team>", &team);
            if user.account == towards.unwrap_or(&account)
                && is_possible(&attempt, &mut one, owner)?
            {
                let detail = if towards.is_some() { account.clone() } else { String::new() };
                facts.insert(fact(name, user, detail));
            }
        }
    }
    Ok(())
}

/// Subjects by which somebody with these permissions says something that crosses.
fn said(own: &[Permission], crossing: &Crossing) -> Vec<&'static String> {
    let is_said = |subject: &&String| {
        matches(&crossing.said, subject) && may(own, Direction::Publish, subject, "")
    };
    subjects().iter().filter(is_said).collect()
}

/// What crosses from the user's account, and is not said by the user.
fn beyond(user: &User, own: &[Permission]) -> Vec<&'static Crossing> {
    let of = crossings().iter().filter(|crossing| crossing.source == user.account);
    of.filter(|crossing| said(own, crossing).is_empty()).collect()
}

/// Whether what is attempted is heard where the crossing leads, by whichever subject: the broker
/// shows some of it by another one.
fn is_heard(
    stage: &Stage,
    crossing: &Crossing,
    attempt: impl FnOnce() -> Played<()>,
) -> Played<bool> {
    let mut listener = stage.owner_of_account(&crossing.sink)?;
    listener.listen(">")?;
    attempt()?;
    listener.until(|listener| !listener.heard.is_empty(), EFFECT)
}

/// JetStream answers a question of the user's in another account, where the user could not have
/// said it.
fn answered_across(
    stage: &Stage,
    user: &User,
    own: &[Permission],
    one: &mut Intruder,
) -> Played<Vec<&'static Crossing>> {
    let mut asked = stored_subjects();
    asked.retain(|subject| may(own, Direction::Publish, subject, "") && !is_order(subject));
    let mut reached = Vec::new();
    for crossing in beyond(user, own).into_iter().filter(|_| !asked.is_empty()) {
        let attempt = || {
            for subject in &asked {
                one.publish(subject, b"", &concrete(&crossing.said))?;
            }
            one.settle()
        };
        if is_heard(stage, crossing, attempt)? {
            reached.push(crossing);
        }
    }
    Ok(reached)
}

/// A consumer of the user's delivers what a stream holds to another account, where the user could
/// not have said it. JetStream delivers only where somebody in its account asks for this very
/// subject: the user does, if it may, and so does another one there.
fn delivered_across(
    stage: &Stage,
    user: &User,
    own: &[Permission],
    one: &mut Intruder,
) -> Played<Vec<&'static Crossing>> {
    let mut asked = creating(&read_all());
    asked.retain(|(_, subject)| may(own, Direction::Publish, subject, ""));
    let mut other = stage.owner(&user.name)?;
    let mut reached = Vec::new();
    for crossing in beyond(user, own).into_iter().filter(|_| !asked.is_empty()) {
        let attempt = || {
            for group in ["", "q"] {
                let subject = concrete(&crossing.said);
                let begin = subject.rsplit_once('.').map_or("", |(begin, _)| begin);
                let target = format!("{begin}.{}", mark());
                for listener in [&mut *one, &mut other] {
                    listener.subscribe(&target, group)?;
                    listener.settle()?;
                }
                for (stream, subject) in &asked {
                    let question = consumer(stream, subject, &target, group).to_string();
                    one.publish(subject, question.as_bytes(), "")?;
                }
                one.settle()?;
            }
            Ok(())
        };
        if is_heard(stage, crossing, attempt)? {
            reached.push(crossing);
        }
    }
    Ok(reached)
}

/// Somebody of another account who answers a question of the user's does so where the user may not
/// publish: the broker hides from whoever answers where that is.
fn answers_lent(
    user: &User,
    own: &[Permission],
    one: &mut Intruder,
    owners: &mut Owners,
) -> Played<Vec<&'static Crossing>> {
    let mut lent = Vec::new();
    for crossing in crossings().iter().filter(|crossing| crossing.source == user.account) {
        let (question, target) = (mark(), format!("$KV.natsway-lease.{}", mark()));
        assert!(!may(own, Direction::Publish, &target, ""), "{user:?}");
        if let Some(subject) = said(own, crossing).first() {
            one.publish(subject, question.as_bytes(), &target)?;
        }
        one.settle()?;
        let answerer = owners.get_mut(&crossing.sink).expect("an account has an owner");
        answerer.settle()?;
        let is_it = |heard: &&Heard| {
            heard.payload == question.as_bytes() && heard.reply.starts_with("_R_.")
        };
        let replies: Vec<String> =
            answerer.heard.iter().filter(is_it).map(|heard| heard.reply.clone()).collect();
        for reply in replies {
            answerer.publish(&reply, b"an answer", "")?;
        }
        answerer.settle()?;
        let owner = owners.get_mut(&user.account).expect("an account has an owner");
        owner.settle()?;
        if owner.heard.iter().any(|heard| heard.subject == target) {
            lent.push(crossing);
        }
    }
    Ok(lent)
}

/// The user answers a request that another worker was given, and knows the broker's subject for the
/// answer.
fn answers_forged(one: &mut Intruder, owners: &mut Owners) -> Played<Vec<&'static Crossing>> {
    let mut forged = Vec::new();
    for crossing in crossings().iter().filter(|crossing| crossing.what == "requests") {
        let (inbox, question) = (format!("_INBOX.{}", mark()), mark());
        let asker = owners.get_mut(&crossing.source).expect("an account has an owner");
        asker.publish(&concrete(&crossing.said), question.as_bytes(), &inbox)?;
        asker.settle()?;
        let answerer = owners.get_mut(&crossing.sink).expect("an account has an owner");
        answerer.settle()?;
        let is_it = |heard: &&Heard| heard.payload == question.as_bytes();
        let given: Vec<String> =
            answerer.heard.iter().filter(is_it).map(|heard| heard.reply.clone()).collect();
        let [reply] = &given[..] else {
            let (name, times) = (crossing.name(), given.len());
            return Err(PlayError::Failed(format!("{name} is heard {times} times")));
        };
        one.publish(reply, b"forged", "")?;
        one.settle()?;
        let asker = owners.get_mut(&crossing.source).expect("an account has an owner");
        asker.settle()?;
        if asker.heard.iter().any(|heard| heard.subject == inbox) {
            forged.push(crossing);
        }
    }
    Ok(forged)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_right_too_many_is_found() {
        let block = "MAY_WORK_FOR_B {\n  publish: { allow: [\n";
        assert!(accounts::text().contains(block));
        let more = format!("{block}    \"natsway.metrics.gateway.*\"\n");
        let stage = Stage::with_accounts(&accounts::text().replace(block, &more)).unwrap();
        let user = who().into_iter().find(|user| user.name == "team-b-worker").unwrap();
        let told = says(&stage, &user, &permissions_of(&user), &mut BTreeSet::new()).unwrap();
        let expected = "team-b-worker may publish natsway.metrics.gateway.x";
        assert!(told.iter().any(|fault| fault == expected), "{told:?}");
    }
}

//! What is promised of the broker's permissions and accounts: the files below `deploy/nats` are
//! sufficient, minimal and kept to, and between accounts nothing crosses but what is exported and
//! imported.
//!
//! Sufficient: every program does its whole job on a real broker, and the broker has nothing to
//! object. Minimal: each permission is used in that, as the broker's own trace shows; and with any
//! one of them dropped, each on a broker of its own, the job fails, or the broker objects and the
//! program says so in words that name the subject.

mod accounts;
mod attacks;
mod crossings;
mod forgeries;
mod intruder;
mod page;
mod permissions;
mod pipes;
mod played;
mod plays;
mod revoked;
mod running;
mod secrets;
mod server_log;
mod stage;
mod three_brokers;
mod trio;
mod valve;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use natsway_testkit::workspace_example;

use self::attacks::Tried;
use self::permissions::{Permission, ROLES, read_all, replaced, text_for, without};
use self::played::{PlayError, Played};
use self::plays::{PLAYS, play_of};
use self::running::CALLER;
use self::server_log::Operation;
use self::stage::Stage;
use crate::scenario::scenario;
use crate::{Finding, Report, Scenario};

/// The programs that have a part in it.
pub const PROGRAMS: [&str; 6] = ["apiproxy", "worker", "provisioner", "cg", "producer", "consumer"];

/// What is done, and what has to hold then.
pub const SCENARIOS: [Scenario<Size>; 10] = [
    scenario!(
        sufficient,
        "every program does its whole job, the broker has nothing to object, and each permission \
         is used"
    ),
    scenario!(
        kept_to,
        "what no program does is tried as each role: what succeeds is what remains.json says"
    ),
    scenario!(forged_replies, "a worker guesses no token of another one's answer"),
    scenario!(forged_metrics, "no role reports in another's name, but where remains.json says so"),
    scenario!(
        pipes,
        "streams go by pipes with these files; who hears or writes to others' is listed"
    ),
    scenario!(boundaries, "all is said in each account: what crosses is what crossings.json says"),
    scenario!(users, "all is tried as each user of each account: what crosses is what is listed"),
    scenario!(
        revoked,
        "what is taken from a running program is told by it, and given back is used again"
    ),
    scenario!(
        three_brokers,
        "with the shipped TLS all programs work, any one broker may go, no stranger comes"
    ),
    scenario!(
        minimal,
        "with any one permission or line dropped, the broker objects and a program says so"
    ),
];

/// How long a program may take to say what is not permitted.
const TOLD: Duration = Duration::from_secs(10);

/// How large the proof is.
#[derive(Clone, Debug, clap::Args)]
pub struct Size {
    /// Seed of the sample
    #[arg(long, env = "SEED", default_value = "1")]
    pub seed: u64,

    /// Drop so many permissions and lines, and try as so many users, chosen by the seed; all by
    /// default
    #[arg(long, env = "SAMPLE")]
    pub sample: Option<usize>,

    /// Drop the permissions of this role only, and no lines
    #[arg(long, env = "ROLE")]
    pub role: Option<String>,

    /// Brokers at a time
    #[arg(long, env = "JOBS", default_value = "4")]
    pub jobs: usize,

    /// Run only the scenarios whose name holds this
    #[arg(long, env = "ONLY", default_value = "", hide_default_value = true)]
    pub only: String,
}

impl Size {
    /// Picks some of these by the seed, in their order, or all.
    fn sample<T>(&self, mut all: Vec<T>) -> Vec<T> {
        if let Some(sample) = self.sample {
            let mut random = fastrand::Rng::with_seed(self.seed);
            while all.len() > sample {
                all.remove(random.usize(..all.len()));
            }
        }
        all
    }
}

/// Runs the proof.
///
/// # Errors
/// A program does not compile, or something that is not under proof did not work.
pub async fn prove(size: &Size) -> anyhow::Result<Report> {
    // Now, so that no compiler runs beside what is proven.
    workspace_example(CALLER);
    crate::run("security", (size.seed, &size.only), size, &SCENARIOS).await
}

/// Runs what waits for processes where nothing else waits for it.
async fn apart<T: Send + 'static>(
    act: impl FnOnce() -> Played<T> + Send + 'static,
) -> anyhow::Result<T> {
    Ok(tokio::task::spawn_blocking(act).await.context("a play ended in the middle")??)
}

async fn sufficient(size: &Size, _directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let jobs = size.jobs;
    let faults = apart(move || whole(jobs)).await?;
    finding.figure("permissions", read_all().len());
    finding.figure("faults", faults.len());
    finding.broken.extend(faults);
    Ok(())
}

/// Plays everything with all permissions; gives what did not hold.
fn whole(jobs: usize) -> Played<Vec<String>> {
    let mut faults = Vec::new();
    let mut done = BTreeSet::new();
    for (more, used) in each(jobs, &PLAYS, |(name, role, play)| {
        let (mut faults, mut done) = (Vec::new(), BTreeSet::new());
        let stage = Stage::new(&text_for(role))?;
        if let Err(error) = play(&stage) {
            faults.push(format!("{name}: {error}"));
        }
        let may_not = |one: server_log::Violation| {
            format!("{name}: {} may not {} {}", one.role, one.operation, one.subject)
        };
        faults.extend(stage.violations().into_iter().map(may_not));
        faults.extend(stage.told_secrets());
        // In a play with an extra role, that is whose permissions are used, and nobody else's are
        // looked at.
        for operation in stage.operations() {
            let user = operation.user.as_str();
            let whose = match replaced(role) {
                Some(usual) if usual == user => Some(*role),
                None => ROLES.into_iter().find(|role| *role == user),
                Some(_) => None,
            };
            if let Some(whose) = whose {
                done.insert(Operation { user: whose.to_owned(), ..operation });
            }
        }
        Played::Ok((faults, done))
    })
    .into_iter()
    .collect::<Played<Vec<_>>>()?
    {
        faults.extend(more);
        done.extend(used);
    }
    if faults.is_empty() {
        faults.extend(unused(&done).iter().map(|permission| format!("{permission}: not used")));
    }
    Ok(faults)
}

/// Permissions that nothing needs, for nothing was done by them that no other one of the role
/// allows.
fn unused(done: &BTreeSet<Operation>) -> Vec<Permission> {
    let all = read_all();
    let mut needed = BTreeSet::new();
    for operation in done {
        let Operation { user, direction, subject, queue } = operation;
        let mut allowing = all.iter().filter(|permission| {
            permission.role == *user && permission.covers(*direction, subject, queue)
        });
        if let (Some(only), None) = (allowing.next(), allowing.next()) {
            needed.insert(only);
        }
    }
    all.iter().filter(|permission| !needed.contains(permission)).cloned().collect()
}

async fn kept_to(_: &Size, _directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    finding.figure("remains", attacks::known().len());
    tried(finding, attacks::prove).await
}

async fn forged_replies(_: &Size, _directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    tried(finding, forgeries::replies).await
}

async fn forged_metrics(_: &Size, _directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    tried(finding, forgeries::metrics).await
}

async fn pipes(_: &Size, _directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    tried(finding, pipes::prove).await
}

async fn boundaries(_: &Size, _directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    finding.figure("crossings", crossings::crossings().len());
    tried(finding, crossings::boundaries).await
}

async fn users(size: &Size, _directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    finding.figure("remains_across", crossings::remaining_facts().len());
    let (seed, sample) = (size.seed, size.sample);
    tried(finding, move || crossings::prove(&mut fastrand::Rng::with_seed(seed), sample)).await
}

async fn revoked(size: &Size, _directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let jobs = size.jobs;
    let faults = apart(move || {
        Ok(each(jobs, &revoked::PLAYS, |(name, play)| {
            play().err().map(|error| format!("{name}: {error}"))
        }))
    })
    .await?;
    finding.figure("plays", revoked::PLAYS.len());
    finding.broken.extend(faults.into_iter().flatten());
    Ok(())
}

async fn three_brokers(_: &Size, _directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    if !trio::is_possible() {
        eprintln!("*** SKIPPED: no openssl in PATH, so no certificates are made");
        return Ok(());
    }
    let (faults, answered) = apart(three_brokers::play).await?;
    finding.figure("answered_while_brokers_died", answered);
    finding.broken.extend(faults);
    Ok(())
}

/// Notes what was tried, and what escaped.
async fn tried(
    finding: &mut Finding,
    act: impl FnOnce() -> Played<Tried> + Send + 'static,
) -> anyhow::Result<()> {
    let Tried { faults, count } = apart(act).await?;
    finding.figure("tried", count);
    finding.figure("escapes", faults.len());
    finding.broken.extend(faults);
    Ok(())
}

async fn minimal(size: &Size, _directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let mut chosen = read_all();
    chosen.retain(|one| size.role.as_ref().is_none_or(|role| one.role == *role));
    let chosen = size.sample(chosen);
    let lines = match size.role {
        None => size.sample(accounts::lines()),
        Some(_) => Vec::new(),
    };
    finding.figure("lines_left_out", lines.len());
    finding.figure("dropped", chosen.len());
    let jobs = size.jobs;
    let (escapes, verdicts) = apart(move || {
        let escapes = each(jobs, &lines, |line| {
            let escapes = crossings::leave_out(line);
            eprintln!("  left out  {line}");
            escapes
        });
        let verdicts = each(jobs, &chosen, |permission| {
            let verdict = drop_one(permission)?;
            eprintln!("  {verdict:?}  {permission}");
            Played::Ok((permission.clone(), verdict))
        });
        Ok((escapes, verdicts.into_iter().collect::<Played<Vec<_>>>()?))
    })
    .await?;
    finding.broken.extend(escapes.into_iter().flatten());
    let count = |of: fn(&Verdict) -> bool| verdicts.iter().filter(|(_, one)| of(one)).count();
    finding.figure("objected", count(|one| matches!(one, Verdict::Objected { .. })));
    finding.figure("failed", count(|one| matches!(one, Verdict::Failed { .. })));
    finding.figure("survived", count(|one| matches!(one, Verdict::Survived)));
    finding.figure("untold", count(|one| matches!(one, Verdict::Objected { is_told: false, .. })));
    for (permission, verdict) in &verdicts {
        match verdict {
            Verdict::Survived => finding.broken.push(format!("{permission}: not needed")),
            Verdict::Objected { is_told: false, what } => {
                finding.broken.push(format!("{permission}: no program tells: {what}"));
            }
            Verdict::Objected { .. } | Verdict::Failed { .. } => {}
        }
    }
    Ok(())
}

/// What became of a job with one permission less.
#[derive(Clone, Debug)]
enum Verdict {
    /// The broker objected.
    Objected {
        /// To what.
        what: String,
        /// A program said it, with the subject.
        is_told: bool,
    },
    /// The job failed.
    Failed {
        /// How.
        #[expect(dead_code, reason = "it is shown as it is formatted")]
        why: String,
    },
    /// Neither, so that the permission is not needed.
    Survived,
}

/// Plays a role's job with one permission less.
fn drop_one(permission: &Permission) -> Played<Verdict> {
    let user = permission.user();
    let stage = Stage::watching(&without(permission), user)?;
    Ok(match play_of(&permission.role)(&stage) {
        Ok(()) => Verdict::Survived,
        Err(PlayError::Failed(why)) => Verdict::Failed { why: why.chars().take(200).collect() },
        Err(violated @ PlayError::Violated { .. }) => {
            let PlayError::Violated { subject, .. } = &violated else { unreachable!() };
            Verdict::Objected {
                is_told: is_told(&stage, user, subject),
                what: violated.to_string(),
            }
        }
    })
}

/// Whether a program of the role says what is not permitted, soon.
fn is_told(stage: &Stage, role: &str, subject: &str) -> bool {
    let deadline = std::time::Instant::now() + TOLD;
    while !stage.is_told(role, subject) {
        if std::time::Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(100));
    }
    true
}

/// Does the same with each, so many at a time; gives what came of them in their order.
fn each<T: Sync, R: Send>(jobs: usize, all: &[T], act: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let left = Mutex::new(all.iter().enumerate());
    let done = Mutex::new(Vec::with_capacity(all.len()));
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for _ in 0..jobs.clamp(1, all.len().max(1)) {
            scope.spawn(|| {
                while let Some((place, one)) = next() {
                    let result = act(one);
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((place, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_permission_has_a_play() {
        for permission in read_all() {
            play_of(&permission.role);
        }
    }

    #[test]
    fn a_sample_is_the_same_for_the_same_seed_and_all_without() {
        let size = |sample, seed| Size { seed, sample, role: None, jobs: 1, only: String::new() };
        let all: Vec<u32> = (0..50).collect();
        assert_eq!(size(None, 1).sample(all.clone()), all);
        let some = size(Some(5), 1).sample(all.clone());
        assert_eq!((some.len(), some.is_sorted()), (5, true));
        assert_eq!(size(Some(5), 1).sample(all.clone()), some);
        assert_ne!(size(Some(5), 2).sample(all), some);
    }

    #[test]
    fn each_is_done_once_and_given_in_order() {
        let all: Vec<u32> = (0..20).collect();
        assert_eq!(each(3, &all, |one| one * 2), all.iter().map(|one| one * 2).collect::<Vec<_>>());
        assert!(each(3, &[] as &[u32], |one| *one).is_empty());
    }
}

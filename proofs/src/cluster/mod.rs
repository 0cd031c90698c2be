//! What is promised of a cluster of three brokers: any one may die or freeze under load, and the
//! work goes on.

mod faults;
mod group;
mod stage;
mod starts;

use std::time::Duration;

use http::Method;

use self::faults::{broker_frozen, broker_killed, workers_restart};
use self::stage::Stage;
use self::starts::forming;
use super::ledger::Ledger;
use super::load::{Load, Tally};
use super::scenario::{Scenario, run, scenario};
use super::{Finding, Report, Size};

/// No answer at all for longer than this is an outage. Longer than a POST whose outcome is unknown
/// keeps its connection.
const LONGEST_GAP: Duration = Duration::from_secs(20);

/// What is done, and what has to hold then.
pub const SCENARIOS: [Scenario<Size>; 4] = [
    scenario!(
        forming,
        "brokers come late: a gateway is ready once it has all its routes, and not before"
    ),
    scenario!(
        broker_killed,
        "every kind of broker is killed: no GET fails, a POST that was out is 504, no message is \
         lost"
    ),
    scenario!(broker_frozen, "every kind of broker stands still for a while: the same"),
    scenario!(workers_restart, "all workers leave at once and others come: no request fails"),
];

/// Runs every scenario, or those that were asked for.
///
/// # Errors
/// Something that is not under proof did not work: a process that does not start, a file that
/// cannot be written.
pub async fn prove(size: &Size) -> anyhow::Result<Report> {
    run("cluster", (size.seed, &size.only), size, &SCENARIOS).await
}

/// Ends the load, writes down what all scenarios have in common, and judges what holds in all of
/// them.
async fn settle(finding: &mut Finding, stage: &Stage, load: Load) -> anyhow::Result<Tally> {
    let tally = load.stop().await;
    std::fs::write(stage.directory().join("outcomes.csv"), tally.csv())?;
    let milliseconds = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let gap = longest_gap(&tally);
    finding.figure("requests", tally.outcomes.len());
    finding.figure("requests_per_second", tally.rate());
    finding.figure("failed_gets", failed(&tally, &Method::GET));
    finding.figure("failed_posts", failed(&tally, &Method::POST));
    finding.figure("failures", tally.failures());
    finding.figure("slowest_get_ms", milliseconds(slowest_get(&tally)));
    finding.figure("longest_time_without_an_answer_ms", milliseconds(gap));
    for name in ["retries", "broker_connects", "tunnel_requests"] {
        finding.figure(name, stage.metric(&format!("natsway_{name}_total")).await);
    }
    let ledger = Ledger::read(&stage.run_logs())?;
    let repeated = ledger.repeated_posts(&tally);
    finding.promise(repeated == 0, || format!("{repeated} POSTs ran more than once"));
    let phantom = ledger.answered_without_a_run(&tally);
    finding.promise(phantom == 0, || format!("{phantom} requests were answered and ran nowhere"));
    let gets = failed(&tally, &Method::GET);
    finding.promise(gets == 0, || format!("{gets} GETs failed: {}", tally.failures()));
    finding.promise(gap < LONGEST_GAP, || format!("nothing was answered for {gap:?}"));
    Ok(tally)
}

fn failed(tally: &Tally, method: &Method) -> usize {
    tally.failed().into_iter().filter(|outcome| outcome.method == *method).count()
}

fn slowest_get(tally: &Tally) -> Duration {
    let gets = tally.outcomes.iter().filter(|outcome| outcome.method == Method::GET);
    gets.map(|outcome| outcome.took).max().unwrap_or_default()
}

/// The longest time between two good answers that followed each other.
fn longest_gap(tally: &Tally) -> Duration {
    let good = tally.outcomes.iter().filter(|outcome| !outcome.failed());
    let mut moments: Vec<Duration> = good.map(|outcome| outcome.answered_at).collect();
    moments.sort_unstable();
    moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(tally.lasted)
}

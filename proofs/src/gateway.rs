//! What is promised of the gateway and its workers, each under load with its fault.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use http::Method;
use natsway_testkit::{Cluster, TcpLink, TestBroker, eventually, free_port};
use natsway_wire::frame::LEASE;

use super::ledger::Ledger;
use super::load::{Load, RequestOutcome, Tally};
use super::scenario::{Scenario, run, scenario};
use super::stand::{DEADLINE, Extras, HASTY, PATIENT, Stand};
use super::{Finding, Report, Size};

/// How soon after the broker's return requests go through again.
const RECOVERY: Duration = Duration::from_secs(2);

/// Requests that a gateway has sent by tunnels.
const BY_TUNNEL: &str = "natsway_tunnel_requests_total";

/// How long nothing may fail after that, for a success or two show little.
const STEADY: Duration = Duration::from_secs(3);

/// What is done, and what has to hold then.
pub const SCENARIOS: [Scenario<Size>; 10] = [
    scenario!(rolling_restart, "each of three workers is replaced in turn: no request fails"),
    scenario!(
        last_member,
        "the only worker of a version leaves and another comes: no request fails"
    ),
    scenario!(
        lame_duck,
        "one of two brokers shuts down in lame-duck mode, then the other: no request fails"
    ),
    scenario!(
        worker_killed,
        "one of two workers is killed: only what it held fails, with 502 or 504"
    ),
    scenario!(
        worker_frozen,
        "one of two workers freezes: GETs are answered in time, POSTs fail honestly or succeed"
    ),
    scenario!(
        broker_restart,
        "the broker restarts: two seconds after its return every request goes through"
    ),
    scenario!(
        network_cut,
        "the network holds everything back: what was answered meanwhile never runs late"
    ),
    scenario!(
        broker_away,
        "the broker is away for long: tunnels serve as long as their lease, then all is 503"
    ),
    scenario!(
        tunnels_cut,
        "tunnels are cut again and again: only what was out there fails, and they come back"
    ),
    scenario!(
        gateway_frozen,
        "the gateway freezes and wakes: what it answered never runs afterwards, no POST twice"
    ),
];

/// A gateway and so many workers, with the transport that is asked for; the URLs are the workers'
/// and the gateway's.
async fn stand(
    size: &Size,
    directory: &Path,
    [broker_url, gateway_broker_url]: [&str; 2],
    times: &str,
    workers: usize,
) -> anyhow::Result<Stand> {
    let extras = Extras { transport: size.transport, ..Extras::default() };
    let urls = (broker_url, gateway_broker_url);
    Stand::start_with(directory, urls, times, workers, extras).await
}

/// Runs every scenario, or those that were asked for.
///
/// # Errors
/// Something that is not under proof did not work: a process that does not start, a file that
/// cannot be written.
pub async fn prove(size: &Size) -> anyhow::Result<Report> {
    run("gateway", (size.seed, &size.only), size, &SCENARIOS).await
}

/// Ends the load and writes down what all scenarios have in common.
async fn settle(
    size: &Size,
    finding: &mut Finding,
    stand: &Stand,
    load: Load,
) -> anyhow::Result<(Tally, Ledger)> {
    let tally = load.stop().await;
    let by_tunnel = stand.metric(BY_TUNNEL).await?;
    finding.figure("by_tunnel", by_tunnel);
    finding.promise(!size.transport.is_by_tunnels() || by_tunnel > 100.0, || {
        format!("only {by_tunnel} requests went by tunnels")
    });
    let ledger = Ledger::read(&stand.run_logs())?;
    std::fs::write(stand.directory().join("outcomes.csv"), tally.csv())?;
    finding.figure("requests", tally.outcomes.len());
    finding.figure("requests_per_second", tally.rate());
    finding.figure("failed", tally.failed().len());
    finding.figure("slowest_ms", u64::try_from(tally.slowest().as_millis())?);
    finding.figure("gateway_retries", stand.metric("natsway_retries_total").await?);
    let repeated = ledger.repeated_posts(&tally);
    finding.figure("posts_run_twice", repeated);
    finding.promise(repeated == 0, || format!("{repeated} POSTs ran more than once"));
    let phantom = ledger.answered_without_a_run(&tally);
    finding.promise(phantom == 0, || format!("{phantom} requests were answered and ran nowhere"));
    Ok((tally, ledger))
}

fn none_failed(finding: &mut Finding, tally: &Tally) {
    finding.promise(tally.failed().is_empty(), || format!("failed: {}", tally.failures()));
}

/// Each of three workers is replaced in turn: zero failed requests.
async fn rolling_restart(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let mut stand = stand(size, directory, [&broker.url(), &broker.url()], PATIENT, 3).await?;
    let load = Load::start(stand.port, size.connections, size.seed);
    let mut choices = size.choices();
    let share = size.requests / (3 * size.rounds);
    for step in 0..3 * size.rounds {
        load.reach(step * share + choices.usize(..=share / 2)).await;
        // Of those that were there when the round began, one goes, and another comes behind them.
        stand.retire_worker(choices.usize(..3 - step % 3)).await?;
        stand.add_worker();
        stand.members(3).await;
    }
    load.reach(size.requests).await;
    let (tally, _) = settle(size, finding, &stand, load).await?;
    finding.figure("restarts", 3 * size.rounds);
    none_failed(finding, &tally);
    Ok(())
}

/// The only worker of a version leaves and another comes: zero failed requests, because the gateway
/// stands in.
async fn last_member(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let cluster = Cluster::start(3).await;
    // Gateway and worker sit at different servers: what is on its way between them is what gets
    // lost.
    let mut stand =
        stand(size, directory, [&cluster[1].url(), &cluster[0].url()], PATIENT, 1).await?;
    let load = Load::start(stand.port, size.connections, size.seed);
    let mut choices = size.choices();
    let share = size.requests / (4 * size.rounds);
    for round in 0..size.rounds {
        load.reach((round + 1) * share + choices.usize(..=share / 2)).await;
        stand.retire_worker(0).await?;
        stand.add_worker();
        stand.members(1).await;
    }
    let soon = load.answered() + size.requests / 10;
    load.reach(soon).await;
    let (tally, _) = settle(size, finding, &stand, load).await?;
    finding.figure("restarts", size.rounds);
    let moved = stand.metric("natsway_failed_attempts_total{reason=\"moved\"}").await?;
    finding.figure("moved", moved);
    // Without a stand-in the broker loses few requests, so their number alone would show little.
    // By tunnels a worker says itself that it leaves.
    finding.promise(moved > 0.0 || size.transport.is_by_tunnels(), || {
        "no gateway stood in for the last worker".to_owned()
    });
    none_failed(finding, &tally);
    Ok(())
}

/// One of two brokers shuts down in lame-duck mode, then the other: zero failed requests.
async fn lame_duck(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let mut cluster = Cluster::start(2).await;
    let stand = stand(size, directory, [&cluster.url(), &cluster.url()], PATIENT, 2).await?;
    let load = Load::start(stand.port, size.connections, size.seed);
    let mut choices = size.choices();
    let (first, share) = (choices.usize(..2), size.requests / (2 * size.rounds));
    for round in 0..size.rounds {
        let leaving = (first + round) % 2;
        load.reach((round + 1) * share + choices.usize(..=share / 2)).await;
        cluster[leaving].lame_duck();
        cluster[leaving].wait_exit(Duration::from_secs(120)).await;
        cluster[leaving].start_again().await;
        cluster.ready().await;
    }
    let (tally, _) = settle(size, finding, &stand, load).await?;
    finding.figure("shutdowns", size.rounds);
    finding.figure("broker_connects", stand.metric("natsway_broker_connects_total").await?);
    none_failed(finding, &tally);
    Ok(())
}

/// One of two workers is killed: only requests that it held fail, with 502 or 504, and the service
/// goes on.
async fn worker_killed(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let mut stand = stand(size, directory, [&broker.url(), &broker.url()], PATIENT, 2).await?;
    let load = Load::start(stand.port, size.connections, size.seed);
    let mut choices = size.choices();
    let share = size.requests / (2 * size.rounds);
    for round in 0..size.rounds {
        load.reach((round + 1) * share + choices.usize(..=share / 2)).await;
        let victim = choices.usize(..stand.workers.len());
        stand.workers.remove(victim).kill9();
        stand.add_worker();
        stand.members(2).await;
        let soon = load.answered() + size.requests / 10;
        load.reach(soon).await;
    }
    let (tally, _) = settle(size, finding, &stand, load).await?;
    let wrong = tally
        .failed()
        .into_iter()
        .filter(|outcome| !matches!(outcome.status, Ok(502 | 504)))
        .count();
    finding.figure("kills", size.rounds);
    finding.promise(wrong == 0, || {
        format!("{wrong} failures are no 502 or 504: {}", tally.failures())
    });
    // A connection holds one request at a time, and one worker holds about half of them.
    let most = size.rounds * size.connections;
    finding.promise(tally.failed().len() <= most, || {
        format!(
            "{} requests failed, more than the killed workers can have held: {}",
            tally.failed().len(),
            tally.failures()
        )
    });
    let gets = tally.failed().into_iter().filter(|outcome| outcome.method == Method::GET).count();
    finding
        .promise(gets == 0, || format!("{gets} GETs failed although another worker could answer"));
    Ok(())
}

/// One of two workers freezes: GETs are answered by the other within their deadline; POSTs fail
/// honestly or succeed.
async fn worker_frozen(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let mut stand = stand(size, directory, [&broker.url(), &broker.url()], PATIENT, 2).await?;
    let load = Load::start(stand.port, size.connections, size.seed);
    let mut choices = size.choices();
    load.reach(size.requests / 10 + choices.usize(..=size.requests / 20)).await;
    let victim = choices.usize(..stand.workers.len());
    stand.workers[victim].freeze();
    let frozen = Instant::now();
    // The broker drops a client that leaves its pings unanswered; from then on all goes to the
    // other worker.
    stand.members(1).await;
    let is_noticed = || async {
        let before = load.answered();
        tokio::time::sleep(Duration::from_millis(250)).await;
        load.answered() > before + size.connections
    };
    eventually(DEADLINE, async || is_noticed().await).await;
    finding.figure("recovered_after_ms", u64::try_from(frozen.elapsed().as_millis())?);
    stand.workers[victim].thaw();
    stand.members(2).await;
    let soon = load.answered() + size.requests / 10;
    load.reach(soon).await;
    let (tally, _) = settle(size, finding, &stand, load).await?;
    let gets = tally.failed().into_iter().filter(|outcome| outcome.method == Method::GET).count();
    finding.promise(gets == 0, || format!("{gets} GETs failed: {}", tally.failures()));
    let wrong = tally
        .failed()
        .into_iter()
        .filter(|outcome| !matches!(outcome.status, Ok(502 | 504)))
        .count();
    finding.promise(wrong == 0, || {
        format!("{wrong} failures are no 502 or 504: {}", tally.failures())
    });
    Ok(())
}

/// The broker is restarted: two seconds after its return every request goes through again.
async fn broker_restart(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let mut broker = TestBroker::start().await;
    let stand = stand(size, directory, [&broker.url(), &broker.url()], PATIENT, 2).await?;
    let load = Load::start(stand.port, size.connections, size.seed);
    let mut choices = size.choices();
    let killed_first = choices.usize(..2);
    let mut returns = Vec::new();
    for round in 0..size.rounds {
        let so_far = load.answered();
        load.reach(so_far + size.requests / 10 + choices.usize(..=size.requests / 20)).await;
        if round % 2 == killed_first {
            broker.kill9()
        } else {
            broker.stop().await
        }
        broker.start_again().await;
        let back = load.elapsed();
        returns.push(back);
        stand.members(2).await;
        stand.gateway_ready().await;
        load.last(back + RECOVERY + STEADY).await;
    }
    let (tally, _) = settle(size, finding, &stand, load).await?;
    let recoveries: Vec<Recovery> =
        returns.iter().map(|back| Recovery::after(*back, &tally)).collect();
    let slowest = recoveries.iter().map(|recovery| recovery.took).max().unwrap_or_default();
    let fewest =
        recoveries.iter().map(|recovery| recovery.succeeded_since).min().unwrap_or_default();
    finding.figure("restarts", size.rounds);
    finding.figure("recovered_after_ms", u64::try_from(slowest.as_millis()).unwrap_or(u64::MAX));
    finding.figure("succeeded_since", fewest);
    finding.promise(slowest < RECOVERY, || {
        format!("requests failed until {slowest:?} after the broker's return")
    });
    finding.promise(fewest > size.connections, || {
        format!("only {fewest} requests succeeded between {RECOVERY:?} and {STEADY:?} later")
    });
    let wrong = tally.failed().into_iter().filter(|outcome| match outcome.method {
        Method::GET => outcome.status != Ok(503),
        _ => !matches!(outcome.status, Ok(503 | 504)),
    });
    let wrong = wrong.count();
    finding.promise(wrong == 0, || {
        format!("{wrong} failures have a wrong status: {}", tally.failures())
    });
    Ok(())
}

/// What came after a return of the broker.
struct Recovery {
    /// Until the last failure of the time that was watched.
    took: Duration,
    /// Requests that succeeded when it should have recovered.
    succeeded_since: usize,
}

impl Recovery {
    fn after(back: Duration, tally: &Tally) -> Self {
        let watched = back..back + RECOVERY + STEADY;
        let outcomes =
            || tally.outcomes.iter().filter(|outcome| watched.contains(&outcome.answered_at));
        let last_failure =
            outcomes().filter(|outcome| outcome.failed()).map(|outcome| outcome.answered_at).max();
        let since =
            outcomes().filter(|outcome| !outcome.failed() && outcome.answered_at > back + RECOVERY);
        Self {
            took: last_failure.map_or(Duration::ZERO, |at| at - back),
            succeeded_since: since.count(),
        }
    }
}

/// The network between gateway and broker holds everything back, for less and for more than it
/// takes to notice. What was answered in the meantime must not run when the network lets go.
async fn network_cut(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let mut link = TcpLink::to_port(broker.port()).await;
    let stand = stand(size, directory, [&broker.url(), &link.url()], HASTY, 2).await?;
    let load = Load::start(stand.port, size.connections, size.seed);
    let mut choices = size.choices();
    let short_first = choices.usize(..2);
    let mut cuts = Vec::new();
    for round in 0..size.rounds {
        let so_far = load.answered();
        load.reach(so_far + size.requests / 10 + choices.usize(..=size.requests / 20)).await;
        let cut_at = load.elapsed();
        link.pause();
        // Three unanswered pings, 6 s, end a connection.
        let held_ms = if round % 2 == short_first {
            choices.u64(2_500..4_000)
        } else {
            choices.u64(9_000..11_000)
        };
        tokio::time::sleep(Duration::from_millis(held_ms)).await;
        let ran: Ledger = Ledger::read(&stand.run_logs())?;
        let resumed_at = load.elapsed();
        link.resume().await;
        cuts.push((ran, cut_at..resumed_at));
        stand.gateway_ready().await;
    }
    let so_far = load.answered();
    load.reach(so_far + size.requests / 10).await;
    let (tally, ledger) = settle(size, finding, &stand, load).await?;
    let (mut late, mut answered_meanwhile) = (HashSet::new(), HashSet::new());
    for (ran_before, cut) in &cuts {
        let failed = tally.failed();
        let meanwhile = failed.iter().filter(|outcome| cut.contains(&outcome.answered_at)).count();
        // A cut that nobody feels would prove nothing. Tunnels do not go through there, but one
        // that lasts longer than their lease is felt.
        let is_felt = !size.transport.is_by_tunnels() || cut.end - cut.start > LEASE;
        finding.promise(meanwhile > 0 || !is_felt, || {
            format!("nothing failed while the network was cut for {:?}", cut.end - cut.start)
        });
        for outcome in failed.into_iter().filter(|outcome| outcome.answered_at < cut.end) {
            answered_meanwhile.insert(outcome.nonce);
            if ledger.runs(outcome.nonce) > ran_before.runs(outcome.nonce) {
                late.insert(outcome.nonce);
            }
        }
    }
    finding.figure("cuts", size.rounds);
    finding.figure("failed_while_cut", answered_meanwhile.len());
    finding.figure("run_after_their_answer", late.len());
    finding.promise(late.is_empty(), || {
        format!("{} requests ran after their client was answered", late.len())
    });
    Ok(())
}

/// How soon after the broker went what was out there is over, and tunnels are used alone.
const ALONE: Duration = Duration::from_secs(1);

/// A lease was confirmed at most so long before the broker went.
const CONFIRMED: Duration = Duration::from_secs(3);

/// The broker is away for longer than a lease. Who has tunnels is served by them for as long as
/// that, and is then refused at once; who has none is refused from the beginning. When it is back,
/// all is as before.
async fn broker_away(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let mut broker = TestBroker::start().await;
    let stand = stand(size, directory, [&broker.url(), &broker.url()], PATIENT, 2).await?;
    let load = Load::start(stand.port, size.connections, size.seed);
    let mut choices = size.choices();
    let mut absences = Vec::new();
    for _ in 0..size.rounds {
        let so_far = load.answered();
        load.reach(so_far + size.requests / 10 + choices.usize(..=size.requests / 20)).await;
        let away = load.elapsed();
        broker.kill9();
        load.last(away + LEASE + Duration::from_millis(choices.u64(3_000..5_000))).await;
        broker.start_again().await;
        let back = load.elapsed();
        absences.push(away..back);
        stand.members(2).await;
        stand.gateway_ready().await;
        load.last(back + RECOVERY + STEADY).await;
    }
    let (tally, _) = settle(size, finding, &stand, load).await?;
    let within = |from: Duration, to: Duration| {
        let sent = move |outcome: &RequestOutcome| outcome.answered_at.saturating_sub(outcome.took);
        tally
            .outcomes
            .iter()
            .filter(move |outcome| sent(outcome) >= from && outcome.answered_at < to)
    };
    let (mut by_tunnels, mut refused) = (usize::MAX, usize::MAX);
    for absence in &absences {
        let (away, back) = (absence.start, absence.end);
        let alone = || within(away + ALONE, away + LEASE - CONFIRMED);
        let served = alone().filter(|outcome| !outcome.failed()).count();
        by_tunnels = by_tunnels.min(served);
        if size.transport.is_by_tunnels() {
            let failed = alone().count() - served;
            finding.promise(failed == 0, || {
                format!("{failed} of {} requests failed that had tunnels", failed + served)
            });
        }
        let without = || within(away + LEASE, back);
        refused = refused.min(without().count());
        let wrong = without().filter(|outcome| outcome.status != Ok(503)).count();
        finding.promise(wrong == 0, || {
            format!("{wrong} requests without broker and lease were not answered by 503")
        });
        let took = Recovery::after(back, &tally).took;
        finding.promise(took < RECOVERY, || {
            format!("requests failed until {took:?} after the broker's return")
        });
    }
    finding.figure("absences", absences.len());
    finding.figure("served_without_broker", by_tunnels);
    finding.figure("refused_without_lease", refused);
    let is_served = by_tunnels > size.connections;
    finding.promise(is_served || !size.transport.is_by_tunnels(), || {
        format!("only {by_tunnels} requests were served by tunnels alone")
    });
    finding.promise(refused > 0, || "nobody asked when the lease was over".to_owned());
    Ok(())
}

/// Cuts of the tunnels that follow each other in a storm.
const STORM: usize = 8;

/// Tunnels are cut, in the middle of whatever is on them, many times in a row: what was out there
/// is answered by 502 or runs elsewhere, nothing runs twice, and afterwards requests go by tunnels
/// again.
async fn tunnels_cut(size: &Size, directory: &Path, finding: &mut Finding) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let port = free_port();
    let mut link = TcpLink::to_port(port).await;
    let (listen, address) = (format!("127.0.0.1:{port}"), format!("127.0.0.1:{}", link.port()));
    let gateway = ["--tunnel-listen", &listen, "--tunnel-address", &address];
    let extras = Extras { gateway: &gateway, transport: size.transport, ..Extras::default() };
    let urls = (&*broker.url(), &*broker.url());
    let stand = Stand::start_with(directory, urls, PATIENT, 2, extras).await?;
    let load = Load::start(stand.port, size.connections, size.seed);
    let mut choices = size.choices();
    for _ in 0..size.rounds {
        let so_far = load.answered();
        load.reach(so_far + size.requests / 10).await;
        for _ in 0..STORM {
            tokio::time::sleep(Duration::from_millis(choices.u64(50..600))).await;
            link.cut().await;
            link.resume().await;
        }
        let before = stand.metric(BY_TUNNEL).await?;
        if size.transport.is_by_tunnels() {
            eventually(DEADLINE, async || {
                let now = stand.metric(BY_TUNNEL).await.map_err(|error| error.to_string())?;
                if now > before + 100.0 { Ok(()) } else { Err(format!("{now} after {before}")) }
            })
            .await;
        }
    }
    let calm = load.elapsed();
    load.more(size.requests / 10).await;
    let (tally, _) = settle(size, finding, &stand, load).await?;
    let cuts = size.rounds * STORM;
    finding.figure("cuts", cuts);
    finding.figure("failures", tally.failures());
    let is_honest =
        |outcome: &&RequestOutcome| outcome.method == Method::POST && outcome.status == Ok(502);
    let wrong = tally.failed().into_iter().filter(|outcome| !is_honest(outcome)).count();
    finding.promise(wrong == 0, || {
        format!("{wrong} failures are no POST with 502: {}", tally.failures())
    });
    let most = cuts * size.connections;
    finding.promise(tally.failed().len() <= most, || {
        format!("more failed than was out: {}", tally.failures())
    });
    let late = tally.failed().into_iter().filter(|outcome| outcome.answered_at > calm).count();
    finding.promise(late == 0, || format!("{late} requests failed after the storm"));
    Ok(())
}

/// The gateway freezes, for less and for more than the broker leaves it, and wakes. What it answers
/// then has not run, or ran before.
async fn gateway_frozen(
    size: &Size,
    directory: &Path,
    finding: &mut Finding,
) -> anyhow::Result<()> {
    let broker = TestBroker::start().await;
    let mut stand = stand(size, directory, [&broker.url(), &broker.url()], HASTY, 2).await?;
    let load = Load::start(stand.port, size.connections, size.seed);
    let mut choices = size.choices();
    let mut wakes = Vec::new();
    for round in 0..size.rounds {
        let so_far = load.answered();
        load.reach(so_far + size.requests / 10 + choices.usize(..=size.requests / 20)).await;
        stand.gateway.freeze();
        let frozen_ms = match round % 2 {
            0 => choices.u64(11_000..13_000),
            _ => choices.u64(1_500..3_000),
        };
        tokio::time::sleep(Duration::from_millis(frozen_ms)).await;
        stand.gateway.thaw();
        stand.gateway_ready().await;
        // Each connection had one request out, which is answered now.
        load.more(2 * size.connections).await;
        let at = load.elapsed();
        wakes.push((Ledger::read(&stand.run_logs())?, at));
    }
    load.more(size.requests / 10).await;
    let (tally, ledger) = settle(size, finding, &stand, load).await?;
    let mut late = HashSet::new();
    for (ran_by_then, at) in &wakes {
        let answered = tally.failed().into_iter().filter(|outcome| outcome.answered_at < *at);
        let ran_since = |nonce: &u64| ledger.runs(*nonce) > ran_by_then.runs(*nonce);
        late.extend(answered.map(|outcome| outcome.nonce).filter(ran_since));
    }
    finding.figure("freezes", size.rounds);
    finding.figure("failures", tally.failures());
    finding.promise(late.is_empty(), || {
        format!("{} requests ran after their client was answered", late.len())
    });
    let wrong =
        tally.failed().into_iter().filter(|outcome| !matches!(outcome.status, Ok(502..=504)));
    let wrong = wrong.count();
    finding.promise(wrong == 0, || {
        format!("{wrong} failures have a wrong status: {}", tally.failures())
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(answers: &[(u64, u16)]) -> Tally {
        let outcome = |(nonce, (at_ms, status)): (usize, &(u64, u16))| RequestOutcome {
            nonce: nonce as u64,
            method: Method::GET,
            status: Ok(*status),
            own: true,
            answered_at: Duration::from_millis(*at_ms),
            took: Duration::ZERO,
            through: None,
        };
        Tally {
            outcomes: answers.iter().enumerate().map(outcome).collect(),
            lasted: Duration::from_secs(60),
        }
    }

    #[test]
    fn one_success_is_no_recovery() {
        let back = Duration::from_secs(10);
        let flickering =
            tally(&[(9_000, 503), (10_001, 200), (12_500, 503), (12_600, 200), (16_000, 503)]);
        let recovery = Recovery::after(back, &flickering);
        assert_eq!((recovery.took, recovery.succeeded_since), (Duration::from_millis(2_500), 1));
        let steady = Recovery::after(
            back,
            &tally(&[(9_000, 503), (10_100, 503), (12_001, 200), (13_000, 200)]),
        );
        assert_eq!((steady.took, steady.succeeded_since), (Duration::from_millis(100), 2));
    }
}

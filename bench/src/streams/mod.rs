//! What streams cost: bodies down and up, WebSockets, calls of gRPC, and small requests beside
//! downloads; straight, over tunnels, and through proxies; `bench streams`.

pub(crate) mod clients;
mod ways;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use self::clients::{Load, run};
use self::ways::{Started, Way};
use crate::harness::meter::{Meter, quiet};
use crate::raw_directory;
use crate::results::Role;

/// How much is measured.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Seconds of each run
    #[arg(long, env = "SECONDS", value_name = "SECONDS", default_value = "3")]
    seconds: f64,

    /// How often each runs, in turn with the others
    #[arg(long, env = "ROUNDS", value_name = "COUNT", default_value = "3")]
    rounds: usize,

    /// Only loads whose name holds this
    #[arg(long, env = "ONLY", value_name = "TEXT", default_value = "", hide_default_value = true)]
    only: String,

    /// Only these ways, by their names with commas between; all without
    #[arg(long, env = "WAYS", value_name = "NAMES", default_value = "", hide_default_value = true)]
    ways: String,

    /// The gateway's and the worker's `--tunnel-window`, in bytes
    #[arg(long, env = "NATSWAY_TUNNEL_WINDOW", value_name = "BYTES", default_value = "262144")]
    window: u32,
}

impl Args {
    fn takes(&self, way: Way) -> bool {
        self.ways.is_empty() || self.ways.split(',').any(|name| name == way.name())
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    way: String,
    load: String,
    round: usize,
    /// Bodies, messages or calls.
    count: usize,
    mib_per_second: f64,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Processor time for each GiB: of what stands before the service, and of that.
    gateway_s_per_gib: f64,
    service_s_per_gib: f64,
    /// What others took of the machine meanwhile, as a part of it.
    foreign: f64,
}

/// Measures all loads over all ways in turn, and prints a table and one line of JSON.
///
/// # Errors
/// When something does not start, or answers otherwise than it should.
pub async fn measure(args: &Args) -> Result<()> {
    let directory = raw_directory("streams")?;
    let loads: Vec<Load> =
        Load::all().into_iter().filter(|load| load.to_string().contains(&args.only)).collect();
    let ways = Way::all().into_iter().filter(|way| args.takes(*way));
    let mut started = Vec::new();
    for way in ways {
        let place = directory.join(way.name());
        std::fs::create_dir_all(&place)?;
        match way.start(&place, args.window).await {
            Ok(there) => started.push((way, there)),
            Err(error) => eprintln!("{}: skipped, {error:#}", way.name()),
        }
    }
    let mut all = Vec::new();
    for load in &loads {
        for round in 0..args.rounds {
            // Side by side: what others do to the machine changes from one minute to the next.
            for (way, there) in started.iter().filter(|(way, _)| way.carries(load)) {
                let one = run_once(load, *way, there, args.seconds, round).await?;
                eprintln!("{}", serde_json::to_string(&one)?);
                all.push(one);
            }
        }
    }
    let medians = medians(&all);
    print(&medians, &all);
    let line = serde_json::to_string(&all)?;
    std::fs::write(directory.join("report.json"), &line)?;
    println!("{line}");
    Ok(())
}

/// Runs a load over a way once.
async fn run_once(
    load: &Load,
    way: Way,
    there: &Started,
    seconds: f64,
    round: usize,
) -> Result<Measured> {
    let patience = Duration::from_secs(2);
    quiet(0.1, patience).await?;
    let name = || format!("{load} over {}", way.name());
    let meter = Meter::start(there.watched())?;
    let began = Instant::now();
    let ran = run(load, there.port(), Duration::from_secs_f64(seconds)).await.with_context(name)?;
    let took = began.elapsed().as_secs_f64();
    let (processes, machine) = meter.stop(ran.took.len() as u64)?;
    let gib = ran.bytes as f64 / f64::from(1 << 30);
    let cpu = |role| {
        let of_role = processes.iter().filter(|process| process.role == role);
        of_role.map(|process| process.cpu_s).sum::<f64>()
    };
    Ok(Measured {
        way: way.name().to_owned(),
        load: load.to_string(),
        round,
        count: ran.took.len(),
        mib_per_second: gib * 1024.0 / took,
        per_second: ran.took.len() as f64 / took,
        p50_ms: ran.quantile_ms(0.5),
        p99_ms: ran.quantile_ms(0.99),
        gateway_s_per_gib: (cpu(Role::Gateway) + cpu(Role::Broker)) / gib,
        service_s_per_gib: cpu(Role::Service) / gib,
        foreign: machine.foreign + machine.steal,
    })
}

/// How much faster a way was than nginx in the same rounds, in the middle; nothing where nginx was
/// not.
fn by_nginx(all: &[Measured], of: &Measured) -> Option<f64> {
    let is_peer = |one: &&Measured, way: &str| one.way == way && one.load == of.load;
    let mut ratios: Vec<f64> = all
        .iter()
        .filter(|one| is_peer(one, &of.way))
        .filter_map(|one| {
            let nginx = all.iter().filter(|peer| is_peer(peer, "nginx"));
            let nginx = nginx.into_iter().find(|peer| peer.round == one.round)?;
            Some(one.per_second / nginx.per_second)
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios.get(ratios.len() / 2).copied()
}

/// Of the rounds of each load over each way, the one whose rate is in the middle.
fn medians(all: &[Measured]) -> Vec<Measured> {
    let mut rounds: Vec<Vec<Measured>> = Vec::new();
    for one in all {
        let is_same = |other: &Vec<Measured>| other[0].way == one.way && other[0].load == one.load;
        match rounds.iter_mut().find(|other| is_same(other)) {
            Some(rounds) => rounds.push(one.clone()),
            None => rounds.push(vec![one.clone()]),
        }
    }
    let middle = |mut rounds: Vec<Measured>| {
        rounds.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
        rounds.swap_remove(rounds.len() / 2)
    };
    let mut medians: Vec<Measured> = rounds.into_iter().map(middle).collect();
    medians.sort_by(|a, b| a.load.cmp(&b.load));
    medians
}

fn print(medians: &[Measured], all: &[Measured]) {
    println!(
        "| load | way | MiB/s | 1/s | of nginx | p50 ms | p99 ms | CPU s/GiB before + service | others |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for one in medians {
        // What moves little is not told by its bytes.
        let is_bulk = one.mib_per_second >= 10.0;
        let rate = if is_bulk { format!("{:.0}", one.mib_per_second) } else { "-".to_owned() };
        let ratio = by_nginx(all, one).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let cpu = match is_bulk {
            true => format!("{:.2} + {:.2}", one.gateway_s_per_gib, one.service_s_per_gib),
            false => "-".to_owned(),
        };
        println!(
            "| {} | {} | {rate} | {:.0} | {ratio} | {:.2} | {:.2} | {cpu} | {:.0} % |",
            one.load,
            one.way,
            one.per_second,
            one.p50_ms,
            one.p99_ms,
            100.0 * one.foreign
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_of(way: &str) -> Measured {
        Measured {
            way: way.to_owned(),
            load: "down".to_owned(),
            round: 0,
            count: 1,
            mib_per_second: 1.0,
            per_second: 1.0,
            p50_ms: 1.0,
            p99_ms: 1.0,
            gateway_s_per_gib: 0.0,
            service_s_per_gib: 0.0,
            foreign: 0.0,
        }
    }

    #[test]
    fn the_round_in_the_middle_is_told() {
        let round = |way: &str, per_second| Measured { per_second, ..round_of(way) };
        let all = [round("a", 3.0), round("b", 9.0), round("a", 1.0), round("a", 2.0)];
        let rates: Vec<f64> = medians(&all).iter().map(|median| median.per_second).collect();
        assert_eq!(rates, [2.0, 9.0]);
    }

    #[test]
    fn a_way_is_compared_with_nginx_of_the_same_round() {
        let run = |way: &str, round, per_second| Measured { round, per_second, ..round_of(way) };
        let all = [
            run("nginx", 0, 1.0),
            run("tunnel", 0, 3.0),
            run("nginx", 1, 100.0),
            run("tunnel", 1, 200.0),
            run("nginx", 2, 10.0),
            run("tunnel", 2, 10.0),
        ];
        assert_eq!(by_nginx(&all, &all[1]), Some(2.0));
        assert_eq!(by_nginx(&all[1..2], &all[1]), None);
    }
}

//! What the sidecar costs before an app of another language, beside nginx before the same app;
//! `bench apps`.

mod ways;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use self::ways::{App, Way};
use crate::harness::meter::{Meter, quiet};
use crate::raw_directory;
use crate::results::Role;
use crate::streams::clients::{Load, run};

/// How much is measured.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Seconds of each run
    #[arg(long, env = "SECONDS", value_name = "SECONDS", default_value = "3")]
    seconds: f64,

    /// How often each runs, in turn with the others
    #[arg(long, env = "ROUNDS", value_name = "COUNT", default_value = "5")]
    rounds: usize,

    /// Only the app of this name: go or fastapi
    #[arg(long, env = "ONLY", value_name = "TEXT", default_value = "", hide_default_value = true)]
    only: String,
}

/// What both apps answer to `GET /`.
const HELLO_BYTES: u64 = 42;

const LOADS: [Load; 3] =
    [Load::Hello(1, HELLO_BYTES), Load::Hello(64, HELLO_BYTES), Load::Down(100 << 20, 1)];

/// One run.
#[derive(Clone, Debug, Serialize)]
struct Measured {
    app: &'static str,
    load: String,
    way: &'static str,
    round: usize,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    mib_per_second: f64,
    /// Processor time of each request: of all that stands before the app, and of that.
    before_us: f64,
    app_us: f64,
    /// What others took of the machine meanwhile, as a part of it.
    foreign: f64,
}

/// Measures every load over every way in turn, and prints a table and one line of JSON.
///
/// # Errors
/// When something cannot be installed, does not start, or answers otherwise than it should.
pub async fn measure(args: &Args) -> Result<()> {
    let directory = raw_directory("apps")?;
    let mut all = Vec::new();
    for app in App::ALL.into_iter().filter(|app| app.name().contains(&args.only)) {
        let place = directory.join(app.name());
        std::fs::create_dir_all(&place)?;
        let stage = app.start(&place).await.with_context(|| app.name())?;
        for load in LOADS {
            for round in 0..args.rounds {
                for way in Way::ALL {
                    let Some(port) = stage.port(way) else { continue };
                    quiet(0.1, Duration::from_secs(5)).await?;
                    let name = || format!("{load} of {} by {}", app.name(), way.name());
                    let meter = Meter::start(stage.watched(way))?;
                    let began = Instant::now();
                    let lasts = Duration::from_secs_f64(args.seconds);
                    let ran = run(&load, port, lasts).await.with_context(name)?;
                    let took = began.elapsed().as_secs_f64();
                    let (processes, machine) = meter.stop(ran.took.len() as u64)?;
                    let cpu_us = |is_app: bool| {
                        let asked = processes.iter().filter(|process| {
                            process.role != Role::Load && (process.role == Role::Service) == is_app
                        });
                        asked.map(|process| process.cpu_us).sum::<f64>()
                    };
                    let measured = Measured {
                        app: app.name(),
                        load: load.to_string(),
                        way: way.name(),
                        round,
                        per_second: ran.took.len() as f64 / took,
                        p50_ms: ran.quantile_ms(0.5),
                        p99_ms: ran.quantile_ms(0.99),
                        mib_per_second: ran.bytes as f64 / f64::from(1 << 20) / took,
                        before_us: cpu_us(false),
                        app_us: cpu_us(true),
                        foreign: machine.foreign + machine.steal,
                    };
                    eprintln!("{}", serde_json::to_string(&measured)?);
                    all.push(measured);
                }
            }
        }
    }
    print(&all);
    let line = serde_json::to_string(&all)?;
    std::fs::write(directory.join("report.json"), &line)?;
    println!("{line}");
    Ok(())
}

/// The rate of a run beside nginx's of the same round, in the middle of all rounds.
fn of_nginx(all: &[Measured], one: &Measured) -> Option<f64> {
    let same = |other: &&Measured| other.app == one.app && other.load == one.load;
    let by = |way: &'static str| all.iter().filter(same).filter(move |other| other.way == way);
    let ratios = by(one.way).filter_map(|ours| {
        let nginx = by(Way::Nginx.name()).find(|nginx| nginx.round == ours.round)?;
        Some(ours.per_second / nginx.per_second)
    });
    middle(ratios.collect())
}

/// The value in the middle.
fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

fn print(all: &[Measured]) {
    println!(
        "| app | load | way | 1/s | of nginx | p50 ms | p99 ms | MiB/s | CPU before + app | others |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|");
    for one in all.iter().filter(|one| one.round == 0) {
        let rounds: Vec<&Measured> = all
            .iter()
            .filter(|other| (other.app, &other.load, other.way) == (one.app, &one.load, one.way))
            .collect();
        let median = |value: fn(&Measured) -> f64| {
            middle(rounds.iter().map(|one| value(one)).collect()).unwrap_or_default()
        };
        let is_bulk = one.mib_per_second >= 10.0;
        let ratio = of_nginx(all, one).map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        let bulk = |text: String| if is_bulk { text } else { "-".to_owned() };
        println!(
            "| {} | {} | {} | {:.0} | {ratio} | {:.2} | {:.2} | {} | {} | {:.0} % |",
            one.app,
            one.load,
            one.way,
            median(|one| one.per_second),
            median(|one| one.p50_ms),
            median(|one| one.p99_ms),
            bulk(format!("{:.0}", median(|one| one.mib_per_second))),
            match is_bulk {
                true => format!(
                    "{:.0} + {:.0} ms",
                    median(|one| one.before_us / 1e3),
                    median(|one| one.app_us / 1e3)
                ),
                false => format!(
                    "{:.0} + {:.0} us",
                    median(|one| one.before_us),
                    median(|one| one.app_us)
                ),
            },
            100.0 * median(|one| one.foreign)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_compared_within_a_round() {
        let run = |way, round, per_second| Measured {
            app: "go",
            load: "hello".to_owned(),
            way,
            round,
            per_second,
            p50_ms: 1.0,
            p99_ms: 1.0,
            mib_per_second: 0.0,
            before_us: 0.0,
            app_us: 0.0,
            foreign: 0.0,
        };
        let nginx = Way::Nginx.name();
        let all = [
            run(nginx, 0, 10.0),
            run("sidecar", 0, 9.0),
            run(nginx, 1, 100.0),
            run("sidecar", 1, 50.0),
            run(nginx, 2, 10.0),
            run("sidecar", 2, 20.0),
        ];
        assert_eq!(of_nginx(&all, &all[1]), Some(0.9));
        assert_eq!(of_nginx(&all, &run("other", 0, 1.0)), None);
    }
}

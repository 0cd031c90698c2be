//! The `bench` binary: what a request costs, measured.

mod commands;

use std::net::SocketAddr;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use natsway_bench::{apps, autoscalers, groups, instructions, micro, service, shipper, streams};

use self::commands::{CompareArgs, ListArgs, MicroArgs, ReportArgs, ResumeArgs, RunArgs};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures Natsway end to end, on real processes
#[derive(Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure what a request costs, beside other ways to get the same answer, and write the report
    Run(RunArgs),
    /// Go on with a run that was broken off, or in which something failed
    Resume(ResumeArgs),
    /// Show the scenarios, what is in them, and how long they take
    List(ListArgs),
    /// Say what changed between two results by more than the runs scatter; exit code 1 when
    /// something got worse
    Compare(CompareArgs),
    /// Write the report of results anew
    Report(ReportArgs),
    /// Time small operations with criterion
    Micro(MicroArgs),
    /// Count the instructions that gateway and worker take for a request, by callgrind; the output
    /// is JSON, exit code 1 when a path takes more than it may
    Instructions(instructions::Args),
    /// Serve the answers without anything before it
    #[command(hide = true)]
    ServeDirect {
        /// Where clients connect
        listen: SocketAddr,
    },
    /// Measure consumer groups beside the Go library's
    Groups(groups::Args),
    /// Measure the log shipper beside rsyslog: throughput, acknowledged and synced, and what it
    /// costs
    Shipper(shipper::Args),
    /// Measure streams over tunnels beside other ways: bodies, WebSockets, gRPC, and small requests
    /// beside downloads
    Streams(streams::Args),
    /// Measure the sidecar before apps in Go and Python, beside nginx before the same apps
    Apps(apps::Args),
    /// Compare autoscalers by a virtual clock and write docs/autoscalers.md and .svg, as `run` does
    Autoscalers,
    /// Serve the answers over NATS
    #[command(hide = true)]
    ServeWorker(service::WorkerArgs),
    /// Do a small operation many times, for those who count instructions
    #[command(hide = true)]
    MicroRun {
        /// Its name
        name: String,
        /// How often
        times: u64,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::Run(args) => commands::run(&args).await,
        Command::Resume(args) => commands::resume(&args).await,
        Command::Micro(args) => {
            commands::time(&args);
            Ok(ExitCode::SUCCESS)
        }
        Command::Instructions(args) => commands::count(&args).await,
        Command::List(args) => commands::list(&args),
        Command::Compare(args) => commands::compare(&args),
        Command::Report(args) => commands::report(&args),
        Command::ServeDirect { listen } => {
            service::serve_direct(listen).await.map(|()| ExitCode::SUCCESS)
        }
        Command::ServeWorker(args) => {
            service::serve_worker(&args).await.map(|()| ExitCode::SUCCESS)
        }
        Command::MicroRun { name, times } => {
            micro::count::run(&name, times).map(|()| ExitCode::SUCCESS)
        }
        Command::Groups(args) => groups::measure(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Shipper(args) => shipper::measure(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Streams(args) => streams::measure(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Apps(args) => apps::measure(&args).await.map(|()| ExitCode::SUCCESS),
        Command::Autoscalers => autoscalers::publish().map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("bench: {error:#}");
        ExitCode::from(2)
    })
}

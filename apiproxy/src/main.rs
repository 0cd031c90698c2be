//! The gateway's binary: arguments in, exit code out.

use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use natsway_apiproxy::cli::{self, Cli, Command, RunArgs};
use natsway_apiproxy::gateway::{self, Routes};
use natsway_apiproxy::route_file::{RouteFile, read_routes};
use natsway_apiproxy::settings::Settings;
use natsway_boot::traces::Traces;
use natsway_boot::{BrokerConfig, BrokerConfigError, shutdown};
use natsway_routes::watch::Bucket;
use tokio::runtime::Builder;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Something has to be changed before another start; also clap's own code for arguments that it
/// refuses.
const MISTAKE: u8 = 2;

fn main() -> ExitCode {
    let arguments = Cli::parse();
    let done = match arguments.command {
        Some(Command::Routes(routes)) => command(routes.run()),
        Some(Command::Rollout(rollout)) => command(rollout.run()),
        Some(Command::Setup(setup)) => command(setup.run()),
        Some(Command::StandIn(stand_in)) => match stand_in.prepare() {
            Ok(broker) => {
                one_thread().and_then(|runtime| runtime.block_on(cli::stand_in::serve(broker)))
            }
            Err(mistake) => return fail(&mistake, ExitCode::from(MISTAKE)),
        },
        Some(Command::Healthcheck(health)) => health.run(),
        Some(Command::Completions { shell }) => {
            cli::print_completions(shell);
            Ok(ExitCode::SUCCESS)
        }
        None => match prepare(arguments.run) {
            Ok(Some(start)) => serve(start),
            Ok(None) => Ok(ExitCode::SUCCESS),
            Err(mistake) => return fail(&mistake, ExitCode::from(MISTAKE)),
        },
    };
    done.unwrap_or_else(|error| {
        let mistaken = error.is::<BrokerConfigError>();
        fail(&error, if mistaken { ExitCode::from(MISTAKE) } else { ExitCode::FAILURE })
    })
}

/// Says what went wrong, with its reasons.
fn fail(error: &anyhow::Error, code: ExitCode) -> ExitCode {
    eprintln!("apiproxy: {error:#}");
    code
}

/// Does what an operator asked for.
fn command(task: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    natsway_boot::logs::init_for_commands();
    one_thread()?.block_on(task)
}

/// The control plane has little to do, so one thread does it. The shards have threads of their own.
fn one_thread() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(Builder::new_current_thread().enable_all().build()?)
}

/// What a gateway starts from.
struct Start {
    settings: Settings,
    routes: Routes,
    broker: BrokerConfig,
    traces: Traces,
}

/// Checks everything that was asked for before anything is started; `None` when that was all.
fn prepare(args: RunArgs) -> anyhow::Result<Option<Start>> {
    let traces =
        args.logs.init_with(&args.traces, env!("CARGO_BIN_NAME")).map_err(anyhow::Error::msg)?;
    let file = args.routes.as_ref().map(|path| {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("route file {shown}"))?;
        read_routes(&text).with_context(|| format!("route file {shown} is refused"))
    });
    let file: Option<RouteFile> = file.transpose()?;
    if args.check {
        println!("{} routes, sound", file.map_or(0, |file| file.documents.len()));
        return Ok(None);
    }
    let settings = args.settings()?;
    let routes = match file {
        Some(file) if args.static_routes => Routes::Fixed(file.table),
        file => Routes::Bucket(Bucket {
            name: args.routes_bucket,
            replicas: args.routes_replicas.get(),
            seed: file.map(|file| file.documents).unwrap_or_default(),
        }),
    };
    let broker = args.broker.into_config()?;
    Ok(Some(Start { settings, routes, broker, traces }))
}

fn serve(start: Start) -> anyhow::Result<ExitCode> {
    let Start { settings, routes, broker, traces } = start;
    let outcome = one_thread()?.block_on(async {
        let stop = shutdown::on_signal()?;
        gateway::run(settings, routes, broker, stop).await?;
        Ok(ExitCode::SUCCESS)
    });
    traces.finish();
    outcome
}

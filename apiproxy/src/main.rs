//! The gateway's binary: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use natsway_apiproxy::cli::serve::{Start, one_thread};
use natsway_apiproxy::cli::{self, Cli, Command};
use natsway_boot::BrokerConfigError;

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
        None => match Start::prepare(arguments.run) {
            Ok(Some(start)) => start.serve(),
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

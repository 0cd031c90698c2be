//! The program `prove`: breaks things on purpose and says whether what is promised still holds.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use natsway_proofs::{
    Report, Scenario, Size, apps, cluster, gateway, groups, http1, memory, provisioner, security,
    shipper, streams, versions, webhooks,
};
use natsway_testkit::workspace_binary;

/// As in the programs of this repository: the load comes from here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// How the program is used, below its list of proofs. Paragraphs are wrapped where they are shown.
const USE: &str = "\
Each proof builds the programs that it needs, starts them and its brokers on 127.0.0.1, \
and takes everything down again. \
With NATSWAY_BIN_DIR=<directory> it builds nothing and starts the programs of that directory.

Its last line is JSON with all figures; what it says before goes to standard error. \
Raw data (logs, outcomes of requests) stays below target/prove/<proof>/<seed>/<scenario>.

Exit code: 0 when all promises were kept, 1 when one was broken, 2 when the proof could not be carried through.

Examples:
  prove gateway                                all scenarios, as their defaults have it
  prove cluster --only broker --rounds 10      two of them, with more faults
  prove versions --only driver_killed          a name, or a part of one
  prove groups --seed 4242 --changes 200       the same choices as another run with this seed

`prove <proof> --help` lists scenarios, promises and settings. A setting is a flag or a variable of the environment. \
`make prove-<proof>` does it with the release form of everything, and passes ARGS='--only broker' on.";

/// Breaks things on purpose and says whether what is promised still holds
#[derive(Parser)]
#[command(name = "prove", version, after_help = USE, max_term_width = 120)]
struct Cli {
    #[command(subcommand)]
    proof: Proof,
}

#[derive(Subcommand)]
enum Proof {
    /// The gateway: restarts, kills, freezes and cuts around it, under load
    #[command(after_help = listed(&gateway::SCENARIOS))]
    Gateway(Size),
    /// Three brokers with JetStream: any one dies or freezes, and gateways, workers and groups go
    /// on
    #[command(after_help = listed(&cluster::SCENARIOS))]
    Cluster(Size),
    /// Versions: switches, rollouts and rollbacks, under load and faults
    #[command(after_help = listed(&versions::SCENARIOS))]
    Versions(versions::Size),
    /// An upgrade: from the programs of another release to these and back, under load
    #[command(after_help = listed(&versions::upgrade::SCENARIOS))]
    Upgrade(versions::upgrade::Size),
    /// Consumer groups: members and brokers come and go, and every message is judged
    #[command(after_help = listed(&groups::SCENARIOS))]
    Groups(groups::Size),
    /// The log shipper: programs, brokers and disks fail, and every line is judged
    #[command(after_help = listed(&shipper::SCENARIOS))]
    Shipper(shipper::Size),
    /// The provisioner: beside its rivals by a virtual clock, and under crowds and kills on real
    /// processes
    #[command(after_help = listed(&provisioner::SCENARIOS))]
    Provisioner(Size),
    /// The gateway's memory: attackers who would have it hold much, while another client is served
    #[command(after_help = attackers())]
    Memory(memory::Size),
    /// Streams: bodies of any size, events and WebSockets over tunnels, under kills and restarts
    #[command(after_help = listed(&streams::SCENARIOS))]
    Streams(streams::Size),
    /// Apps in any language behind the sidecar: replaced under load, killed and frozen; real ones
    /// beside the same without it, installed by pip, npm and go
    #[command(after_help = listed(&apps::SCENARIOS))]
    Apps(Size),
    /// Durable routes: webhooks under kills and restarts of brokers, and each 202 is looked up
    #[command(after_help = listed(&webhooks::SCENARIOS))]
    Webhooks(webhooks::Size),
    /// HTTP/1: real clients whose uploads are refused read why, and nginx on our cases; skips what
    /// is not installed
    #[command(after_help = listed(&http1::SCENARIOS))]
    Http(http1::Size),
    /// The broker's permissions and accounts: each permission dropped in turn, and attacks as each
    /// role
    #[command(after_help = listed(&security::SCENARIOS))]
    Security(security::Size),
}

impl Proof {
    /// Names the programs of this workspace that it starts.
    fn programs(&self) -> &'static [&'static str] {
        match self {
            Self::Gateway(_) | Self::Streams(_) | Self::Versions(_) | Self::Upgrade(_) => {
                &["apiproxy", "worker"]
            }
            Self::Apps(_) => &["apiproxy", "worker", "prove-app"],
            Self::Cluster(_) => &["apiproxy", "worker", "groups-member"],
            Self::Groups(_) => &["groups-member"],
            Self::Shipper(_) => &["producer", "consumer"],
            Self::Provisioner(_) => &["apiproxy", "worker", "provisioner"],
            Self::Memory(_) | Self::Http(_) | Self::Webhooks(_) => &["apiproxy"],
            Self::Security(_) => &security::PROGRAMS,
        }
    }

    async fn prove(&self) -> anyhow::Result<ExitCode> {
        let report = match self {
            Self::Gateway(size) => gateway::prove(size).await,
            Self::Cluster(size) => cluster::prove(size).await,
            Self::Versions(size) => versions::prove(size).await,
            Self::Upgrade(size) => versions::upgrade::prove(size).await,
            Self::Groups(size) => groups::prove(size).await,
            Self::Shipper(size) => shipper::prove(size).await,
            Self::Provisioner(size) => provisioner::prove(size).await,
            Self::Memory(size) => memory::prove(size).await,
            Self::Streams(size) => streams::prove(size).await,
            Self::Apps(size) => apps::prove(size).await,
            Self::Webhooks(size) => webhooks::prove(size).await,
            Self::Http(size) => http1::prove(size).await,
            Self::Security(size) => security::prove(size).await,
        };
        report.map(Report::conclude)
    }
}

/// Lists scenarios with their promises.
fn listed<S>(scenarios: &[Scenario<S>]) -> String {
    let width = scenarios.iter().map(|scenario| scenario.name.len()).max().unwrap_or_default();
    let line =
        |scenario: &Scenario<S>| format!("\n  {:width$}  {}", scenario.name, scenario.promise);
    format!("Scenarios, each with its promise:{}", scenarios.iter().map(line).collect::<String>())
}

/// Lists who attacks the gateway's memory.
fn attackers() -> String {
    let names =
        memory::attackers::ATTACKERS.iter().map(|attacker| format!("\n  {}", attacker.name));
    format!(
        "Each attacker has a gateway with the memory of docker-compose.yml to itself. The gateway \
         stays below its bound,\n\
         another client is served all the time, and what was held is given back. Attackers, by \
         what they do:{}",
        names.collect::<String>()
    )
}

#[tokio::main]
async fn main() -> ExitCode {
    let proof = Cli::parse().proof;
    eprintln!("prove: building {}", proof.programs().join(", "));
    // Now, so that no compiler runs beside what is proven.
    for program in proof.programs() {
        workspace_binary(program);
    }
    proof.prove().await.unwrap_or_else(|error| {
        eprintln!("prove: {error:#}");
        ExitCode::from(2)
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_settings_of_all_proofs_fit_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_lists_each_scenario_with_its_promise() {
        let text = listed(&gateway::SCENARIOS);
        for scenario in &gateway::SCENARIOS {
            assert!(
                text.contains(&format!("{}  ", scenario.name)) && text.contains(scenario.promise),
                "{text}"
            );
        }
        assert!(attackers().contains("\n  shut_windows"));
    }

    #[test]
    fn help_fits_into_the_width_of_a_page() {
        for proof in Cli::command().get_subcommands() {
            let text = proof.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(!text.is_empty(), "{} lists no scenarios", proof.get_name());
            for line in text.lines() {
                assert!(line.chars().count() <= 120, "{}: {line}", proof.get_name());
            }
        }
    }
}

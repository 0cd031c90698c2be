//! `provisioner run`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use natsway_boot::{BrokerConfig, shutdown};
use natsway_stores::definitions::provisioner_leases;
use natsway_stores::lease::Lease;

use super::{read, refused};
use crate::config::{Config, TargetConfig};
use crate::reload::follow;
use crate::run::run;

/// The inbox prefix of provisioners, so that their permissions can be written down.
const INBOX_PREFIX: &str = "_INBOX_provisioner";

#[derive(Args)]
pub(super) struct RunArgs {
    /// What to scale, TOML; followed while running
    #[arg(
        long,
        env = "NATSWAY_PROVISIONER_CONFIG",
        value_name = "FILE",
        default_value = "provisioner.toml"
    )]
    config: PathBuf,

    /// Read the configuration, say whether it is sound, and leave
    #[arg(long)]
    check: bool,

    /// Bucket of the lease by which one of several provisioners leads; made when it is not there
    #[arg(
        long,
        env = "NATSWAY_LEASE_BUCKET",
        value_name = "NAME",
        default_value = "natsway-leases"
    )]
    lease_bucket: String,

    /// Key of the lease: provisioners with the same one stand in for each other
    #[arg(long, env = "NATSWAY_LEASE", value_name = "NAME", default_value = "provisioner")]
    lease: String,

    /// Copies of the lease's bucket when it has to be made: 3 in a cluster, so that it outlives a
    /// broker
    #[arg(long, env = "NATSWAY_LEASE_REPLICAS", value_name = "COUNT", default_value = "1")]
    lease_replicas: NonZeroUsize,

    /// Lead at once and alone, without a lease: no JetStream needed, and no other provisioner may
    /// run
    #[arg(long, env = "NATSWAY_NO_LEASE")]
    no_lease: bool,
}

impl RunArgs {
    pub(super) async fn run(self, broker: BrokerConfig) -> anyhow::Result<ExitCode> {
        if self.check {
            let config =
                Config::read(&read(&self.config)?).with_context(|| refused(&self.config))?;
            let names: Vec<&str> = config.targets.iter().map(TargetConfig::name).collect();
            println!("{} is sound; its targets: {}", self.config.display(), names.join(", "));
            return Ok(ExitCode::SUCCESS);
        }
        let stop = shutdown::on_signal()?;
        if !self.config.exists() {
            bail!(
                "there is no configuration {}: write one (`provisioner --help` ends with an \
                 example), or name it by --config",
                self.config.display()
            );
        }
        let refused = refused(&self.config);
        let followed = follow(self.config).context(refused)?;
        let id = natsway_boot::random_id();
        let client = broker.connect(&format!("provisioner {id}"), INBOX_PREFIX).await?;
        let lease = (!self.no_lease).then(|| {
            let bucket = provisioner_leases(&self.lease_bucket, self.lease_replicas.get());
            Lease::new(client.clone(), bucket, self.lease, id.as_str())
        });
        run(client, &id, lease, followed.config.clone(), stop).await;
        Ok(ExitCode::SUCCESS)
    }
}

//! Three brokers with a stream of three copies, and a gateway in front of them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, stream};
use futures_util::StreamExt;
use natsway_boot::BrokerConfig;
use natsway_testkit::{Cluster, Process, TestBroker, eventually, free_port, workspace_binary};

use super::judge::Stored;
use crate::probe;

/// Generous: for a hang, not for a slow machine.
const DEADLINE: Duration = Duration::from_secs(90);

/// The stream.
const STREAM: &str = "HOOKS";

/// A durable route, with the default times.
const ROUTES: &str = r#"
    [[route]]
    name = "hooks"
    path = "/hooks/{event}"
    mode = "publish"
    codec = "native"
    [route.publish]
    subject = "hooks.{event}"
    expect_stream = "HOOKS"
    tokens.event = ["push", "ping"]
"#;

/// What runs.
pub(super) struct Stage {
    directory: PathBuf,
    pub(super) cluster: Cluster,
    _gateway: Process,
    port: u16,
    admin_port: u16,
    context: jetstream::Context,
}

impl Stage {
    /// Starts all of it.
    pub(super) async fn start(directory: &Path) -> anyhow::Result<Self> {
        let cluster = TestBroker::builder().jetstream().start_cluster(3).await;
        let client = BrokerConfig::new(&cluster.url())?.connect("prove", "_INBOX_prove").await?;
        let context = jetstream::new(client);
        let config = stream::Config {
            name: STREAM.to_owned(),
            subjects: vec!["hooks.>".to_owned()],
            num_replicas: 3,
            ..stream::Config::default()
        };
        context.create_stream(config).await.context("make the stream")?;
        let (port, admin_port) = (free_port(), free_port());
        let routes = directory.join("routes.toml");
        std::fs::write(&routes, ROUTES)?;
        let gateway = Process::builder(workspace_binary("apiproxy"))
            .args(["--listen", &format!("127.0.0.1:{port}")])
            .args(["--admin-listen", &format!("127.0.0.1:{admin_port}")])
            .args(["--nats-url", &cluster.url(), "--shards", "2", "--static-routes"])
            .arg("--routes")
            .arg(&routes)
            .start();
        eventually(DEADLINE, async || match probe::get(admin_port, "/readyz").await {
            Ok((200, _)) => Ok(()),
            other => Err(format!("{other:?}")),
        })
        .await;
        let directory = directory.to_owned();
        Ok(Self { directory, cluster, _gateway: gateway, port, admin_port, context })
    }

    /// Where webhooks go.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// The place of the broker that leads the stream.
    pub(super) async fn stream_leader(&self) -> usize {
        eventually(DEADLINE, async || {
            let stream = self.context.get_stream(STREAM).await;
            let stream = stream.map_err(|error| error.to_string())?;
            let cluster = stream.cached_info().cluster.as_ref();
            let leader = cluster.and_then(|cluster| cluster.leader.clone());
            let place =
                self.cluster.iter().position(|broker| leader.as_deref() == Some(broker.name()));
            place.ok_or("the stream has no leader".to_owned())
        })
        .await
    }

    /// A figure of the gateway.
    pub(super) async fn metric(&self, sample: &str) -> anyhow::Result<f64> {
        let (_, page) = probe::get(self.admin_port, "/metrics").await?;
        let value = |line: &str| line.strip_prefix(sample)?.strip_prefix(' ')?.parse().ok();
        page.lines().find_map(value).with_context(|| format!("no {sample}"))
    }

    /// Every message of the stream, once all copies agree.
    pub(super) async fn stored(&self) -> anyhow::Result<Vec<Stored>> {
        let stream = eventually(DEADLINE, async || {
            let stream = self.context.get_stream(STREAM).await;
            let stream = stream.map_err(|error| error.to_string())?;
            let replicas = stream.cached_info().cluster.as_ref().map(|cluster| &cluster.replicas);
            let current = replicas.is_some_and(|replicas| {
                replicas.len() == 2 && replicas.iter().all(|replica| replica.current)
            });
            if current { Ok(stream) } else { Err(format!("not current: {replicas:?}")) }
        })
        .await;
        let last = stream.cached_info().state.last_sequence;
        let config = pull::Config {
            ack_policy: AckPolicy::None,
            deliver_policy: DeliverPolicy::All,
            memory_storage: true,
            inactive_threshold: DEADLINE,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(config).await?;
        let mut messages = consumer.messages().await?;
        let mut stored = Vec::new();
        while stored.last().is_none_or(|stored: &Stored| stored.sequence < last) {
            let message = tokio::time::timeout(DEADLINE, messages.next()).await;
            let message = message?.context("the stream ended early")??;
            let id = message.headers.as_ref().and_then(|headers| headers.get("Nats-Msg-Id"));
            let id = id.context("a message without an id")?.as_str().to_owned();
            let sequence = message.info().map_err(anyhow::Error::msg)?.stream_sequence;
            let number = std::str::from_utf8(&message.payload)?.parse()?;
            stored.push(Stored { id, sequence, number });
        }
        Ok(stored)
    }

    /// Keeps what the brokers wrote.
    pub(super) fn keep_logs(&self) -> anyhow::Result<()> {
        for (place, broker) in self.cluster.iter().enumerate() {
            std::fs::write(self.directory.join(format!("broker-{place}.log")), broker.log())?;
        }
        Ok(())
    }
}

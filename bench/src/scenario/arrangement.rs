//! What a contender consists of.

use serde::{Deserialize, Serialize};

/// The processes behind a port. `path`, `/bytes/N` and `/echo` are answered alike by all.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Arrangement {
    /// The service alone.
    Direct {
        /// What serves.
        #[serde(default)]
        server: Server,
    },
    /// Our gateway, a broker, and workers.
    Natsway(Natsway),
    /// A reverse proxy before the service.
    Proxy {
        /// Which.
        program: Proxy,
        /// Services behind it, each a process.
        #[serde(default = "one")]
        backends: u32,
    },
    /// The article's gateway and workers, in Go with fiber and nats.go.
    GoGateway(GoGateway),
}

/// A server of the service without anything before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Server {
    /// axum, in Rust.
    #[default]
    Axum,
    /// fiber, in Go, as in the article.
    Fiber,
}

/// A reverse proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Proxy {
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// Traefik, with its file provider.
    Traefik,
    /// Traefik, which asks Consul where the services are.
    TraefikConsul,
    /// Caddy.
    Caddy,
    /// Fabio, which asks Consul where the services are.
    Fabio,
}

/// How our gateway and its workers are started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Natsway {
    /// Worker processes.
    #[serde(default = "one")]
    pub workers: u32,
    /// Workers inside each of these processes, with a broker connection each.
    #[serde(default = "one")]
    pub instances: u32,
    /// Where handlers run.
    #[serde(default)]
    pub form: Form,
    /// Threads of a worker that read, each with a broker connection; as many as its form has when
    /// it is not said.
    #[serde(default)]
    pub readers: Option<u32>,
    /// Threads of the gateway; one for each processor when it is not said.
    #[serde(default)]
    pub shards: Option<u32>,
    /// Broker connections of each of the gateway's threads.
    #[serde(default = "one")]
    pub connections_per_shard: u32,
    /// Brokers; more than one are a cluster, and gateway and workers connect to different ones.
    #[serde(default = "one")]
    pub brokers: u32,
    /// Routes in the gateway's table; one of them is asked for.
    #[serde(default = "one")]
    pub routes: u32,
    /// Services, each of its own subject and route, shared out among the workers, and asked for at
    /// random.
    #[serde(default = "one")]
    pub services: u32,
    /// How requests go from the gateway to workers.
    #[serde(default)]
    pub transport: Transport,
}

/// How requests go from the gateway to workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Transport {
    /// Each by a message of the broker.
    #[default]
    Broker,
    /// By tunnels that the workers dial, with TLS, where there are some.
    Auto,
}

/// What a worker is, and where its handlers run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// `serve`: on a runtime of several threads.
    #[default]
    Default,
    /// `serve_local`: on the threads that read.
    PerCore,
    /// A Go program with NATS's own service API, by the codec `native`.
    GoMicro,
}

/// How the article's programs are started.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GoGateway {
    /// Worker processes.
    #[serde(default = "one")]
    pub workers: u32,
    /// Broker connections of the gateway, used in turn.
    #[serde(default = "one")]
    pub connections: u32,
    /// Every worker gets every request, and the first answer counts: the article's mistake.
    #[serde(default)]
    pub broadcast: bool,
    /// Workers fetch messages one after the other, in place of a callback.
    #[serde(default)]
    pub synchronous: bool,
    /// How a request is written into a message.
    #[serde(default)]
    pub codec: GoCodec,
}

/// How the Go programs write requests and answers into messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum GoCodec {
    /// Method, path and body with little between them, and the answer's body alone: what the
    /// article measured.
    #[default]
    Text,
    /// A JSON object with all headers, both ways.
    Json,
    /// The same in MessagePack.
    Msgpack,
}

impl Natsway {
    /// Whether it asks for what the Go program has not.
    fn has_more_than_go_micro(&self) -> bool {
        self.readers.is_some()
            || self.instances > 1
            || self.services > 1
            || self.transport != Transport::Broker
    }
}

fn one() -> u32 {
    1
}

impl Arrangement {
    /// What contradicts itself, a sentence each.
    pub fn faults(&self) -> Vec<String> {
        let counts: Vec<(&str, u32, u32)> = match self {
            Self::Direct { .. } => Vec::new(),
            Self::Proxy { backends, .. } => vec![("backends", *backends, 64)],
            Self::GoGateway(go) => {
                vec![("workers", go.workers, 64), ("connections", go.connections, 64)]
            }
            Self::Natsway(natsway) => vec![
                ("workers", natsway.workers, 64),
                ("instances", natsway.instances, 64),
                ("readers", natsway.readers.unwrap_or(1), 64),
                ("shards", natsway.shards.unwrap_or(1), 64),
                ("connections_per_shard", natsway.connections_per_shard, 64),
                ("brokers", natsway.brokers, 5),
                ("routes", natsway.routes, 100_000),
                ("services", natsway.services, 1_000),
            ],
        };
        let mut faults: Vec<String> = counts
            .into_iter()
            .filter(|(_, count, most)| !(1..=*most).contains(count))
            .map(|(key, count, most)| format!("{key} = {count}: expected 1 to {most}"))
            .collect();
        if let Self::Natsway(natsway) = self
            && natsway.form == Form::GoMicro
            && natsway.has_more_than_go_micro()
        {
            let keys = "readers, instances, services and transport";
            faults.push(format!("{keys} are not for form = \"go-micro\""));
        }
        faults
    }

    /// Services that are asked for at random; only oha can do that.
    pub fn services(&self) -> u32 {
        match self {
            Self::Natsway(natsway) => natsway.services,
            Self::Direct { .. } | Self::Proxy { .. } | Self::GoGateway(_) => 1,
        }
    }

    /// Whether the Go programs take part.
    pub fn needs_go(&self) -> bool {
        match self {
            Self::Direct { server } => *server == Server::Fiber,
            Self::Natsway(natsway) => natsway.form == Form::GoMicro,
            Self::Proxy { .. } => false,
            Self::GoGateway(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_one() {
        let arrangement: Arrangement = toml::from_str("kind = \"natsway\"").unwrap();
        let Arrangement::Natsway(natsway) = &arrangement else { panic!("{arrangement:?}") };
        assert_eq!(
            (natsway.workers, natsway.brokers, natsway.routes, natsway.form),
            (1, 1, 1, Form::Default)
        );
        assert!(arrangement.faults().is_empty());
    }

    #[test]
    fn counts_have_bounds() {
        let arrangement: Arrangement =
            toml::from_str("kind = \"natsway\"\nbrokers = 9\nroutes = 0").unwrap();
        assert_eq!(
            arrangement.faults(),
            ["brokers = 9: expected 1 to 5", "routes = 0: expected 1 to 100000"]
        );
    }
}

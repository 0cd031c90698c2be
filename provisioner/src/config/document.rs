//! The configuration as operators write it: TOML, read strictly.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::policy::Thresholds;
use crate::signal::discover::Pattern;

/// The whole file.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// What is scaled.
    #[serde(default, rename = "target")]
    pub targets: Vec<TargetDocument>,
}

/// One thing that is scaled, or with a pattern one for each name that matches.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
pub struct TargetDocument {
    /// Letters, digits, `-` and `_`; unique.
    pub name: String,
    /// How often it is polled.
    #[serde(default = "default::poll", with = "humantime_serde")]
    pub poll: Duration,
    /// Where its metrics come from.
    pub signal: SignalDocument,
    /// What is known of its instances.
    #[serde(default)]
    pub instance: InstanceDocument,
    /// How many instances it needs; the largest answer wins. Without any: `rate`, `lag` and
    /// `latency-slo`.
    #[serde(default, rename = "policy")]
    pub policies: Vec<PolicyDocument>,
    /// What the number may do.
    #[serde(default)]
    pub scale: ScaleDocument,
    /// Who starts and stops instances.
    pub backend: BackendDocument,
}

impl TargetDocument {
    /// What the target stands for when its signal is a pattern.
    pub(super) fn pattern(&self) -> Option<Pattern> {
        let name = match &self.signal {
            SignalDocument::Consumer { consumer: name, .. }
            | SignalDocument::Services { service: name, .. } => name,
            _ => return None,
        };
        Some(Pattern::new(name.as_str())).filter(Pattern::is_wild)
    }
}

/// Where metrics come from.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum SignalDocument {
    /// A JetStream consumer.
    Consumer {
        /// Its stream.
        stream: String,
        /// Its name; with `*`, all that match.
        consumer: String,
    },
    /// A headers-only, ack-all consumer that only counts.
    Tally {
        /// Its stream.
        stream: String,
        /// Its name; made when it is not there.
        consumer: String,
    },
    /// Instances of a service (ADR-32).
    Services {
        /// Its name; with `*`, all that match.
        service: String,
        /// The gateways' route to it, whose requests out count as well.
        route: Option<String>,
        /// The version of that route.
        version: Option<String>,
    },
    /// A queue group, by the broker's monitoring port.
    Monitoring {
        /// `http://host:port` of each server.
        servers: Vec<String>,
        /// The subject.
        subject: String,
        /// The queue group.
        #[serde(default = "default::queue_group")]
        queue_group: String,
    },
}

/// What is known of an instance.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct InstanceDocument {
    /// Messages that one handles at a time. Without, 1 to learn what one can do, and what instances
    /// say themselves to tell whether they are full.
    pub concurrency: Option<f64>,
    /// Messages that one fetches ahead.
    pub prefetch: u32,
    /// Messages a second of one, to begin with; learned in any case.
    pub service_rate: Option<f64>,
    /// How long one takes to start, until one was seen to: what is started now helps so much later.
    #[serde(with = "humantime_serde")]
    pub starts_within: Duration,
    /// Over how long rates are taken.
    #[serde(with = "humantime_serde")]
    pub window: Duration,
    /// From which age metrics are stale; three polls when it is not given.
    #[serde(with = "humantime_serde")]
    pub stale_after: Option<Duration>,
    /// Polls in a row without an answer after which one counts no more and is replaced; 0 is never.
    pub silent_after: u32,
}

impl Default for InstanceDocument {
    fn default() -> Self {
        Self {
            concurrency: None,
            prefetch: 1,
            service_rate: None,
            starts_within: Duration::from_secs(3),
            window: Duration::from_secs(5),
            stale_after: None,
            silent_after: 5,
        }
    }
}

/// How many instances are needed.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PolicyDocument {
    /// As many as the arrivals need.
    Rate {
        /// The share of an instance's capacity that is planned for.
        #[serde(default = "default::utilisation")]
        target_utilisation: f64,
    },
    /// As many as also work a backlog off in time.
    Lag {
        /// As for `rate`.
        #[serde(default = "default::utilisation")]
        target_utilisation: f64,
        /// How long that may take.
        #[serde(default = "default::drain", with = "humantime_serde")]
        drain: Duration,
    },
    /// As many as keep waits short.
    LatencySlo {
        /// As for `rate`.
        #[serde(default = "default::utilisation")]
        target_utilisation: f64,
        /// How long a message may wait.
        #[serde(default = "default::wait", with = "humantime_serde")]
        wait: Duration,
        /// Spare instances, in square roots of the busy ones.
        #[serde(default)]
        beta: f64,
    },
    /// As many as bring the utilisation to what is planned.
    Utilisation {
        /// The utilisation to reach.
        #[serde(default = "default::utilisation")]
        target_utilisation: f64,
    },
    /// QueueWatch's chain.
    Analysers {
        /// From where on its analysers fire.
        #[serde(default)]
        thresholds: Thresholds,
    },
    /// NATS by Example's rule.
    Example {
        /// Messages a second for each instance.
        #[serde(default = "default::example_rate")]
        rate_per_instance: f64,
        /// How long nothing must have come.
        #[serde(default = "default::example_idle", with = "humantime_serde")]
        idle: Duration,
    },
}

/// What the number may do.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
pub struct ScaleDocument {
    /// The fewest.
    pub min: u32,
    /// The most. 0: only watched, so that its lag is told.
    pub max: u32,
    /// Kept beyond what is needed.
    pub warm_spares: u32,
    /// A load this close to what the present instances are for is no reason to change.
    pub tolerance: f64,
    /// Scale out no further than was wanted all through this time.
    #[serde(with = "humantime_serde")]
    pub out_window: Duration,
    /// Scale in no further than was wanted all through this time.
    #[serde(with = "humantime_serde")]
    pub in_window: Duration,
    /// At most so much more at a time.
    pub out_step: Option<StepDocument>,
    /// At most so much less at a time.
    pub in_step: Option<StepDocument>,
    /// Scale in no sooner than so long after a change.
    #[serde(with = "humantime_serde")]
    pub cooldown: Duration,
    /// Instances that were wanted again after they had gone stay next time for as long as that
    /// pause, up to so long.
    #[serde(with = "humantime_serde")]
    pub hold: Duration,
    /// With `min = 0`: the last one goes after so long without a message.
    #[serde(with = "humantime_serde")]
    pub zero_after: Duration,
}

impl Default for ScaleDocument {
    fn default() -> Self {
        Self {
            min: 1,
            max: 10,
            warm_spares: 0,
            tolerance: 0.1,
            out_window: Duration::ZERO,
            in_window: Duration::from_secs(10),
            out_step: None,
            in_step: None,
            cooldown: Duration::from_secs(15),
            hold: Duration::from_secs(120),
            zero_after: Duration::from_secs(10),
        }
    }
}

/// At most so much at a time: the larger of both.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct StepDocument {
    /// Instances.
    #[serde(default)]
    pub instances: u32,
    /// Percent of what there was at the period's beginning.
    #[serde(default)]
    pub percent: u32,
    /// The period.
    #[serde(with = "humantime_serde")]
    pub period: Duration,
}

/// Who starts and stops instances. In all texts `{name}` stands for the name that matched a
/// pattern.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BackendDocument {
    /// Processes on this machine.
    Processes {
        /// The program and its arguments; `{instance}` stands for the instance's id.
        command: Vec<String>,
        /// Variables added to the environment.
        #[serde(default)]
        environment: std::collections::BTreeMap<String, String>,
        /// Variables of the provisioner's own that begin with `NATS_` and are passed on; without,
        /// `NATS_URL` where it names no user, `NATS_CA` and `NATS_TLS_FIRST`.
        #[serde(default)]
        inherit: Option<Vec<String>>,
        /// Where the state is kept; one directory for each target.
        state: PathBuf,
        /// How long one takes until it works.
        #[serde(default = "default::ready_after", with = "humantime_serde")]
        ready_after: Duration,
        /// How long one may take to leave.
        #[serde(default = "default::stop_deadline", with = "humantime_serde")]
        stop_deadline: Duration,
    },
    /// Messages to workers, each of which is obeyed by one of them.
    Directives {
        /// The service's subject, say `svc.math.blue`.
        subject: String,
    },
    /// Containers of a Docker Engine.
    Docker {
        /// The engine's socket.
        #[serde(default = "default::docker_socket")]
        socket: PathBuf,
        /// The Compose project.
        project: String,
        /// The Compose service whose containers are cloned.
        service: String,
        /// How long one takes until it works.
        #[serde(default = "default::ready_after", with = "humantime_serde")]
        ready_after: Duration,
        /// How long one may take to leave.
        #[serde(default = "default::stop_deadline", with = "humantime_serde")]
        stop_deadline: Duration,
    },
}

/// What is not written.
mod default {
    use std::path::PathBuf;
    use std::time::Duration;

    pub(super) fn poll() -> Duration {
        Duration::from_secs(1)
    }
    pub(super) fn queue_group() -> String {
        "q".to_owned()
    }
    pub(super) fn utilisation() -> f64 {
        0.8
    }
    pub(super) fn drain() -> Duration {
        Duration::from_secs(5)
    }
    pub(super) fn wait() -> Duration {
        Duration::from_secs(1)
    }
    pub(super) fn example_rate() -> f64 {
        500.0
    }
    pub(super) fn example_idle() -> Duration {
        Duration::from_secs(2)
    }
    pub(super) fn ready_after() -> Duration {
        Duration::from_millis(500)
    }
    /// As long as a worker's drain timeout and some.
    pub(super) fn stop_deadline() -> Duration {
        Duration::from_secs(30)
    }
    pub(super) fn docker_socket() -> PathBuf {
        "/var/run/docker.sock".into()
    }
}

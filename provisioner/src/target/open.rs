//! From a configuration to a target: its signal, its backend, its controller.

use async_nats::Client;
use natsway_boot::Clock;

use super::ScaleTarget;
use crate::backend::directives::Directives;
use crate::backend::docker::{Docker, DockerRules};
use crate::backend::processes::{ProcessRules, Processes};
use crate::backend::{Backend, BackendError};
use crate::config::{BackendDocument, SignalDocument, TargetConfig};
use crate::controller::Controller;
use crate::decision::Decision;
use crate::sample::{Fault, Fleet};
use crate::signal::{ConsumerSignal, MonitoringSignal, ServicesSignal, Signal, TallySignal, Via};

impl ScaleTarget {
    /// What a configuration describes.
    ///
    /// # Errors
    /// [`BackendError`] when the backend cannot be used now.
    pub fn open(client: &Client, config: &TargetConfig) -> Result<Self, BackendError> {
        let controller = Controller::new(config.name(), config.rules(), config.policies());
        let backend = open_backend(client, config.backend())?;
        let mut target = Self::new(controller, open_signal(client, config.signal()), backend);
        target.set_limits(config);
        Ok(target)
    }

    /// What is told of a target that cannot be opened now.
    pub fn not_opened(config: &TargetConfig, error: &BackendError) -> Decision {
        let controller = Controller::new(config.name(), config.rules(), Vec::new());
        let fault = Fault::Missing(format!("the backend cannot be used: {error}"));
        controller.freeze(crate::signal::now_ms(&Clock::start()), Fleet::default(), fault)
    }
}

fn open_signal(client: &Client, document: &SignalDocument) -> Box<dyn Signal> {
    let client = client.clone();
    match document {
        SignalDocument::Consumer { stream, consumer } => {
            Box::new(ConsumerSignal::new(client, stream.as_str(), consumer.as_str()))
        }
        SignalDocument::Tally { stream, consumer } => {
            Box::new(TallySignal::new(client, stream.as_str(), consumer.as_str()))
        }
        SignalDocument::Services { service, route, version } => {
            let via =
                route.clone().zip(version.clone()).map(|(route, version)| Via { route, version });
            Box::new(ServicesSignal::new(client, service.as_str(), via))
        }
        SignalDocument::Monitoring { servers, subject, queue_group } => {
            let servers = servers.iter().filter_map(|server| server.parse().ok()).collect();
            Box::new(MonitoringSignal::new(servers, subject.as_str(), queue_group.as_str()))
        }
    }
}

fn open_backend(
    client: &Client,
    document: &BackendDocument,
) -> Result<Box<dyn Backend>, BackendError> {
    Ok(match document.clone() {
        BackendDocument::Processes {
            command,
            environment,
            inherit,
            state,
            ready_after,
            stop_deadline,
        } => {
            let environment = environment.into_iter().collect();
            Box::new(Processes::open(ProcessRules {
                command,
                environment,
                inherit,
                state,
                ready_after,
                stop_deadline,
            })?)
        }
        BackendDocument::Directives { subject } => {
            let subject = subject
                .parse()
                .map_err(|error| BackendError::new(format!("subject {subject:?}"), error))?;
            Box::new(Directives::new(client.clone(), subject))
        }
        BackendDocument::Docker { socket, project, service, ready_after, stop_deadline } => {
            Box::new(Docker::new(DockerRules {
                socket,
                project,
                service,
                ready_after,
                stop_deadline,
            }))
        }
    })
}

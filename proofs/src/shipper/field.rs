//! The processes of a run: a broker, a producer for each host, consumers of two clusters.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use natsway_testkit::{Process, TestBroker};

/// Long enough for any stop.
const STOP: Duration = Duration::from_secs(60);

/// Where a program runs and what it is told, so that it can be started again.
pub(crate) struct Program {
    pub(crate) name: String,
    binary: PathBuf,
    environment: Vec<(&'static str, String)>,
    log: PathBuf,
    process: Option<Process>,
    /// Since when it has been asked to stop.
    stopping: Option<Instant>,
    starts: u32,
    /// How often it did not end well when it was asked to.
    pub(crate) unclean_stops: u32,
}

impl Program {
    /// Starts it, unless it runs. `false` while it has yet to end what it was asked to end.
    pub(crate) fn start(&mut self) -> bool {
        if let (Some(since), Some(process)) = (self.stopping, &mut self.process) {
            match process.exit_status() {
                None if since.elapsed() < STOP => return false,
                None => {
                    self.unclean_stops += 1;
                    process.kill9();
                }
                Some(status) => self.unclean_stops += u32::from(!status.success()),
            }
        }
        self.stopping = None;
        if self.process.as_mut().is_some_and(|process| process.exit_status().is_none()) {
            return true;
        }
        self.collect();
        self.starts += 1;
        let builder = Process::builder(&self.binary).name(&self.name);
        let builder =
            self.environment.iter().fold(builder, |builder, (key, value)| builder.env(key, value));
        self.process = Some(builder.start());
        true
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.stopping.is_none()
            && self.process.as_mut().is_some_and(|process| process.exit_status().is_none())
    }

    /// Asks it to stop; [`Program::start`] sees that it does.
    pub(crate) fn terminate(&mut self) {
        if let Some(process) = &mut self.process {
            process.thaw();
            process.terminate();
            self.stopping = Some(Instant::now());
        }
    }

    pub(crate) fn kill9(&mut self) {
        if let Some(process) = &mut self.process {
            process.kill9();
        }
        self.collect();
    }

    /// Asks it to stop, and waits until it has.
    pub(crate) async fn stop(&mut self) {
        let Some(process) = &mut self.process else { return };
        process.terminate();
        self.unclean_stops += u32::from(!process.wait_exit(STOP).await.success());
        self.collect();
    }

    pub(crate) fn freeze(&mut self) {
        if let Some(process) = &mut self.process {
            process.freeze();
        }
    }

    pub(crate) fn thaw(&mut self) {
        if let Some(process) = &mut self.process {
            process.thaw();
        }
    }

    /// Keeps what it wrote to its standard error.
    fn collect(&mut self) {
        if let Some(process) = self.process.take() {
            let path = self.log.join(format!("{}-{}.log", self.name, self.starts));
            if let Err(error) = std::fs::write(&path, process.stderr()) {
                eprintln!("{}: {error}", path.display());
            }
        }
    }
}

/// What programs are started with.
pub(crate) struct Programs {
    pub(crate) producer: PathBuf,
    pub(crate) consumer: PathBuf,
    pub(crate) logs: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) rotate: Option<String>,
}

/// Partitions of the shipper.
pub(crate) const PARTITIONS: u32 = 5;

impl Programs {
    pub(crate) fn producer(&self, broker: &TestBroker, host: &str, log: &Path) -> Program {
        let environment = vec![
            ("NATS_URL", broker.url()),
            ("SHIPPER_SUBJECT", "shipper".to_owned()),
            ("SHIPPER_FILE", log.display().to_string()),
            ("SHIPPER_PARTITIONS", PARTITIONS.to_string()),
            ("SHIPPER_STATE", self.state.display().to_string()),
            ("HOSTNAME", host.to_owned()),
        ];
        self.program(format!("producer-{host}"), self.producer.clone(), environment)
    }

    /// A consumer of the shared cluster.
    pub(crate) fn shared(&self, broker: &TestBroker, name: &str, directory: &Path) -> Program {
        let mut environment = self.consuming(broker, directory);
        environment.push(("SHIPPER_CLUSTER", "shared".to_owned()));
        environment.push(("SHIPPER_READ_PARTITIONS", "auto".to_owned()));
        environment.push(("SHIPPER_MEMBER_TIMEOUT", "6s".to_owned()));
        self.program(name.to_owned(), self.consumer.clone(), environment)
    }

    /// A consumer of some partitions, in a cluster of its own.
    pub(crate) fn listed(
        &self,
        broker: &TestBroker,
        name: &str,
        partitions: &str,
        directory: &Path,
    ) -> Program {
        let mut environment = self.consuming(broker, directory);
        environment.push(("SHIPPER_CLUSTER", "listed".to_owned()));
        environment.push(("SHIPPER_READ_PARTITIONS", partitions.to_owned()));
        self.program(name.to_owned(), self.consumer.clone(), environment)
    }

    fn consuming(&self, broker: &TestBroker, directory: &Path) -> Vec<(&'static str, String)> {
        let mut environment = vec![
            ("NATS_URL", broker.url()),
            ("SHIPPER_SUBJECT", "shipper".to_owned()),
            ("SHIPPER_OUTPUT", "log".to_owned()),
            ("SHIPPER_ROTATE_SIZE", "1MiB".to_owned()),
            ("SHIPPER_DIRECTORY", directory.display().to_string()),
        ];
        environment.extend(self.rotate.clone().map(|rotate| ("SHIPPER_ROTATE", rotate)));
        environment
    }

    fn program(
        &self,
        name: String,
        binary: PathBuf,
        environment: Vec<(&'static str, String)>,
    ) -> Program {
        Program {
            name,
            binary,
            environment,
            log: self.logs.clone(),
            process: None,
            stopping: None,
            starts: 0,
            unclean_stops: 0,
        }
    }
}

//! The options of stored requests: which stream has them, and how they are worked on.

use std::num::{NonZeroU64, NonZeroUsize};
use std::time::Duration;

use natsway_boot::duration;
use natsway_worker::{Options, WorkQueue};

#[derive(clap::Args)]
#[command(next_help_heading = "Stored requests (routes of the mode `enqueue`)")]
pub(crate) struct WorkArgs {
    /// Stream that stores requests: they are handled as those of the subject, and their results
    /// kept
    #[arg(long, env = "NATSWAY_WORK_STREAM", value_name = "NAME")]
    work_stream: Option<String>,

    /// Durable consumer by which workers share them; by default the queue group's name. It is made
    /// if there is none
    #[arg(long, env = "NATSWAY_WORK_CONSUMER", value_name = "NAME", requires = "work_stream")]
    work_consumer: Option<String>,

    /// Subject of these requests, where the stream has others; wildcards are allowed
    #[arg(long, env = "NATSWAY_WORK_SUBJECT", value_name = "SUBJECT", requires = "work_stream")]
    work_subject: Option<String>,

    /// Stored requests at work at the same time
    #[arg(long, env = "NATSWAY_WORK_AT_ONCE", value_name = "COUNT", default_value = "16")]
    work_at_once: NonZeroUsize,

    /// Deliveries of a stored request until its result is that it was given up
    #[arg(long, env = "NATSWAY_WORK_DELIVERIES", value_name = "COUNT", default_value = "10")]
    work_deliveries: NonZeroU64,

    /// How long a worker may be silent until its stored requests go to others, where the consumer
    /// is made here; 1s to 1h
    #[arg(
        long, env = "NATSWAY_WORK_ACK_WAIT", value_name = "TIME", default_value = "30s",
        value_parser = duration
    )]
    work_ack_wait: Duration,

    /// Longest result of a stored request, its head included; a longer one becomes a 502
    #[arg(
        long,
        env = "NATSWAY_WORK_MAX_RESULT_BYTES",
        value_name = "BYTES",
        default_value = "262144"
    )]
    work_max_result_bytes: NonZeroUsize,
}

impl WorkArgs {
    pub(crate) fn apply(self, options: Options) -> Options {
        let Some(stream) = self.work_stream else { return options };
        let mut queue = WorkQueue::new(stream)
            .at_once(self.work_at_once.get())
            .deliveries(self.work_deliveries.get())
            .ack_wait(self.work_ack_wait)
            .max_result_bytes(self.work_max_result_bytes.get());
        if let Some(name) = self.work_consumer {
            queue = queue.consumer(name);
        }
        if let Some(subject) = self.work_subject {
            queue = queue.subject(subject);
        }
        options.work_queue(queue)
    }
}

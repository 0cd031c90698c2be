//! `cg … consume`: takes part as a member and prints what comes.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use async_nats::jetstream::consumer::pull;
use natsway_partitioned_consumer::{End, GroupKind, Message};

use crate::args;
use crate::session::Session;

/// Runs until it is interrupted, or the group ends it.
pub(crate) async fn run(
    session: &Session,
    kind: GroupKind,
    wanted: &args::Consume,
) -> Result<ExitCode> {
    let stop = match &session.stop {
        Some(stop) => stop.clone(),
        None => natsway_boot::shutdown::on_signal()?,
    };
    let (member, group) = (wanted.member.member.clone(), &wanted.member.group);
    let template = pull::Config {
        max_ack_pending: wanted.max_ack_pending,
        ack_wait: wanted.ack_wait,
        ..Default::default()
    };
    let builder = session.group(kind, group)?.consume(&member);
    let (sleep, json, name) = (session.sleep, session.json, Arc::<str>::from(member.as_str()));
    let builder = builder.template(template).concurrency(wanted.concurrency as usize);
    let unread = stop.clone();
    let mut consuming = builder
        .handle(move |message| {
            let (name, unread) = (Arc::clone(&name), unread.clone());
            async move {
                // Nobody sees what comes any more: leave it to another instance.
                work(name, message, sleep, json).await.inspect_err(|_| unread.cancel())
            }
        })
        .await?;
    eprintln!("consuming from {} as {member}; interrupt to stop", group.group);
    let end = tokio::select! {
        end = consuming.done() => end,
        () = stop.cancelled() => {
            consuming.stop();
            consuming.done().await
        }
    };
    match end? {
        End::Stopped => eprintln!("stopped"),
        End::GroupDeleted => eprintln!("the group was deleted"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn work(
    member: Arc<str>,
    message: Message,
    sleep: Duration,
    json: bool,
) -> std::io::Result<()> {
    let pin = message.headers().and_then(|h| h.get("Nats-Pin-Id")).map_or("", |v| v.as_str());
    let line = if json {
        serde_json::json!({
            "member": &*member, "subject": message.subject(), "seq": message.stream_sequence(), "pinned_id": pin,
            "partition": message.partition(), "deliveries": message.deliveries(),
        })
        .to_string()
    } else {
        format!(
            "[{member}] subject={}, seq={}, pinnedID={pin}. Processing time: {sleep:?}",
            message.subject(),
            message.stream_sequence()
        )
    };
    writeln!(std::io::stdout(), "{line}")?;
    tokio::time::sleep(sleep).await;
    let acked = message.double_ack().await;
    let at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    match acked {
        Ok(()) => eprintln!("{at} [{member}] seq={} acknowledged", message.stream_sequence()),
        Err(error) => eprintln!(
            "{at} [{member}] seq={} not acknowledged, it will come again: {error}",
            message.stream_sequence()
        ),
    }
    Ok(())
}

//! The bound of a member's speed: a socket, one pull, and a loop that answers every message.
//!
//! No client library, no order, no handler, no renewal of the pin: what is left is the broker's
//! work for the same consumer.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use async_nats::jetstream::consumer::{PriorityPolicy, pull};
use natsway_partitioned_consumer::StaticGroup;

use super::member::{MemberRun, Orders};

/// The priority group of the wire's current generation.
const PRIORITY_GROUP: &str = "PCG";
const SILENCE: Duration = Duration::from_secs(20);
const READ_BYTES: usize = 256 * 1024;

/// Creates the consumer as a member of the library would.
///
/// # Errors
/// The group cannot be read, or the broker refuses the consumer.
pub async fn create_consumer(orders: &Orders) -> Result<()> {
    let context = async_nats::jetstream::new(async_nats::connect(&orders.url).await?);
    let group = StaticGroup::new(context.clone(), &orders.stream, &orders.group)?;
    let config = pull::Config {
        durable_name: Some(group.name().durable(&orders.member)),
        filter_subjects: group.config().await?.partition_filters(&orders.member),
        priority_groups: vec![PRIORITY_GROUP.into()],
        priority_policy: PriorityPolicy::PinnedClient,
        priority_timeout: Duration::from_millis(orders.ack_wait_ms),
        ..orders.template()
    };
    context.create_consumer_strict_on_stream(config, &orders.stream).await?;
    Ok(())
}

/// Takes and acknowledges all messages.
///
/// # Errors
/// The broker cannot be reached, refuses the pull, or is silent for 20 s.
pub fn run(orders: &Orders) -> Result<MemberRun> {
    let address = orders.url.strip_prefix("nats://").unwrap_or(&orders.url);
    let mut socket = TcpStream::connect(address).context("the broker cannot be reached")?;
    socket.set_nodelay(true)?;
    socket.set_read_timeout(Some(SILENCE))?;
    let pull = format!(
        "{{\"batch\":{},\"expires\":{},\"group\":\"{PRIORITY_GROUP}\"}}",
        orders.messages,
        Duration::from_secs(60).as_nanos(),
    );
    write!(
        socket,
        "CONNECT {{\"verbose\":false,\"headers\":true}}\r\nSUB inbox 1\r\n\
         PUB $JS.API.CONSUMER.MSG.NEXT.{}.{}-{} inbox {}\r\n{pull}\r\n",
        orders.stream,
        orders.group,
        orders.member,
        pull.len()
    )?;
    let (mut input, mut filled) = (vec![0; READ_BYTES], 0);
    let mut answers = Vec::with_capacity(READ_BYTES);
    let (mut began, mut left) = (None, orders.messages);
    while left > 0 {
        let read = match socket.read(&mut input[filled..]) {
            Ok(0) => bail!("the broker closed the connection"),
            Ok(read) => read,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context("the broker is silent"),
        };
        filled += read;
        let mut at = 0;
        while let Some(used) = answer_one(&input[at..filled], &mut answers, &mut left)? {
            at += used;
        }
        if left < orders.messages {
            began.get_or_insert_with(Instant::now);
        }
        input.copy_within(at..filled, 0);
        filled -= at;
        socket.write_all(&answers)?;
        answers.clear();
    }
    Ok(MemberRun { seconds: began.map_or(0.0, |at| at.elapsed().as_secs_f64()), handler_ms: 0.0 })
}

/// Answers the first operation of `input`; gives back how long it was, or nothing when it is not
/// all there yet.
fn answer_one(input: &[u8], answers: &mut Vec<u8>, left: &mut u64) -> Result<Option<usize>> {
    let Some(end) = input.windows(2).position(|two| two == b"\r\n") else { return Ok(None) };
    let mut words = input[..end].split(|byte| *byte == b' ');
    match words.next() {
        Some(b"MSG" | b"HMSG") => {}
        Some(b"PING") => {
            answers.extend_from_slice(b"PONG\r\n");
            return Ok(Some(end + 2));
        }
        Some(b"-ERR") => bail!("the broker says {}", String::from_utf8_lossy(&input[..end])),
        _ => return Ok(Some(end + 2)),
    }
    // Subject, subscription, reply subject, the sizes; the last is that of all that follows.
    let words: Vec<&[u8]> = words.collect();
    let size = words.last().and_then(|size| std::str::from_utf8(size).ok()?.parse::<usize>().ok());
    let whole = end + 2 + size.context("an operation without a size")? + 2;
    if input.len() < whole {
        return Ok(None);
    }
    let reply = words.get(2).copied().unwrap_or_default();
    ensure!(reply.starts_with(b"$JS.ACK."), "{}", String::from_utf8_lossy(&input[end + 2..whole]));
    answers.extend_from_slice(b"PUB ");
    answers.extend_from_slice(reply);
    answers.extend_from_slice(b" 4\r\n+ACK\r\n");
    *left = left.saturating_sub(1);
    Ok(Some(whole))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_answered_once_they_are_whole() {
        let input = b"INFO {}\r\nPING\r\nHMSG S.k 1 $JS.ACK.S.c.1.2.3.4.5 12 \
              14\r\nNATS/1.0\r\n\r\nhi\r\nMSG S";
        let (mut answers, mut left, mut at) = (Vec::new(), 5, 0);
        while let Some(used) = answer_one(&input[at..], &mut answers, &mut left).unwrap() {
            at += used;
        }
        assert_eq!(&input[at..], b"MSG S");
        assert_eq!(answers, b"PONG\r\nPUB $JS.ACK.S.c.1.2.3.4.5 4\r\n+ACK\r\n");
        assert_eq!(left, 4);
        let refusal = b"HMSG inbox 1 30 30\r\nNATS/1.0 423 Nats-Wrong-Pin\r\n\r\n\r\n";
        assert!(answer_one(refusal, &mut answers, &mut left).is_err());
    }
}

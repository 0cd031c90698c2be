//! The bytes on the wire are those that are checked in, for every kind of message, and a reader
//! that knows MessagePack but not us finds in them what we meant.

#![expect(clippy::unwrap_used, reason = "what a test does not expect ends it")]

mod support;

use std::collections::BTreeSet;
use std::path::Path;

use bytes::{BufMut, Bytes};
use natsway_wire::Limits;
use natsway_wire::control::WorkerCommand;
use natsway_wire::envelope::{Reply, decode_reply, decode_request};
use natsway_wire::frame::{FrameReader, Hello};
use natsway_wire::pipe::PipeMessage;
use rmpv::Value;
use support::{
    commands, encode_frame, encode_reply, encode_request, frames, golden, pipe_messages, replies,
    requests,
};

/// What a foreign reader makes of a golden message; it must take all of its bytes.
fn read_by_a_stranger(name: &str) -> Value {
    let message = golden(name);
    let mut rest = &message[..];
    let value = rmpv::decode::read_value(&mut rest).unwrap();
    assert!(rest.is_empty(), "{name}: {} bytes left", rest.len());
    value
}

fn array<const N: usize>(values: [Value; N]) -> Value {
    Value::Array(values.into())
}

fn integer(value: u64) -> Value {
    Value::from(value)
}

fn binary(bytes: &[u8]) -> Value {
    Value::Binary(bytes.to_vec())
}

fn pairs(fields: &[(&str, &[u8])]) -> Value {
    let pair = |(name, value): &(&str, &[u8])| array([Value::from(*name), binary(value)]);
    Value::Array(fields.iter().map(pair).collect())
}

fn signal(code: u64, detail: &str) -> Value {
    array([integer(1), integer(1), integer(code), Value::from(detail)])
}

#[test]
fn requests_have_the_golden_bytes_both_ways() {
    for (name, request) in requests() {
        assert_eq!(encode_request(&request), golden(name), "{name}");
        assert_eq!(decode_request(&golden(name), Limits::DEFAULT).unwrap(), request, "{name}");
    }
}

#[test]
fn replies_have_the_golden_bytes_both_ways() {
    for (name, reply) in replies() {
        assert_eq!(encode_reply(&reply), golden(name), "{name}");
        assert_eq!(decode_reply(&golden(name), Limits::DEFAULT).unwrap(), reply, "{name}");
    }
}

#[test]
fn commands_have_the_golden_bytes_both_ways() {
    for (name, command) in commands() {
        assert_eq!(command.encode(), golden(name), "{name}");
        assert_eq!(WorkerCommand::decode(&golden(name)).unwrap(), command, "{name}");
    }
}

#[test]
fn frames_have_the_golden_bytes_both_ways() {
    for (name, frame) in frames() {
        assert_eq!(encode_frame(&frame), golden(name), "{name}");
        let mut reader = FrameReader::new(1 << 20);
        reader.buffer().put_slice(&golden(name));
        assert_eq!(reader.next_frame().unwrap(), Some(frame), "{name}");
        assert_eq!((reader.next_frame().unwrap(), reader.held_bytes()), (None, 0), "{name}");
    }
}

#[test]
fn messages_of_pipes_have_the_golden_bytes_both_ways() {
    for (name, message) in pipe_messages() {
        assert_eq!(message.encode(), golden(name), "{name}");
        assert_eq!(PipeMessage::decode(&golden(name)).unwrap(), message, "{name}");
    }
}

#[test]
fn a_stranger_reads_a_hello() {
    let (_, frame) = frames().into_iter().find(|(name, _)| *name == "frame_hello").unwrap();
    let hello = Hello::decode(&frame.payload).unwrap();
    assert_eq!((hello.name.as_str(), hello.requests), ("k3v9", 64));
    let value = rmpv::decode::read_value(&mut &frame.payload[..]).unwrap();
    let (requests, payload_bytes) = (integer(64), integer(1 << 20));
    let said = [integer(1), Value::from("k3v9"), requests, payload_bytes, integer(0)];
    assert_eq!(value, array(said));
}

#[test]
fn a_stranger_reads_a_request() {
    let get = array([
        integer(1),
        integer(0),
        integer(1_500),
        integer(1_700_000_000_000),
        Value::from("GET"),
        Value::from("/"),
        array([]),
        binary(b""),
    ]);
    assert_eq!(read_by_a_stranger("request_get"), get);
    let post = array([
        integer(1),
        integer(0),
        integer(60_000),
        integer(1_700_000_000_001),
        Value::from("POST"),
        Value::from("/sum?n=1%20"),
        pairs(&[("content-type", b"text/plain"), ("x-tag", b"one"), ("x-tag", b"two\xe9")]),
        binary(b"hello"),
    ]);
    assert_eq!(read_by_a_stranger("request_post"), post);
    let Value::Array(mut across) = read_by_a_stranger("request_get") else {
        unreachable!("it is one")
    };
    across.push(Value::from("_INBOX_apiproxy.7"));
    assert_eq!(read_by_a_stranger("request_across"), Value::Array(across));
}

#[test]
fn a_stranger_reads_a_response() {
    let ok = array([
        integer(1),
        integer(0),
        integer(200),
        pairs(&[("content-type", b"application/json")]),
        array([]),
        binary(b"{\"sum\":6}"),
    ]);
    assert_eq!(read_by_a_stranger("response_ok"), ok);
    let trailers = array([
        integer(1),
        integer(0),
        integer(404),
        pairs(&[("set-cookie", b"a=1"), ("set-cookie", b"b=2")]),
        pairs(&[("x-checksum", b"0f1e")]),
        binary(b""),
    ]);
    assert_eq!(read_by_a_stranger("response_trailers"), trailers);
}

#[test]
fn a_stranger_reads_signals_and_commands() {
    assert_eq!(read_by_a_stranger("signal_accepted"), signal(0, "k3v9"));
    assert_eq!(read_by_a_stranger("signal_overloaded"), signal(1, ""));
    assert_eq!(read_by_a_stranger("signal_moved"), signal(2, ""));
    assert_eq!(read_by_a_stranger("signal_expired"), signal(3, ""));
    assert_eq!(read_by_a_stranger("signal_unsupported"), signal(4, ""));
    let cancel = array([integer(1), integer(0), Value::from("_INBOX_apiproxy.7")]);
    assert_eq!(read_by_a_stranger("command_cancel"), cancel);
    assert_eq!(
        read_by_a_stranger("command_ping"),
        array([integer(1), integer(1), Value::from("")])
    );
}

#[test]
fn every_golden_file_belongs_to_a_test() {
    let named = requests().map(|(name, _)| name).into_iter();
    let named =
        named.chain(replies().map(|(name, _)| name)).chain(commands().map(|(name, _)| name));
    let named = named.chain(frames().map(|(name, _)| name));
    let named = named.chain(pipe_messages().map(|(name, _)| name));
    let named: BTreeSet<String> = named.map(str::to_owned).collect();
    let files = std::fs::read_dir(support::golden_directory()).unwrap();
    let stem = |file: std::io::Result<std::fs::DirEntry>| {
        file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned()
    };
    assert_eq!(files.map(stem).collect::<BTreeSet<_>>(), named);
}

#[test]
fn the_fuzzers_start_from_the_golden_bytes() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/seeds");
    let of = |target: &'static str, names: Vec<&'static str>| {
        names.into_iter().map(move |name| (target, name))
    };
    let requests = of("decode_request", requests().map(|(name, _)| name).to_vec());
    let replies = of("decode_reply", replies().map(|(name, _)| name).to_vec());
    let commands = of("command", commands().map(|(name, _)| name).to_vec());
    let frames = of("frame", frames().map(|(name, _)| name).to_vec());
    let pipes = of("pipe_message", pipe_messages().map(|(name, _)| name).to_vec());
    let all = requests.chain(replies).chain(commands).chain(frames).chain(pipes);
    for (target, name) in all {
        let path = seeds.join(target).join(name);
        let seed =
            std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(Bytes::from(seed), golden(name), "{}", path.display());
    }
}

/// The examples of the document stand in fences that name them: three backquotes, `hex`, the golden
/// file's name.
#[test]
fn the_document_shows_the_golden_bytes() {
    let document = include_str!("../../../docs/wire.md");
    let mut shown = BTreeSet::new();
    for fence in document.split("```hex ").skip(1) {
        let (name, rest) = fence.split_once('\n').unwrap();
        let (hex, _) = rest.split_once("```").unwrap();
        assert_eq!(
            Bytes::from(support::from_hex(hex)),
            golden(name.trim()),
            "docs/wire.md, {name}"
        );
        shown.insert(name.trim().to_owned());
    }
    for name in [
        "request_get",
        "request_post",
        "response_ok",
        "signal_accepted",
        "signal_moved",
        "command_cancel",
        "frame_hello",
        "frame_request",
        "frame_goodbye",
        "frame_pong",
        "request_pipes",
        "signal_invite",
        "pipe_hello",
        "pipe_data",
        "pipe_status",
        "pipe_reset",
    ] {
        assert!(shown.contains(name), "docs/wire.md does not show {name}");
    }
    assert!(matches!(
        decode_reply(&golden("response_ok"), Limits::DEFAULT),
        Ok(Reply::Response(_))
    ));
}

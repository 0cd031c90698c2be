//! Any map, in any format, is the same map again; and a merge is total and always gives the same.

mod support;

use bytes::Bytes;
use natsway_args::accept::Rendering;
use natsway_args::reply::render;
use natsway_args::{BodyKind, Format, Limits, Map, Options, Value};
use proptest::prelude::*;
use support::{Sent, keys, options, values};

/// What generated values need, and no more.
const ROOM: Limits = Limits { values: 10_000, depth: 10 };

fn maps(finite: bool) -> impl Strategy<Value = Value> {
    prop::collection::vec((keys(), values(finite)), 0..8)
        .prop_map(|pairs| Value::Map(pairs.into_iter().collect()))
}

proptest! {
    #[test]
    fn any_map_is_the_same_in_any_format(map in maps(true)) {
        for format in Format::ALL {
            let written = format.write(&map);
            prop_assert_eq!(&format.read(&written, ROOM).unwrap(), &map, "{:?}", format);
        }
    }

    #[test]
    fn binary_formats_have_every_number(value in values(false)) {
        for format in [Format::Msgpack, Format::Cbor] {
            prop_assert_eq!(&format.read(&format.write(&value), ROOM).unwrap(), &value);
        }
    }

    #[test]
    fn any_reply_is_rendered_in_any_way(value in values(true)) {
        let is_reply = matches!(&value, Value::Map(map) if map.contains_key("_reply"));
        prop_assume!(!is_reply);
        let ways = Format::ALL.map(|format| Rendering::Value(format, format.media_type()));
        let ways = [&ways[..], &[Rendering::Text, Rendering::Form, Rendering::Script("f".to_owned())]];
        for format in Format::ALL {
            let payload = Bytes::from(format.write(&value));
            for way in ways.concat() {
                let rendered = render(format, &payload, &way).unwrap();
                if let Rendering::Value(asked, _) = way {
                    prop_assert_eq!(&asked.read(&rendered.body, ROOM).unwrap(), &value);
                }
            }
        }
    }

    /// What the stronger has, the weaker does not change; what only the route gives, no client
    /// gives.
    #[test]
    fn the_stronger_stands_and_the_merge_is_the_same_every_time(
        path in prop::collection::vec(("[a-d]", "[a-z]{0,3}"), 0..3),
        header in proptest::option::of("[a-z]{1,3}"),
        body in maps(true),
        query in prop::collection::vec((keys(), any::<String>()), 0..6),
        nested: bool,
        jsonp: bool,
    ) {
        let options = Options { nested, jsonp, ..options(&["x-user"]) };
        let mut sent = Sent::body("application/cbor", Format::Cbor.write(&body));
        for (name, value) in &path {
            if !sent.parameters.iter().any(|(have, _)| have == name) {
                sent = sent.parameter(name, value);
            }
        }
        if let Some(value) = &header {
            sent = sent.named("x-user", value.as_bytes());
        }
        let mut pairs = form_urlencoded::Serializer::new(String::new());
        for (name, value) in &query {
            pairs.append_pair(name, value);
        }
        sent.query = Some(pairs.finish());
        let Ok(merged) = sent.merged(&options) else {
            // A name of the query is a value here and a map there.
            prop_assert!(nested);
            return Ok(());
        };
        prop_assert_eq!(&sent.merged(&options).unwrap(), &merged);
        let order = |map: &Map| map.keys().cloned().collect::<Vec<_>>();
        prop_assert_eq!(order(&sent.merged(&options).unwrap()), order(&merged));

        let Value::Map(own) = &merged["_request"] else { panic!("a map") };
        prop_assert_eq!(&own["peer"], &Value::text("192.0.2.7"));
        prop_assert!(!merged.contains_key("_reply"));
        prop_assert_eq!(merged.get("x-user").cloned(), header.map(Value::Text));
        for (name, value) in &sent.parameters {
            prop_assert_eq!(&merged[name], &Value::text(value));
        }
        let Value::Map(body) = body else { panic!("a map") };
        let fixed = |name: &str| {
            ["_request", "_reply", "x-user"].contains(&name)
                || sent.parameters.iter().any(|(have, _)| have == name)
        };
        for (name, value) in body.iter().filter(|(name, _)| !fixed(name)) {
            prop_assert_eq!(&merged[name], value);
        }
        if !nested {
            for (name, _) in &query {
                prop_assert!(fixed(name) || name == "callback" || merged.contains_key(name));
            }
        }
    }

    #[test]
    fn whatever_is_sent_is_read_or_refused(body: Vec<u8>, query: String, nested: bool, cut in 0..60_usize) {
        let options = Options { nested, limits: Limits { values: 30, depth: 4 }, ..Options::default() };
        for kind in BodyKind::ALL {
            let mut sent = Sent::body(kind.media_type(), &body);
            if kind == BodyKind::Multipart {
                let text = format!("--x\r\ncontent-disposition: form-data; name=a\r\n\r\n{query}\r\n--x--");
                sent = Sent::body("multipart/form-data; boundary=x", &text.as_bytes()[..cut.min(text.len())]);
            }
            sent.query = Some(query.clone());
            match sent.merged(&options) {
                // The gateway's own stands beside what is bounded.
                Ok(map) => prop_assert!(count(&Value::Map(map)) <= 30 + 7),
                Err(problem) => prop_assert!(problem.status.is_client_error()),
            }
        }
    }
}

fn count(value: &Value) -> usize {
    match value {
        Value::Array(values) => 1 + values.iter().map(count).sum::<usize>(),
        Value::Map(map) => 1 + map.values().map(count).sum::<usize>(),
        _ => 1,
    }
}

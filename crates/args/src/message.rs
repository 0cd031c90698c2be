//! Messages of a WebSocket: a request by its id, and what goes back under that.
//!
//! A message is `{"id": …, "args": …}` in JSON or MessagePack, and what it asks for is what a POST
//! of `args` would. Its answer is `{"id": …, "status": …, "headers": …, "body": …}`, or has a
//! `problem` for a body where nothing but a problem document was answered. `args` and bodies are
//! passed on as they stand: neither is read to be written again.

use std::borrow::Cow;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap};
use serde::de::IgnoredAny;

use crate::format::msgpack;
use crate::{BODY, Format, Limits, Map, ReadError, Value};

/// The longest id that is text, in bytes.
const ID_BYTES: usize = 128;

/// What a message may have beside its arguments, in bytes: its id and its keys.
pub const ENVELOPE_BYTES: usize = 1_024;

/// The formats of messages, and the name of each as a subprotocol (RFC 6455 section 1.9).
pub const SUBPROTOCOLS: [(&str, Format); 2] =
    [("natsway.args.json", Format::Json), ("natsway.args.msgpack", Format::Msgpack)];

/// The name that a client gave its request: an integer, or text.
#[derive(Clone, Debug, PartialEq)]
pub struct Id(Value);

/// A request.
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// What its answer goes back under.
    pub id: Id,
    /// Its arguments, in the format of the message; no bytes where it has none.
    pub args: Bytes,
}

/// Reads a message.
///
/// # Errors
/// [`ReadError::Malformed`]: it is no map, has another key than `id` and `args`, or an id that is
/// neither an integer of 64 bits nor text of 1 to 128 bytes.
pub fn read(format: Format, bytes: &[u8]) -> Result<Message, ReadError> {
    let Parts { id, args } = match format {
        Format::Json => json_parts(bytes)?,
        Format::Msgpack => msgpack_parts(bytes)?,
        Format::Cbor => return Err(ReadError::malformed("no message is CBOR")),
    };
    let id = id.filter(|id| !id.is_empty());
    let id = id.ok_or_else(|| ReadError::malformed("it has no `id`"))?;
    Ok(Message {
        id: Id::read(format, id)?,
        args: Bytes::copy_from_slice(args.unwrap_or_default()),
    })
}

/// The id, and the arguments, as they stand.
#[derive(Default)]
struct Parts<'m> {
    id: Option<&'m [u8]>,
    args: Option<&'m [u8]>,
}

impl<'m> Parts<'m> {
    /// Takes a value under its key. What is null is as if it were not there.
    fn put(&mut self, key: &str, value: &'m [u8], null: &[u8]) -> Result<(), ReadError> {
        let part = match key {
            "id" => &mut self.id,
            "args" => &mut self.args,
            other => return Err(ReadError::malformed(format!("it has an unknown key {other:?}"))),
        };
        if part.is_some() {
            return Err(ReadError::malformed(format!("it has the key {key:?} twice")));
        }
        *part = Some(if value == null { &[] } else { value });
        Ok(())
    }
}

fn json_parts(bytes: &[u8]) -> Result<Parts<'_>, ReadError> {
    let mut json = JsonCursor::new(bytes)?;
    let mut parts = Parts::default();
    json.take(b'{')?;
    if json.peek() == Some(b'}') {
        json.take(b'}')?;
        return json.end().map(|()| parts);
    }
    loop {
        let key: String = json.value()?.0;
        json.take(b':')?;
        let (IgnoredAny, value) = json.value()?;
        parts.put(&key, value, b"null")?;
        if json.peek() != Some(b',') {
            break;
        }
        json.take(b',')?;
    }
    json.take(b'}')?;
    json.end().map(|()| parts)
}

/// A place in a text of JSON: values are passed over, and not read.
struct JsonCursor<'m>(&'m str);

impl<'m> JsonCursor<'m> {
    fn new(bytes: &'m [u8]) -> Result<Self, ReadError> {
        let text = std::str::from_utf8(bytes);
        text.map(Self).map_err(|_| ReadError::malformed("it is not UTF-8"))
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        self.0 = self.0.trim_start_matches([' ', '\t', '\n', '\r']);
        self.0.bytes().next()
    }

    fn take(&mut self, expected: u8) -> Result<(), ReadError> {
        if self.peek() != Some(expected) {
            let expected = char::from(expected);
            return Err(ReadError::malformed(format!("expected `{expected}` in a map of JSON")));
        }
        self.0 = &self.0[1..];
        Ok(())
    }

    /// A value, and how it stands there.
    fn value<T: serde::Deserialize<'m>>(&mut self) -> Result<(T, &'m [u8]), ReadError> {
        self.peek();
        let mut values = serde_json::Deserializer::from_str(self.0).into_iter();
        let value = values.next().ok_or_else(|| ReadError::malformed("it breaks off"))?;
        let value = value.map_err(|error| ReadError::malformed(error.to_string()))?;
        let (raw, rest) = self.0.split_at(values.byte_offset());
        self.0 = rest;
        Ok((value, raw.as_bytes()))
    }

    fn end(&mut self) -> Result<(), ReadError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(ReadError::malformed("more stands behind the map")),
        }
    }
}

fn msgpack_parts(mut bytes: &[u8]) -> Result<Parts<'_>, ReadError> {
    const NIL: [u8; 1] = [0xc0];
    let mut parts = Parts::default();
    for _ in 0..msgpack::take_map(&mut bytes)? {
        let key = msgpack::take_key(&mut bytes)?;
        parts.put(&key, msgpack::take_raw(&mut bytes)?, &NIL)?;
    }
    match bytes.len() {
        0 => Ok(parts),
        left => Err(ReadError::malformed(format!("{left} bytes behind the map"))),
    }
}

impl Id {
    fn read(format: Format, bytes: &[u8]) -> Result<Self, ReadError> {
        let value = format.read(bytes, Limits { values: 1, depth: 0 });
        match value {
            Ok(value @ Value::Integer(_)) => Ok(Self(value)),
            Ok(Value::Text(text)) if (1..=ID_BYTES).contains(&text.len()) => {
                Ok(Self(Value::Text(text)))
            }
            _ => {
                let expected = format!("`id` must be an integer or text of 1 to {ID_BYTES} bytes");
                Err(ReadError::malformed(expected))
            }
        }
    }
}

/// Writes what goes back for a request, as HTTP would say it. `id` is none where that of the
/// request could not be read. Of `headers` those are left out that describe the body as we wrote
/// it.
pub fn write(
    format: Format,
    id: Option<&Id>,
    status: StatusCode,
    headers: &HeaderMap,
    body: &[u8],
) -> Vec<u8> {
    let content = Content::of(format, headers, body);
    let id = format.write(id.map_or(&Value::Null, |Id(id)| id));
    let status = format.write(&Value::Integer(status.as_u16().into()));
    let fields = fields(headers, !matches!(content, Content::Other(_)));
    let mut members = vec![("id", Cow::Owned(id)), ("status", Cow::Owned(status))];
    if !fields.is_empty() {
        members.push(("headers", format.write_map(&fields).into()));
    }
    match content {
        Content::None => {}
        Content::Written(body) => members.push((BODY, body.into())),
        Content::Problem(document) => members.push(("problem", document)),
        Content::Other(value) => members.push((BODY, format.write(&value).into())),
    }
    map_of(format, &members)
}

/// What an answer has for a body.
enum Content<'b> {
    None,
    /// A value in the format of the connection.
    Written(&'b [u8]),
    /// A problem document, in that format.
    Problem(Cow<'b, [u8]>),
    /// What a backend wrote itself, by its own type: text, or bytes.
    Other(Value),
}

impl<'b> Content<'b> {
    fn of(format: Format, headers: &HeaderMap, body: &'b [u8]) -> Self {
        if body.is_empty() {
            return Self::None;
        }
        let said = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        // A backend may say these types as well: what it wrote is looked through.
        match said {
            Some(said) if said == format.media_type() && is_value(format, body) => {
                Self::Written(body)
            }
            Some("application/problem+json") if is_value(Format::Json, body) => {
                Self::problem(format, body)
            }
            _ => Self::Other(match std::str::from_utf8(body) {
                Ok(text) => Value::text(text),
                Err(_) => Value::Bytes(body.to_vec()),
            }),
        }
    }

    fn problem(format: Format, document: &'b [u8]) -> Self {
        match (format, Format::Json.read(document, Limits::REPLY)) {
            (Format::Json, _) => Self::Problem(document.into()),
            (_, Ok(value)) => Self::Problem(format.write(&value).into()),
            (_, Err(_)) => Self::Other(Value::text(String::from_utf8_lossy(document))),
        }
    }
}

/// Whether bytes are one value, and nothing else.
fn is_value(format: Format, mut bytes: &[u8]) -> bool {
    match format {
        // Of bytes the library would pass over strings that are not UTF-8.
        Format::Json => std::str::from_utf8(bytes)
            .is_ok_and(|text| serde_json::from_str::<IgnoredAny>(text).is_ok()),
        _ => msgpack::take_raw(&mut bytes).is_ok() && bytes.is_empty(),
    }
}

/// The header fields of an answer, each a text, or an array where it comes again.
fn fields(headers: &HeaderMap, is_described: bool) -> Map {
    let of_the_body = [header::CONTENT_TYPE, header::VARY, header::X_CONTENT_TYPE_OPTIONS];
    let mut fields = Map::new();
    for name in headers.keys() {
        let is_ours = *name == header::CONTENT_LENGTH || is_described && of_the_body.contains(name);
        if is_ours {
            continue;
        }
        let values = headers.get_all(name).iter();
        let mut values: Vec<Value> =
            values.map(|value| Value::text(String::from_utf8_lossy(value.as_bytes()))).collect();
        let value = match values.len() {
            1 => values.remove(0),
            _ => Value::Array(values),
        };
        fields.insert(name.as_str().to_owned(), value);
    }
    fields
}

/// A map of values that are written already.
fn map_of(format: Format, members: &[(&str, Cow<'_, [u8]>)]) -> Vec<u8> {
    let bytes: usize = members.iter().map(|(key, value)| key.len() + value.len() + 4).sum();
    let mut out = Vec::with_capacity(bytes + 2);
    match format {
        Format::Json => {
            for (place, (key, value)) in members.iter().enumerate() {
                out.push(if place == 0 { b'{' } else { b',' });
                out.extend(Format::Json.write(&Value::text(*key)));
                out.push(b':');
                out.extend_from_slice(value);
            }
            out.push(b'}');
        }
        _ => {
            /// The marker of a map of fewer than 16 keys.
            const FIX_MAP: u8 = 0x80;
            out.push(FIX_MAP | members.len() as u8);
            for (key, value) in members {
                out.extend(Format::Msgpack.write(&Value::text(*key)));
                out.extend_from_slice(value);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn json(text: &str) -> Result<Message, String> {
        read(Format::Json, text.as_bytes()).map_err(|error| error.to_string())
    }

    fn pack(value: &str) -> Vec<u8> {
        Format::Msgpack.write(&Format::Json.read(value.as_bytes(), Limits::REPLY).unwrap())
    }

    #[test]
    fn arguments_are_taken_as_they_stand() {
        let message = json(r#" {"args": {"a": [1, 2.50]}, "id": "x"} "#).unwrap();
        assert_eq!(
            (message.id, &message.args[..]),
            (Id(Value::text("x")), &br#"{"a": [1, 2.50]}"#[..])
        );
        for none in [r#"{"id":7}"#, r#"{"id":7,"args":null}"#] {
            assert_eq!(
                json(none).unwrap(),
                Message { id: Id(Value::Integer(7)), args: Bytes::new() }
            );
            let packed = read(Format::Msgpack, &pack(none)).unwrap();
            assert_eq!(packed, json(none).unwrap());
        }
        let packed =
            read(Format::Msgpack, &pack(r#"{"args":{"a":[1,{"b":"c"}]},"id":-1}"#)).unwrap();
        assert_eq!(packed.args, pack(r#"{"a":[1,{"b":"c"}]}"#));
    }

    #[test]
    fn what_is_no_message_says_why() {
        for (text, why) in [
            ("", "expected `{`"),
            ("[]", "expected `{`"),
            ("{", "breaks off"),
            ("{1:2}", "invalid type"),
            (r#"{"id" 1}"#, "expected `:`"),
            (r#"{"id":1,}"#, "expected value"),
            (r#"{"id":1"#, "expected `}`"),
            ("{}", "no `id`"),
            (r#"{"id":null}"#, "no `id`"),
            (r#"{"id":1.5}"#, "must be an integer or text"),
            (r#"{"id":true}"#, "must be an integer or text"),
            (r#"{"id":{}}"#, "must be an integer or text"),
            (r#"{"id":[1]}"#, "must be an integer or text"),
            (r#"{"id":18446744073709551615}"#, "must be an integer or text"),
            (r#"{"id":""}"#, "must be an integer or text"),
            (r#"{"id":1,"id":2}"#, "twice"),
            (r#"{"id":1,"method":"x"}"#, "unknown key \"method\""),
            (r#"{"id":1,"args":{"a":}}"#, "expected value"),
            (r#"{"id":1} x"#, "more stands behind"),
        ] {
            let said = json(text).unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
        let long = format!(r#"{{"id":"{}"}}"#, "x".repeat(ID_BYTES + 1));
        assert!(json(&long).is_err());
        for bytes in [
            &b""[..],
            b"\x91\x01",
            b"\x81\xa2id",
            b"\x81\xa2id\xc3",
            b"\x81\xa2xy\x01",
            b"\x82\xa2id\x01\xa2id\x01",
            b"\x81\xa2id\x01\x01",
            b"\x82\xa2id\x01\xa4args\xdf\xff\xff\xff\xff",
            b"\x82\xa2id\x01\xa4args\xc6\xff\xff\xff\xff",
        ] {
            assert!(read(Format::Msgpack, bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn depth_costs_no_stack() {
        let deep = format!(r#"{{"id":1,"args":{}1{}}}"#, "[".repeat(100_000), "]".repeat(100_000));
        assert_eq!(json(&deep).unwrap().args.len(), 200_001);
        let mut packed = b"\x82\xa2id\x01\xa4args".to_vec();
        packed.extend(vec![0x91; 100_000]);
        packed.push(0xc0);
        assert_eq!(read(Format::Msgpack, &packed).unwrap().args.len(), 100_001);
    }

    fn answer(format: Format, content_type: &'static str, body: &[u8]) -> Vec<u8> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::VARY, HeaderValue::from_static("Accept"));
        headers.append("x-a", HeaderValue::from_static("1"));
        headers.append("x-a", HeaderValue::from_static("2"));
        write(format, Some(&Id(Value::Integer(7))), StatusCode::CREATED, &headers, body)
    }

    #[test]
    fn a_body_goes_back_as_it_was_written() {
        let written = answer(Format::Json, "application/json", br#"{"b":1}"#);
        let expected = r#"{"id":7,"status":201,"headers":{"x-a":["1","2"]},"body":{"b":1}}"#;
        assert_eq!(String::from_utf8(written).unwrap(), expected);
        assert_eq!(
            answer(Format::Msgpack, "application/msgpack", &pack(r#"{"b":1}"#)),
            pack(expected)
        );
        let problem = answer(Format::Msgpack, "application/problem+json", br#"{"code":"x"}"#);
        let expected =
            r#"{"id":7,"status":201,"headers":{"x-a":["1","2"]},"problem":{"code":"x"}}"#;
        assert_eq!(problem, pack(expected));
        let unknown = write(Format::Json, None, StatusCode::NO_CONTENT, &HeaderMap::new(), b"");
        assert_eq!(unknown, br#"{"id":null,"status":204}"#);
    }

    #[test]
    fn what_a_backend_wrote_itself_breaks_no_message() {
        let broken = answer(Format::Json, "application/json", br#"1,"id":8"#);
        let read = Format::Json.read(&broken, Limits::REPLY).unwrap();
        let Value::Map(map) = read else { panic!("it is a map") };
        assert_eq!(map["body"], Value::text(r#"1,"id":8"#));
        assert_eq!(map["id"], Value::Integer(7));
        let page = answer(Format::Json, "text/html", b"<p>\xff");
        let page = String::from_utf8(page).unwrap();
        assert!(page.contains(r#""content-type":"text/html""#), "{page}");
        assert!(page.ends_with(r#""body":{"$base64":"PHA+/w=="}}"#), "{page}");
    }
}

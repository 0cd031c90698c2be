//! What a backend answers, written as its client takes it.
//!
//! A reply is one value. A map with the key `_reply` says a status and header fields there, and has
//! its body under `body`. Any other value is the body of a 200.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};

use crate::accept::Rendering;
use crate::{BODY, Format, Limits, Map, REPLY, ReadError, Value, form, format};

/// The most header fields that a reply may say.
const MOST_FIELDS: usize = 128;

/// The header fields that are not a backend's to say: HTTP's framing, and what the gateway says.
const NOT_ITS_OWN: [&str; 13] = [
    "connection",
    "content-length",
    "date",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-content-type-options",
    "x-request-id",
];

/// Why a reply goes to no client: a fault of the backend's program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplyError {
    /// It is no value.
    #[error("it is no {}: {error}", .format.as_str())]
    Unreadable {
        /// What it should be.
        format: Format,
        /// Why it is not.
        error: ReadError,
    },
    /// What `_reply` says cannot be said.
    #[error("_reply: {0}")]
    Head(String),
}

/// A reply for a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The status, if the backend says one: 200 to 599.
    pub status: Option<StatusCode>,
    /// Its header fields.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
}

/// Reads a reply and writes it for its client. A payload without a byte is `null`.
///
/// # Errors
/// [`ReplyError`]: the client gets a 502.
pub fn render(format: Format, payload: &Bytes, to: &Rendering) -> Result<Rendered, ReplyError> {
    let value = match payload.is_empty() {
        true => Value::Null,
        false => format
            .read(payload, Limits::REPLY)
            .map_err(|error| ReplyError::Unreadable { format, error })?,
    };
    let Reply { status, mut headers, body, is_whole } = split(value)?;
    if headers.contains_key(header::CONTENT_TYPE) {
        let body = own_body(body)?;
        return Ok(Rendered { status, headers, body });
    }
    let Some(body) = body else { return Ok(Rendered { status, headers, body: Bytes::new() }) };
    let (content_type, body) = match to {
        // It is there already, as the backend wrote it.
        Rendering::Value(asked, name) if *asked == format && is_whole && !payload.is_empty() => {
            (*name, payload.clone())
        }
        Rendering::Value(asked, name) => (*name, asked.write(&body).into()),
        Rendering::Text => ("text/plain; charset=utf-8", plain_text(&body).into_owned().into()),
        Rendering::Form => ("application/x-www-form-urlencoded", form::write(&body).into()),
        Rendering::Script(function) => {
            let json = format::write_for_script(&body);
            // A comment first: the answer begins with none of the client's letters.
            ("text/javascript; charset=utf-8", format!("/**/{function}({json});").into())
        }
    };
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.append(header::VARY, HeaderValue::from_static("Accept"));
    Ok(Rendered { status, headers, body })
}

/// A value as text: itself, or as JSON where it is more than one.
pub(crate) fn plain_text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::Null => Cow::Borrowed(""),
        Value::Text(text) => Cow::Borrowed(text),
        Value::Bytes(bytes) => {
            // Bytes that are no text have to be said somehow.
            STANDARD.encode(bytes).into()
        }
        other => {
            let json = Format::Json.write(other);
            String::from_utf8(json).expect("JSON is written as UTF-8").into()
        }
    }
}

struct Reply {
    status: Option<StatusCode>,
    headers: HeaderMap,
    body: Option<Value>,
    /// Whether the body is all of the payload.
    is_whole: bool,
}

/// Takes apart what a reply says and what it is.
fn split(value: Value) -> Result<Reply, ReplyError> {
    let mut map = match value {
        Value::Map(map) if map.contains_key(REPLY) => map,
        body => {
            let (status, headers) = Default::default();
            return Ok(Reply { status, headers, body: Some(body), is_whole: true });
        }
    };
    let head = map.shift_remove(REPLY).expect("it was looked for");
    let body = map.shift_remove(BODY);
    if let Some(key) = map.keys().next() {
        let reason = format!("{key:?} stands beside it: what is answered stands under {BODY:?}");
        return Err(ReplyError::Head(reason));
    }
    let Value::Map(mut head) = head else {
        return Err(ReplyError::Head("it is no map".to_owned()));
    };
    let status = head.shift_remove("status").map(status).transpose()?;
    let headers = head.shift_remove("headers").map(fields).transpose()?.unwrap_or_default();
    if let Some(key) = head.keys().next() {
        return Err(ReplyError::Head(format!("{key:?} is neither status nor headers")));
    }
    Ok(Reply { status, headers, body, is_whole: false })
}

fn status(value: Value) -> Result<StatusCode, ReplyError> {
    let status = match &value {
        Value::Integer(status) => u16::try_from(*status).ok(),
        _ => None,
    };
    let status = status.filter(|status| (200..600).contains(status));
    let status = status.and_then(|status| StatusCode::from_u16(status).ok());
    status.ok_or_else(|| ReplyError::Head(format!("the status {value:?} is not 200 to 599")))
}

fn fields(value: Value) -> Result<HeaderMap, ReplyError> {
    let Value::Map(fields) = value else {
        return Err(ReplyError::Head("the headers are no map".to_owned()));
    };
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        let values = match value {
            Value::Array(values) => values,
            value => vec![value],
        };
        let parsed = HeaderName::try_from(name.as_str()).ok();
        let parsed = parsed.filter(|name| !NOT_ITS_OWN.contains(&name.as_str()));
        let Some(parsed) = parsed else {
            return Err(ReplyError::Head(format!("the header {name:?} is not a backend's to say")));
        };
        for value in values {
            if headers.len() == MOST_FIELDS {
                return Err(ReplyError::Head(format!("more than {MOST_FIELDS} headers")));
            }
            let value = match value {
                Value::Text(text) => HeaderValue::try_from(text).ok(),
                Value::Integer(number) => Some(HeaderValue::from(number)),
                _ => None,
            };
            let Some(value) = value else {
                let reason = format!("the header {name:?} has a value that is no line of text");
                return Err(ReplyError::Head(reason));
            };
            headers.append(&parsed, value);
        }
    }
    Ok(headers)
}

/// The body of a reply that says its own type.
fn own_body(body: Option<Value>) -> Result<Bytes, ReplyError> {
    match body {
        None | Some(Value::Null) => Ok(Bytes::new()),
        Some(Value::Text(text)) => Ok(text.into()),
        Some(Value::Bytes(bytes)) => Ok(bytes.into()),
        Some(_) => {
            let reason = "a reply with a content-type has a body of text or bytes; without one \
                          the gateway writes it as the client asks";
            Err(ReplyError::Head(reason.to_owned()))
        }
    }
}

/// Makes a reply that says a status and header fields beside its body.
pub fn with_head(status: StatusCode, fields: &[(&str, &str)], body: Option<Value>) -> Value {
    let mut headers = Map::new();
    for (name, value) in fields {
        let value = Value::text(*value);
        match headers.get_mut(*name) {
            None => drop(headers.insert((*name).to_owned(), value)),
            Some(Value::Array(values)) => values.push(value),
            Some(first) => *first = Value::Array(vec![first.clone(), value]),
        }
    }
    let head = Map::from_iter([
        ("status".to_owned(), Value::Integer(status.as_u16().into())),
        ("headers".to_owned(), Value::Map(headers)),
    ]);
    let mut reply = Map::from_iter([(REPLY.to_owned(), Value::Map(head))]);
    reply.extend(body.map(|body| (BODY.to_owned(), body)));
    Value::Map(reply)
}

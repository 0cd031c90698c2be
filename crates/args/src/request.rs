//! What a request has, merged into one map.
//!
//! The stronger of two with one name stands, whole: the gateway's own key, path parameters, header
//! fields that the route names, the body, the query. What only the route gives names to is never a
//! client's: it is dropped also where the request does not have it.

use std::net::IpAddr;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode, header};
use natsway_wire::problem::Problem;
use percent_encoding::percent_decode_str;

use crate::accept::{CALLBACK, takes_callback};
use crate::limits::Budget;
use crate::media::MediaType;
use crate::multipart::FormError;
use crate::{
    BODY, BodyKind, Format, Map, Options, REPLY, REQUEST, ReadError, Value, form, multipart,
};

/// A request as the gateway knows it.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its method.
    pub method: &'a Method,
    /// Its path without the query, as a worker is to see it.
    pub path: &'a str,
    /// Its query.
    pub query: Option<&'a str>,
    /// Whose it is.
    pub peer: IpAddr,
    /// Its name in logs.
    pub id: &'a str,
    /// The parameters of its path, as they came.
    pub parameters: &'a [(String, String)],
    /// The header fields that its route names, in their order; names in lower case.
    pub named: &'a [(String, Vec<u8>)],
    /// All of its header fields, for what they say of the body.
    pub head: &'a HeaderMap,
    /// Its body.
    pub body: &'a Bytes,
}

/// Merges a request into one map.
///
/// # Errors
/// 400 for what cannot be read, 413 above the limits, 415 for a body that the route does not take.
pub fn merge(request: &Request<'_>, options: &Options) -> Result<Map, Problem> {
    let mut budget = Budget::new(options.limits);
    let content_type = content_type(request.head)?;
    let mut map = Map::new();
    map.insert(REQUEST.to_owned(), own(request, content_type.as_deref()));
    for (name, value) in request.parameters {
        let value = percent_decode_str(value)
            .decode_utf8()
            .map_err(|_| malformed("the path", &format!("its parameter {name:?} is not UTF-8")))?;
        budget.value().map_err(|error| refused("the path", &error))?;
        map.insert(name.clone(), Value::text(value));
    }
    for name in &options.headers {
        let values = request.named.iter().filter(|(have, _)| have == name.as_str());
        if let Some(value) = joined(values.map(|(_, value)| value), &mut budget)? {
            map.entry(name.as_str().to_owned()).or_insert(value);
        }
    }
    let is_taken = |key: &str| {
        key == REQUEST || key == REPLY || options.headers.iter().any(|name| name.as_str() == key)
    };
    let body = body(request, content_type.as_deref(), options, &mut budget)?;
    let query = query(request, options, &mut budget)?;
    for (key, value) in body.into_iter().chain(query) {
        if !is_taken(&key) {
            map.entry(key).or_insert(value);
        }
    }
    Ok(map)
}

/// Merges a request and writes it as its route says.
///
/// # Errors
/// As [`merge`].
pub fn encode(request: &Request<'_>, options: &Options) -> Result<Bytes, Problem> {
    Ok(options.format.write_map(&merge(request, options)?).into())
}

/// What the gateway says of the request.
fn own(request: &Request<'_>, content_type: Option<&str>) -> Value {
    let text = |value: &str| Value::text(value);
    let mut own = Map::from_iter([
        ("method".to_owned(), text(request.method.as_str())),
        ("path".to_owned(), text(request.path)),
        ("peer".to_owned(), text(&request.peer.to_string())),
        ("id".to_owned(), text(request.id)),
    ]);
    if let Some(content_type) = content_type.filter(|_| !request.body.is_empty()) {
        own.insert("type".to_owned(), text(content_type));
    }
    Value::Map(own)
}

fn content_type(head: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut fields = head.get_all(header::CONTENT_TYPE).iter();
    let first = fields.next();
    if fields.next().is_some() {
        return Err(malformed("the head", "Content-Type is there twice"));
    }
    Ok(first.map(|field| String::from_utf8_lossy(field.as_bytes()).into_owned()))
}

/// A header field as an argument: an array where it comes again, bytes where it is no text.
fn joined<'v>(
    values: impl Iterator<Item = &'v Vec<u8>>,
    budget: &mut Budget,
) -> Result<Option<Value>, Problem> {
    let mut read = Vec::new();
    for value in values {
        budget.value().map_err(|error| refused("the head", &error))?;
        read.push(match std::str::from_utf8(value) {
            Ok(text) => Value::text(text),
            Err(_) => Value::Bytes(value.clone()),
        });
    }
    Ok(match read.len() {
        0 | 1 => read.pop(),
        _ => Some(Value::Array(read)),
    })
}

fn query(request: &Request<'_>, options: &Options, budget: &mut Budget) -> Result<Map, Problem> {
    let fields = form::fields(request.query.unwrap_or_default().as_bytes());
    let is_ours = takes_callback(options, request.method);
    let fields = fields.filter(|(name, _)| !(is_ours && name == CALLBACK));
    let read = form::collect(fields, options.nested, budget);
    read.map_err(|error| refused("the query", &error))
}

fn body(
    request: &Request<'_>,
    content_type: Option<&str>,
    options: &Options,
    budget: &mut Budget,
) -> Result<Map, Problem> {
    if request.body.is_empty() {
        return Ok(Map::new());
    }
    if !is_plain(request.head) {
        return Err(unsupported("the body is coded: send it as it is, without Content-Encoding"));
    }
    let media = MediaType::read(content_type.unwrap_or_default());
    let kind = media.kind();
    if !options.takes(kind) {
        let names = options.bodies.iter().map(|kind| kind.media_type());
        let names = names.collect::<Vec<_>>().join(", ");
        return Err(unsupported(format!("this route takes a body of one of {names}")));
    }
    let read = match kind {
        BodyKind::Json => Format::Json.read_within(request.body, budget),
        BodyKind::Msgpack => Format::Msgpack.read_within(request.body, budget),
        BodyKind::Cbor => Format::Cbor.read_within(request.body, budget),
        BodyKind::Form => {
            form::collect(form::fields(request.body), options.nested, budget).map(Value::Map)
        }
        BodyKind::Multipart => return fields(request, &media, options, budget),
        BodyKind::Text | BodyKind::Other => budget.value().map(|()| {
            let is_text = kind == BodyKind::Text && media.is_utf8();
            match String::from_utf8(request.body.to_vec()) {
                Ok(text) if is_text => Value::Text(text),
                Ok(text) => Value::Bytes(text.into_bytes()),
                Err(error) => Value::Bytes(error.into_bytes()),
            }
        }),
    };
    match read.map_err(|error| refused("the body", &error))? {
        Value::Map(map) => Ok(map),
        other => Ok(Map::from_iter([(BODY.to_owned(), other)])),
    }
}

fn fields(
    request: &Request<'_>,
    media: &MediaType,
    options: &Options,
    budget: &mut Budget,
) -> Result<Map, Problem> {
    let boundary = media.boundary.as_deref().filter(|boundary| (1..=70).contains(&boundary.len()));
    let boundary =
        boundary.ok_or_else(|| malformed("the body", "Content-Type has no boundary of a form"))?;
    let read = multipart::read(request.body, boundary, options.limits.values);
    let read = read.map_err(|error| match error {
        FormError::Read(error) => refused("the body", &error),
        FormError::File => unsupported(
            "this route takes the fields of a form and no files: send a file as the body",
        ),
    })?;
    let collected = form::collect(read, options.nested, budget);
    collected.map_err(|error| refused("the body", &error))
}

/// Whether a body is not compressed.
fn is_plain(head: &HeaderMap) -> bool {
    let mut codings = head.get_all(header::CONTENT_ENCODING).iter();
    codings.all(|coding| coding.as_bytes().eq_ignore_ascii_case(b"identity"))
}

fn refused(what: &str, error: &ReadError) -> Problem {
    match error {
        ReadError::Malformed(reason) => malformed(what, reason),
        ReadError::TooMany(_) | ReadError::TooDeep(_) => {
            let detail = format!("{what} has {error}, which this route does not take");
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_args", detail)
        }
    }
}

fn malformed(what: &str, reason: &str) -> Problem {
    let detail = format!("{what} cannot be read: {reason}");
    Problem::new(StatusCode::BAD_REQUEST, "bad_args", detail)
}

fn unsupported(detail: impl Into<std::borrow::Cow<'static, str>>) -> Problem {
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", detail)
}

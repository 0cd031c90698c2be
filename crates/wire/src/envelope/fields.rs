//! Header fields: `[[name, value], ...]`.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::msgpack::{Reader, patch_array16, put_array, put_bin, put_str, reserve_array16};
use crate::{Error, ErrorKind, Limits};

/// The pair's array header, and the longest marker and length before its name and before its value.
const FIELD_OVERHEAD_BYTES: usize = 1 + 5 + 5;

/// A pair's array header, a name of one letter, an empty value.
const SHORTEST_FIELD_BYTES: usize = 1 + 2 + 1;

/// What is left of a message is copied with its fields up to this size: they keep no more than that
/// of it.
const COPIED_REST_BYTES: usize = 1024;

/// Writes header fields one by one into an array whose count is known at the end.
#[derive(Debug)]
pub(super) struct FieldsWriter {
    count_at: usize,
    count: u16,
}

impl FieldsWriter {
    pub(super) fn begin(out: &mut Vec<u8>) -> Self {
        Self { count_at: reserve_array16(out), count: 0 }
    }

    pub(super) fn put(&mut self, out: &mut Vec<u8>, name: &str, value: &[u8]) -> Result<(), Error> {
        let Limits { header_fields, field_bytes, .. } = Limits::DEFAULT;
        if usize::from(self.count) >= header_fields
            || name.len() > field_bytes
            || value.len() > field_bytes
        {
            return Err(Error::too_large("header"));
        }
        self.count += 1;
        out.reserve(FIELD_OVERHEAD_BYTES + name.len() + value.len());
        put_array(out, 2);
        put_str(out, name);
        put_bin(out, value);
        Ok(())
    }

    pub(super) fn end(self, out: &mut [u8]) {
        patch_array16(out, self.count_at, self.count);
    }
}

pub(super) fn write_fields(out: &mut Vec<u8>, headers: &HeaderMap) -> Result<(), Error> {
    let mut writer = FieldsWriter::begin(out);
    for (name, value) in headers {
        writer.put(out, name.as_str(), value.as_bytes())?;
    }
    writer.end(out);
    Ok(())
}

/// What [`write_fields`] writes at the most.
pub(super) fn fields_bytes(headers: &HeaderMap) -> usize {
    let field = |(name, value): (&HeaderName, &HeaderValue)| {
        FIELD_OVERHEAD_BYTES + name.as_str().len() + value.len()
    };
    3 + headers.iter().map(field).sum::<usize>()
}

pub(super) fn read_fields(reader: &mut Reader<'_>, what: &'static str) -> Result<HeaderMap, Error> {
    let count = reader.array(what)?;
    if count > reader.limits().header_fields {
        return Err(Error::too_large(what));
    }
    // A count that the message cannot hold reserves nothing.
    if count > reader.rest().len() / SHORTEST_FIELD_BYTES {
        return Err(Error::new(ErrorKind::Truncated, what));
    }
    let mut headers = HeaderMap::try_with_capacity(count).map_err(|_| Error::too_large(what))?;
    if count == 0 {
        return Ok(headers);
    }
    // One copy that all the values share, instead of an allocation each. Not slices of the message,
    // which would keep the connection's whole read buffer alive for as long as anybody keeps a
    // header.
    let block = Bytes::copy_from_slice(match reader.rest() {
        // To copy a little of what follows costs less than to look first where the fields end.
        rest if rest.len() <= COPIED_REST_BYTES => rest,
        _ => reader.clone().span(count, "header")?,
    });
    let mut fields = Reader::new(&block, reader.limits());
    for _ in 0..count {
        let parts = fields.array("header")?;
        let extra = parts.checked_sub(2).ok_or(Error::malformed("header"))?;
        let name = fields.field("header name")?;
        let value = fields.field("header value")?;
        fields.skip(extra)?;
        let name = field_name(name).ok_or(Error::malformed("header name"))?;
        let value = HeaderValue::from_maybe_shared(block.slice_ref(value));
        let value = value.map_err(|_| Error::malformed("header value"))?;
        headers.try_append(name, value).map_err(|_| Error::too_large(what))?;
    }
    reader.pass(block.len() - fields.rest().len());
    Ok(headers)
}

/// The names that every request has and that the `http` crate does not know cost no allocation.
fn field_name(name: &[u8]) -> Option<HeaderName> {
    const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
    const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
    const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
    const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
    match name {
        b"x-request-id" => Some(REQUEST_ID),
        b"x-forwarded-for" => Some(FORWARDED_FOR),
        b"x-forwarded-host" => Some(FORWARDED_HOST),
        b"x-forwarded-proto" => Some(FORWARDED_PROTO),
        name => HeaderName::from_bytes(name).ok(),
    }
}

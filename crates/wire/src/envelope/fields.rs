//! Header fields: `[[name, value], ...]`.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::msgpack::{Reader, patch_array16, put_array, put_bin, put_str, reserve_array16};
use crate::{Error, Limits};

/// Writes header fields one by one into an array whose count is known at the end.
#[derive(Debug)]
pub(super) struct FieldsWriter {
    count_at: usize,
    count: u16,
}

impl FieldsWriter {
    pub(super) fn begin(out: &mut BytesMut) -> FieldsWriter {
        FieldsWriter { count_at: reserve_array16(out), count: 0 }
    }

    pub(super) fn put(&mut self, out: &mut BytesMut, name: &str, value: &[u8]) -> Result<(), Error> {
        let Limits { header_fields, field_bytes, .. } = Limits::DEFAULT;
        if usize::from(self.count) >= header_fields || name.len() > field_bytes || value.len() > field_bytes {
            return Err(Error::too_large("header"));
        }
        self.count += 1;
        put_array(out, 2);
        put_str(out, name);
        put_bin(out, value);
        Ok(())
    }

    pub(super) fn end(self, out: &mut BytesMut) {
        patch_array16(out, self.count_at, self.count);
    }
}

pub(super) fn write_fields(out: &mut BytesMut, headers: &HeaderMap) -> Result<(), Error> {
    let mut writer = FieldsWriter::begin(out);
    for (name, value) in headers {
        writer.put(out, name.as_str(), value.as_bytes())?;
    }
    writer.end(out);
    Ok(())
}

pub(super) fn read_fields(reader: &mut Reader<'_>) -> Result<HeaderMap, Error> {
    let count = reader.array("headers")?;
    if count > reader.limits().header_fields {
        return Err(Error::too_large("headers"));
    }
    // A field takes three bytes at least, so a count that the message cannot hold reserves nothing.
    if count > reader.rest().len() / 3 {
        return Err(Error::new(crate::ErrorKind::Truncated, "headers"));
    }
    let mut headers = HeaderMap::with_capacity(count);
    for _ in 0..count {
        let parts = reader.array("header")?;
        let extra = parts.checked_sub(2).ok_or(Error::malformed("header"))?;
        let name = reader.field("header name")?;
        let value = reader.field("header value")?;
        reader.skip(extra)?;
        let name = HeaderName::from_bytes(name).map_err(|_| Error::malformed("header name"))?;
        let value = HeaderValue::from_bytes(value).map_err(|_| Error::malformed("header value"))?;
        headers.try_append(name, value).map_err(|_| Error::too_large("headers"))?;
    }
    Ok(headers)
}

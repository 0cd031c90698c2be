//! A response whose body does not stand in the message: the gateway takes it on a tunnel.

use crate::msgpack::Reader;
use crate::offer::{StreamToken, TunnelSecret};
use crate::{Error, ErrorKind};

/// Where the body of a response goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reference {
    /// What to ask the worker for.
    pub token: StreamToken,
    /// The tunnel on which to ask: with this answer the worker showed that it may have one.
    pub secret: TunnelSecret,
}

/// What stands in the place of a response's body.
pub(super) enum BodyOrReference<'a> {
    Body(&'a [u8]),
    Reference { first: &'a [u8], reference: Reference },
}

impl Default for BodyOrReference<'_> {
    fn default() -> Self {
        Self::Body(&[])
    }
}

/// Reads a body, or the reference in its place.
pub(super) fn read_body_or_reference<'a>(
    reader: &mut Reader<'a>,
    what: &'static str,
) -> Result<BodyOrReference<'a>, Error> {
    if !reader.is_array() {
        return read_body(reader, what).map(BodyOrReference::Body);
    }
    let count = reader.array(what)?;
    let extra = count.checked_sub(3).ok_or(Error::malformed("reference"))?;
    let token = StreamToken(sixteen(reader, "token")?);
    let first = reader.blob("first bytes")?;
    let secret = TunnelSecret(sixteen(reader, "secret")?);
    reader.skip(extra)?;
    Ok(BodyOrReference::Reference { first, reference: Reference { token, secret } })
}

/// Reads a body that is inline.
pub(super) fn read_body<'a>(
    reader: &mut Reader<'a>,
    what: &'static str,
) -> Result<&'a [u8], Error> {
    reader.blob(what).map_err(|error| match error.kind() {
        // What is no bytes says in a way of later versions where the body is.
        ErrorKind::Malformed => Error::new(ErrorKind::Unsupported, what),
        _ => error,
    })
}

/// Reads a token or a secret.
pub(super) fn sixteen(reader: &mut Reader<'_>, what: &'static str) -> Result<[u8; 16], Error> {
    reader.field(what)?.try_into().map_err(|_| Error::malformed(what))
}

//! A response behind which its worker says by which tunnel it takes further requests.

use bytes::Bytes;

use super::reference::sixteen;
use crate::msgpack::{Reader, put_array, put_bin, put_u16};
use crate::offer::{Join, TunnelSecret};
use crate::{Error, ErrorKind};

/// The head of an array of six elements, as a response has them.
const RESPONSE: u8 = 0x96;

/// Returns an encoded response that joins a tunnel as well.
///
/// # Errors
/// [`ErrorKind::Malformed`] when `message` is no response of
/// [`encode_response`](super::encode_response).
pub fn with_join(message: &Bytes, join: Join) -> Result<Bytes, Error> {
    if message.first() != Some(&RESPONSE) {
        return Err(Error::new(ErrorKind::Malformed, "response"));
    }
    let mut out = Vec::with_capacity(message.len() + 24);
    out.push(RESPONSE + 1);
    out.extend_from_slice(&message[1..]);
    put_array(&mut out, 2);
    put_bin(&mut out, &join.secret.0);
    put_u16(&mut out, join.subject);
    Ok(out.into())
}

/// Reads what [`with_join`] added.
pub(super) fn read_join(
    reader: &mut Reader<'_>,
    what: &'static str,
) -> Result<Option<Join>, Error> {
    if reader.nil() {
        return Ok(None);
    }
    let count = reader.array(what)?;
    let extra = count.checked_sub(2).ok_or(Error::malformed(what))?;
    let secret = TunnelSecret(sixteen(reader, "secret")?);
    let subject = reader.unsigned("subject")?;
    let subject = u16::try_from(subject).map_err(|_| Error::too_large("subject"))?;
    reader.skip(extra)?;
    Ok(Some(Join { secret, subject }))
}

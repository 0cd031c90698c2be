//! What a gateway says of itself in a request, so that a worker can dial a tunnel to it.
//!
//! Nothing of it is secret: whoever hears the request may read it. What opens a tunnel is a
//! [`TunnelSecret`] in the answer, which only somebody can give who hears *and answers* requests.

use std::fmt;

use crate::elements::Elements;
use crate::msgpack::{Reader, put_array, put_bin, put_nil, put_str, put_u16};
use crate::{Error, ErrorKind, Limits, WIRE_VERSION};

/// Where one thread of a gateway takes tunnels.
///
/// ```
/// use natsway_wire::offer::Offer;
///
/// let offer = Offer {
///     gateway: "Q7Fz".to_owned(),
///     shard: 1,
///     addresses: vec!["10.0.0.7:7443".to_owned()],
///     certificate: Some([7; 32]),
///     takes_requests: false,
///     takes_pipes: true,
/// };
/// assert_eq!(Offer::decode(&offer.encode())?, offer);
/// # Ok::<(), natsway_wire::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Offer {
    /// The process: another one after each start. 1 to 64 characters of `A-Z a-z 0-9 - _`.
    pub gateway: String,
    /// Which of its threads.
    pub shard: u16,
    /// Where to dial, `host:port`, the best first. At most [`Offer::ADDRESSES`].
    pub addresses: Vec<String>,
    /// The SHA-256 of the certificate that it shows; `None` for a connection without TLS.
    pub certificate: Option<[u8; 32]>,
    /// Whether whole requests go by a tunnel, if the worker [joins](Join) one in its answer.
    pub takes_requests: bool,
    /// Whether it takes [pipes](crate::pipe) as well: the broker's way, for a worker that can reach
    /// none of the addresses.
    pub takes_pipes: bool,
}

impl Offer {
    /// Addresses that an offer may name.
    pub const ADDRESSES: usize = 8;

    /// Elements before the one that says whether it [takes requests](Self::takes_requests).
    const ELEMENTS: usize = 5;

    /// Bytes of one address.
    const ADDRESS_BYTES: usize = 261;

    /// Writes the offer.
    ///
    /// # Panics
    /// If it names more addresses than it may.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.addresses.len() <= Self::ADDRESSES, "an offer names a few addresses");
        let mut out = Vec::with_capacity(128);
        let further = match self {
            Self { takes_pipes: true, .. } => 2,
            Self { takes_requests: true, .. } => 1,
            _ => 0,
        };
        put_array(&mut out, Self::ELEMENTS as u8 + further);
        put_u16(&mut out, u16::from(WIRE_VERSION));
        put_str(&mut out, &self.gateway);
        put_u16(&mut out, self.shard);
        put_array(&mut out, self.addresses.len() as u8);
        for address in &self.addresses {
            put_str(&mut out, address);
        }
        match &self.certificate {
            Some(hash) => put_bin(&mut out, hash),
            None => put_nil(&mut out),
        }
        if self.takes_requests || self.takes_pipes {
            put_u16(&mut out, u16::from(self.takes_requests));
        }
        if self.takes_pipes {
            put_u16(&mut out, PIPES);
        }
        out
    }

    /// Whether bytes may be an offer that takes requests: a look that keeps nothing, for most that
    /// come do not.
    pub fn may_take_requests(bytes: &[u8]) -> bool {
        let mut reader = Reader::new(bytes, Limits::DEFAULT);
        let count = reader.array("offer");
        // One that takes pipes says of requests, too, that it takes none.
        count.is_ok_and(|count| count > Self::ELEMENTS)
            && reader.skip(Self::ELEMENTS).is_ok()
            && reader.unsigned("takes requests").is_ok_and(|takes_requests| takes_requests != 0)
    }

    /// Reads an offer.
    ///
    /// # Errors
    /// [`ErrorKind::Unsupported`] for a later version, [`ErrorKind::TooLarge`] above the bounds,
    /// the other kinds for anything that is not an offer.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut elements = Elements::begin(bytes, Limits::DEFAULT, "offer")?;
        elements.version()?;
        let gateway = elements.required("gateway", Reader::field)?;
        let gateway = crate::control::instance_id(gateway)?;
        let shard = elements.required("shard", Reader::unsigned)?;
        let shard = u16::try_from(shard).map_err(|_| Error::too_large("shard"))?;
        let addresses = elements.required("addresses", read_addresses)?;
        let certificate = elements.optional("certificate", read_hash)?;
        let takes_requests = elements.optional("takes requests", Reader::unsigned)? != 0;
        let ways = elements.optional("ways", Reader::unsigned)?;
        elements.finish()?;
        let takes_pipes = ways & u64::from(PIPES) != 0;
        Ok(Self { gateway, shard, addresses, certificate, takes_requests, takes_pipes })
    }
}

/// Of the other ways that an offer names: pipes.
const PIPES: u16 = 1;

fn read_addresses(reader: &mut Reader<'_>, what: &'static str) -> Result<Vec<String>, Error> {
    let count = reader.array(what)?;
    if count > Offer::ADDRESSES {
        return Err(Error::too_large(what));
    }
    let mut addresses = Vec::with_capacity(count);
    for _ in 0..count {
        let address = reader.field(what)?;
        if address.len() > Offer::ADDRESS_BYTES {
            return Err(Error::too_large(what));
        }
        let is_plain = address.iter().all(u8::is_ascii_graphic);
        let address = std::str::from_utf8(address).ok().filter(|_| is_plain);
        addresses.push(address.ok_or(Error::malformed(what))?.to_owned());
    }
    Ok(addresses)
}

fn read_hash(reader: &mut Reader<'_>, what: &'static str) -> Result<Option<[u8; 32]>, Error> {
    if reader.nil() {
        return Ok(None);
    }
    let hash = reader.field(what)?;
    hash.try_into().map(Some).map_err(|_| Error::new(ErrorKind::Malformed, what))
}

/// What makes a connection the tunnel of the worker that answered: it chose these 128 random bits,
/// said them in an answer by the broker, and shows them on the connection that it dialled.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TunnelSecret(pub [u8; 16]);

/// What a worker says in an answer by the broker, so that requests like the one that it answered
/// may come by a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Join {
    /// The tunnel.
    pub secret: TunnelSecret,
    /// What requests for this subject are marked with on it. The worker's own number, since names
    /// of subjects differ between accounts of the broker.
    pub subject: u16,
}

/// Names a stream that waits at a worker until the gateway takes it: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct StreamToken(pub [u8; 16]);

impl StreamToken {
    /// The token as the path of the stream that takes it: `/` and 32 hexadecimal digits.
    pub fn path(&self) -> String {
        let mut path = String::with_capacity(33);
        path.push('/');
        for byte in self.0 {
            for digit in [byte >> 4, byte & 15] {
                path.push(char::from_digit(digit.into(), 16).expect("below 16"));
            }
        }
        path
    }

    /// Reads what [`path`](Self::path) wrote, and nothing else.
    pub fn parse(path: &str) -> Option<Self> {
        let digits: &[u8; 32] = path.strip_prefix('/')?.as_bytes().try_into().ok()?;
        let mut token = [0; 16];
        for (byte, pair) in token.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |letter: u8| match letter {
                b'0'..=b'9' => Some(letter - b'0'),
                b'a'..=b'f' => Some(letter - b'a' + 10),
                _ => None,
            };
            *byte = digit(pair[0])? << 4 | digit(pair[1])?;
        }
        Some(Self(token))
    }
}

/// Neither is a thing for logs.
impl fmt::Debug for TunnelSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TunnelSecret(..)")
    }
}

impl fmt::Debug for StreamToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamToken(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn offer() -> Offer {
        Offer {
            gateway: "Q7Fz".to_owned(),
            shard: 1,
            addresses: vec!["10.0.0.7:7443".to_owned(), "gateway:7443".to_owned()],
            certificate: None,
            takes_requests: false,
            takes_pipes: false,
        }
    }

    #[test]
    fn one_look_tells_what_takes_no_requests() {
        for (takes_requests, takes_pipes) in
            [(false, false), (true, false), (false, true), (true, true)]
        {
            let offer = Offer { takes_requests, takes_pipes, ..offer() };
            let bytes = offer.encode();
            assert_eq!(Offer::may_take_requests(&bytes), takes_requests);
            assert_eq!(Offer::decode(&bytes), Ok(offer));
        }
        assert!(!Offer::may_take_requests(b"") && !Offer::may_take_requests(b"no offer"));
    }

    #[test]
    fn an_offer_that_is_too_long_or_no_text_is_refused() {
        let many = Offer { addresses: vec!["a:1".to_owned(); 8], ..offer() };
        let mut bytes = many.encode();
        assert_eq!(Offer::decode(&bytes), Ok(many));
        let at = bytes.iter().position(|byte| *byte == 0x98).expect("the array of addresses");
        bytes[at] = 0x99;
        assert!(Offer::decode(&bytes).is_err());
        for address in ["a b:1", "a\n:1", "ä:1"] {
            let odd = Offer { addresses: vec![address.to_owned()], ..offer() };
            assert!(Offer::decode(&odd.encode()).is_err(), "{address}");
        }
        let long = Offer { addresses: vec!["a".repeat(262)], ..offer() };
        assert_eq!(Offer::decode(&long.encode()), Err(Error::too_large("addresses")));
        let odd = Offer { gateway: "a.b.c".to_owned(), ..offer() };
        assert!(Offer::decode(&odd.encode()).is_err());
    }

    #[test]
    fn offers_with_and_without_pipes_are_read_by_both() {
        let (plain, pipes) = (offer(), Offer { takes_pipes: true, ..offer() });
        // What is not said is not taken; what says more than pipes, by what is known of it.
        assert_eq!(Offer::decode(&plain.encode()), Ok(plain.clone()));
        let mut bytes = pipes.encode();
        assert_eq!(Offer::decode(&bytes), Ok(pipes.clone()));
        *bytes.last_mut().expect("bytes") = 7;
        assert_eq!(Offer::decode(&bytes), Ok(pipes));
        *bytes.last_mut().expect("bytes") = 6;
        assert_eq!(Offer::decode(&bytes), Ok(plain));
    }

    #[test]
    fn an_offer_is_no_longer_than_what_it_says() {
        let ways = |takes_requests, takes_pipes| {
            let offer = Offer { takes_requests, takes_pipes, ..offer() };
            let bytes = offer.encode();
            assert_eq!(Offer::decode(&bytes), Ok(offer));
            (bytes[0], bytes[bytes.len() - 2..].to_vec())
        };
        // What is not said is not there, so whoever knows nothing of it reads the same bytes.
        let addresses_end = [b'3', 0xc0];
        assert_eq!(ways(false, false), (0x95, addresses_end.to_vec()));
        assert_eq!(ways(true, false), (0x96, vec![0xc0, 1]));
        assert_eq!(ways(false, true), (0x97, vec![0, 1]));
        assert_eq!(ways(true, true), (0x97, vec![1, 1]));
    }

    #[test]
    fn nobody_reads_a_secret_in_a_log() {
        assert_eq!(format!("{:?}", TunnelSecret([7; 16])), "TunnelSecret(..)");
        assert_eq!(format!("{:?}", StreamToken([7; 16])), "StreamToken(..)");
    }

    proptest! {
        #[test]
        fn tokens_round_trip(bytes: [u8; 16]) {
            let token = StreamToken(bytes);
            prop_assert_eq!(StreamToken::parse(&token.path()), Some(token));
        }

        #[test]
        fn each_token_has_one_path(path in "/[0-9a-fA-F]{30,34}|.{0,40}") {
            if let Some(token) = StreamToken::parse(&path) {
                prop_assert_eq!(token.path(), path);
            }
        }

        #[test]
        fn any_bytes_are_an_offer_or_none(bytes: Vec<u8>) {
            if let Ok(offer) = Offer::decode(&bytes) {
                prop_assert_eq!(Offer::decode(&offer.encode()), Ok(offer));
            }
        }
    }
}

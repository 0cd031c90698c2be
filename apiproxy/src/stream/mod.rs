//! Bodies that go on by a stream, and connections that a request becomes: what a client sends that
//! is no message (`going_up`), what it gets ([`download`]), and both at once ([`splice`]).
//!
//! Nothing is held whole: each piece is asked for when there is room for it, so a slow end slows
//! the other down. What stands still is ended ([`natsway_caller::stream::activity`]).

pub mod becomes;
pub mod download;
mod going_up;
pub mod splice;
pub mod upgrade;
pub mod websocket;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;

/// The streams of a shard, as many at a time as there may be, in all and of each client.
#[derive(Debug)]
pub struct StreamLimit(Rc<StreamPlaces>);

#[derive(Debug)]
struct StreamPlaces {
    most: usize,
    most_of_one: usize,
    open: Cell<usize>,
    /// By what its client has in common with itself; none that has no stream.
    by_client: RefCell<HashMap<IpAddr, usize>>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct OpenStream {
    places: Rc<StreamPlaces>,
    client: IpAddr,
}

/// Why there may not be one more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamsFull {
    /// There are as many as there may be.
    Shard,
    /// This client has as many as one client may, and others find a place.
    Client,
}

impl StreamLimit {
    /// Returns the limit of a shard, and of one client.
    pub fn new(most: usize, most_of_one: usize) -> Self {
        let (open, by_client) = Default::default();
        Self(Rc::new(StreamPlaces { most, most_of_one, open, by_client }))
    }

    /// Whether there may be one more for a client.
    pub fn has_place(&self, client: IpAddr) -> bool {
        self.0.room_for(network(client)).is_ok()
    }

    /// Takes one for a client, if there may be one more.
    ///
    /// # Errors
    /// [`StreamsFull`].
    pub fn try_take(&self, client: IpAddr) -> Result<OpenStream, StreamsFull> {
        let (places, client) = (&self.0, network(client));
        let own = places.room_for(client)?;
        places.by_client.borrow_mut().insert(client, own + 1);
        places.open.set(places.open.get() + 1);
        Ok(OpenStream { places: Rc::clone(places), client })
    }
}

impl StreamPlaces {
    /// How many a client has, if there may be one more.
    fn room_for(&self, client: IpAddr) -> Result<usize, StreamsFull> {
        if self.open.get() >= self.most {
            return Err(StreamsFull::Shard);
        }
        let own = self.by_client.borrow().get(&client).copied().unwrap_or(0);
        if own >= self.most_of_one { Err(StreamsFull::Client) } else { Ok(own) }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let Self { places, client } = self;
        places.open.set(places.open.get() - 1);
        let mut by_client = places.by_client.borrow_mut();
        match by_client.get_mut(client) {
            Some(own) if *own > 1 => *own -= 1,
            _ => drop(by_client.remove(client)),
        }
    }
}

/// What stands for a client: its address, and of IPv6 the 64 bits that one subscriber has
/// (RFC 6177), who may use any of the others.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(address: &str) -> IpAddr {
        address.parse().expect("an address")
    }

    #[test]
    fn streams_are_bounded_in_all_and_for_each_client() {
        let limit = StreamLimit::new(3, 2);
        let take = |address| limit.try_take(ip(address));
        let greedy: Vec<_> = (0..2).map(|_| take("192.0.2.1").expect("a place")).collect();
        assert_eq!(take("192.0.2.1").map(drop), Err(StreamsFull::Client));
        assert_eq!(take("::ffff:192.0.2.1").map(drop), Err(StreamsFull::Client), "it is the same");
        let other = take("192.0.2.2").expect("another one's");
        assert_eq!(take("192.0.2.3").map(drop), Err(StreamsFull::Shard));
        drop(greedy);
        let first = take("2001:db8::1").expect("a place is free");
        let second = take("2001:db8::ffff").expect("and one more");
        drop(other);
        assert_eq!(take("2001:db8::2").map(drop), Err(StreamsFull::Client), "of one network");
        drop((first, second));
        assert!(limit.0.by_client.borrow().is_empty() && limit.0.open.get() == 0);
    }
}

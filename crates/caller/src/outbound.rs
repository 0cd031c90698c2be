//! What a dispatcher is told of a request, and what it gives back: the two sides on which gateway
//! and client differ.

use std::future::Future;
use std::net::IpAddr;
use std::time::Instant;

use http::HeaderMap;
use natsway_routes::table::{Route, RouteTable};
use natsway_wire::native::NativeReply;

use crate::attempt::{Answer, AttemptError, Hop, TraceContext};
use crate::connection::AdmissionError;
use crate::encode::{Encoded, Sending, TraceFields};
use crate::route_view::Resolved;
use crate::stream::{Opening, Streamed};

/// A request as its sender knows it.
pub trait Outbound {
    /// What the sender keeps of each route.
    type Route;
    /// Why the sender does not let it go: no route, no room.
    type Error;
    /// Room that is reserved for the answer.
    type Room;

    /// Finds its route: the place in the table. `are_known` is false until there is any table.
    ///
    /// # Errors
    /// No route answers it.
    fn find(&self, table: &RouteTable, are_known: bool) -> Result<usize, Self::Error>;

    /// Returns the header fields by which a version may be chosen.
    fn headers(&self) -> &HeaderMap;

    /// Returns the address by which a version may be chosen.
    fn client_address(&self) -> Option<IpAddr>;

    /// Reserves room for an answer of up to `most_bytes`, unless it has to wait for that.
    fn reserve(&self, route: &Self::Route, most_bytes: usize) -> Option<Self::Room>;

    /// Waits for that room, until the deadline at the latest.
    fn wait_for_room(
        &self,
        route: &Self::Route,
        most_bytes: usize,
        deadline: Instant,
    ) -> impl Future<Output = Result<Self::Room, Self::Error>>;

    /// Begins the span of an attempt.
    fn begin_attempt(&mut self, hop: Hop<'_>) -> TraceContext;

    /// Ends it with what came back.
    fn end_attempt(&mut self, answer: &Answer);

    /// Writes its message; `offer` is what it says of tunnels, empty where there are none.
    ///
    /// # Errors
    /// [`EncodeError`].
    fn encode(
        &self,
        route: &Route,
        sending: Sending,
        trace: Option<&TraceFields>,
        offer: &[u8],
    ) -> Result<Encoded, EncodeError<Self::Error>>;

    /// Whether its body comes on a stream, and not in the message. Who sends whole messages alone
    /// leaves this and what follows as it is.
    fn is_stream(&self) -> bool {
        false
    }

    /// Whether what goes up on its stream is still to be had.
    fn has_opening(&self) -> bool {
        false
    }

    /// Takes what goes up on its stream; `None` when that is gone, for bytes go up once.
    fn take_opening(&mut self) -> Option<Opening> {
        None
    }

    /// Whether it failed by what its own sender did, and not by the version.
    fn is_own_fault(&self) -> bool {
        false
    }

    /// Until when its response is waited for, which may move while its body goes up; `otherwise`
    /// when it does not.
    fn deadline(&self, otherwise: Instant) -> Instant {
        otherwise
    }

    /// Gives back what was not touched.
    fn put_back(&mut self, _: Opening) {}
}

/// Why a request cannot be written.
#[derive(Debug)]
pub enum EncodeError<E> {
    /// It is above the wire's limits.
    Wire(natsway_wire::Error),
    /// Its sender does not let it go: nothing that its route takes can be made of it.
    Sender(E),
}

impl<E> From<natsway_wire::Error> for EncodeError<E> {
    fn from(error: natsway_wire::Error) -> Self {
        Self::Wire(error)
    }
}

/// The version that a request was sent to, or would have been.
pub struct Chosen<R> {
    pub(crate) resolved: Resolved<R>,
    /// Its place among the versions of its route.
    pub version: usize,
}

impl<R> Chosen<R> {
    /// Returns what the sender keeps of its route.
    pub fn kept(&self) -> &R {
        self.resolved.kept()
    }

    /// Returns its route.
    pub fn route(&self) -> &Route {
        self.resolved.route()
    }
}

/// An answer.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "whole ones are the rule, and a box would cost each an allocation"
)]
pub enum Reply {
    /// All of it.
    Whole(NativeReply),
    /// Its head; its body goes on by a stream.
    Streamed(Box<Streamed>),
}

/// A request that was answered.
pub struct Dispatched<O: Outbound> {
    /// The answer.
    pub reply: Reply,
    /// Whose answer it is.
    pub chosen: Chosen<O::Route>,
    /// The room that was reserved for it.
    pub room: O::Room,
}

/// Why a request has no answer.
pub enum DispatchError<O: Outbound> {
    /// Its sender does not let it go.
    Sender(O::Error),
    /// No version of its route takes traffic.
    NoVersion,
    /// It is above the wire's limits.
    Unencodable(natsway_wire::Error),
    /// The connection does not take it.
    NotAdmitted(AdmissionError),
    /// No attempt gave a response, and no other is made.
    GivenUp {
        /// Why the last one did not.
        error: AttemptError,
        /// How many were made.
        attempts: u32,
        /// Whether some attempt may have run.
        may_have_run: bool,
        /// Where the last one went.
        chosen: Chosen<O::Route>,
    },
    /// The reply cannot be read.
    BadReply {
        /// Why not.
        reason: String,
        /// Whose reply it is.
        chosen: Chosen<O::Route>,
    },
}

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

    /// Writes its message.
    ///
    /// # Errors
    /// Above the wire's limits.
    fn encode(
        &self,
        route: &Route,
        sending: Sending,
        trace: Option<&TraceFields>,
    ) -> Result<Encoded, natsway_wire::Error>;
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
}

/// A request that was answered.
pub struct Dispatched<O: Outbound> {
    /// The answer.
    pub reply: NativeReply,
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

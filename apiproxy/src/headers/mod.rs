//! Which header fields cross the gateway, and which it adds: pure.

mod hop_by_hop;
mod request;
mod response;

pub use request::{Caller, Forwarded, Origin, REQUEST_ID, sound_request_id};
pub use response::{
    ResponseFault, announced, check_response, has_content, may_have_trailers, passable_trailers,
    take_length,
};

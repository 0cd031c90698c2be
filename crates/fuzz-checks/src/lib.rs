//! What must hold of every decoder whatever bytes it reads: a peer's, or what a crash left in our
//! own files. `fuzz/` looks for bytes for which it does not; the tests here run its seeds.

pub mod args_accept;
pub mod args_form;
pub mod args_multipart;
pub mod args_reply;
pub mod args_value;
pub mod broker_answer;
pub mod client_address;
pub mod command;
pub mod decode_reply;
pub mod decode_request;
pub mod frame;
pub mod group_entry;
pub mod native;
pub mod offer;
pub mod pipe_message;
pub mod report;
pub mod route_document;
pub mod service_answer;
pub mod shipper_head;
pub mod shipper_journal;
pub mod traceparent;

/// A check of any bytes, by the name of its fuzz target. It panics when something does not hold.
pub type Check = (&'static str, fn(&[u8]));

/// All of them.
pub const CHECKS: [Check; 21] = [
    ("args_accept", args_accept::check),
    ("args_form", args_form::check),
    ("args_multipart", args_multipart::check),
    ("args_reply", args_reply::check),
    ("args_value", args_value::check),
    ("broker_answer", broker_answer::check),
    ("client_address", client_address::check),
    ("command", command::check),
    ("decode_reply", decode_reply::check),
    ("decode_request", decode_request::check),
    ("frame", frame::check),
    ("group_entry", group_entry::check),
    ("native", native::check),
    ("offer", offer::check),
    ("pipe_message", pipe_message::check),
    ("report", report::check),
    ("route_document", route_document::check),
    ("service_answer", service_answer::check),
    ("shipper_head", shipper_head::check),
    ("shipper_journal", shipper_journal::check),
    ("traceparent", traceparent::check),
];

//! The codec `args`: what of a request its route makes arguments of, and a reply as its client asks
//! for it.

use std::convert::Infallible;

use http::{HeaderName, header};
use natsway_args::accept::{Rendering, rendering};
use natsway_args::reply::render;
use natsway_args::request::{Request, encode};
use natsway_boot::trace::{TRACEPARENT, TRACESTATE};
use natsway_caller::encode::{Encoded, Fields, MessageBody, Sending};
use natsway_caller::outbound::EncodeError;
use natsway_routes::table::Route;
use natsway_wire::envelope::Response;

use crate::call::Call;
use crate::problem::Problem;
use crate::trace::Traced;

/// What describes a reply's message, and not what the client gets of it.
const OF_THE_MESSAGE: [HeaderName; 4] =
    [header::CONTENT_TYPE, header::CONTENT_ENCODING, header::CONTENT_LENGTH, header::ETAG];

impl Call<'_> {
    /// Writes the message; `path` is what its worker is to see, with the query.
    ///
    /// # Errors
    /// The client cannot take any answer, or what it sent is not what its route takes: then nothing
    /// runs.
    pub(crate) fn encode_arguments(
        &self,
        route: &Route,
        sending: Sending,
        fields: &Traced<'_>,
        path: &str,
    ) -> Result<Encoded, EncodeError<Problem>> {
        let options = &route.args;
        self.rendering(route).map_err(EncodeError::Sender)?;
        let (mut named, mut own) = (Vec::new(), Vec::new());
        let Ok(()) = fields.each(|name, value| {
            if name == TRACEPARENT.as_str() || name == TRACESTATE.as_str() {
                own.push((name.to_owned(), value.to_owned()));
            }
            if options.headers.iter().any(|header| header.as_str() == name) {
                named.push((name.to_owned(), value.to_owned()));
            }
            Ok::<(), Infallible>(())
        });
        own.push(("content-type".to_owned(), options.format.media_type().into()));
        let (path, query) = match path.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (path, None),
        };
        let request = Request {
            method: &self.head.method,
            path,
            query,
            peer: self.from.client.address,
            id: self.from.request_id,
            parameters: &route.path.parameters(self.head.uri.path()),
            named: &named,
            head: &self.head.headers,
            body: &self.body,
        };
        let arguments = encode(&request, options).map_err(EncodeError::Sender)?;
        let body = MessageBody::Whole(&arguments);
        let method = &self.head.method;
        Ok(Encoded::new(route.codec, sending, method, path, &MessageHeaders(own), body, &[])?)
    }

    /// How its client takes an answer.
    fn rendering(&self, route: &Route) -> Result<Rendering, Problem> {
        let (method, query) = (&self.head.method, self.head.uri.query());
        rendering(&route.args, method, query, &self.head.headers)
    }

    /// Makes of a backend's reply what its client asked for.
    ///
    /// # Errors
    /// Why the reply goes to no client.
    pub(crate) fn rendered(&self, reply: Response, route: &Route) -> Result<Response, String> {
        // It was asked before anything ran.
        let to = self.rendering(route).map_err(|problem| problem.detail.into_owned())?;
        let Response { status, headers: mut own, trailers, body, join } = reply;
        let rendered = render(route.args.format, &body, &to);
        let rendered = rendered.map_err(|error| format!("unreadable reply: {error}"))?;
        for name in OF_THE_MESSAGE {
            own.remove(name);
        }
        let varies: Vec<_> = own.get_all(header::VARY).iter().cloned().collect();
        own.remove(header::VARY);
        own.extend(rendered.headers);
        for value in varies {
            own.append(header::VARY, value);
        }
        let status = rendered.status.unwrap_or(status);
        Ok(Response { status, headers: own, trailers, body: rendered.body, join })
    }
}

/// The headers of a message, whose request is in its body.
struct MessageHeaders(Vec<(String, Vec<u8>)>);

impl Fields for MessageHeaders {
    fn bytes(&self) -> usize {
        self.0.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    fn each<E>(&self, mut put: impl FnMut(&str, &[u8]) -> Result<(), E>) -> Result<(), E> {
        self.0.iter().try_for_each(|(name, value)| put(name, value))
    }
}

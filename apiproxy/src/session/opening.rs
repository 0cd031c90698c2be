//! How a WebSocket is opened that ends here (RFC 6455 section 4.2, RFC 8441).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::request::Parts;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, Uri, header};
use natsway_args::message::{ENVELOPE_BYTES, SUBPROTOCOLS};
use natsway_args::{Format, WebSocket};
use natsway_caller::stream::activity::{Activity, Watch};
use natsway_routes::table::Route;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use super::Session;
use super::metered::Meter;
use crate::body::ReplyBody;
use crate::call::Call;
use crate::problem::{Problem, memory_full, streams_full};
use crate::stream::becomes::Becomes;
use crate::stream::upgrade::Upgrade;

/// The version of the protocol that there is.
const VERSION: &[u8] = b"13";

/// What of the opening's head is not a request's that comes in a message.
const OF_THE_OPENING: [HeaderName; 16] = [
    header::ACCEPT,
    header::ACCEPT_ENCODING,
    header::CONNECTION,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::CONTENT_TYPE,
    header::EXPECT,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::SEC_WEBSOCKET_VERSION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("x-request-id"),
];

impl Call<'_> {
    /// Opens a WebSocket whose messages are requests to the route of its path.
    ///
    /// # Errors
    /// It is not opened as the protocol has it, asks for a subprotocol that there is not, comes
    /// from a page of another origin, or there is no room.
    pub(crate) fn open_session(
        &mut self,
        route: &Route,
        options: &WebSocket,
        upgrade: Upgrade,
    ) -> Result<Response<ReplyBody>, Problem> {
        let headers = &self.head.headers;
        check_version(headers)?;
        let client_host = self.from.client.host.as_ref();
        let own = client_host.unwrap_or_else(|| self.authority.authority());
        check_origin(headers, own, options)?;
        let chosen = subprotocol(headers)?;
        // HTTP/2 has no key, and an answer of its own.
        let accept = match upgrade.on {
            Some(_) => None,
            None => Some(accept_key(headers)?),
        };
        let format = chosen.map_or(Format::Json, |(_, format)| format);
        let client = self.from.client;
        let open = self.shard.streams.try_take(client.address).map_err(streams_full)?;
        let most_bytes = route.limits.inline_body_bytes + ENVELOPE_BYTES;
        let meter = Meter::new(self.account, most_bytes).ok_or_else(memory_full)?;
        let limits = route.streams;
        let session = Session {
            head: head_of_messages(&self.head, format),
            authority: self.authority.clone(),
            client: client.clone(),
            format,
            concurrency: options.concurrency,
            meter,
            watch: Watch::new(Activity::start(), limits.session_idle_timeout(), limits.max_age),
            open,
        };
        let becomes = Becomes::Session(Box::new(session));
        self.from.caller.unread.stream_began();
        let mut response = Response::new(ReplyBody::default());
        if let Some((name, _)) = chosen {
            let name = HeaderValue::from_static(name);
            response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, name);
        }
        match upgrade.on {
            Some(on) => *response.body_mut() = ReplyBody::becoming(on, becomes),
            None => {
                *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                let headers = response.headers_mut();
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.extend(accept.map(|accept| (header::SEC_WEBSOCKET_ACCEPT, accept)));
                self.from.caller.becomes.replace(Some(becomes));
            }
        }
        self.from.caller.unread.request_ended();
        Ok(response)
    }
}

fn check_version(headers: &HeaderMap) -> Result<(), Problem> {
    let mut versions = headers.get_all(header::SEC_WEBSOCKET_VERSION).iter();
    match (versions.next().map(HeaderValue::as_bytes), versions.next()) {
        (Some(VERSION), None) => Ok(()),
        _ => {
            let detail = "expected Sec-WebSocket-Version: 13";
            Err(Problem::new(StatusCode::UPGRADE_REQUIRED, "bad_websocket", detail))
        }
    }
}

/// The word by which the client knows that its own was understood.
fn accept_key(headers: &HeaderMap) -> Result<HeaderValue, Problem> {
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter();
    let key = match (keys.next(), keys.next()) {
        (Some(key), None) => Some(key.as_bytes()),
        _ => None,
    };
    let is_key = |key: &&[u8]| STANDARD.decode(key).is_ok_and(|bytes| bytes.len() == 16);
    let key = key.filter(is_key).ok_or_else(|| {
        let detail = "expected one Sec-WebSocket-Key of 16 bytes in base64";
        Problem::new(StatusCode::BAD_REQUEST, "bad_websocket", detail)
    })?;
    Ok(HeaderValue::try_from(derive_accept_key(key)).expect("base64 is a value"))
}

/// The first that the client offers and that there is; none where it offers none.
fn subprotocol(headers: &HeaderMap) -> Result<Option<(&'static str, Format)>, Problem> {
    let fields = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
    let texts = fields.map(|field| field.to_str().unwrap_or_default());
    let mut offers = texts.flat_map(|text| text.split(',')).map(str::trim).peekable();
    if offers.peek().is_none() {
        return Ok(None);
    }
    let known = |offer| SUBPROTOCOLS.into_iter().find(|(name, _)| *name == offer);
    offers.find_map(known).map(Some).ok_or_else(|| {
        let names = SUBPROTOCOLS.map(|(name, _)| name).join(", ");
        let detail = format!("expected none, or one of the subprotocols {names}");
        Problem::new(StatusCode::BAD_REQUEST, "bad_subprotocol", detail)
    })
}

/// A browser lets any page open a WebSocket anywhere, with the cookies of whoever looks at it, and
/// says only whose page it is (RFC 6455 section 10.2).
fn check_origin(headers: &HeaderMap, own: &Authority, options: &WebSocket) -> Result<(), Problem> {
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let is_allowed = match (origins.next(), origins.next()) {
        (None, _) => true,
        (Some(origin), None) => match origin.to_str() {
            Ok(origin) if options.origins.is_empty() => is_of(origin, own),
            Ok(origin) => options.origins.iter().any(|allowed| allowed == "*" || allowed == origin),
            Err(_) => false,
        },
        (Some(_), Some(_)) => false,
    };
    match is_allowed {
        true => Ok(()),
        false => {
            let detail = "pages of this origin may not open a WebSocket here";
            Err(Problem::new(StatusCode::FORBIDDEN, "origin_not_allowed", detail))
        }
    }
}

/// Whether an origin is that of what was asked for. Where TLS ends before us, we do not know the
/// scheme: it decides about the usual port alone.
fn is_of(origin: &str, own: &Authority) -> bool {
    let Ok(origin) = origin.parse::<Uri>() else { return false };
    let Some(host) = origin.host() else { return false };
    let usual_port = match origin.scheme_str() {
        Some("https") => 443,
        Some("http") => 80,
        _ => return false,
    };
    let port = |port: Option<u16>| port.unwrap_or(usual_port);
    host.eq_ignore_ascii_case(own.host()) && port(origin.port_u16()) == port(own.port_u16())
}

/// The head of the POST that each message is.
fn head_of_messages(opening: &Parts, format: Format) -> Parts {
    let mut head = opening.clone();
    head.extensions.clear();
    head.method = Method::POST;
    for name in OF_THE_OPENING {
        head.headers.remove(name);
    }
    let media_type = HeaderValue::from_static(format.media_type());
    head.headers.insert(header::ACCEPT, media_type.clone());
    head.headers.insert(header::CONTENT_TYPE, media_type);
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let fields = fields.iter().map(|(name, value)| (*name, *value));
        fields
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    fn allows(origin: &'static str, own: &'static str, origins: &[&str]) -> bool {
        let origins = origins.iter().map(|origin| (*origin).to_owned()).collect();
        let options = WebSocket { concurrency: 1, origins };
        check_origin(&head(&[("origin", origin)]), &Authority::from_static(own), &options).is_ok()
    }

    #[test]
    fn only_pages_of_ones_own_or_of_those_that_are_named_open_one() {
        for (origin, own) in [
            ("http://app.example", "app.example"),
            ("https://app.example", "app.example:443"),
            ("https://APP.example", "app.example"),
            ("http://app.example:8080", "app.example:8080"),
            ("http://[::1]:8080", "[::1]:8080"),
        ] {
            assert!(allows(origin, own, &[]), "{origin} {own}");
        }
        for (origin, own) in [
            ("http://evil.example", "app.example"),
            ("http://app.example:8081", "app.example:8080"),
            ("http://app.example.evil.example", "app.example"),
            ("null", "app.example"),
            ("", "app.example"),
            ("file://app.example", "app.example"),
        ] {
            assert!(!allows(origin, own, &[]), "{origin} {own}");
        }
        assert!(allows("https://a.example", "b.example", &["https://a.example"]));
        assert!(!allows("https://b.example", "b.example", &["https://a.example"]));
        assert!(allows("null", "b.example", &["*"]));
        let none = WebSocket { concurrency: 1, origins: Vec::new() };
        let own = Authority::from_static("a");
        assert!(check_origin(&head(&[]), &own, &none).is_ok(), "no browser asks");
        let mut two = head(&[("origin", "http://a")]);
        two.append("origin", HeaderValue::from_static("http://a"));
        assert!(check_origin(&two, &own, &none).is_err());
    }

    #[test]
    fn the_first_subprotocol_that_there_is_is_spoken() {
        let chosen = |offer| {
            let chosen = subprotocol(&head(&[("sec-websocket-protocol", offer)]));
            chosen.map(|chosen| chosen.map(|(_, format)| format)).map_err(|problem| problem.code)
        };
        assert_eq!(chosen("natsway.args.msgpack"), Ok(Some(Format::Msgpack)));
        assert_eq!(chosen("chat, natsway.args.json"), Ok(Some(Format::Json)));
        assert_eq!(subprotocol(&HeaderMap::new()), Ok(None));
        for other in ["chat", "", "natsway.args.cbor", "NATSWAY.ARGS.JSON"] {
            assert_eq!(chosen(other), Err("bad_subprotocol"), "{other}");
        }
    }

    #[test]
    fn a_key_is_sixteen_bytes() {
        let accept = |key| accept_key(&head(&[("sec-websocket-key", key)]));
        let accepted = accept("dGhlIHNhbXBsZSBub25jZQ==").unwrap();
        assert_eq!(accepted, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", "the example of RFC 6455");
        for odd in ["", "dGhl", "not base64"] {
            assert!(accept(odd).is_err(), "{odd}");
        }
        assert!(accept_key(&HeaderMap::new()).is_err());
    }
}

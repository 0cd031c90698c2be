//! Answers that the gateway gives by itself: `application/problem+json`, RFC 9457.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use serde::Serialize;

use crate::body::ReplyBody;

/// Seconds after which a client may try again what failed because something was full or away.
const RETRY_AFTER_SECONDS: u32 = 1;

/// An error that the gateway answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The status.
    pub status: StatusCode,
    /// A name for machines, from a small closed set.
    pub code: &'static str,
    /// A sentence for people.
    pub detail: Cow<'static, str>,
    /// The value of `Allow`, for 405.
    pub allow: Option<String>,
}

impl Problem {
    /// A problem with a fixed sentence or one made for it.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<Cow<'static, str>>) -> Problem {
        Problem { status, code, detail: detail.into(), allow: None }
    }

    /// Whether a client should come back: the request was refused, not answered.
    fn is_passing(&self) -> bool {
        self.status == StatusCode::SERVICE_UNAVAILABLE || self.status == StatusCode::TOO_MANY_REQUESTS
    }

    /// The response that says it.
    pub fn into_response(self, request_id: &str) -> Response<ReplyBody> {
        let mut response = Response::new(ReplyBody::from(self.document(request_id)));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.fields();
        response
    }

    /// The document of RFC 9457, with two members of our own.
    pub fn document(&self, request_id: &str) -> Bytes {
        #[derive(Serialize)]
        struct Document<'a> {
            r#type: &'static str,
            title: &'a str,
            status: u16,
            detail: &'a str,
            code: &'a str,
            request_id: &'a str,
        }
        let document = Document {
            // The type of problems that say no more than their status does.
            r#type: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
            code: self.code,
            request_id,
        };
        serde_json::to_vec(&document).expect("a problem is strings and numbers").into()
    }

    /// The header fields that go with the document.
    pub fn fields(&self) -> HeaderMap {
        let mut fields = HeaderMap::new();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.is_passing() {
            fields.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        if let Some(allow) = self.allow.as_ref().and_then(|allow| HeaderValue::from_str(allow).ok()) {
            fields.insert(header::ALLOW, allow);
        }
        fields
    }
}

//! Errors as clients get them, from the gateway and from workers alike: `application/problem+json`,
//! RFC 9457.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;

/// Seconds after which a client may try again what failed because something was full or away.
const RETRY_AFTER_SECONDS: u32 = 1;

/// An error that is answered.
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
    /// Whether it is safe to come back, where the status does not say so.
    pub is_repeatable: bool,
}

/// The document of RFC 9457, with two members of our own.
#[derive(Serialize)]
struct Document<'a> {
    r#type: &'static str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    code: &'a str,
    request_id: Option<&'a str>,
}

impl Problem {
    /// Makes a problem with a fixed sentence or one made for it.
    pub fn new(
        status: StatusCode,
        code: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self { status, code, detail: detail.into(), allow: None, is_repeatable: false }
    }

    /// Whether a client should come back: the request was refused, not answered.
    fn is_passing(&self) -> bool {
        self.is_repeatable
            || self.status == StatusCode::SERVICE_UNAVAILABLE
            || self.status == StatusCode::TOO_MANY_REQUESTS
    }

    /// Returns the document; `request_id` names the request in logs, if it has a name.
    pub fn document(&self, request_id: Option<&str>) -> Bytes {
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

    /// Returns the header fields that go with the document.
    pub fn fields(&self) -> HeaderMap {
        let mut fields = HeaderMap::new();
        fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        if self.is_passing() {
            fields.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_SECONDS));
        }
        if let Some(allow) = self.allow.as_ref().and_then(|allow| HeaderValue::from_str(allow).ok())
        {
            fields.insert(header::ALLOW, allow);
        }
        fields
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(problem: &Problem, request_id: Option<&str>) -> String {
        String::from_utf8(problem.document(request_id).to_vec()).unwrap()
    }

    #[test]
    fn a_document_has_its_members_and_no_name_where_there_is_none() {
        let problem = Problem::new(StatusCode::BAD_GATEWAY, "bad_reply", "not \"a\" reply");
        assert_eq!(
            text(&problem, Some("id-1")),
            r#"{"type":"about:blank","title":"Bad Gateway","status":502,"detail":"not \"a\" reply","code":"bad_reply","request_id":"id-1"}"#
        );
        assert!(text(&problem, None).ends_with(r#""request_id":null}"#));
        let unnamed = Problem::new(StatusCode::from_u16(599).unwrap(), "x", "y");
        assert!(text(&unnamed, None).contains(r#""title":"Error""#));
    }

    #[test]
    fn what_was_refused_and_not_answered_says_when_to_come_back() {
        for (status, comes_back) in
            [(503, true), (429, true), (502, false), (504, false), (405, false)]
        {
            let problem = Problem::new(StatusCode::from_u16(status).unwrap(), "x", "y");
            assert_eq!(problem.fields().contains_key(header::RETRY_AFTER), comes_back, "{status}");
        }
        let problem = Problem::new(StatusCode::GATEWAY_TIMEOUT, "x", "y");
        let problem = Problem { is_repeatable: true, ..problem };
        assert!(problem.fields().contains_key(header::RETRY_AFTER), "by its own word");
        let problem = Problem::new(StatusCode::METHOD_NOT_ALLOWED, "x", "y");
        let problem = Problem { allow: Some("GET, HEAD".to_owned()), ..problem };
        assert_eq!(problem.fields()[header::ALLOW], "GET, HEAD");
    }
}

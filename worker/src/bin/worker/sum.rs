//! `/sum`: adds the numbers `n` of a query, a form, or a JSON or MessagePack document.

use axum::body::Bytes;
use axum::extract::RawQuery;
use axum::http::HeaderMap;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Json, Response};
use serde::Deserialize;
use serde_json::{Number, Value, json};

use crate::problem::bad_request;

/// Numbers added at once.
const MOST_NUMBERS: usize = 10_000;

/// What a document holds: `{"n": 1}` or `{"n": [1, 2]}`.
#[derive(Deserialize)]
struct Document {
    n: OneOrMany,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(f64),
    Many(Vec<f64>),
}

/// Adds the numbers of the query and of the body.
pub(crate) async fn add(RawQuery(query): RawQuery, headers: HeaderMap, body: Bytes) -> Response {
    let content_type =
        headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    match sum(query.as_deref().unwrap_or_default(), content_type, &body) {
        Ok(sum) => Json(json!({ "sum": sum })).into_response(),
        Err(detail) => bad_request(detail),
    }
}

fn sum(query: &str, content_type: &str, body: &[u8]) -> Result<Value, String> {
    let mut numbers = of_form(query.as_bytes())?;
    if !body.is_empty() {
        numbers.extend(of_body(content_type, body)?);
    }
    match numbers.len() {
        0 => return Err("expected numbers `n`, say /sum?n=1&n=2".to_owned()),
        1..=MOST_NUMBERS => {}
        count => return Err(format!("{count} numbers: expected {MOST_NUMBERS} at the most")),
    }
    let sum: f64 = numbers.iter().sum();
    shortest(sum).ok_or_else(|| format!("the sum is {sum}, which JSON cannot write"))
}

fn of_body(content_type: &str, body: &[u8]) -> Result<Vec<f64>, String> {
    let media_type = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let document = match media_type.as_str() {
        "application/x-www-form-urlencoded" => return of_form(body),
        "application/json" => {
            serde_json::from_slice::<Document>(body).map_err(|error| error.to_string())
        }
        "application/msgpack" | "application/vnd.msgpack" | "application/x-msgpack" => {
            rmp_serde::from_slice::<Document>(body).map_err(|error| error.to_string())
        }
        _ => {
            return Err(format!(
                "content type {content_type:?}: expected a form, application/json or \
                 application/msgpack"
            ));
        }
    };
    match document.map_err(|error| format!("{media_type}: expected {{\"n\": [1, 2]}}: {error}"))?.n
    {
        OneOrMany::One(number) => Ok(vec![number]),
        OneOrMany::Many(numbers) => Ok(numbers),
    }
}

fn of_form(form: &[u8]) -> Result<Vec<f64>, String> {
    let values =
        form_urlencoded::parse(form).filter(|(name, _)| name == "n").map(|(_, value)| value);
    values
        .map(|value| {
            let number = value.trim().parse::<f64>().ok().filter(|number| number.is_finite());
            number.ok_or_else(|| format!("n={value}: expected a number"))
        })
        .collect()
}

/// A number as people write it: without a fraction when it has none.
fn shortest(sum: f64) -> Option<Value> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if sum.fract() == 0.0 && sum.abs() <= EXACT {
        return Some(Value::from(sum as i64));
    }
    Number::from_f64(sum).map(Value::Number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORM: &str = "application/x-www-form-urlencoded";
    const JSON: &str = "application/json; charset=utf-8";
    const MSGPACK: &str = "application/msgpack";

    fn msgpack(value: &Value) -> Vec<u8> {
        rmp_serde::to_vec_named(value).unwrap()
    }

    #[test]
    fn numbers_come_from_wherever_they_are() {
        for (query, content_type, body, expected) in [
            ("n=1&n=2&other=x", "", b"".to_vec(), json!(3)),
            ("", FORM, b"n=1.5&n=%2B2".to_vec(), json!(3.5)),
            ("n=1", JSON, br#"{"n":[2,3.0],"more":true}"#.to_vec(), json!(6)),
            ("", JSON, br#"{"n":-4}"#.to_vec(), json!(-4)),
            ("", MSGPACK, msgpack(&json!({ "n": [1, 2.5] })), json!(3.5)),
            ("", MSGPACK, msgpack(&json!({ "n": 7 })), json!(7)),
        ] {
            assert_eq!(sum(query, content_type, &body), Ok(expected), "{query} {content_type}");
        }
    }

    #[test]
    fn what_cannot_be_added_is_explained() {
        for (query, content_type, body, told) in [
            ("", "", &b""[..], "expected numbers"),
            ("n=x", "", b"", "n=x: expected a number"),
            ("n=inf", "", b"", "n=inf: expected a number"),
            ("", "text/plain", b"1", "content type \"text/plain\""),
            ("", JSON, b"{}", "missing field `n`"),
            ("", JSON, b"[1", "application/json"),
            ("", MSGPACK, b"\xc1", "application/msgpack"),
            ("", FORM, b"n=\xff", "expected a number"),
            ("n=1e308&n=1e308", "", b"", "JSON cannot write"),
        ] {
            let error = sum(query, content_type, body).unwrap_err();
            assert!(error.contains(told), "{error}");
        }
        assert!(sum(&"n=1&".repeat(MOST_NUMBERS + 1), "", b"").is_err());
    }
}

//! What a client takes: `Accept` with its weights (RFC 9110, section 12.5.1), or a script's
//! callback.

use http::{HeaderMap, Method, StatusCode, header};
use natsway_wire::problem::Problem;

use crate::{Format, Options};

/// The parameter of a query that names a script's function.
pub const CALLBACK: &str = "callback";

/// The longest name of such a function, in bytes.
const CALLBACK_BYTES: usize = 128;

/// The most ranges of media types that are looked at.
const MOST_RANGES: usize = 64;

/// How a reply is written for its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rendering {
    /// In a format, under the name that the client has for it.
    Value(Format, &'static str),
    /// As text: itself, or as JSON.
    Text,
    /// As a form.
    Form,
    /// As a script that calls a function with JSON.
    Script(String),
}

/// What a reply can be rendered as, the first of those that a client takes alike.
const OFFERED: [(&str, Rendering); 7] = [
    ("application/json", Rendering::Value(Format::Json, "application/json")),
    ("application/msgpack", Rendering::Value(Format::Msgpack, "application/msgpack")),
    ("application/x-msgpack", Rendering::Value(Format::Msgpack, "application/x-msgpack")),
    ("application/vnd.msgpack", Rendering::Value(Format::Msgpack, "application/vnd.msgpack")),
    ("application/cbor", Rendering::Value(Format::Cbor, "application/cbor")),
    ("text/plain", Rendering::Text),
    ("application/x-www-form-urlencoded", Rendering::Form),
];

/// Says how a reply is to be written for a client; known before anything runs.
///
/// # Errors
/// 406 when the client takes nothing of what there is, 400 for a function that is none.
pub fn rendering(
    options: &Options,
    method: &Method,
    query: Option<&str>,
    head: &HeaderMap,
) -> Result<Rendering, Problem> {
    if takes_callback(options, method)
        && let Some(name) = query.and_then(callback)
    {
        return match is_function(&name) {
            true => Ok(Rendering::Script(name)),
            false => {
                let detail = format!(
                    "{CALLBACK} must be 1 to {CALLBACK_BYTES} of the letters A-Z a-z 0-9 _ . $"
                );
                Err(Problem::new(StatusCode::BAD_REQUEST, "bad_callback", detail))
            }
        };
    }
    let mut ranges = ranges(head).peekable();
    if ranges.peek().is_none() {
        return Ok(OFFERED[0].1.clone());
    }
    let ranges: Vec<Range> = ranges.take(MOST_RANGES).collect();
    let mut best = None;
    for (name, rendering) in OFFERED {
        let weight = weight(&ranges, name);
        if weight > best.as_ref().map_or(0, |(weight, _)| *weight) {
            best = Some((weight, rendering));
        }
    }
    best.map(|(_, rendering)| rendering).ok_or_else(|| {
        let names = OFFERED.map(|(name, _)| name).join(", ");
        let detail =
            format!("the answer could be had as one of {names}; Accept takes none of them");
        Problem::new(StatusCode::NOT_ACCEPTABLE, "not_acceptable", detail)
    })
}

/// Whether a request of this method may name a function.
pub(crate) fn takes_callback(options: &Options, method: &Method) -> bool {
    options.jsonp && (method == Method::GET || method == Method::HEAD)
}

fn callback(query: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(name, _)| name == CALLBACK).map(|(_, value)| value.into_owned())
}

fn is_function(name: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$');
    (1..=CALLBACK_BYTES).contains(&name.len()) && name.bytes().all(is_plain)
}

/// A range of media types, and how much it is wished for, in thousandths.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Range {
    main: String,
    sub: String,
    weight: u16,
}

impl Range {
    /// How closely it names a type; `None` when it does not hold it.
    fn holds(&self, main: &str, sub: &str) -> Option<u8> {
        match (self.main.as_str(), self.sub.as_str()) {
            ("*", "*") => Some(0),
            (own, "*") if own == main => Some(1),
            (own, own_sub) if own == main && own_sub == sub => Some(2),
            _ => None,
        }
    }
}

/// The ranges of all fields; what cannot be read is as if it were not there.
fn ranges(head: &HeaderMap) -> impl Iterator<Item = Range> {
    let fields = head.get_all(header::ACCEPT).iter().filter_map(|field| field.to_str().ok());
    fields.flat_map(|field| field.split(',')).filter_map(range)
}

fn range(text: &str) -> Option<Range> {
    let mut parts = text.split(';').map(str::trim);
    let (main, sub) = parts.next()?.split_once('/')?;
    if main.is_empty() || sub.is_empty() {
        return None;
    }
    let mut weight = 1_000;
    for parameter in parts {
        if let Some((name, value)) = parameter.split_once('=')
            && name.trim().eq_ignore_ascii_case("q")
        {
            weight = thousandths(value.trim())?;
        }
    }
    Some(Range { main: main.to_ascii_lowercase(), sub: sub.to_ascii_lowercase(), weight })
}

/// `0.25` in thousandths.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let are_digits = fraction.bytes().all(|byte| byte.is_ascii_digit());
    let whole: u16 = match whole {
        "0" => 0,
        "1" => 1_000,
        _ => return None,
    };
    if fraction.len() > 3 || !are_digits {
        return None;
    }
    let fraction: u16 = format!("{fraction:0<3}").parse().ok()?;
    (whole + fraction <= 1_000).then_some(whole + fraction)
}

/// How much a type is wished for: by the range that names it most closely.
fn weight(ranges: &[Range], name: &str) -> u16 {
    let (main, sub) = name.split_once('/').unwrap_or_default();
    let held = ranges.iter().filter_map(|range| Some((range.holds(main, sub)?, range.weight)));
    // The first of two that name it alike.
    held.fold(None, |best: Option<(u8, u16)>, (closeness, weight)| match best {
        Some((most, _)) if most >= closeness => best,
        _ => Some((closeness, weight)),
    })
    .map_or(0, |(_, weight)| weight)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepting(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (header::ACCEPT, line.parse().unwrap())).collect()
    }

    fn chosen(lines: &[&str]) -> String {
        let chosen = rendering(&Options::default(), &Method::GET, None, &accepting(lines));
        match chosen {
            Ok(Rendering::Value(_, name)) => name.to_owned(),
            Ok(other) => format!("{other:?}"),
            Err(problem) => problem.code.to_owned(),
        }
    }

    #[test]
    fn the_weightiest_is_chosen_and_json_where_all_weigh_alike() {
        for (lines, expected) in [
            (&[][..], "application/json"),
            (&["*/*"], "application/json"),
            (&["application/msgpack"], "application/msgpack"),
            (&["application/x-msgpack, */*;q=0.1"], "application/x-msgpack"),
            (&["application/json;q=0.5, application/cbor;q=0.6"], "application/cbor"),
            (&["application/json;q=0.5", "application/cbor;q=0.500"], "application/json"),
            (&["text/html, application/xhtml+xml, */*;q=0.8"], "application/json"),
            (&["TEXT/*;q=1, */*;q=0.9"], "Text"),
            (&["application/*, application/json;q=0"], "application/msgpack"),
            (&["application/json;q=0, */*;q=0.001"], "application/msgpack"),
            (&["application/x-www-form-urlencoded"], "Form"),
            (&["image/png"], "not_acceptable"),
            (&["application/json;q=0"], "not_acceptable"),
            (&["application/json;q=0.0"], "not_acceptable"),
            // What cannot be read is not there.
            (&["json", ",;", "application/cbor;q=2", "/"], "application/json"),
            (&["application/json;version=1;q=0.2, application/cbor;q=.3"], "application/json"),
        ] {
            assert_eq!(chosen(lines), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_function_is_taken_where_the_route_allows_it_and_its_name_is_one() {
        let ask = |jsonp, method: Method, query: &str| {
            let options = Options { jsonp, ..Options::default() };
            rendering(&options, &method, Some(query), &accepting(&["application/cbor"]))
        };
        let script = |name: &str| Ok(Rendering::Script(name.to_owned()));
        assert_eq!(ask(true, Method::GET, "a=1&callback=jQuery.cb_1%24"), script("jQuery.cb_1$"));
        assert_eq!(ask(true, Method::GET, "callback=a&callback=b"), script("a"));
        let cbor = Rendering::Value(Format::Cbor, "application/cbor");
        assert_eq!(ask(false, Method::GET, "callback=f").unwrap(), cbor);
        assert_eq!(ask(true, Method::POST, "callback=f").unwrap(), cbor);
        let long = format!("callback={}", "x".repeat(129));
        for bad in [
            "callback=",
            "callback=a(b)",
            "callback=%3Cscript%3E",
            "callback=a%0Ab",
            "callback=%C3%A9",
            &long,
        ] {
            assert_eq!(ask(true, Method::GET, bad).unwrap_err().code, "bad_callback", "{bad}");
        }
    }

    #[test]
    fn what_would_do_is_said() {
        let refused =
            rendering(&Options::default(), &Method::GET, None, &accepting(&["image/png"]));
        let problem = refused.unwrap_err();
        assert_eq!(problem.status, StatusCode::NOT_ACCEPTABLE);
        assert!(problem.detail.contains("application/json, application/msgpack"), "{problem:?}");
    }
}

//! Forms: names and values, from a query, a body or the parts of one, and back.

use crate::limits::Budget;
use crate::{Map, ReadError, Value};

/// Makes a map of fields in their order. A name that comes again makes an array. If `nested`,
/// `a[b]` is the key `b` of the map `a`, and `a[]` is always an array.
pub(crate) fn collect<N: AsRef<str>>(
    fields: impl IntoIterator<Item = (N, String)>,
    nested: bool,
    budget: &mut Budget,
) -> Result<Map, ReadError> {
    let mut map = Map::new();
    for (name, value) in fields {
        let name = name.as_ref();
        budget.value()?;
        match nested.then(|| steps(name)).flatten() {
            None => put_in(&mut map, name, &[], value, 1, budget)?,
            Some((key, steps)) => put_in(&mut map, key, &steps, value, 1, budget)?,
        }
    }
    Ok(map)
}

/// Reads `application/x-www-form-urlencoded` as the URL standard has it: what is not UTF-8 becomes
/// U+FFFD.
pub(crate) fn fields(text: &[u8]) -> impl Iterator<Item = (std::borrow::Cow<'_, str>, String)> {
    form_urlencoded::parse(text).map(|(name, value)| (name, value.into_owned()))
}

/// A part of a name in brackets.
enum Step<'n> {
    Key(&'n str),
    Push,
}

/// The parts of `a[b][]`; `None` when the name is a plain one, or its brackets are none.
fn steps(name: &str) -> Option<(&str, Vec<Step<'_>>)> {
    let open = name.find('[').filter(|open| *open > 0)?;
    let (key, mut rest) = name.split_at(open);
    let mut steps = Vec::new();
    while !rest.is_empty() {
        let (inside, behind) = rest.strip_prefix('[')?.split_once(']')?;
        if inside.contains('[') {
            return None;
        }
        match inside {
            "" if !behind.is_empty() => return None,
            "" => steps.push(Step::Push),
            key => steps.push(Step::Key(key)),
        }
        rest = behind;
    }
    Some((key, steps))
}

fn put_in(
    map: &mut Map,
    key: &str,
    steps: &[Step<'_>],
    value: String,
    above: usize,
    budget: &mut Budget,
) -> Result<(), ReadError> {
    let clash = || ReadError::malformed(format!("the field {key:?} is both a value and a map"));
    match (steps, map.get_mut(key)) {
        ([], None) => {
            map.insert(key.to_owned(), Value::Text(value));
        }
        ([Step::Push], None) => {
            budget.level(above)?;
            map.insert(key.to_owned(), Value::Array(vec![Value::Text(value)]));
        }
        ([Step::Key(inner), deeper @ ..], None) => {
            budget.level(above)?;
            budget.value()?;
            let mut inside = Map::new();
            put_in(&mut inside, inner, deeper, value, above + 1, budget)?;
            map.insert(key.to_owned(), Value::Map(inside));
        }
        ([Step::Key(inner), deeper @ ..], Some(Value::Map(inside))) => {
            put_in(inside, inner, deeper, value, above + 1, budget)?;
        }
        ([] | [Step::Push], Some(Value::Array(values))) => values.push(Value::Text(value)),
        ([] | [Step::Push], Some(first @ Value::Text(_))) => {
            budget.level(above)?;
            let values = vec![std::mem::replace(first, Value::Null), Value::Text(value)];
            *first = Value::Array(values);
        }
        _ => return Err(clash()),
    }
    Ok(())
}

/// Writes a value as a form: a map's keys are names, what is no map stands under `body`. Arrays are
/// names that come again, and what is deeper has its names in brackets.
pub(crate) fn write(value: &Value) -> String {
    let mut out = form_urlencoded::Serializer::new(String::new());
    match value {
        Value::Map(map) => {
            for (key, value) in map {
                put_out(&mut out, key, value);
            }
        }
        other => put_out(&mut out, crate::BODY, other),
    }
    out.finish()
}

fn put_out(out: &mut form_urlencoded::Serializer<'_, String>, name: &str, value: &Value) {
    match value {
        Value::Array(values) => {
            for (place, value) in values.iter().enumerate() {
                match value {
                    Value::Array(_) | Value::Map(_) => {
                        put_out(out, &format!("{name}[{place}]"), value);
                    }
                    plain => put_out(out, name, plain),
                }
            }
        }
        Value::Map(map) => {
            for (key, value) in map {
                put_out(out, &format!("{name}[{key}]"), value);
            }
        }
        plain => drop(out.append_pair(name, &crate::reply::plain_text(plain))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, Limits};

    fn read(text: &str, nested: bool, limits: Limits) -> Result<String, ReadError> {
        let map = collect(fields(text.as_bytes()), nested, &mut Budget::new(limits))?;
        Ok(String::from_utf8(Format::Json.write_map(&map)).unwrap())
    }

    #[test]
    fn repeats_are_arrays_and_numbers_are_text() {
        for (text, expected) in [
            ("", "{}"),
            ("a=1&b=&c", r#"{"a":"1","b":"","c":""}"#),
            ("a=1&b=2&a=3&a=", r#"{"a":["1","3",""],"b":"2"}"#),
            ("a+b=c%20d&%C3%A9=%E9&=x", "{\"a b\":\"c d\",\"é\":\"\u{fffd}\",\"\":\"x\"}"),
            ("a[b]=1&a[]=2", r#"{"a[b]":"1","a[]":"2"}"#),
        ] {
            assert_eq!(read(text, false, Limits::REQUEST).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn brackets_are_maps_where_that_is_asked_for() {
        for (text, expected) in [
            ("a[b]=1&a[c][d]=2&a[c][e][]=3", r#"{"a":{"b":"1","c":{"d":"2","e":["3"]}}}"#),
            ("a[]=1", r#"{"a":["1"]}"#),
            ("a[]=1&a=2&a[]=3", r#"{"a":["1","2","3"]}"#),
            ("a=1&a[]=2", r#"{"a":["1","2"]}"#),
            ("a[0]=x&a[1]=y", r#"{"a":{"0":"x","1":"y"}}"#),
            // Brackets that are none.
            (
                "[a]=1&a[=2&a]=3&a[b]c=4&a[[b]]=5&a[][b]=6",
                r#"{"[a]":"1","a[":"2","a]":"3","a[b]c":"4","a[[b]]":"5","a[][b]":"6"}"#,
            ),
        ] {
            assert_eq!(read(text, true, Limits::REQUEST).unwrap(), expected, "{text}");
        }
        for clash in ["a=1&a[b]=2", "a[b]=1&a=2", "a[]=1&a[b]=2", "a[b][c]=1&a[b]=2"] {
            assert!(read(clash, true, Limits::REQUEST).is_err(), "{clash}");
        }
    }

    #[test]
    fn fields_are_bounded_in_number_and_depth() {
        let limits = Limits { values: 4, depth: 3 };
        assert!(read("a&b&c&d", true, limits).is_ok());
        assert_eq!(read("a&b&c&d&e", true, limits), Err(ReadError::TooMany(4)));
        assert!(read("a[b][c]=1", true, limits).is_ok());
        assert_eq!(read("a[b][c][]=1", true, limits), Err(ReadError::TooDeep(3)));
        assert_eq!(read("a[b][c][d]=1", true, limits), Err(ReadError::TooDeep(3)));
        let deep = format!("a{}=1", "[b]".repeat(100_000));
        assert_eq!(read(&deep, true, Limits::REQUEST), Err(ReadError::TooDeep(32)));
    }

    #[test]
    fn a_value_is_written_as_a_form() {
        let value = Format::Json
            .read(br#"{"a":[1,"x y",null],"b":{"c":true,"d":[{"e":1.5}]},"":"&"}"#, Limits::REPLY)
            .unwrap();
        assert_eq!(write(&value), "a=1&a=x+y&a=&b%5Bc%5D=true&b%5Bd%5D%5B0%5D%5Be%5D=1.5&=%26");
        assert_eq!(write(&Value::Integer(7)), "body=7");
    }
}

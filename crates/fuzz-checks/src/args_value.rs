//! A body in one of the three formats, which the first byte chooses, is a value within the limits
//! or is refused; a value is the same in every format, and reads as it was written.

use natsway_args::{Format, Limits, Value};

/// Small, so that they are reached.
const LIMITS: Limits = Limits { values: 200, depth: 12 };

/// See the module.
pub fn check(data: &[u8]) {
    let Some((first, bytes)) = data.split_first() else { return };
    let format = Format::ALL[usize::from(first % 3)];
    let Ok(value) = format.read(bytes, LIMITS) else { return };
    let (values, depth) = measure(&value);
    assert!(values <= LIMITS.values && depth <= LIMITS.depth, "{values} values, {depth} deep");
    for format in Format::ALL {
        let written = format.write(&value);
        // Bytes in JSON are a map of one key.
        let room = Limits { values: 2 * LIMITS.values, depth: LIMITS.depth + 1 };
        let again = format.read(&written, room).expect("what is written can be read");
        assert_eq!(format.write(&again), written, "{format:?}");
        if format != Format::Json {
            assert_eq!(Format::Json.write(&again), Format::Json.write(&value), "{format:?}");
        }
    }
}

/// How many values there are, and how deep they stand.
fn measure(value: &Value) -> (usize, usize) {
    let inside = |inner: &mut dyn Iterator<Item = &Value>| {
        let sum = |(values, depth): (usize, usize), inner: &Value| {
            let (more, deeper) = measure(inner);
            (values + more, depth.max(deeper))
        };
        let (values, depth) = inner.fold((1, 0), sum);
        (values, depth + 1)
    };
    match value {
        Value::Array(values) => inside(&mut values.iter()),
        Value::Map(map) => inside(&mut map.values()),
        _ => (1, 0),
    }
}

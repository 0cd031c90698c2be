//! Somebody's own traffic, read from a file: a CSV of time and rate, or what `provisioner record`
//! wrote.

use std::time::UNIX_EPOCH;

/// The longest traffic that is simulated, in seconds: a day.
pub const LONGEST_S: usize = 24 * 3_600;

/// Numbers above this are milliseconds since the Unix epoch, and not seconds.
const MILLISECONDS_FROM: f64 = 1e11;

/// Messages a second, for each second from the first moment of a file to its last.
///
/// In a CSV a rate holds until the next line's time; a first line without numbers is a header.
/// Times are seconds, milliseconds since the Unix epoch, or RFC 3339.
///
/// # Errors
/// The line that cannot be read, and why.
pub fn read(text: &str) -> Result<Vec<f64>, String> {
    let points = match text.trim_start().starts_with('{') {
        true => recorded(text)?,
        false => csv(text)?,
    };
    let [(first_s, _), .., (last_s, _)] = points[..] else {
        return Err(format!("{} points: expected two at the least", points.len()));
    };
    if let Some(place) = points.windows(2).position(|pair| pair[1].0 <= pair[0].0) {
        return Err(format!("point {}: its time is not after the one before it", place + 2));
    }
    let length_s = (last_s - first_s).ceil();
    if length_s > LONGEST_S as f64 {
        return Err(format!(
            "{length_s} s from the first to the last point: expected {LONGEST_S} at the most"
        ));
    }
    let mut next = 0;
    let rate = |second: usize| {
        while points.get(next + 1).is_some_and(|(at_s, _)| *at_s <= first_s + second as f64) {
            next += 1;
        }
        points[next].1
    };
    Ok((0..length_s as usize).map(rate).collect())
}

/// Times in seconds, and rates.
type Points = Vec<(f64, f64)>;

fn csv(text: &str) -> Result<Points, String> {
    let mut points = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.split([',', ';', '\t']).map(|field| field.trim().trim_matches('"'));
        let (at, rate) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
        match (time(at), rate.parse::<f64>()) {
            (Some(at_s), Ok(rate)) if rate.is_finite() && rate >= 0.0 => points.push((at_s, rate)),
            (None, Err(_)) if points.is_empty() && number == 1 => {}
            _ => {
                return Err(format!(
                    "line {number}: {line:?}: expected a time and a rate, say 12.5,340"
                ));
            }
        }
    }
    Ok(points)
}

fn time(text: &str) -> Option<f64> {
    let moment = |text| humantime_serde::re::humantime::parse_rfc3339_weak(text).ok();
    let seconds = |number: f64| if number > MILLISECONDS_FROM { number / 1_000.0 } else { number };
    match text.parse::<f64>() {
        Ok(number) => number.is_finite().then(|| seconds(number)),
        Err(_) => {
            Some(moment(text.trim_end_matches('Z'))?.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
        }
    }
}

/// The arrivals between the polls of the first target that was recorded.
fn recorded(text: &str) -> Result<Points, String> {
    let decisions = crate::replay::read(text.as_bytes())?;
    let first = decisions.first().map(|decision| decision.target.clone()).unwrap_or_default();
    let others = decisions.iter().filter(|decision| decision.target != first).count();
    if others > 0 {
        return Err(format!("it has other targets than {first}: record one, by its name"));
    }
    let mut points: Points = Vec::new();
    let mut last: Option<crate::sample::Sample> = None;
    for sample in decisions.into_iter().filter_map(|decision| decision.sample) {
        if last.as_ref().is_some_and(|last| sample.at_ms <= last.at_ms) {
            continue;
        }
        if let Some(before) = last.replace(sample.clone()) {
            let elapsed_s = (sample.at_ms - before.at_ms) as f64 / 1_000.0;
            // Where the counters began anew nobody knows what came meanwhile; as much as before is
            // the likeliest.
            let came = sample
                .arrived
                .checked_sub(before.arrived)
                .filter(|_| sample.source == before.source);
            let as_before = points.last().map_or(0.0, |(_, rate)| *rate);
            points.push((
                before.at_ms as f64 / 1_000.0,
                came.map_or(as_before, |came| came as f64 / elapsed_s),
            ));
        }
    }
    let end = last
        .zip(points.last().copied())
        .map(|(last, (_, rate))| (last.at_ms as f64 / 1_000.0, rate));
    points.extend(end);
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::Controller;
    use crate::sample::{Fleet, Sample};
    use crate::simulate::{frozen_policies, frozen_rules};

    #[test]
    fn a_rate_holds_until_the_next_one() {
        assert_eq!(
            read("time,rate\n0,10\n2,30\n\n3.5,7\n5,0\n"),
            Ok(vec![10.0, 10.0, 30.0, 30.0, 7.0])
        );
        let moments = "\"2026-01-05T10:00:00Z\";4\n2026-01-05 10:00:02;5\n2026-01-05T10:00:03Z;0";
        assert_eq!(read(moments), Ok(vec![4.0, 4.0, 5.0]));
        assert_eq!(read("1767607200000,1\n1767607202000,2"), Ok(vec![1.0, 1.0]));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for (text, part) in [
            ("0,1", "1 points: expected two"),
            ("0,1\n1,x", "line 2: \"1,x\": expected a time and a rate"),
            ("0,1\n1,-4", "line 2"),
            ("0,1\n5,2\n5,3", "point 3: its time is not after"),
            ("0,1\n99999999,2", "s from the first to the last point"),
            ("{}", "line 1"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_recording_is_its_arrivals() {
        let mut controller = Controller::new("orders", frozen_rules(1, 0), frozen_policies());
        let mut text = String::new();
        for (second, arrived) in [(100, 0), (101, 50), (103, 250), (104, 260)] {
            let sample = Sample { at_ms: second * 1_000, arrived, ..Sample::default() };
            let decision = controller.decide(second * 1_000, Fleet::default(), Ok(sample));
            text.push_str(&format!("{}\n", serde_json::to_string(&decision).unwrap()));
        }
        assert_eq!(read(&text), Ok(vec![50.0, 100.0, 100.0, 10.0]));
    }
}

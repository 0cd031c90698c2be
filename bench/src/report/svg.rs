//! Bars, stacks and curves as SVG. Pure.

use std::fmt::Write;

use super::document::escape;

/// One bar with the spread of the runs behind it.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Whose it is.
    pub label: String,
    /// Its length.
    pub value: f64,
    /// Where the runs' least and most are.
    pub ends: (f64, f64),
    /// What is written behind it.
    pub shown: String,
    /// Drawn in the colour of what the report is about.
    pub ours: bool,
}

/// Parts that add up, one after the other.
#[derive(Clone, Debug, PartialEq)]
pub struct Stack {
    /// Whose it is.
    pub label: String,
    /// The parts, in the order of the legend.
    pub parts: Vec<f64>,
}

/// A line through points.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Whose it is.
    pub label: String,
    /// In the order of x.
    pub points: Vec<Point>,
}

/// A median, with the spread of the runs behind it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// Where it is.
    pub x: f64,
    /// How high it is.
    pub y: f64,
    /// Where the runs' least and most are.
    pub ends: (f64, f64),
}

/// What the axes of a picture of lines say, and how they run.
#[derive(Clone, Copy, Debug)]
pub struct Axes<'a> {
    /// Below.
    pub x: &'a str,
    /// At the side.
    pub y: &'a str,
    /// Each step is a multiple of the one before; all values must be above 0.
    pub log_x: bool,
    /// The same for y.
    pub log_y: bool,
}

/// Told apart by those who do not see colours alike (Okabe and Ito 2008).
const COLOURS: [&str; 8] =
    ["#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#999999", "#000000"];

/// Which of them white letters can be read on.
const DARK: [bool; 8] = [true, false, true, true, false, false, false, true];

/// The width of a letter, about.
const LETTER: f64 = 7.0;

const WIDTH: f64 = 760.0;
const LABELS: f64 = 290.0;
const ROW: f64 = 24.0;
const VALUES: f64 = 100.0;

const GRID: &str = "#e0e0e0";
const AXIS: &str = "#777";

/// Horizontal bars, each with its value and a whisker from the least to the most.
pub fn bars(title: &str, bars: &[Bar]) -> String {
    let most =
        bars.iter().map(|bar| bar.value.max(bar.ends.1)).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let length = |value: f64| value.max(0.0) / most * (WIDTH - LABELS - VALUES);
    let mut out = begin(40.0 + bars.len() as f64 * ROW, title);
    for (row, bar) in bars.iter().enumerate() {
        let top = 34.0 + row as f64 * ROW;
        let middle = top + (ROW - 5.0) / 2.0;
        label(&mut out, &bar.label, middle);
        let colour = COLOURS[if bar.ours { 0 } else { 6 }];
        rect(&mut out, LABELS, top, length(bar.value), ROW - 5.0, colour);
        let (low, high) = (LABELS + length(bar.ends.0), LABELS + length(bar.ends.1));
        if high > low {
            path(
                &mut out,
                &format!("M{low:.1} {middle:.1}H{high:.1}{}", caps(low, high, middle)),
                "#111",
                1.5,
            );
        }
        text(
            &mut out,
            high.max(LABELS + length(bar.value)) + 6.0,
            middle + 4.0,
            "start",
            &bar.shown,
        );
    }
    out + "</svg>\n"
}

/// The ends of a horizontal whisker.
fn caps(low: f64, high: f64, middle: f64) -> String {
    let cap = |x: f64| format!("M{x:.1} {:.1}v8", middle - 4.0);
    cap(low) + &cap(high)
}

/// Horizontal stacks, with a legend of their parts.
pub fn stacks(
    title: &str,
    parts: &[&str],
    stacks: &[Stack],
    show: impl Fn(f64) -> String,
) -> String {
    let sum = |stack: &Stack| stack.parts.iter().sum::<f64>();
    let most = stacks.iter().map(sum).fold(0.0, f64::max).max(f64::MIN_POSITIVE);
    let length = |value: f64| value / most * (WIDTH - LABELS - VALUES);
    let mut out = begin(64.0 + stacks.len() as f64 * ROW, title);
    legend(&mut out, LABELS, 38.0, parts);
    for (row, stack) in stacks.iter().enumerate() {
        let top = 56.0 + row as f64 * ROW;
        label(&mut out, &stack.label, top + (ROW - 5.0) / 2.0);
        let mut left = LABELS;
        for (number, part) in stack.parts.iter().enumerate() {
            rect(&mut out, left, top, length(*part), ROW - 5.0, COLOURS[number % COLOURS.len()]);
            let shown = show(*part);
            if length(*part) > shown.len() as f64 * LETTER + 4.0 {
                let ink = if DARK[number % DARK.len()] { "white" } else { "#111" };
                text_on(&mut out, left + length(*part) / 2.0, top + 14.0, ink, &shown);
            }
            left += length(*part);
        }
        text(&mut out, left + 6.0, top + 14.0, "start", &show(sum(stack)));
    }
    out + "</svg>\n"
}

/// Lines over a common x, each point with a whisker where its runs differ.
pub fn lines(
    title: &str,
    axes: Axes<'_>,
    lines: &[Line],
    show_y: impl Fn(f64) -> String,
) -> String {
    const LEFT: f64 = 64.0;
    const RIGHT: f64 = 210.0;
    const TOP: f64 = 56.0;
    const BOTTOM: f64 = 330.0;
    let all = || lines.iter().flat_map(|line| &line.points);
    let x_scale = Scale::new(all().map(|point| point.x), axes.log_x, false);
    let y_scale = Scale::new(
        all().flat_map(|point| [point.ends.0, point.y, point.ends.1]),
        axes.log_y,
        !axes.log_y,
    );
    let y_scale = y_scale.rounded();
    let x_at = |x: f64| LEFT + x_scale.place(x) * (WIDTH - LEFT - RIGHT);
    let y_at = |y: f64| BOTTOM - y_scale.place(y) * (BOTTOM - TOP);
    let mut out = begin(BOTTOM + 46.0, title);
    for y in y_scale.ticks() {
        let at = y_at(y);
        path(&mut out, &format!("M{LEFT} {at:.1}H{:.1}", WIDTH - RIGHT), GRID, 1.0);
        text(&mut out, LEFT - 6.0, at + 4.0, "end", &show_y(y));
    }
    let mut xs: Vec<f64> = all().map(|point| point.x).collect();
    xs.sort_by(f64::total_cmp);
    xs.dedup();
    let mut last = f64::NEG_INFINITY;
    for x in xs {
        path(&mut out, &format!("M{:.1} {BOTTOM}v4", x_at(x)), AXIS, 1.0);
        // Labels that would run into each other are left out.
        if x_at(x) - last > 34.0 {
            text(&mut out, x_at(x), BOTTOM + 17.0, "middle", &thousands(x));
            last = x_at(x);
        }
    }
    path(&mut out, &format!("M{LEFT} {TOP}V{BOTTOM}H{:.1}", WIDTH - RIGHT), AXIS, 1.0);
    text(&mut out, (LEFT + WIDTH - RIGHT) / 2.0, BOTTOM + 37.0, "middle", axes.x);
    text(&mut out, 6.0, TOP - 14.0, "start", axes.y);
    for (number, line) in lines.iter().enumerate() {
        let colour = COLOURS[number % COLOURS.len()];
        let mut whiskers = String::new();
        for Point { x, ends, .. } in line.points.iter().filter(|point| point.ends.1 > point.ends.0)
        {
            write!(whiskers, "M{:.1} {:.1}V{:.1}", x_at(*x), y_at(ends.0), y_at(ends.1)).ok();
        }
        path(&mut out, &whiskers, colour, 1.0);
        let place = |point: &Point| format!("{:.1},{:.1}", x_at(point.x), y_at(point.y));
        let points: Vec<String> = line.points.iter().map(place).collect();
        let points = points.join(" ");
        write!(
            out,
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>"
        )
        .ok();
        for Point { x, y, .. } in &line.points {
            write!(
                out,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>",
                x_at(*x),
                y_at(*y)
            )
            .ok();
        }
        let top = TOP + number as f64 * 18.0;
        rect(&mut out, WIDTH - RIGHT + 14.0, top, 10.0, 10.0, colour);
        text(&mut out, WIDTH - RIGHT + 30.0, top + 10.0, "start", &line.label);
    }
    out + "</svg>\n"
}

/// 1,200 as `1.2K`.
pub fn thousands(value: f64) -> String {
    match value {
        10_000.0.. if value % 1_000.0 == 0.0 => format!("{:.0}K", value / 1_000.0),
        1_000.0.. if value % 1_000.0 == 0.0 || value >= 10_000.0 => {
            format!("{:.1}K", value / 1_000.0).replace(".0K", "K")
        }
        10.0.. => format!("{value:.0}"),
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// From a value to a place between 0 and 1.
struct Scale {
    low: f64,
    high: f64,
    log: bool,
}

impl Scale {
    fn new(values: impl Iterator<Item = f64>, log: bool, from_zero: bool) -> Self {
        let (mut low, mut high) = values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        if !low.is_finite() {
            (low, high) = (1.0, 10.0);
        }
        if from_zero {
            low = 0.0;
        }
        if high <= low {
            high = if low == 0.0 { 1.0 } else { low * 2.0 };
        }
        Self { low: if log { low.max(f64::MIN_POSITIVE) } else { low }, high, log }
    }

    /// The same from a round value to a round value, so that nothing lies on the edge.
    fn rounded(self) -> Self {
        if self.log {
            let steps: Vec<f64> = (-3..=6)
                .flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(decade)))
                .collect();
            let low =
                steps.iter().rev().find(|step| **step <= self.low).copied().unwrap_or(self.low);
            let high = steps.iter().find(|step| **step >= self.high).copied().unwrap_or(self.high);
            return Self { low, high, log: true };
        }
        let step = self.step();
        Self { high: (self.high / step).ceil() * step, ..self }
    }

    /// A round distance between ticks, about a fifth of the whole.
    fn step(&self) -> f64 {
        let rough = (self.high - self.low) / 5.0;
        let decade = 10f64.powf(rough.log10().floor());
        let step =
            [1.0, 2.0, 5.0, 10.0].map(|step| step * decade).into_iter().find(|step| *step >= rough);
        step.unwrap_or(rough)
    }

    fn place(&self, value: f64) -> f64 {
        if self.log {
            (value.max(self.low) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// Round values on the way.
    fn ticks(&self) -> Vec<f64> {
        if self.log {
            let decades = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
            let steps =
                decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(decade)));
            return steps.filter(|tick| (self.low..=self.high).contains(tick)).collect();
        }
        let step = self.step();
        let first = (self.low / step).ceil() as i64;
        (first..)
            .map(|count| count as f64 * step)
            .take_while(|tick| *tick <= self.high * 1.0001)
            .collect()
    }
}

fn begin(height: f64, title: &str) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\"><rect \
         width=\"100%\" height=\"100%\" fill=\"white\"/>"
    );
    write!(
        out,
        "<text x=\"6\" y=\"18\" font-size=\"14\" font-weight=\"bold\">{}</text>",
        escape(title)
    )
    .ok();
    out
}

fn label(out: &mut String, label: &str, middle: f64) {
    // As many letters as have room, about.
    let short: String = label.chars().take(46).collect();
    text(out, LABELS - 8.0, middle + 4.0, "end", &short);
}

fn legend(out: &mut String, left: f64, middle: f64, parts: &[&str]) {
    for (number, (part, colour)) in parts.iter().zip(COLOURS).enumerate() {
        let left = left + number as f64 * 100.0;
        rect(out, left, middle - 8.0, 10.0, 10.0, colour);
        text(out, left + 16.0, middle + 1.0, "start", part);
    }
}

fn rect(out: &mut String, x: f64, y: f64, width: f64, height: f64, colour: &str) {
    write!(
        out,
        "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
         fill=\"{colour}\"/>"
    )
    .ok();
}

fn path(out: &mut String, d: &str, colour: &str, width: f64) {
    if !d.is_empty() {
        write!(out, "<path d=\"{d}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"{width}\"/>")
            .ok();
    }
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    write!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>", escape(text))
        .ok();
}

fn text_on(out: &mut String, x: f64, y: f64, ink: &str, text: &str) {
    write!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" fill=\"{ink}\">{}</text>",
        escape(text)
    )
    .ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every element that begins also ends, and nothing is no number.
    fn assert_sound(svg: &str) {
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn bars_show_label_value_and_spread() {
        let bar = |label: &str, value| Bar {
            label: label.to_owned(),
            value,
            ends: (value * 0.9, value * 1.1),
            shown: format!("{value:.1}K"),
            ours: false,
        };
        let svg = bars("Rates", &[bar("a <b>", 10.0), bar("c", 0.0)]);
        assert_sound(&svg);
        assert!(svg.contains("a &lt;b&gt;") && svg.contains(">10.0K<"), "{svg}");
        assert_sound(&bars("None", &[]));
    }

    #[test]
    fn stacks_have_a_legend_and_their_sum() {
        let stack = Stack { label: "natsway".to_owned(), parts: vec![8.0, 12.0] };
        let svg = stacks("CPU", &["load", "gateway"], &[stack], |value| format!("{value:.1}"));
        assert_sound(&svg);
        assert!(svg.contains(">20.0<") && svg.contains(">gateway<"), "{svg}");
    }

    #[test]
    fn lines_are_drawn_on_both_kinds_of_axes() {
        let point = |x: f64, y: f64| Point { x, y, ends: (y * 0.9, y * 1.1) };
        let points = vec![point(16.0, 1.0), point(256.0, 3.0), point(4096.0, 40.0)];
        let line = Line { label: "p99".to_owned(), points };
        for log in [false, true] {
            let axes = Axes { x: "connections", y: "ms", log_x: log, log_y: log };
            let svg =
                lines("Latency", axes, std::slice::from_ref(&line), |value| format!("{value}"));
            assert_sound(&svg);
            assert_eq!(svg.matches("<circle").count(), 3);
        }
        let axes = Axes { x: "x", y: "y", log_x: true, log_y: false };
        assert_sound(&lines("None", axes, &[], |value| value.to_string()));
        let one = Line { label: "one".to_owned(), points: vec![point(1.0, 0.0)] };
        assert_sound(&lines("One", axes, &[one], |value| value.to_string()));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(
            Scale::new([0.0, 50.0].into_iter(), false, true).ticks(),
            [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
        );
        assert_eq!(Scale::new([1.0, 10.0].into_iter(), true, false).ticks(), [1.0, 2.0, 5.0, 10.0]);
        let rounded = |low: f64, high: f64, log| {
            let Scale { low, high, .. } = Scale::new([low, high].into_iter(), log, !log).rounded();
            (low, high)
        };
        assert_eq!(rounded(3.0, 47.0, false), (0.0, 50.0));
        assert_eq!(rounded(0.7, 7.1, true), (0.5, 10.0));
    }

    #[test]
    fn large_numbers_are_short() {
        let seen = [1.0, 0.5, 64.0, 1_000.0, 4_096.0, 10_000.0, 12_340.0].map(thousands);
        assert_eq!(seen, ["1", "0.50", "64", "1K", "4096", "10K", "12.3K"]);
    }
}

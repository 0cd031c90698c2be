//! The comparison as a picture: for each trace, the instances that everybody had.

use super::{Rival, SERVICE_RATE, Standing, TICK_MS, Trace, TraceKind};

const PANEL: (f64, f64) = (560.0, 170.0);
const MARGIN: (f64, f64) = (46.0, 34.0);
const COLUMNS: usize = 2;

/// An SVG with a panel for each kind of trace: the load in instances (grey), and the instances of
/// each autoscaler on the first of the seeds.
pub fn plot(standings: &[Standing], first_seed: u64) -> String {
    plot_on(standings, |kind| Trace::new(kind, first_seed))
}

/// The same for the traces that `trace` gives for each kind.
pub fn plot_on(standings: &[Standing], trace: impl Fn(TraceKind) -> Trace) -> String {
    let mut kinds = Vec::new();
    for standing in standings {
        if !kinds.contains(&standing.trace) {
            kinds.push(standing.trace);
        }
    }
    let (width, height) = (PANEL.0 + MARGIN.0, PANEL.1 + MARGIN.1);
    let rows = kinds.len().div_ceil(COLUMNS);
    let (all_width, all_height) = (width * COLUMNS as f64 + 20.0, height * rows as f64 + 50.0);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {all_width} {all_height}\" \
         font-family=\"sans-serif\" font-size=\"11\">\n<rect width=\"100%\" height=\"100%\" \
         fill=\"white\"/>\n"
    );
    for (index, (name, colour)) in [
        ("load", "#bbbbbb"),
        ("KEDA + HPA, defaults", "#d95f02"),
        ("KEDA + HPA, tuned", "#7570b3"),
        ("Natsway", "#1b9e77"),
    ]
    .into_iter()
    .enumerate()
    {
        let x = 50.0 + 170.0 * index as f64;
        svg.push_str(&format!(
            "<rect x=\"{x}\" y=\"14\" width=\"14\" height=\"4\" fill=\"{colour}\"/><text x=\"{}\" \
             y=\"20\">{name}</text>\n",
            x + 20.0
        ));
    }
    for (index, kind) in kinds.into_iter().enumerate() {
        let origin =
            (MARGIN.0 + width * (index % COLUMNS) as f64, 44.0 + height * (index / COLUMNS) as f64);
        let of_kind: Vec<&Standing> =
            standings.iter().filter(|standing| standing.trace == kind).collect();
        svg.push_str(&panel(origin, &trace(kind), &of_kind));
    }
    svg.push_str("</svg>\n");
    svg
}

fn panel(origin: (f64, f64), trace: &Trace, standings: &[&Standing]) -> String {
    let per_second = (1_000 / TICK_MS) as usize;
    let load: Vec<f64> =
        trace.loads().iter().step_by(per_second).map(|load| load / SERVICE_RATE).collect();
    let lines: Vec<(&str, Vec<f64>)> = standings
        .iter()
        .filter_map(|standing| {
            let colour = colour(&standing.rival)?;
            Some((colour, standing.example.instances.iter().copied().map(f64::from).collect()))
        })
        .collect();
    let all = lines.iter().flat_map(|(_, line)| line).chain(&load);
    let top = all.copied().fold(1.0, f64::max);
    let (x, y) = origin;
    let mut svg = format!(
        "<rect x=\"{x}\" y=\"{y}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#888\"/><text \
         x=\"{}\" y=\"{}\" font-weight=\"bold\">{}</text><text x=\"{}\" y=\"{}\" \
         text-anchor=\"end\">{top:.0}</text><text x=\"{}\" y=\"{}\" text-anchor=\"end\">0</text>\n",
        PANEL.0,
        PANEL.1,
        x + 6.0,
        y + 14.0,
        trace.kind().name(),
        x - 4.0,
        y + 10.0,
        x - 4.0,
        y + PANEL.1,
    );
    svg.push_str(&line(origin, &load, top, "#bbbbbb"));
    for (colour, points) in &lines {
        svg.push_str(&line(origin, points, top, colour));
    }
    svg
}

fn colour(rival: &Rival) -> Option<&'static str> {
    match rival {
        Rival::KedaDefault => Some("#d95f02"),
        Rival::KedaTuned(_) => Some("#7570b3"),
        Rival::Ours { warm_spares: 0 } => Some("#1b9e77"),
        _ => None,
    }
}

fn line((x, y): (f64, f64), values: &[f64], top: f64, colour: &str) -> String {
    let step = PANEL.0 / values.len().max(1) as f64;
    // A point between two of its own height says nothing.
    let bends = |place: &usize| {
        let around = [place.wrapping_sub(1), place + 1].map(|other| values.get(other));
        around.iter().any(|other| *other != Some(&values[*place]))
    };
    let points: Vec<String> = (0..values.len())
        .filter(bends)
        .map(|second| (second, values[second]))
        .map(|(second, value)| {
            format!("{:.1},{:.1}", x + second as f64 * step, y + PANEL.1 * (1.0 - value / top))
        })
        .collect();
    format!(
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.3\" points=\"{}\"/>\n",
        points.join(" ")
    )
}

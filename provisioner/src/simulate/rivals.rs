//! All autoscalers on all traces.

use serde::Serialize;

use super::{
    Autoscaler, Hpa, HpaRules, MAX_INSTANCES, NatsExample, Ours, QueueWatch, Run, Trace, TraceKind,
    oracle, run,
};

/// What a percentage point of late messages is worth when KEDA is tuned: a tenth of the oracle's
/// cost. Less late is dearer, so the best of a grid needs a price.
const POINT_IN_COST: f64 = 0.1;

/// Spare instances with which ours meets a spike a second time.
const SPIKE_SPARES: u32 = 4;

/// An autoscaler that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Rival {
    /// NATS by Example.
    NatsExample,
    /// QueueWatch.
    QueueWatch,
    /// KEDA and the HPA as they come.
    KedaDefault,
    /// KEDA and the HPA with the setting of the grid that is best on this trace.
    KedaTuned(HpaRules),
    /// Ours, with so many warm spares.
    Ours {
        /// Spares.
        warm_spares: u32,
    },
}

/// How an autoscaler did on the seeds of one kind of trace, on average.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// The traffic.
    pub trace: TraceKind,
    /// Who.
    pub rival: Rival,
    /// Late messages, in percent of all.
    pub late_percent: f64,
    /// Instance-seconds over the oracle's.
    pub cost: f64,
    /// Changes.
    pub events: f64,
    /// Changes of direction.
    pub reversals: f64,
    /// The most reversals on any seed.
    pub most_reversals: u32,
    /// Seconds until the first jump of the load was met; `None` where there is none, or it never
    /// was.
    pub scaled_after_s: Option<f64>,
    /// The longest queue.
    pub most_waiting: u64,
    /// The setting of the grid with the least late messages among those that cost no more than
    /// this; only for ours.
    pub best_of_grid: Option<BestOfGrid>,
    /// The first seed's run, for the plot.
    #[serde(skip)]
    pub example: Run,
}

/// The setting of the grid with the least late messages among those that cost no more than ours.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BestOfGrid {
    /// The setting.
    pub rules: HpaRules,
    /// Its late messages, in percent of all.
    pub late_percent: f64,
    /// Its changes.
    pub events: f64,
}

impl Rival {
    /// Its name in tables.
    pub fn name(&self) -> String {
        match self {
            Self::NatsExample => "NATS by Example".to_owned(),
            Self::QueueWatch => "QueueWatch".to_owned(),
            Self::KedaDefault => "KEDA + HPA, defaults".to_owned(),
            Self::KedaTuned(_) => "KEDA + HPA, tuned".to_owned(),
            Self::Ours { warm_spares: 0 } => "Natsway".to_owned(),
            Self::Ours { warm_spares } => format!("Natsway, {warm_spares} warm spares"),
        }
    }

    fn autoscaler(&self, kind: TraceKind) -> Box<dyn Autoscaler> {
        let min = kind.min_instances();
        match self {
            Self::NatsExample => Box::<NatsExample>::default(),
            Self::QueueWatch => Box::<QueueWatch>::default(),
            Self::KedaDefault => Box::new(Hpa::new(HpaRules::default(), min, MAX_INSTANCES)),
            Self::KedaTuned(rules) => Box::new(Hpa::new(*rules, min, MAX_INSTANCES)),
            Self::Ours { warm_spares } => Box::new(Ours::new(min, *warm_spares)),
        }
    }

    /// Runs the seeds of a kind of trace.
    pub fn stand(self, traces: &[(Trace, f64)]) -> Standing {
        let kind = traces[0].0.kind();
        let runs: Vec<(Run, f64)> = traces
            .iter()
            .map(|(trace, oracle_s)| (run(trace, &mut *self.autoscaler(kind)), *oracle_s))
            .collect();
        let mean = |figure: &dyn Fn(&(Run, f64)) -> f64| {
            runs.iter().map(figure).sum::<f64>() / runs.len() as f64
        };
        let scaled: Option<Vec<f64>> = runs.iter().map(|(run, _)| run.scaled_after_s).collect();
        Standing {
            trace: kind,
            rival: self,
            late_percent: mean(&|(run, _)| run.late_percent()),
            cost: mean(&|(run, oracle_s)| run.instance_s / oracle_s),
            events: mean(&|(run, _)| f64::from(run.events)),
            reversals: mean(&|(run, _)| f64::from(run.reversals)),
            most_reversals: runs.iter().map(|(run, _)| run.reversals).max().unwrap_or(0),
            scaled_after_s: scaled
                .map(|seconds| seconds.iter().sum::<f64>() / seconds.len() as f64),
            best_of_grid: None,
            most_waiting: runs.iter().map(|(run, _)| run.most_waiting).max().unwrap_or(0),
            example: runs.into_iter().next().map(|(run, _)| run).unwrap_or_default(),
        }
    }
}

impl Standing {
    /// What the tuning makes as small as it can: late messages in percent, and the cost at its
    /// price.
    pub fn regret(&self) -> f64 {
        self.late_percent + (self.cost - 1.0) / POINT_IN_COST
    }
}

/// Everybody on these kinds of traces. KEDA is tuned on the very seeds that it is judged on.
pub fn compare(kinds: &[TraceKind], seeds: &[u64]) -> Vec<Standing> {
    let traces = |kind: &TraceKind| seeds.iter().map(|seed| Trace::new(*kind, *seed)).collect();
    kinds.iter().flat_map(|kind| compare_on(traces(kind))).collect()
}

/// Everybody on these traces of one kind, of which there is one at the least.
pub fn compare_on(traces: Vec<Trace>) -> Vec<Standing> {
    let with_oracle = |trace: Trace| {
        let oracle_s = oracle(&trace);
        (trace, oracle_s)
    };
    let traces: &[(Trace, f64)] = &traces.into_iter().map(with_oracle).collect::<Vec<_>>();
    let grid: Vec<(HpaRules, Standing)> = HpaRules::grid()
        .into_iter()
        .map(|rules| (rules, Rival::KedaTuned(rules).stand(traces)))
        .collect();
    let of_grid = || grid.iter().map(|(_, standing)| standing);
    let tuned = of_grid().min_by(|one, other| one.regret().total_cmp(&other.regret()));
    let mut standings: Vec<Standing> = [Rival::NatsExample, Rival::QueueWatch, Rival::KedaDefault]
        .into_iter()
        .map(|rival| rival.stand(traces))
        .chain(tuned.cloned())
        .collect();
    let spares = if traces[0].0.kind() == TraceKind::Spike { &[0, SPIKE_SPARES][..] } else { &[0] };
    for warm_spares in spares {
        let mut ours = Rival::Ours { warm_spares: *warm_spares }.stand(traces);
        let no_dearer = grid.iter().filter(|(_, standing)| standing.cost <= ours.cost);
        let best = no_dearer
            .min_by(|(_, one), (_, other)| one.late_percent.total_cmp(&other.late_percent));
        ours.best_of_grid = best.map(|(rules, standing)| BestOfGrid {
            rules: *rules,
            late_percent: standing.late_percent,
            events: standing.events,
        });
        standings.push(ours);
    }
    standings
}

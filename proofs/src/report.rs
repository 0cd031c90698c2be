//! What a proof saw: figures, and the promises that were broken.

use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Map, Value};

/// What one scenario saw.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// The scenario.
    pub scenario: &'static str,
    /// What was counted and measured.
    #[serde(flatten)]
    pub figures: Map<String, Value>,
    /// Promises that were broken, a sentence each.
    pub broken: Vec<String>,
}

impl Finding {
    /// Makes the finding of a scenario that has seen nothing yet.
    pub fn new(scenario: &'static str) -> Self {
        Self { scenario, figures: Map::new(), broken: Vec::new() }
    }

    /// Notes a figure.
    pub fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }

    /// Notes every field of a value as a figure.
    ///
    /// # Errors
    /// The value is no JSON object.
    pub fn figures_of(&mut self, value: &impl Serialize) -> anyhow::Result<()> {
        let Value::Object(fields) = serde_json::to_value(value)? else {
            anyhow::bail!("figures of {} are no JSON object", self.scenario)
        };
        self.figures.extend(fields);
        Ok(())
    }

    /// Notes a broken promise unless `kept`.
    pub fn promise(&mut self, kept: bool, broken: impl FnOnce() -> String) {
        if !kept {
            self.broken.push(broken());
        }
    }
}

/// Everything that a proof saw.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The proof.
    pub proof: &'static str,
    /// Where everything random came from.
    pub seed: u64,
    /// What each scenario saw, in their order.
    pub scenarios: Vec<Finding>,
}

impl Report {
    /// Lists every broken promise.
    pub fn broken(&self) -> Vec<String> {
        let of = |finding: &Finding| {
            finding
                .broken
                .iter()
                .map(|broken| format!("{}: {broken}", finding.scenario))
                .collect::<Vec<_>>()
        };
        self.scenarios.iter().flat_map(of).collect()
    }

    /// Lists the names of the scenarios that ran.
    pub fn scenarios(&self) -> Vec<&'static str> {
        self.scenarios.iter().map(|finding| finding.scenario).collect()
    }

    /// Prints the figures as one line of JSON and gives the exit code: 1 when a promise was broken.
    pub fn conclude(self) -> ExitCode {
        for broken in self.broken() {
            eprintln!("BROKEN {broken}");
        }
        println!("{}", serde_json::to_string(&self).expect("figures are plain values"));
        if self.broken().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_promise_fails_the_report_and_names_its_scenario() {
        let mut finding = Finding::new("calm");
        finding.figures_of(&serde_json::json!({ "requests": 3 })).unwrap();
        finding.promise(true, || "never said".to_owned());
        let calm = Report { proof: "any", seed: 7, scenarios: vec![finding] };
        assert_eq!(
            serde_json::to_string(&calm).unwrap(),
            r#"{"proof":"any","seed":7,"scenarios":[{"scenario":"calm","requests":3,"broken":[]}]}"#
        );
        assert_eq!(format!("{:?}", calm.conclude()), format!("{:?}", ExitCode::SUCCESS));

        let mut finding = Finding::new("storm");
        finding.promise(false, || "2 requests failed".to_owned());
        let broken = Report { proof: "any", seed: 7, scenarios: vec![finding] };
        assert_eq!(broken.broken(), ["storm: 2 requests failed"]);
        assert_eq!(format!("{:?}", broken.conclude()), format!("{:?}", ExitCode::FAILURE));
    }
}

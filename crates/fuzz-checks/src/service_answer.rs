//! Answers of services and of the provisioner to a gateway's questions: what is shown of them can
//! stand on its metrics page.

use natsway_apiproxy::fleet_metrics::fuzzing;

/// See the module.
pub fn check(data: &[u8]) {
    for page in fuzzing::pages(data) {
        // Every line is a comment or `name{labels} value`.
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let (_, value) = line.rsplit_once(' ').expect("a sample has a value");
            value.parse::<f64>().expect("a value is a number");
        }
    }
}

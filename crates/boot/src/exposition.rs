//! Metrics in Prometheus's text format, version 0.0.4.

use std::fmt::{Display, Write};

/// The media type of a [`Page`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// A page of samples.
#[derive(Debug, Default)]
pub struct Page(String);

impl Page {
    /// Begins a family of samples.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a string takes all");
    }

    /// Adds a sample; labels are `name="value"` with commas between, their values free of what
    /// would need an escape.
    pub fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        writeln!(self.0, "{name}{braced} {value}").expect("a string takes all");
    }

    /// All of it.
    pub fn text(self) -> String {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_families_with_their_samples() {
        let mut page = Page::default();
        page.family("lines_total", "counter", "Lines.");
        page.sample("lines_total", "", 3);
        page.family("open", "gauge", "Open ones.");
        page.sample("open", "shard=\"0\"", 0.5);
        assert_eq!(
            page.text(),
            "# HELP lines_total Lines.\n# TYPE lines_total counter\nlines_total 3\n\
             # HELP open Open ones.\n# TYPE open gauge\nopen{shard=\"0\"} 0.5\n"
        );
    }
}

//! `--help` of programs that take their settings from the environment, or as one argument.

/// Prints the text and ends the program when that is what was asked for.
pub fn answer_help(about: &str, usage: &str, settings: &[(&str, &str)]) {
    if !std::env::args().skip(1).any(|argument| matches!(argument.as_str(), "--help" | "-h")) {
        return;
    }
    println!("{}", help(about, usage, settings));
    std::process::exit(0);
}

fn help(about: &str, usage: &str, settings: &[(&str, &str)]) -> String {
    let mut text = format!("{about}\n\nUsage: {usage}");
    if !settings.is_empty() {
        text.push_str("\n\nFrom the environment:");
    }
    let width = settings.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    for (name, what) in settings {
        text.push_str(&format!("\n  {name:width$}  {what}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_stand_below_each_other() {
        let text = help("Does it", "it", &[("SEED", "replays"), ("REPLICAS", "copies")]);
        assert_eq!(
            text,
            "Does it\n\nUsage: it\n\nFrom the environment:\n  SEED      replays\n  REPLICAS  copies"
        );
    }
}

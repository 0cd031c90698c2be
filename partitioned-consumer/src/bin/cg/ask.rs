//! Questions to whoever sits in front of the program.

use std::io::{BufRead, Write};

use anyhow::Result;

use crate::failure::Mistake;

/// Asks a line; an empty one, or the end of the input, is no answer.
pub(crate) fn ask(question: &str) -> Result<Option<String>> {
    Ok(ask_line(question)?.filter(|line| !line.is_empty()))
}

/// Asks a line; `None` at the end of the input.
fn ask_line(question: &str) -> Result<Option<String>> {
    eprint!("{question}: ");
    std::io::stderr().flush()?;
    let mut line = String::new();
    let read = std::io::stdin().lock().read_line(&mut line)?;
    Ok((read > 0).then(|| line.trim().to_owned()))
}

/// Asks a line, of somebody who has to be there; without `nobody`, the end of the input is an empty
/// line.
pub(crate) fn answer(question: &str, nobody: &str) -> Result<Option<String>> {
    match ask_line(question)? {
        None if !nobody.is_empty() => Err(Mistake(nobody.to_owned()).into()),
        line => Ok(line.filter(|line| !line.is_empty())),
    }
}

//! `cg … prompt`: commands one by one, with history and completion.

use std::process::ExitCode;

use anyhow::{Result, bail};
use natsway_partitioned_consumer::GroupKind;
use rustyline::error::ReadlineError;
use rustyline::history::FileHistory;
use rustyline::{CompletionType, Config, Editor};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::complete::Words;
use self::known::help;
use crate::args::duration;
use crate::failure::whole;
use crate::session::Session;

mod complete;
mod known;
mod line;

/// Asks until `exit` or the end of the input.
pub(crate) async fn run(mut session: Session, mut kind: GroupKind) -> Result<ExitCode> {
    // As far as all that fits agrees, and then a list of it, as a shell does.
    let settings = Config::builder().completion_type(CompletionType::List).build();
    let mut editor: Editor<Words, FileHistory> = Editor::with_config(settings)?;
    editor.set_helper(Some(Words { session: session.clone(), kind }));
    let history =
        std::env::var_os("HOME").map(|home| std::path::Path::new(&home).join(".cg_history"));
    if let Some(path) = &history {
        // None yet, on the first time.
        drop(editor.load_history(path));
    }
    loop {
        if let Some(words) = editor.helper_mut() {
            words.kind = kind;
        }
        let line = match editor.readline(&format!("[{}]> ", kind.as_str())) {
            Ok(line) => line,
            Err(ReadlineError::Interrupted) => continue,
            Err(ReadlineError::Eof) => break,
            Err(error) => return Err(error.into()),
        };
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        editor.add_history_entry(&line)?;
        match words.as_slice() {
            ["exit" | "quit"] => break,
            ["help" | "?"] => help(),
            ["static"] => kind = GroupKind::Static,
            ["elastic"] => kind = GroupKind::Elastic,
            ["processing-time", time] => match duration(time) {
                Ok(time) => session.sleep = time,
                Err(error) => eprintln!("{error}"),
            },
            words => {
                if let Err(error) = interruptible(&session, kind, words).await {
                    eprintln!("{}", whole(&error));
                }
            }
        }
    }
    if let Some(path) = &history {
        editor.save_history(path)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs one line. Ctrl-C ends `consume` in good order; a second one, or one at any other command,
/// is back at the prompt at once.
async fn interruptible(session: &Session, kind: GroupKind, words: &[&str]) -> Result<()> {
    let stop = CancellationToken::new();
    let session = Session { stop: Some(stop.clone()), ..session.clone() };
    let ends_in_order = matches!(words.first(), Some(&("consume" | "join")));
    let mut interrupts = signal(SignalKind::interrupt())?;
    let command = line::run(&session, kind, words);
    tokio::pin!(command);
    loop {
        tokio::select! {
            outcome = &mut command => return outcome,
            _ = interrupts.recv() => {
                if !ends_in_order || stop.is_cancelled() {
                    bail!("interrupted");
                }
                stop.cancel();
            }
        }
    }
}

//! Ends the processes of a test that was itself killed, when no destructor runs.
//!
//! A small shell reads which process groups are alive from a pipe whose other end only this process
//! holds. However this process ends, the pipe closes, and the shell kills what is left. It is a
//! group of its own, so that Ctrl-C on a test run reaches the test and not the guard.

use std::io::{self, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};

use nix::unistd::Pid;

const SCRIPT: &str = r#"
alive=''
while read -r verb group; do
    case $verb in
    add) alive="$alive $group" ;;
    done)
        kept=''
        for one in $alive; do [ "$one" = "$group" ] || kept="$kept $one"; done
        alive=$kept
        ;;
    esac
done
for group in $alive; do kill -s KILL -- "-$group" 2>/dev/null; done
"#;

/// Kills the group should this process end before [`forget`] is called.
pub(crate) fn watch(group: Pid) {
    tell("add", group).expect("the guard reads until this process ends");
}

/// The group is gone, and its number may be given to others.
pub(crate) fn forget(group: Pid) {
    // Called while a test fails, where another panic would hide the first.
    let _guard_is_gone = tell("done", group);
}

fn tell(verb: &str, group: Pid) -> io::Result<()> {
    static GUARD: OnceLock<Mutex<Child>> = OnceLock::new();
    let guard = GUARD.get_or_init(|| Mutex::new(start()));
    let mut guard = guard.lock().unwrap_or_else(PoisonError::into_inner);
    let pipe = guard.stdin.as_mut().expect("stdin is a pipe");
    writeln!(pipe, "{verb} {group}")
}

fn start() -> Child {
    Command::new("sh")
        .args(["-c", SCRIPT])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .expect("sh starts, it guards the processes of a test")
}

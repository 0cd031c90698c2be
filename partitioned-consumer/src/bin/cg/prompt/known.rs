//! The commands of the prompt, for `help` and for completion.

/// A command, for `help` and for completion.
pub(super) struct Known {
    pub(super) name: &'static str,
    alias: &'static str,
    pub(super) takes: &'static str,
}

impl Known {
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> {
        [self.name].into_iter().chain(self.alias.split(' ').filter(|alias| !alias.is_empty()))
    }
}

const fn known(name: &'static str, alias: &'static str, takes: &'static str) -> Known {
    Known { name, alias, takes }
}

pub(super) const COMMANDS: &[Known] = &[
    known("help", "?", ""),
    known("exit", "quit", ""),
    known("static", "", "(switch to static groups)"),
    known("elastic", "", "(switch to elastic groups)"),
    known("processing-time", "", "DURATION"),
    known("ls", "list", "[STREAM]"),
    known("info", "", "STREAM GROUP"),
    known("doctor", "", "STREAM GROUP"),
    known(
        "create",
        "",
        "static: balanced|mapped STREAM GROUP PARTITIONS MEMBER…; elastic: STREAM GROUP PARTITIONS",
    ),
    known("delete", "rm", "STREAM GROUP"),
    known("memberinfo", "member-info minfo", "STREAM GROUP MEMBER"),
    known("add", "", "STREAM GROUP MEMBER… (elastic)"),
    known("drop", "", "STREAM GROUP MEMBER… (elastic)"),
    known("rebalance", "", "STREAM GROUP MEMBER… (elastic)"),
    known("createmapping", "create-mapping cm", "STREAM GROUP MEMBER:0,1,2… (elastic)"),
    known("deletemapping", "delete-mapping dm", "STREAM GROUP (elastic)"),
    known("stepdown", "step-down sd", "STREAM GROUP MEMBER"),
    known("consume", "join", "STREAM GROUP MEMBER"),
    known("pause", "", "STREAM GROUP"),
    known("resume", "", "STREAM GROUP"),
    known("dead-letter", "", "STREAM GROUP SUBJECT"),
    known("reset", "", "STREAM GROUP --to-seq N|--to-time TIME|--to-new [--dry-run]"),
    known("repartition", "", "STREAM GROUP PARTITIONS (elastic)"),
    known("setup", "", "STREAM"),
];

/// Prints all commands.
pub(super) fn help() {
    for Known { name, alias, takes } in COMMANDS {
        println!("{name:<16} {alias:<18} {takes}");
    }
}

//! `cg` as a plug-in of the nats command line, which asks a plug-in for its commands by
//! `--fisk-introspect`.

use clap::{Arg, ArgAction, Command};
use serde_json::{Map, Value, json};

/// What the nats command line gives a plug-in as its only argument, at registration and at each
/// start.
pub(crate) const INTROSPECT: &str = "--fisk-introspect";

/// The commands, as the nats command line reads them.
pub(crate) fn model(mut command: Command) -> Value {
    // Puts the flags that hold everywhere into every command.
    command.build();
    let mut model = describe(&command);
    model.insert("version".into(), json!(command.get_version().unwrap_or_default()));
    Value::Object(model)
}

fn describe(command: &Command) -> Map<String, Value> {
    let mut model = Map::new();
    let help = command.get_about().map(ToString::to_string).unwrap_or_default();
    model.insert("name".into(), json!(command.get_name()));
    model.insert("help".into(), json!(help));
    let aliases: Vec<&str> = command.get_visible_aliases().collect();
    model.insert("aliases".into(), json!(aliases));
    let inner: Vec<&Command> =
        command.get_subcommands().filter(|c| c.get_name() != "help").collect();
    if !inner.is_empty() {
        let inner: Vec<_> = inner.into_iter().map(describe).collect();
        model.insert("commands".into(), json!(inner));
        return model;
    }
    let flags: Vec<Value> = command.get_arguments().flat_map(flags_of).collect();
    model.insert("flags".into(), json!(flags));
    if let Some(arguments) = arguments(command) {
        model.insert("args".into(), json!([arguments]));
    }
    model
}

/// All positional arguments as one list: the nats command line hands on single ones in no
/// particular order.
fn arguments(command: &Command) -> Option<Value> {
    let names: Vec<String> = command.get_positionals().map(ToString::to_string).collect();
    let required = command.get_positionals().any(Arg::is_required_set);
    (!names.is_empty()).then(
        || json!({ "name": "arguments", "help": names.join(" "), "required": required, "cumulative": true }),
    )
}

/// A flag under each of its names.
fn flags_of(arg: &Arg) -> Vec<Value> {
    let names = arg.get_long_and_visible_aliases().unwrap_or_default();
    names
        .into_iter()
        .filter(|name| !matches!(*name, "help" | "version"))
        .map(|name| flag(arg, name))
        .collect()
}

fn flag(arg: &Arg, name: &str) -> Value {
    let mut model = json!({
        "name": name,
        "help": arg.get_help().map(ToString::to_string).unwrap_or_default(),
        "boolean": matches!(arg.get_action(), ArgAction::SetTrue),
        "cumulative": matches!(arg.get_action(), ArgAction::Append),
        "hidden": arg.is_hide_set(),
    });
    if let Some(short) = arg.get_short() {
        model["short"] = json!(u32::from(short));
    }
    if let Some([place, ..]) =
        arg.get_value_names().filter(|_| !model["boolean"].as_bool().unwrap_or(false))
    {
        model["place_holder"] = json!(place.as_str());
    }
    model
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn find<'a>(model: &'a Value, path: &[&str]) -> &'a Value {
        path.iter().fold(model, |model, name| {
            let commands = model["commands"].as_array().expect("there are commands");
            commands.iter().find(|c| c["name"] == *name).expect("the command is there")
        })
    }

    #[test]
    fn every_command_is_described_with_its_flags() {
        let model = model(Cli::command());
        assert_eq!(model["name"], "cg");
        let delete = find(&model, &["elastic", "delete"]);
        assert_eq!(delete["aliases"], json!(["rm"]));
        let flags = delete["flags"].as_array().expect("there are flags");
        let force = flags.iter().find(|flag| flag["name"] == "force").expect("--force is there");
        assert_eq!((&force["boolean"], &force["short"]), (&json!(true), &json!(u32::from('f'))));
        for global in ["context", "server"] {
            assert!(flags.iter().any(|flag| flag["name"] == global), "{flags:?}");
        }
        let add = find(&model, &["elastic", "add"]);
        assert_eq!(add["args"][0]["cumulative"], true);
    }
}

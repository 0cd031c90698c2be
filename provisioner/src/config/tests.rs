//! What a file becomes, and what is refused of it.

use super::*;

const WHOLE: &str = r#"
    [[target]]
    name = "orders"
    poll = "2s"
    [target.signal]
    kind = "consumer"
    stream = "ORDERS"
    consumer = "work-*"
    [target.instance]
    concurrency = 4
    prefetch = 10
    starts_within = "5s"
    [[target.policy]]
    kind = "lag"
    drain = "10s"
    [[target.policy]]
    kind = "analysers"
    thresholds = { queue_length = 50 }
    [target.scale]
    min = 0
    max = 20
    in_window = "1m"
    out_step = { instances = 4, percent = 100, period = "15s" }
    [target.backend]
    kind = "processes"
    command = ["worker", "--consumer", "{name}"]
    state = "/var/lib/natsway/{name}"
"#;

#[test]
fn a_file_becomes_rules() {
    let config = Config::read(WHOLE).unwrap();
    let target = config.targets[0].of("work-eu");
    assert_eq!(target.name(), "orders-work-eu");
    let rules = target.rules();
    assert_eq!((rules.concurrency, rules.prefetch, rules.lead_s), (4.0, 10, 5.0));
    assert_eq!((rules.scale.min, rules.scale.max, rules.scale.down_window_ms), (0, 20, 60_000));
    assert_eq!(rules.window.stale_after_ms, 6_000);
    let names: Vec<_> = target.policies().iter().map(|policy| policy.name()).collect();
    assert_eq!(names, ["lag", "analysers"]);
    assert!(target.pattern().is_none() && config.targets[0].pattern().is_some());
    let BackendDocument::Processes { command, state, .. } = target.backend() else {
        panic!("processes")
    };
    assert_eq!(
        (command[2].as_str(), state.to_str().unwrap()),
        ("work-eu", "/var/lib/natsway/work-eu")
    );
}

#[test]
fn a_target_may_be_watched_and_never_scaled() {
    let config = Config::read(&WHOLE.replace("max = 20", "max = 0")).unwrap();
    let rules = config.targets[0].of("work-eu").rules();
    assert_eq!((rules.scale.min, rules.scale.max), (0, 0));
}

#[test]
fn every_fault_is_told_at_once_with_its_value() {
    let text = WHOLE
        .replace("\"orders\"", "\"or ders\"")
        .replace("2s", "1ms")
        .replace("max = 20", "max = 10001\ntolerance = 2")
        .replace("drain = \"10s\"", "drain = \"0s\"\ntarget_utilisation = 1.5")
        .replace("natsway/{name}", "natsway");
    let error = Config::read(&text).unwrap_err().to_string();
    for part in [
        "name = or ders",
        "poll = 1ms: expected 100ms to 5m",
        "scale.max = 10001",
        "scale.tolerance = 2",
        "policy.drain = 0s",
        "policy.target_utilisation = 1.5",
        "backend.state = /var/lib/natsway",
    ] {
        assert!(error.contains(part), "{part} in\n{error}");
    }
}

#[test]
fn targets_that_would_undo_each_others_work_are_refused() {
    let target = |name: &str, consumer: &str, backend: &str| {
        format!(
            "[[target]]\nname = \"{name}\"\nbackend = {{ {backend} }}\n\
             signal = {{ kind = \"consumer\", stream = \"S\", consumer = \"{consumer}\" }}\n"
        )
    };
    let refused = |text: String| Config::read(&text).unwrap_err().to_string();
    for backend in [
        "kind = \"processes\", command = [\"x\"], state = \"/s\"",
        "kind = \"directives\", subject = \"svc.x.y\"",
        "kind = \"docker\", project = \"shop\", service = \"worker\"",
    ] {
        let error = refused(target("a", "c", backend) + &target("b", "d", backend));
        assert!(error.contains("another one than that of target \"a\""), "{error}");
        let error = refused(target("a", "c-*", backend));
        assert!(error.contains("{name} in it"), "{error}");
    }
}

#[test]
fn nobody_scales_to_zero_where_requests_would_fail() {
    let text = WHOLE.replace("kind = \"consumer\"", "kind = \"services\"\nservice = \"x\"");
    let text = text.replace("stream = \"ORDERS\"", "").replace("consumer = \"work-*\"", "");
    let error = Config::read(&text).unwrap_err().to_string();
    assert!(
        error.contains("scale.min = 0: expected 1 or more: requests to nobody fail at once"),
        "{error}"
    );
}

#[test]
fn a_rate_that_nobody_can_learn_must_be_said() {
    let text = |more: &str| {
        format!(
            "[[target]]\nname = \"a\"\nsignal = {{ kind = \"tally\", stream = \"S\", consumer \
             = \"C\" }}\n\
             backend = {{ kind = \"directives\", subject = \"svc.x.y\" }}\n{more}"
        )
    };
    let error = Config::read(&text("")).unwrap_err().to_string();
    assert!(
        error.contains("instance.service_rate = nothing: expected messages a second"),
        "{error}"
    );
    Config::read(&text("instance = { service_rate = 500 }")).unwrap();
    Config::read(&text("policy = [{ kind = \"example\" }]")).unwrap();
}

#[test]
fn what_we_ship_and_show_is_sound() {
    let readme = include_str!("../../../README.md");
    let guide = include_str!("../../../docs/provisioner.md");
    let shown = [readme, guide].into_iter().flat_map(|text| text.split("```toml\n").skip(1));
    let shown = shown
        .filter_map(|rest| rest.split("```").next())
        .filter(|toml| toml.contains("[[target]]"));
    let files: Vec<&str> =
        shown.chain([include_str!("../../../deploy/provisioner.toml")]).collect();
    assert_eq!(files.len(), 4, "one in the README, two in the guide, one for Compose");
    for file in files {
        Config::read(file).unwrap_or_else(|error| panic!("{error}\n{file}"));
    }
}

#[test]
fn what_is_not_known_is_refused() {
    let error = Config::read(&WHOLE.replace("min = 0", "minimum = 0")).unwrap_err().to_string();
    assert!(error.contains("minimum"), "{error}");
    assert!(Config::read("").unwrap_err().to_string().contains("[[target]]"));
}

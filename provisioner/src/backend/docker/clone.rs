//! Another container like one that is there. Pure.

use serde_json::{Map, Value, json};

use super::OWNER;
use super::api::{Container, NUMBER};

/// The least number that no container of the service has, leaving ones included.
pub(super) fn next_number(containers: &[Container]) -> u32 {
    let taken: Vec<u32> = containers.iter().filter_map(Container::number).collect();
    (1..).find(|number| !taken.contains(number)).unwrap_or(u32::MAX)
}

/// What to create, and the networks to join before it is started.
#[derive(Debug)]
pub(super) struct ContainerSpec {
    pub(super) config: Value,
    /// Each with the names there. Engines before 25 create a container in one network only.
    pub(super) further_networks: Map<String, Value>,
}

/// From what the engine says of a container: the same but for its number, and what only one can
/// have.
pub(super) fn of(template: &Value, number: u32) -> ContainerSpec {
    let mut config = template["Config"].as_object().cloned().unwrap_or_default();
    // The engine makes these of the container's id when they are not given.
    for own in ["Hostname", "MacAddress"] {
        config.remove(own);
    }
    let labels = config.entry("Labels").or_insert_with(|| json!({}));
    labels[NUMBER] = json!(number.to_string());
    labels[OWNER] = json!("true");
    let mut host = template["HostConfig"].as_object().cloned().unwrap_or_default();
    host.remove("ContainerIDFile");
    free_ports(&mut host);
    let mut networks = endpoints(template);
    let main =
        host.get("NetworkMode").and_then(Value::as_str).filter(|mode| networks.contains_key(*mode));
    if let Some(main) = main.map(str::to_owned).or_else(|| networks.keys().next().cloned()) {
        let endpoint = networks.remove(&main);
        config.insert(
            "NetworkingConfig".to_owned(),
            json!({ "EndpointsConfig": { (main): endpoint } }),
        );
    }
    config.insert("HostConfig".to_owned(), Value::Object(host));
    ContainerSpec { config: Value::Object(config), further_networks: networks }
}

/// A port of the host can be bound once; a clone gets any that is free.
fn free_ports(host: &mut Map<String, Value>) {
    let Some(bindings) = host.get_mut("PortBindings").and_then(Value::as_object_mut) else {
        return;
    };
    for binding in bindings.values_mut().filter_map(Value::as_array_mut).flatten() {
        binding["HostPort"] = json!("");
    }
}

/// The same networks, under the service's names but not under the container's own.
fn endpoints(template: &Value) -> Map<String, Value> {
    let name = template["Name"].as_str().unwrap_or_default().trim_start_matches('/');
    let id = template["Id"].as_str().unwrap_or_default();
    let is_own = |alias: &str| alias == name || (!alias.is_empty() && id.starts_with(alias));
    let networks = template["NetworkSettings"]["Networks"].as_object();
    let endpoint = |(network, settings): (&String, &Value)| {
        let aliases = settings["Aliases"].as_array().into_iter().flatten();
        let shared: Vec<&str> =
            aliases.filter_map(Value::as_str).filter(|alias| !is_own(alias)).collect();
        (network.clone(), json!({ "Aliases": shared }))
    };
    networks.into_iter().flatten().map(endpoint).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_is_the_same_but_for_what_only_one_can_have() {
        let template = json!({
            "Id": "abcdef0123",
            "Name": "/shop-worker-1",
            "Config": {
                "Image": "worker:1", "Hostname": "abcdef0123", "Env": ["A=1"],
                "Labels": { "com.docker.compose.project": "shop", "com.docker.compose.container-number": "1",
                            "com.docker.compose.config-hash": "77" },
            },
            "HostConfig": { "PortBindings": { "80/tcp": [{ "HostIp": "", "HostPort": "8080" }] }, "Memory": 5,
                            "NetworkMode": "shop_default" },
            "NetworkSettings": { "Networks": {
                "shop_back": { "Aliases": ["worker"] },
                "shop_default": { "Aliases": ["shop-worker-1", "worker", "abcdef"], "IPAddress": "10.0.0.2" },
            } },
        });
        let ContainerSpec { config: clone, further_networks } = of(&template, 4);
        assert_eq!(
            Value::Object(further_networks),
            json!({ "shop_back": { "Aliases": ["worker"] } })
        );
        assert_eq!(clone["Labels"]["com.docker.compose.container-number"], "4");
        assert_eq!(clone["Labels"]["com.docker.compose.config-hash"], "77");
        assert_eq!(clone["Labels"][OWNER], "true");
        assert_eq!(
            (&clone["Image"], &clone["Env"], &clone["Hostname"]),
            (&json!("worker:1"), &json!(["A=1"]), &Value::Null)
        );
        assert_eq!(clone["HostConfig"]["PortBindings"]["80/tcp"][0]["HostPort"], "");
        assert_eq!(clone["HostConfig"]["Memory"], 5);
        let endpoints = &clone["NetworkingConfig"]["EndpointsConfig"];
        assert_eq!(*endpoints, json!({ "shop_default": { "Aliases": ["worker"] } }));
    }

    #[test]
    fn numbers_are_the_least_that_are_free() {
        let container = |number: &str| {
            serde_json::from_value(json!({ "Id": number, "Labels": { (NUMBER): number } })).unwrap()
        };
        assert_eq!(next_number(&[]), 1);
        assert_eq!(next_number(&[container("1"), container("3")]), 2);
    }
}

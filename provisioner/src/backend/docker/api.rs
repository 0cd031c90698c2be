//! The few requests to a Docker Engine that are needed, over its socket.
//!
//! <https://docs.docker.com/reference/api/engine/>; without a version in the path, the engine takes
//! its own newest.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::UnixStream;

/// The Compose labels that say whose a container is.
const PROJECT: &str = "com.docker.compose.project";
const SERVICE: &str = "com.docker.compose.service";
const ONE_OFF: &str = "com.docker.compose.oneoff";
/// The Compose label that tells the containers of a service apart.
pub(super) const NUMBER: &str = "com.docker.compose.container-number";

/// How long the engine may take, except to stop a container.
const WITHIN: Duration = Duration::from_secs(10);

/// More than a list of thousands of containers.
const LONGEST_BYTES: usize = 32 << 20;

/// An engine behind a socket.
#[derive(Clone, Debug)]
pub(super) struct Engine {
    socket: PathBuf,
}

/// A container in a list; the rest is skipped.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Container {
    #[serde(rename = "Id")]
    pub(super) id: String,
    #[serde(rename = "Names", default)]
    names: Vec<String>,
    #[serde(rename = "State", default)]
    state: String,
    #[serde(rename = "Created", default)]
    pub(super) created_s: u64,
    #[serde(rename = "Labels", default)]
    pub(super) labels: HashMap<String, String>,
}

#[derive(Deserialize)]
struct Created {
    #[serde(rename = "Id")]
    id: String,
}

impl Container {
    /// Its name, without the slash that the engine puts before it.
    pub(super) fn name(&self) -> &str {
        self.names.first().map_or("", |name| name.trim_start_matches('/'))
    }

    /// Its number among the containers of its service.
    pub(super) fn number(&self) -> Option<u32> {
        self.labels.get(NUMBER)?.parse().ok()
    }

    pub(super) fn is_running(&self) -> bool {
        matches!(self.state.as_str(), "running" | "restarting" | "paused")
    }

    /// Whether its processes are frozen.
    pub(super) fn is_paused(&self) -> bool {
        self.state == "paused"
    }

    /// Whether it ran and does not any more.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state.as_str(), "exited" | "dead")
    }

    /// Whether it was made and not started.
    pub(super) fn never_began(&self) -> bool {
        self.state == "created"
    }

    /// Whether `docker compose run` made it.
    pub(super) fn is_one_off(&self) -> bool {
        self.labels.get(ONE_OFF).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

impl Engine {
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// All containers of a Compose service, those that ended included.
    pub(super) async fn containers(
        &self,
        project: &str,
        service: &str,
    ) -> Result<Vec<Container>, String> {
        let labels = [format!("{PROJECT}={project}"), format!("{SERVICE}={service}")];
        let filters = encoded(&json!({ "label": labels }).to_string());
        let path = format!("/containers/json?all=true&filters={filters}");
        let answer = self.ask(Method::GET, &path, None, WITHIN).await?;
        serde_json::from_slice(&answer).map_err(|error| format!("list of containers: {error}"))
    }

    /// Everything about a container.
    pub(super) async fn inspect(&self, id: &str) -> Result<Value, String> {
        let answer = self.ask(Method::GET, &format!("/containers/{id}/json"), None, WITHIN).await?;
        serde_json::from_slice(&answer).map_err(|error| format!("container {id}: {error}"))
    }

    /// Makes a container and gives its id.
    pub(super) async fn create(&self, name: &str, config: &Value) -> Result<String, String> {
        let path = format!("/containers/create?name={}", encoded(name));
        let answer = self.ask(Method::POST, &path, Some(config), WITHIN).await?;
        let created: Created = serde_json::from_slice(&answer)
            .map_err(|error| format!("container {name}: {error}"))?;
        Ok(created.id)
    }

    /// Puts a container into a network.
    pub(super) async fn connect(
        &self,
        network: &str,
        id: &str,
        endpoint: &Value,
    ) -> Result<(), String> {
        let path = format!("/networks/{}/connect", encoded(network));
        let body = json!({ "Container": id, "EndpointConfig": endpoint });
        self.ask(Method::POST, &path, Some(&body), WITHIN).await.map(drop)
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), String> {
        self.ask(Method::POST, &format!("/containers/{id}/start"), None, WITHIN).await.map(drop)
    }

    pub(super) async fn rename(&self, id: &str, name: &str) -> Result<(), String> {
        let path = format!("/containers/{id}/rename?name={}", encoded(name));
        self.ask(Method::POST, &path, None, WITHIN).await.map(drop)
    }

    /// Sends the stop signal, kills after the limit, and returns when the container has stopped.
    pub(super) async fn stop(&self, id: &str, limit: Duration) -> Result<(), String> {
        let path = format!("/containers/{id}/stop?t={}", limit.as_secs().max(1));
        self.ask(Method::POST, &path, None, limit + 2 * WITHIN).await.map(drop)
    }

    pub(super) async fn remove(&self, id: &str) -> Result<(), String> {
        self.ask(Method::DELETE, &format!("/containers/{id}"), None, WITHIN).await.map(drop)
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        within: Duration,
    ) -> Result<Bytes, String> {
        let what = format!("{method} {}", path.split('?').next().unwrap_or(path));
        match tokio::time::timeout(within, self.exchange(method, path, body)).await {
            Ok(answer) => answer.map_err(|error| format!("{what}: {error}")),
            Err(_) => Err(format!("{what}: no answer within {within:?}")),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Bytes, String> {
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|error| {
            format!("{error}; is the engine running, and may we use its socket")
        })?;
        let (mut sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let driving = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
        let denied = denied(&method, body);
        let body = body.map(Value::to_string).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "docker")
            .header("content-type", "application/json")
            .body(Full::<Bytes>::from(body))
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LONGEST_BYTES).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        drop(driving);
        // 304: it is so already.
        if status.is_success() || status == StatusCode::NOT_MODIFIED {
            return Ok(body);
        }
        // The engine always says why, in JSON.
        let told = serde_json::from_slice::<Value>(&body).ok();
        match told.as_ref().and_then(|told| told["message"].as_str()) {
            Some(told) => Err(format!("{status} {told}")),
            None if is_denial(status) => Err(format!("{status}: {denied}")),
            None => Err(status.to_string()),
        }
    }
}

/// Whether that is how a proxy refuses what it does not pass on.
fn is_denial(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::METHOD_NOT_ALLOWED
    )
}

/// What whoever runs a proxy before the engine can do so that it passes a request on.
fn denied(method: &Method, body: Option<&Value>) -> String {
    let mounted = body.map(mounted).unwrap_or_default();
    if mounted.is_empty() {
        return format!(
            "the proxy before the engine does not permit it; permit it there (-allow{method})"
        );
    }
    format!(
        "the proxy before the engine does not permit it; workers mount {} of this host, so name \
         that in NATSWAY_WORKER_MOUNTS (-allowbindmountfrom)",
        mounted.join(", ")
    )
}

/// What a container that is to be made mounts of the host's files.
fn mounted(config: &Value) -> Vec<&str> {
    let host = &config["HostConfig"];
    let binds = host["Binds"].as_array().into_iter().flatten().filter_map(Value::as_str);
    // A volume's name begins with no slash.
    let binds =
        binds.filter(|bind| bind.starts_with('/')).filter_map(|bind| bind.split(':').next());
    let mounts = host["Mounts"].as_array().into_iter().flatten();
    let mounts =
        mounts.filter(|mount| mount["Type"] == "bind").filter_map(|mount| mount["Source"].as_str());
    binds.chain(mounts).collect()
}

/// Percent-encodes everything but letters, digits and `-_.`.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_of_the_host_is_told_when_a_proxy_denies_it() {
        let config = json!({ "HostConfig": {
            "Binds": ["/srv/data:/data:ro", "volume:/lines"],
            "Mounts": [{ "Type": "bind", "Source": "/etc/ours.pem" },
                { "Type": "volume", "Source": "/var/lib/docker/x" }],
        } });
        assert_eq!(mounted(&config), ["/srv/data", "/etc/ours.pem"]);
        let told = denied(&Method::POST, Some(&config));
        assert!(
            told.contains("/srv/data, /etc/ours.pem") && told.contains("NATSWAY_WORKER_MOUNTS"),
            "{told}"
        );
        let told = denied(&Method::POST, Some(&json!({ "Container": "x" })));
        assert!(told.contains("(-allowPOST)"), "{told}");
    }

    #[test]
    fn nothing_of_a_value_is_taken_for_the_path() {
        assert_eq!(encoded("a b&c=\"{/}\""), "a%20b%26c%3D%22%7B%2F%7D%22");
    }
}

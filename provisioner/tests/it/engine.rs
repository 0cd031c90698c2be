//! A container engine that speaks the Docker Engine's API over a socket and runs nothing.

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;

/// The engine and its containers.
pub(crate) struct Engine {
    directory: TempDir,
    containers: Arc<Mutex<Vec<Container>>>,
    serving: JoinHandle<()>,
}

/// A container as the engine keeps it.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) config: Value,
    /// The time that it was given to stop, in seconds.
    pub(crate) stop_s: Option<u64>,
    /// How long ago it was made, in seconds.
    pub(crate) age_s: u64,
}

impl Engine {
    /// An engine in which Compose has made one container of the service `worker` of the project
    /// `shop`.
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("docker.sock")).unwrap();
        let containers = Arc::<Mutex<Vec<Container>>>::default();
        let serving = tokio::spawn(serve(listener, Arc::clone(&containers)));
        let engine = Self { directory, containers, serving };
        engine.compose_up(1);
        engine
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("docker.sock")
    }

    pub(crate) fn containers(&self) -> MutexGuard<'_, Vec<Container>> {
        self.containers.lock().unwrap()
    }

    /// What `docker compose up` does: exactly so many containers, those with the highest numbers go
    /// at once.
    pub(crate) fn compose_up(&self, scale: usize) {
        let mut containers = self.containers();
        containers.sort_by_key(Container::number);
        containers.truncate(scale);
        for number in containers.len() + 1..=scale {
            let labels = json!({
                "com.docker.compose.project": "shop", "com.docker.compose.service": "worker",
                "com.docker.compose.oneoff": "False", "com.docker.compose.config-hash": "77",
                "com.docker.compose.container-number": number.to_string(),
            });
            let config =
                json!({ "Image": "worker:1", "Hostname": "x", "Labels": labels, "HostConfig": {} });
            let name = format!("shop-worker-{number}");
            containers
                .push(Container { state: "running".to_owned(), ..Container::new(name, config) });
        }
    }

    pub(crate) fn running(&self) -> usize {
        self.containers().iter().filter(|container| container.state == "running").count()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Container {
    fn new(name: String, config: Value) -> Self {
        let id = std::iter::repeat_with(|| format!("{:x}", fastrand::u8(..16))).take(64).collect();
        Self { id, name, state: "created".to_owned(), config, stop_s: None, age_s: 50 }
    }

    pub(crate) fn label(&self, name: &str) -> Option<&str> {
        self.config["Labels"][name].as_str()
    }

    pub(crate) fn number(&self) -> u32 {
        self.label("com.docker.compose.container-number").unwrap().parse().unwrap()
    }

    fn listed(&self) -> Value {
        let now_s = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        json!({
            "Id": self.id, "Names": [format!("/{}", self.name)], "State": self.state,
            "Created": now_s - self.age_s + u64::from(self.number()), "Labels": self.config["Labels"],
        })
    }
}

async fn serve(listener: UnixListener, containers: Arc<Mutex<Vec<Container>>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let containers = Arc::clone(&containers);
        let service = service_fn(move |request| handle(request, Arc::clone(&containers)));
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

async fn handle(
    request: Request<Incoming>,
    containers: Arc<Mutex<Vec<Container>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let query: HashMap<String, String> = parts
        .uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(decoded)
        .collect();
    let path: Vec<&str> = parts.uri.path().trim_matches('/').split('/').collect();
    if let (&Method::POST, ["containers", id, "stop"]) = (&parts.method, &path[..]) {
        let seconds = query["t"].parse().ok();
        let told = |state: &str| {
            let mut containers = containers.lock().unwrap();
            let container = containers.iter_mut().find(|container| container.id == *id).unwrap();
            (container.state, container.stop_s) = (state.to_owned(), seconds);
        };
        told("running");
        // It finishes what it holds; the answer comes when it has.
        tokio::time::sleep(Duration::from_millis(300)).await;
        told("exited");
        return Ok(answer(StatusCode::NO_CONTENT, &Value::Null));
    }
    let (status, value) = act(&parts.method, &path, &query, &body, &mut containers.lock().unwrap());
    Ok(answer(status, &value))
}

fn act(
    method: &Method,
    path: &[&str],
    query: &HashMap<String, String>,
    body: &Bytes,
    containers: &mut Vec<Container>,
) -> (StatusCode, Value) {
    let missing = (StatusCode::NOT_FOUND, json!({ "message": "no such container" }));
    let find = |containers: &[Container], id: &str| {
        containers.iter().position(|container| container.id == id)
    };
    match (method, path) {
        (&Method::GET, ["containers", "json"]) => {
            assert_eq!(query["all"], "true");
            let filters: Value = serde_json::from_str(&query["filters"]).unwrap();
            let has = |container: &&Container| {
                filters["label"].as_array().unwrap().iter().all(|filter| {
                    let (name, value) = filter.as_str().unwrap().split_once('=').unwrap();
                    container.label(name) == Some(value)
                })
            };
            (StatusCode::OK, containers.iter().filter(has).map(Container::listed).collect())
        }
        // As a proxy does, without the engine's JSON.
        (&Method::POST, ["containers", "create"])
            if body.windows(6).any(|part| part == b"denied") =>
        {
            (StatusCode::FORBIDDEN, json!("Forbidden"))
        }
        (&Method::POST, ["containers", "create"]) => {
            let name = query["name"].clone();
            let config: Value = serde_json::from_slice(body).unwrap();
            let networks = config["NetworkingConfig"]["EndpointsConfig"].as_object();
            if networks.is_none_or(|networks| networks.len() > 1) {
                return (
                    StatusCode::BAD_REQUEST,
                    json!({ "message": "one network, says an engine before 25" }),
                );
            }
            if containers.iter().any(|container| container.name == name) {
                return (StatusCode::CONFLICT, json!({ "message": "that name is taken" }));
            }
            containers.push(Container::new(name, config));
            (StatusCode::CREATED, json!({ "Id": containers.last().unwrap().id, "Warnings": [] }))
        }
        (&Method::POST, ["networks", network, "connect"]) => {
            let asked: Value = serde_json::from_slice(body).unwrap();
            let Some(place) = find(containers, asked["Container"].as_str().unwrap()) else {
                return missing;
            };
            containers[place].config["NetworkingConfig"]["EndpointsConfig"][*network] =
                asked["EndpointConfig"].clone();
            (StatusCode::OK, Value::Null)
        }
        (method, ["containers", id, rest @ ..]) => {
            let Some(place) = find(containers, id) else { return missing };
            match (method, rest) {
                (&Method::GET, ["json"]) => {
                    let container = &containers[place];
                    let aliases = json!({ "Aliases": ["worker"] });
                    let networks = json!({ "shop_back": aliases, "shop_default": aliases });
                    let value = json!({
                        "Id": container.id, "Name": format!("/{}", container.name), "Config": container.config,
                        "HostConfig": { "NetworkMode": "shop_default" }, "NetworkSettings": { "Networks": networks },
                    });
                    return (StatusCode::OK, value);
                }
                (&Method::POST, ["start"]) if containers[place].label("refuse").is_some() => {
                    return (
                        StatusCode::INTERNAL_SERVER_ERROR,
                        json!({ "message": "no such network" }),
                    );
                }
                (&Method::POST, ["start"]) => containers[place].state = "running".to_owned(),
                (&Method::POST, ["rename"]) => containers[place].name = query["name"].clone(),
                (&Method::DELETE, []) if containers[place].state == "running" => {
                    return (StatusCode::CONFLICT, json!({ "message": "it is running" }));
                }
                (&Method::DELETE, []) => drop(containers.remove(place)),
                _ => return (StatusCode::NOT_FOUND, json!({ "message": "page not found" })),
            }
            (StatusCode::NO_CONTENT, Value::Null)
        }
        _ => (StatusCode::NOT_FOUND, json!({ "message": "page not found" })),
    }
}

fn answer(status: StatusCode, value: &Value) -> Response<Full<Bytes>> {
    let body = match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        value => value.to_string(),
    };
    Response::builder().status(status).body(Full::from(body)).unwrap()
}

fn decoded((name, value): (&str, &str)) -> (String, String) {
    let mut parts = value.split('%');
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        out.push(u8::from_str_radix(&part[..2], 16).unwrap());
        out.extend_from_slice(&part.as_bytes()[2..]);
    }
    (name.to_owned(), String::from_utf8(out).unwrap())
}

//! `apiproxy routes ...`: looks at the routes bucket and changes it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use async_nats::Client;
use clap::{Args, Subcommand};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use natsway_routes::document::RouteDocument;
use natsway_routes::reconciler::{Change, RejectedDocument, RouteReconciler};
use natsway_routes::report::Report;
use natsway_routes::store::{RouteStore, Stored};
use natsway_routes::table::{Lookup, Route};
use serde_json::json;

use super::bucket::{BucketArgs, CONFLICT, NOT_FOUND, is_conflict, no_such_route};
use super::columns::columns;
use super::{durable, groups, status};
use crate::route_file::read_routes;

/// The schema of documents that every release reads.
const OLDEST_SCHEMA: u32 = 1;

/// Arguments of `apiproxy routes`.
#[derive(Args)]
#[command(
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong arguments, 3 somebody else wrote first, 4 \
                  no such route"
)]
pub struct RoutesArgs {
    #[command(subcommand)]
    action: Action,

    #[command(flatten)]
    bucket: BucketArgs,
}

#[derive(Subcommand)]
enum Action {
    /// List the routes with their versions, weights and faults, and say where requests run twice
    Ls,
    /// Print a route's document
    Get {
        /// Name of the route
        name: String,
    },
    /// Write a route's document: JSON from a file, or from standard input for `-`
    ///
    /// A version that is added to a route gets no traffic unless the document gives it a weight:
    /// `apiproxy rollout start` moves the traffic. Without `weight` the versions that are there
    /// keep theirs.
    Put {
        /// File with the document
        file: PathBuf,
        /// Only over this revision; 0 for a route that must not be there yet
        #[arg(long)]
        revision: Option<u64>,
    },
    /// Remove a route
    Rm {
        /// Name of the route
        name: String,
        /// Only at this revision
        #[arg(long)]
        revision: Option<u64>,
    },
    /// Write every route of a TOML file; the file and the bucket are checked together first
    ///
    /// A version that is added to a route gets no traffic unless the file gives it a weight, and
    /// versions that are there keep theirs where the file says none, or while a rollout sets them.
    Import {
        /// Route file
        file: PathBuf,
        /// Remove the routes that the file does not have
        #[arg(long)]
        prune: bool,
    },
    /// Print all routes as a TOML file
    Export,
    /// Say which route and version a request would get, and why
    Test {
        /// Method
        method: String,
        /// URL, say http://shop.example/cart?id=7
        url: String,
        /// Header field of the request, `name: value`; may be repeated
        #[arg(short = 'H', long = "header", value_name = "FIELD")]
        headers: Vec<String>,
    },
}

impl RoutesArgs {
    /// Does what was asked.
    ///
    /// # Errors
    /// Anything but a conflict or a missing route, which have exit codes of their own.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        const NAME: &str = "apiproxy routes";
        let (session, store) = match &self.action {
            Action::Put { .. } | Action::Import { .. } => self.bucket.open_or_make(NAME).await?,
            _ => self.bucket.open(NAME).await?,
        };
        let json = self.bucket.json;
        let done = match &self.action {
            Action::Ls => list(&store, session.client(), json).await,
            Action::Get { name } => get(&store, name, json).await,
            Action::Put { file, revision } => {
                put(&store, session.client(), file, *revision, json).await
            }
            Action::Rm { name, revision } => remove(&store, name, *revision).await,
            Action::Import { file, prune } => import(&store, session.client(), file, *prune).await,
            Action::Export => export(&store).await,
            Action::Test { method, url, headers } => {
                test(&store, session.client(), method, url, headers, json).await
            }
        };
        match done {
            Err(error) if is_conflict(&error) => {
                eprintln!("apiproxy: {error:#}; read it again and decide anew");
                Ok(ExitCode::from(CONFLICT))
            }
            done => done,
        }
    }
}

/// The documents as every gateway takes them in.
fn reconciler(documents: &[Stored]) -> RouteReconciler {
    let mut reconciler = RouteReconciler::default();
    for Stored { name, revision, bytes } in documents {
        reconciler.apply(Change::Put {
            name: name.clone(),
            revision: *revision,
            document: bytes.clone(),
        });
    }
    reconciler
}

async fn list(store: &RouteStore, client: &Client, json: bool) -> anyhow::Result<ExitCode> {
    let documents = store.list().await?;
    let (announced, reports) = tokio::try_join!(groups::ask(client), status::ask(client))?;
    let mut reconciler = reconciler(&documents);
    let table = reconciler.table();
    let refusals = reconciler.refusals();
    let mut rows = Vec::new();
    let mut values = Vec::new();
    for Stored { name, revision, bytes } in &documents {
        let route = table.routes().iter().find(|route| route.name == *name);
        let fault = refusals
            .iter()
            .find(|refusal| refusal.name == *name)
            .map(|refusal| refusal.reason.clone());
        let warnings =
            route.map(|route| groups::warnings(route, &announced, &reports)).unwrap_or_default();
        values.push(json!({
            "name": name,
            "revision": revision,
            "host": route.and_then(|route| route.host.clone()),
            "path": route.map(|route| route.path.to_string()),
            "internal": route.is_some_and(|route| route.internal),
            "transport": route.map(|route| route.transport),
            "publishes_to": route.and_then(|route| durable::template(route)),
            "weights": route.map(|route| weights(route)),
            "fault": fault,
            "warnings": warnings,
        }));
        let (host, path, versions) = match route {
            Some(route) => (
                route.host.clone().unwrap_or("any".to_owned()),
                route.path.to_string(),
                versions(route),
            ),
            None => ("-".to_owned(), "-".to_owned(), "-".to_owned()),
        };
        let state = match fault {
            Some(fault) => format!("refused: {}", fault.replace('\n', "; ")),
            None => {
                let said: Vec<String> = rollout_state(bytes).into_iter().chain(warnings).collect();
                if said.is_empty() { "ok".to_owned() } else { said.join("; ") }
            }
        };
        rows.push([name.clone(), revision.to_string(), host, path, versions, state]);
    }
    if json {
        println!("{}", serde_json::to_string_pretty(&values)?);
    } else {
        print!("{}", columns(["ROUTE", "REVISION", "HOST", "PATH", "VERSIONS", "STATE"], &rows));
    }
    Ok(ExitCode::SUCCESS)
}

/// What a route's rollout is doing, while it is under way.
fn rollout_state(document: &[u8]) -> Option<String> {
    let rollout = RouteDocument::from_json(document)
        .ok()?
        .rollout
        .filter(|rollout| rollout.phase.is_active())?;
    Some(format!("{} to {}, {} %", rollout.phase.as_str(), rollout.to, rollout.percent()))
}

fn weights(route: &Route) -> serde_json::Map<String, serde_json::Value> {
    route
        .split
        .targets()
        .iter()
        .map(|target| (target.version.clone(), target.weight.into()))
        .collect()
}

fn versions(route: &Route) -> String {
    if let Some(template) = durable::template(route) {
        return format!("stored at {template}");
    }
    let share =
        |target: &natsway_routes::table::Target| format!("{}={}", target.version, target.weight);
    route.split.targets().iter().map(share).collect::<Vec<_>>().join(" ")
}

async fn get(store: &RouteStore, name: &str, json: bool) -> anyhow::Result<ExitCode> {
    let Some(stored) = store.get(name).await? else { return Ok(no_such_route(name)) };
    let text = String::from_utf8_lossy(&stored.bytes);
    if json {
        let document: serde_json::Value =
            serde_json::from_str(&text).context("the document is no JSON")?;
        println!("{}", json!({ "revision": stored.revision, "document": document }));
    } else {
        // The document alone goes to standard output, so that it can be edited and put back.
        eprintln!("revision {}", stored.revision);
        println!("{text}");
    }
    Ok(ExitCode::SUCCESS)
}

fn read(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| file.display().to_string())
}

async fn put(
    store: &RouteStore,
    client: &Client,
    file: &Path,
    revision: Option<u64>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let shown =
        if file == Path::new("-") { "standard input".into() } else { file.to_string_lossy() };
    let mut document = RouteDocument::from_json(read(file)?.as_bytes()).with_context(|| {
        format!("{shown} is no route in JSON, as `apiproxy routes get` prints it")
    })?;
    let stored = store.list().await?;
    let added = fill_in_weights(&mut document, &stored);
    keep_rollout(&mut document, &stored)?;
    check_together(&stored, std::slice::from_ref(&document))?;
    let current =
        stored.iter().find(|stored| stored.name == document.name).map(|stored| stored.revision);
    let over = match revision {
        Some(0) => None,
        Some(revision) => Some(revision),
        None => current,
    };
    let revision = store.put(&document, over).await?;
    match json {
        true => println!("{}", json!({ "name": document.name, "revision": revision })),
        false => println!("{} is at revision {revision}", document.name),
    }
    log_added(&document.name, &added);
    warn_older_readers(client, std::slice::from_ref(&document)).await?;
    Ok(ExitCode::SUCCESS)
}

/// Warns of senders that refuse documents of such a schema and go by the ones before; not on
/// standard output, which may be a script's.
async fn warn_older_readers(client: &Client, written: &[RouteDocument]) -> anyhow::Result<()> {
    let Some(newest) = written.iter().max_by_key(|document| document.schema()) else {
        return Ok(());
    };
    // What every release reads needs no question, which takes a while.
    if newest.schema() == OLDEST_SCHEMA {
        return Ok(());
    }
    for sender in older_readers(&status::ask(client).await?, newest.schema()) {
        eprintln!(
            "{sender} reads no documents of schema {}, as {} is: it goes by the document before, \
             and drains wait for it; upgrade it, or write the old document again",
            newest.schema(),
            newest.name,
        );
    }
    Ok(())
}

/// The senders that do not read a schema, as people know them.
fn older_readers(reports: &[Report], schema: u32) -> Vec<String> {
    let reads_less = |report: &&Report| report.schema.max(OLDEST_SCHEMA) < schema;
    reports.iter().filter(reads_less).map(|report| report.host.clone()).collect()
}

/// Fills in what a document leaves open, beside the stored one; gives the versions that come
/// without traffic.
fn fill_in_weights(document: &mut RouteDocument, stored: &[Stored]) -> Vec<String> {
    let stored = stored.iter().find(|stored| stored.name == document.name);
    // What cannot be read serves nothing either, so that the document is a new one.
    document.fill_in_weights(
        stored.and_then(|stored| RouteDocument::from_json(&stored.bytes).ok()).as_ref(),
    )
}

/// Says which versions have no traffic yet, and how they get it; not on standard output, which may
/// be a script's.
fn log_added(name: &str, added: &[String]) {
    for version in added {
        eprintln!(
            "{version} is new in {name} and has the weight 0: `apiproxy rollout start {name} --to \
             {version}` moves traffic to it"
        );
    }
}

/// Keeps the stored document's rollout, which is not the operator's to write, and refuses other
/// weights while one is under way.
fn keep_rollout(document: &mut RouteDocument, stored: &[Stored]) -> anyhow::Result<()> {
    let stored = stored.iter().find(|stored| stored.name == document.name);
    let stored = stored.and_then(|stored| RouteDocument::from_json(&stored.bytes).ok());
    let rollout = stored.as_ref().and_then(|stored| stored.rollout.clone());
    let is_active = rollout.as_ref().is_some_and(|rollout| rollout.phase.is_active());
    if is_active && stored.is_some_and(|stored| has_other_weights(document, &stored)) {
        let name = &document.name;
        bail!(
            "nothing was written: a rollout of {name:?} sets its weights; `apiproxy rollout abort \
             {name}` ends it"
        );
    }
    // Versions may go once it is over, and its story with them.
    document.rollout = rollout.filter(|rollout| {
        let is_version = |name: &str| document.weights().any(|(version, _)| version == name);
        is_active || rollout.faults(is_version).is_empty()
    });
    Ok(())
}

/// Whether versions of both have other weights, or one that only one of them has gets traffic.
fn has_other_weights(one: &RouteDocument, other: &RouteDocument) -> bool {
    let differs = |one: &RouteDocument, other: &RouteDocument| {
        one.weights().any(|(version, weight)| {
            let its = other.weights().find(|(name, _)| *name == version);
            its.map_or(0, |(_, weight)| weight) != weight
        })
    };
    differs(one, other) || differs(other, one)
}

/// A file may be older than a rollout that is under way, which alone sets the weights of its route:
/// all else of the file is taken, and that is said.
fn leave_weights_to_rollout(document: &mut RouteDocument, stored: &[Stored]) {
    let stored = stored.iter().find(|stored| stored.name == document.name);
    let Some(stored) = stored.and_then(|stored| RouteDocument::from_json(&stored.bytes).ok())
    else {
        return;
    };
    let is_active = stored.rollout.as_ref().is_some_and(|rollout| rollout.phase.is_active());
    if is_active && has_other_weights(document, &stored) {
        document.take_weights(&stored);
        eprintln!("the weights of {} stay as they are: a rollout of it sets them", document.name);
    }
}

/// Checks documents as they would be in force beside the stored ones, so that nothing is written
/// that is refused.
fn check_together(stored: &[Stored], documents: &[RouteDocument]) -> anyhow::Result<()> {
    let mut reconciler = reconciler(stored);
    let faults_before: Vec<RejectedDocument> = {
        reconciler.table();
        reconciler.refusals()
    };
    let newest = reconciler.revision();
    for (revision, document) in (newest + 1..).zip(documents) {
        let bytes = document.to_json().into_bytes();
        reconciler.apply(Change::Put { name: document.name.clone(), revision, document: bytes });
    }
    reconciler.table();
    let new = reconciler.refusals().into_iter().filter(|refusal| !faults_before.contains(refusal));
    let faults: Vec<String> = new.map(|refusal| refusal.reason).collect();
    if !faults.is_empty() {
        bail!("nothing was written:\n{}", faults.join("\n"));
    }
    Ok(())
}

async fn remove(store: &RouteStore, name: &str, revision: Option<u64>) -> anyhow::Result<ExitCode> {
    let Some(stored) = store.get(name).await? else { return Ok(no_such_route(name)) };
    store.remove(name, revision.unwrap_or(stored.revision)).await?;
    println!("{name} is removed");
    Ok(ExitCode::SUCCESS)
}

async fn import(
    store: &RouteStore,
    client: &Client,
    file: &Path,
    prune: bool,
) -> anyhow::Result<ExitCode> {
    let mut documents = read_routes(&read(file)?)
        .with_context(|| format!("{} is refused", file.display()))?
        .documents;
    let mut stored = store.list().await?;
    let mut added = Vec::new();
    for document in &mut documents {
        added.push(fill_in_weights(document, &stored));
        leave_weights_to_rollout(document, &stored);
        keep_rollout(document, &stored)?;
    }
    let (kept, gone): (Vec<Stored>, Vec<Stored>) = stored
        .drain(..)
        .partition(|stored| documents.iter().any(|document| document.name == stored.name));
    let beside = if prune { kept.clone() } else { [kept.as_slice(), gone.as_slice()].concat() };
    check_together(&beside, &documents)?;
    // Those that go make room for those that come.
    for Stored { name, revision, .. } in gone.iter().filter(|_| prune) {
        store.remove(name, *revision).await?;
        println!("{name} is removed");
    }
    for document in &documents {
        let current = kept.iter().find(|stored| stored.name == document.name);
        if current
            .is_some_and(|stored| RouteDocument::from_json(&stored.bytes).as_ref() == Ok(document))
        {
            println!("{} is unchanged", document.name);
            continue;
        }
        let revision = store.put(document, current.map(|stored| stored.revision)).await?;
        println!("{} is at revision {revision}", document.name);
    }
    for (document, added) in documents.iter().zip(&added) {
        log_added(&document.name, added);
    }
    warn_older_readers(client, &documents).await?;
    Ok(ExitCode::SUCCESS)
}

async fn export(store: &RouteStore) -> anyhow::Result<ExitCode> {
    let mut documents = Vec::new();
    for Stored { name, bytes, .. } in store.list().await? {
        let mut document = RouteDocument::from_json(&bytes)
            .with_context(|| format!("route {name:?} cannot be exported"))?;
        document.rollout = None;
        documents.push(document);
    }
    print!("{}", toml::to_string(&std::collections::BTreeMap::from([("route", documents)]))?);
    Ok(ExitCode::SUCCESS)
}

async fn test(
    store: &RouteStore,
    broker: &Client,
    method: &str,
    url: &str,
    fields: &[String],
    json: bool,
) -> anyhow::Result<ExitCode> {
    let method: Method = method.to_ascii_uppercase().parse().context("method")?;
    let uri: Uri = url.parse().with_context(|| format!("url {url:?}"))?;
    let mut headers = HeaderMap::new();
    for field in fields {
        let (name, value) =
            field.split_once(':').with_context(|| format!("{field:?}: expected `name: value`"))?;
        headers.append(name.trim().parse::<HeaderName>()?, value.trim().parse::<HeaderValue>()?);
    }
    let host = uri.host().unwrap_or_default().to_ascii_lowercase();
    let table = reconciler(&store.list().await?).table();
    let route = match table.look_up(&host, uri.path(), &method) {
        Lookup::Found(_, route) => route,
        Lookup::NotFound => {
            println!("404: no route matches host {host:?} and path {:?}", uri.path());
            return Ok(ExitCode::from(NOT_FOUND));
        }
        Lookup::MethodNotAllowed(methods) => {
            println!("405: this path is served with {methods} only");
            return Ok(ExitCode::from(NOT_FOUND));
        }
    };
    if let Some(publish) = &route.publish {
        if route.methods.contains(&Method::GET) {
            durable::say_results(route, json);
            return Ok(ExitCode::SUCCESS);
        }
        return durable::test(route, publish, uri.path(), broker, json).await;
    }
    let client = std::net::IpAddr::from(std::net::Ipv4Addr::LOCALHOST);
    let because = route.selection.cause(&headers, client).to_string();
    let choose = |random| route.selection.choose(&route.split, &headers, client, random);
    let target = |place: usize| &route.split.targets()[place];
    // One version whatever the chance, or the weights' choice.
    let fixed = choose(0)
        .filter(|place| choose(u32::MAX) == Some(*place) && choose(u32::MAX / 2) == Some(*place));
    let version = fixed.map(|place| target(place).version.clone());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let forwarded = route.forwarded_path(path);
    if json {
        println!(
            "{}",
            json!({
                "route": route.name, "version": version, "weights": weights(route), "forwarded_path": forwarded,
                "subject": fixed.map(|place| target(place).subject.to_string()), "because": because,
                "transport": route.transport, "inline_body_bytes": route.limits.inline_body_bytes,
                "max_body_bytes": route.limits.max_body_bytes,
            })
        );
        return Ok(ExitCode::SUCCESS);
    }
    println!(
        "route      {} ({} {})",
        route.name,
        route.host.as_deref().unwrap_or("any host"),
        route.path
    );
    match fixed {
        Some(place) => {
            println!("version    {} at {}", target(place).version, target(place).subject)
        }
        None => println!("version    by weight: {}", versions(route)),
    }
    println!("because    of {because}");
    println!("forwarded  {method} {forwarded}");
    println!("transport  {}", route.transport.as_str());
    Ok(ExitCode::SUCCESS)
}

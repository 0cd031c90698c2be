//! From a path to a version's subject, beside the path matcher alone; and from a reply to the
//! request that waits for it.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use natsway_caller::pending::{Key, PendingRequests, ReplyPolicy};
use natsway_routes::document::RouteDocument;
use natsway_routes::table::{Lookup, Route, RouteTable};

use super::{Micro, Operation};

/// Requests that are asked for in turn, so that no branch is learnt.
const REQUESTS: usize = 1_024;

/// As many as a busy connection has out.
const WAITING: usize = 255;

/// Patterns as APIs have them: three literal segments, and an identifier in every other one.
fn pattern(number: usize) -> String {
    let end = if number.is_multiple_of(2) { "" } else { "/{id}" };
    format!("/api/area{}/kind{}{end}", number / 100, number % 100)
}

/// A route to two versions; `more` is JSON that its document has besides.
fn route(name: &str, path: &str, more: &str) -> Route {
    let json = format!(
        r#"{{"name":"{name}","path":"{path}"{more},"target":[
            {{"version":"blue","subject":"svc.{name}.blue","weight":90}},
            {{"version":"green","subject":"svc.{name}.green","weight":10}}]}}"#
    );
    let document = RouteDocument::from_json(json.as_bytes()).expect("a document");
    document.check(None).expect("a sound document")
}

fn table(routes: usize) -> RouteTable {
    let routes = (0..routes).map(|number| route(&format!("r{number}"), &pattern(number), ""));
    RouteTable::new(routes.collect()).expect("a table")
}

/// Paths that the patterns match, by chance.
fn paths(routes: usize, random: &mut fastrand::Rng) -> Vec<String> {
    (0..REQUESTS).map(|_| pattern(random.usize(0..routes)).replace("{id}", "4711")).collect()
}

fn match_and_pick(routes: usize) -> Operation {
    let mut random = fastrand::Rng::with_seed(1);
    let paths = paths(routes, &mut random);
    let (table, headers) = (table(routes), HeaderMap::new());
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut next = 0;
    Box::new(move || {
        next = (next + 1) % REQUESTS;
        let found = table.look_up("shop.example", black_box(&paths[next]), &Method::GET);
        let Lookup::Found(_, route) = found else { panic!("every path has a route") };
        black_box(route.selection.choose(&route.split, &headers, client, random.u32(..)));
    })
}

fn matchit_alone(routes: usize) -> Operation {
    let paths = paths(routes, &mut fastrand::Rng::with_seed(1));
    let mut matcher = matchit::Router::new();
    for number in 0..routes {
        matcher.insert(pattern(number), number).expect("a pattern");
    }
    let mut next = 0;
    Box::new(move || {
        next = (next + 1) % REQUESTS;
        black_box(matcher.at(black_box(&paths[next])).map(|found| *found.value).ok());
    })
}

/// Which of two versions, by the value of a cookie.
fn sticky_pick() -> Operation {
    let table = RouteTable::new(vec![route("r", "/", r#","sticky":{"cookie":"session"}"#)])
        .expect("a table");
    let mut headers = HeaderMap::new();
    headers.insert(
        http::header::COOKIE,
        http::HeaderValue::from_static("theme=dark; session=4f9c1b7ad0e84d25"),
    );
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut random = fastrand::Rng::with_seed(1);
    Box::new(move || {
        let Lookup::Found(_, route) = table.look_up("shop.example", "/", &Method::GET) else {
            panic!("the path has a route")
        };
        black_box(route.selection.choose(
            &route.split,
            black_box(&headers),
            client,
            random.u32(..),
        ));
    })
}

/// A request takes a place, its reply finds it by the token, and it leaves, while others wait.
fn multiplex() -> Operation {
    let mut pending: PendingRequests<u64> = PendingRequests::new();
    let policy = ReplyPolicy { signals: true, cancel: true, repeatable: true };
    let deadline = Instant::now() + Duration::from_secs(3_600);
    for _ in 0..WAITING {
        pending.insert(deadline, policy, natsway_boot::random_u64());
    }
    Box::new(move || {
        let token = pending.insert(deadline, policy, natsway_boot::random_u64()).token();
        let text = std::str::from_utf8(black_box(&token)).expect("digits");
        let key = Key::parse(text).expect("a token");
        pending.deliver(key, 1);
        let done = pending.poll(key, &mut Context::from_waker(Waker::noop()));
        black_box(done.is_ready());
    })
}

pub(super) fn all() -> Vec<Micro> {
    let mut all = Vec::new();
    for routes in [1, 1_000, 10_000] {
        all.push(Micro::new(format!("route/match and pick/{routes}"), move || {
            match_and_pick(routes)
        }));
        all.push(Micro::new(format!("route/matchit alone/{routes}"), move || {
            matchit_alone(routes)
        }));
    }
    all.push(Micro::new("route/pick/by a sticky cookie", sticky_pick));
    all.push(Micro::new("reply/multiplex/255", multiplex));
    all
}

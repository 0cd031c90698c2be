//! From a path to a version's subject, and from a reply to the request that waits for it.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use natsway_caller::slots::{Key, Manners, Slots};
use natsway_routes::document::RouteDocument;
use natsway_routes::table::{Lookup, RouteTable};

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

fn table(routes: usize) -> RouteTable {
    let document = |number: usize| {
        let json = format!(
            r#"{{"name":"r{number}","path":"{}","target":[
                {{"version":"blue","subject":"svc.r{number}.blue","weight":90}},
                {{"version":"green","subject":"svc.r{number}.green","weight":10}}]}}"#,
            pattern(number)
        );
        let document = RouteDocument::from_json(json.as_bytes()).expect("a document");
        document.check(None).expect("a sound document")
    };
    RouteTable::new((0..routes).map(document).collect()).expect("a table")
}

fn match_and_pick(routes: usize) -> Operation {
    let mut random = fastrand::Rng::with_seed(1);
    let paths: Vec<String> =
        (0..REQUESTS).map(|_| pattern(random.usize(0..routes)).replace("{id}", "4711")).collect();
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

/// A request takes a place, its reply finds it by the token, and it leaves, while others wait.
fn multiplex() -> Operation {
    let mut slots: Slots<u64> = Slots::new();
    let manners = Manners { signals: true, cancel: true, repeatable: true };
    let deadline = Instant::now() + Duration::from_secs(3_600);
    for _ in 0..WAITING {
        slots.insert(deadline, manners);
    }
    Box::new(move || {
        let token = slots.insert(deadline, manners).token();
        let text = std::str::from_utf8(black_box(&token)).expect("digits");
        let key = Key::parse(text).expect("a token");
        slots.deliver(key, 1);
        let done = slots.poll(key, &mut Context::from_waker(Waker::noop()));
        black_box(done.is_ready());
    })
}

pub(super) fn all() -> Vec<Micro> {
    let routes = [1, 1_000, 10_000];
    let mut all: Vec<Micro> = routes
        .into_iter()
        .map(|routes| Micro::new(format!("route/match and pick/{routes}"), move || match_and_pick(routes)))
        .collect();
    all.push(Micro::new("reply/multiplex/255", multiplex));
    all
}

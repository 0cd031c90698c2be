//! What finding a request's route and version costs, among few and many routes, beside the path matcher alone.
//!
//! `cargo bench -p natsway-routes`

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{HeaderMap, Method};
use natsway_routes::document::RouteDocument;
use natsway_routes::table::{Lookup, RouteTable};

/// Requests that are asked for in turn, so that no branch is learnt.
const REQUESTS: usize = 1_024;

/// Patterns as APIs have them: three literal segments, and an identifier in every other one.
fn pattern(number: usize) -> String {
    let (area, kind) = (number / 100, number % 100);
    match number % 2 {
        0 => format!("/api/area{area}/kind{kind}"),
        _ => format!("/api/area{area}/kind{kind}/{{id}}"),
    }
}

/// A path that the pattern of that number matches.
fn path(number: usize) -> String {
    pattern(number).replace("{id}", "4711")
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

fn matching(criterion: &mut Criterion) {
    let headers = HeaderMap::new();
    let client = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut group = criterion.benchmark_group("route");
    for routes in [10, 1_000, 10_000] {
        let mut random = fastrand::Rng::with_seed(1);
        let paths: Vec<String> = (0..REQUESTS).map(|_| path(random.usize(0..routes))).collect();
        let table = table(routes);
        let mut next = 0;
        group.bench_function(BenchmarkId::new("match and pick", routes), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % REQUESTS;
                let found = table.look_up("shop.example", black_box(&paths[next]), &Method::GET);
                let Lookup::Found(_, route) = found else { panic!("every path has a route") };
                route.selection.choose(&route.split, &headers, client, random.u32(..))
            });
        });
        let mut matcher = matchit::Router::new();
        for number in 0..routes {
            matcher.insert(pattern(number), number).expect("a pattern");
        }
        group.bench_function(BenchmarkId::new("matchit alone", routes), |bencher| {
            bencher.iter(|| {
                next = (next + 1) % REQUESTS;
                matcher.at(black_box(&paths[next])).map(|found| *found.value).ok()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, matching);
criterion_main!(benches);

//! The time that small operations take: `cargo bench -p natsway-bench -- envelope`.

use criterion::{Criterion, criterion_group, criterion_main};
use natsway_bench::micro;

fn operations(criterion: &mut Criterion) {
    for operation in micro::all() {
        let mut ready = operation.make();
        criterion.bench_function(&operation.name, |bencher| bencher.iter(&mut ready));
    }
}

criterion_group!(benches, operations);
criterion_main!(benches);

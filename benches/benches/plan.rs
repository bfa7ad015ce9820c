//! How long it takes to decide where an outgoing connection goes, among 10,000 workloads and 1,000 services.

use std::hint::black_box;

use ambit_benches::decisions::Planning;
use criterion::{Criterion, criterion_group, criterion_main};

fn plan(criterion: &mut Criterion) {
    let mut planning = Planning::of(10_000, 1_000);
    let mut group = criterion.benchmark_group("plan");
    group.bench_function("to a service", |bench| bench.iter(|| black_box(planning.to_service())));
    group.bench_function("to a workload", |bench| bench.iter(|| black_box(planning.to_workload())));
    group.bench_function("to a stranger", |bench| bench.iter(|| black_box(planning.to_stranger())));
}

criterion_group!(benches, plan);
criterion_main!(benches);

//! How long one change takes in meshes of several sizes, and a first response as a whole.

use std::hint::black_box;

use ambit_benches::{
    decisions::{Changing, snapshot},
    world::World,
};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

fn changes(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("snapshot: one change of");
    for workloads in [1_000, 10_000, 100_000] {
        let mut changing = Changing::of(workloads);
        let id = BenchmarkId::from_parameter(workloads);
        group.bench_function(id, |bench| bench.iter(|| changing.apply()));
    }
}

fn first(criterion: &mut Criterion) {
    let world = World::of(10_000, 1_000);
    let mut group = criterion.benchmark_group("snapshot: first response");
    group.sample_size(20);
    group.bench_function("10000", |bench| bench.iter(|| black_box(snapshot(&world))));
}

criterion_group!(benches, changes, first);
criterion_main!(benches);

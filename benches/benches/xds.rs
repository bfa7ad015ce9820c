//! How long a first response takes from its bytes to a snapshot.

use std::hint::black_box;

use ambit_benches::decisions::Decoding;
use criterion::{Criterion, criterion_group, criterion_main};

fn decode(criterion: &mut Criterion) {
    let addresses = Decoding::addresses(10_000, 1_000);
    let policies = Decoding::policies(1_000);
    let mut group = criterion.benchmark_group("xds");
    group.sample_size(20);
    group.bench_function("10000 workloads and 1000 services", |bench| {
        bench.iter(|| black_box(addresses.apply()));
    });
    group.bench_function("1000 policies", |bench| bench.iter(|| black_box(policies.apply())));
}

criterion_group!(benches, decode);
criterion_main!(benches);

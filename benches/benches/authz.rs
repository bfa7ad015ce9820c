//! How long a connection is judged, by how many policies.

use std::hint::black_box;

use ambit_benches::decisions::Judgement;
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

fn authz(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("authz");
    for policies in [1, 10, 100, 1_000] {
        let judgement = Judgement::of(policies);
        let id = BenchmarkId::from_parameter(policies);
        group.bench_function(id, |bench| bench.iter(|| black_box(judgement.check())));
    }
}

criterion_group!(benches, authz);
criterion_main!(benches);

//! How long a waypoint looks at a debug token: at one that holds, and at those that anybody can make up.

#![expect(clippy::expect_used, reason = "a benchmark fails by panicking")]

use std::{
    hint::black_box,
    time::{Duration, SystemTime},
};

use ambit_fixtures::ca::{Life, TestCa};
use ambit_model::identity::{Identity, TrustDomain};
use ambit_wire::debug_token::{identity, sign, verify};
use criterion::{Criterion, criterion_group, criterion_main};

/// A token of `ca` for all waypoints of `shop`.
fn token(ca: &TestCa) -> String {
    let (chain, key) = ca.issue(&identity(&TrustDomain::default()), Life::Hour);
    let audience = "shop".parse().expect("an audience");
    sign(&key, &chain, &audience, SystemTime::now(), Duration::from_secs(600)).expect("a token")
}

fn debug_token(criterion: &mut Criterion) {
    let ca = TestCa::new();
    let waypoint = Identity::new("cluster.local", "shop", "gate");
    let own = ca.certificate(&waypoint);
    let below = ca.with_intermediate();
    let mut group = criterion.benchmark_group("debug_token");
    let tokens = [
        ("valid", token(&ca)),
        ("valid_by_intermediate", token(&below)),
        ("of_another_root", token(&TestCa::new())),
        ("noise", "a".repeat(1024)),
    ];
    for (name, token) in tokens {
        let look = || verify(token.as_bytes(), &own, &waypoint, SystemTime::now());
        group.bench_function(name, |bench| bench.iter(|| black_box(look())));
    }
}

criterion_group!(benches, debug_token);
criterion_main!(benches);

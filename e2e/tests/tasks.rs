//! The pages in `docs/tasks`: their YAML, applied as a reader would apply it, does what they say.

use ambit_e2e::story::{self, Tell};
use ambit_e2e::tasks;

const STEPS: [(&str, Tell); 11] = [
    ("A waypoint for a Service", tasks::bind),
    ("Canary: by header, and by weight", tasks::canary),
    ("Retries over a failing endpoint", tasks::retries),
    ("Mirroring", tasks::mirroring),
    ("Faults on purpose", tasks::faults),
    ("A VirtualService, brought along", tasks::virtual_service),
    ("Endpoints: by key, by subset, by health", tasks::endpoints),
    ("Tokens, and what they say", tasks::tokens),
    ("A request explained", tasks::explain),
    ("Limits: a client that calls too often", tasks::limits),
    ("All of it was counted", tasks::counted),
];

/// The shop of the demo, in the mesh from the beginning.
fn shop() -> String {
    const LABEL: &str = "labels: {istio.io/dataplane-mode: ambient}";
    include_str!("../src/demo/shop.yaml").replace("labels: {team: shop}", LABEL)
}

#[test]
fn the_pages_do_what_they_say() -> anyhow::Result<()> {
    story::tell("tasks", &shop(), |_| {}, &STEPS)
}

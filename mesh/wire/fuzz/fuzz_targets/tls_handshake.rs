//! What a stranger can send to port 15008 before anybody knows who it is.
#![no_main]

use std::sync::{Arc, LazyLock};

use ambit_fixtures::ca::TestCa;
use ambit_model::identity::Identity;
use ambit_wire::tls::stream;
use libfuzzer_sys::fuzz_target;
use rustls::ServerConfig;
use tokio::{
    io::{AsyncWriteExt as _, duplex},
    runtime::{Builder, Runtime},
};

static SERVER: LazyLock<(Runtime, Arc<ServerConfig>)> = LazyLock::new(|| {
    let certificate = TestCa::new().certificate(&Identity::new("cluster.local", "shop", "web"));
    (Builder::new_current_thread().build().expect("a runtime"), certificate.server_config())
});

fuzz_target!(|input: &[u8]| {
    let (runtime, config) = &*SERVER;
    runtime.block_on(async {
        let (mut near, far) = duplex(1 << 20);
        near.write_all(input).await.expect("room");
        near.shutdown().await.expect("an end");
        // Nobody gets through without a certificate, and nobody is waited for who has hung up.
        assert!(stream::accept(config.clone(), far).await.is_err());
    });
});

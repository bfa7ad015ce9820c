//! What an authenticated peer can send after the handshake: records of any content type, sealed as they should
//! be, and records that are nothing. What is read is what was said, and nothing after the first that is wrong.
#![no_main]

use std::sync::{Arc, LazyLock};

use ambit_fixtures::ca::TestCa;
use ambit_model::identity::Identity;
use ambit_wire::tls::stream;
use boring::symm::{Cipher, encrypt_aead};
use libfuzzer_sys::fuzz_target;
use rustls::{ClientConfig, ConnectionTrafficSecrets, ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex},
    runtime::{Builder, Runtime},
};
use tokio_rustls::TlsConnector;

/// Holds a whole input, so that nobody waits for anybody.
const ROOM: usize = 1 << 20;
const APPLICATION_DATA: u8 = 23;

struct Sides {
    runtime: Runtime,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

static SIDES: LazyLock<Sides> = LazyLock::new(|| {
    let ca = TestCa::new();
    let [web, app] = ["web", "app"].map(|name| Identity::new("cluster.local", "shop", name));
    let client = ca.certificate(&app).client_config(web.clone());
    let mut client = ClientConfig::clone(&client);
    client.enable_secret_extraction = true;
    Sides {
        runtime: Builder::new_current_thread().build().expect("a runtime"),
        server: ca.certificate(&web).server_config(),
        client: Arc::new(client),
    }
});

fuzz_target!(|input: &[u8]| {
    let sides = &*SIDES;
    sides.runtime.block_on(async {
        let (near, far) = duplex(ROOM);
        let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        let connecting = TlsConnector::from(sides.client.clone()).connect(name, near);
        let (served, connected) = tokio::join!(stream::accept(sides.server.clone(), far), connecting);
        let (mut served, (mut io, session)) =
            (served.expect("served"), connected.expect("connected").into_inner());
        let (next, secrets) = session.dangerous_extract_secrets().expect("secrets").tx;
        let said = send(&mut io, Sealer { secrets, next }, input).await;
        io.shutdown().await.expect("room for the end");
        let mut heard = Vec::new();
        let _ended = served.read_to_end(&mut heard).await;
        assert!(
            said.starts_with(&heard),
            "{} bytes were said, {} others were heard",
            said.len(),
            heard.len()
        );
    });
});

/// Sends records as `input` says: how, which content type, how long (16 bits), and the content. Gives all
/// that was said as application data.
async fn send(io: &mut DuplexStream, mut sealer: Sealer, mut input: &[u8]) -> Vec<u8> {
    let mut said = Vec::new();
    let mut sent = 0;
    while let [how, kind, high, low, rest @ ..] = input {
        let length = usize::from(u16::from_be_bytes([*high, *low]) % 1024).min(rest.len());
        let (content, after) = rest.split_at(length);
        input = after;
        let record = match how % 4 {
            0 => content.to_vec(),
            1 => [&[*kind, 3, 3, *high, *low], content].concat(),
            2 => {
                said.extend_from_slice(content);
                sealer.seal(APPLICATION_DATA, content, 0)
            }
            _ => {
                // 20 to 24 are known; padding is allowed.
                let kind = if kind % 8 < 5 { 20 + kind % 8 } else { *kind };
                if kind == APPLICATION_DATA {
                    said.extend_from_slice(content);
                }
                sealer.seal(kind, content, usize::from(how / 4))
            }
        };
        sent += record.len();
        if sent > ROOM / 2 {
            break;
        }
        io.write_all(&record).await.expect("room for a record");
    }
    said
}

struct Sealer {
    secrets: ConnectionTrafficSecrets,
    next: u64,
}

impl Sealer {
    /// A record of RFC 8446, 5.2.
    fn seal(&mut self, kind: u8, content: &[u8], padding: usize) -> Vec<u8> {
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = &self.secrets else {
            panic!("the first suite is AES-128-GCM")
        };
        let inner = [content, &[kind], &vec![0; padding][..]].concat();
        let length = u16::try_from(inner.len() + 16).expect("a short record").to_be_bytes();
        let header = [APPLICATION_DATA, 3, 3, length[0], length[1]];
        let mut nonce = <[u8; 12]>::try_from(iv.as_ref()).expect("12 bytes");
        for (byte, number) in nonce[4..].iter_mut().zip(self.next.to_be_bytes()) {
            *byte ^= number;
        }
        self.next += 1;
        let mut tag = [0; 16];
        let sealed =
            encrypt_aead(Cipher::aes_128_gcm(), key.as_ref(), Some(&nonce), &header, &inner, &mut tag);
        [&header[..], &sealed.expect("sealed"), &tag].concat()
    }
}

//! Bulk bytes: pseudo-random, so that nothing lost, doubled or swapped goes unnoticed, and hashed at both ends.

use std::io;
use std::time::Instant;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::report::{self, Verdict, millis};
use crate::serve::Identity;

/// Read and written at once.
const CHUNK: usize = 64 * 1024;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The server's port for this, `host:port`.
    to: String,
    /// How many bytes.
    bytes: u64,
    /// Which bytes: the same seed, the same bytes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// Sends bytes; the sink must have hashed the same.
pub(crate) async fn push(args: Args) -> io::Result<Verdict> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(&args.to).await?;
    let sent = give(&mut stream, Random::new(args.seed), args.bytes).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
    let same = answer.get("sha256").and_then(Value::as_str) == Some(sent.as_str());
    report::line(&json!({
        "bytes": args.bytes, "sha256": sent, "sink": answer, "same": same, "ms": millis(begun.elapsed())
    }));
    Ok(Verdict::of(same))
}

/// Fetches bytes; they must be those of the seed.
pub(crate) async fn pull(args: Args) -> io::Result<Verdict> {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(&args.to).await?;
    stream.write_all(format!("{} {}\n", args.bytes, args.seed).as_bytes()).await?;
    stream.shutdown().await?;
    let (bytes, sha256) = take(&mut stream).await?;
    let expected = hash(Random::new(args.seed), args.bytes);
    let same = sha256 == expected;
    report::line(&json!({
        "bytes": bytes, "sha256": sha256, "expected": expected, "same": same, "ms": millis(begun.elapsed())
    }));
    Ok(Verdict::of(same))
}

/// Takes all there is, then tells its hash.
pub(crate) async fn sink(mut stream: TcpStream, identity: &Identity) -> io::Result<()> {
    let (bytes, sha256) = take(&mut stream).await?;
    let answer = json!({ "pod": identity.pod, "bytes": bytes, "sha256": sha256 });
    stream.write_all(format!("{answer}\n").as_bytes()).await?;
    stream.shutdown().await
}

/// Gives what the first line asks for: length and seed.
pub(crate) async fn source(stream: TcpStream) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    // Two numbers are shorter.
    (&mut stream).take(64).read_line(&mut line).await?;
    let asked =
        line.trim_end().split_once(' ').and_then(|(n, seed)| Some((n.parse().ok()?, seed.parse().ok()?)));
    let (bytes, seed) =
        asked.ok_or_else(|| io::Error::other(format!("asked for {line:?}, not for `bytes seed`")))?;
    give(stream.get_mut(), Random::new(seed), bytes).await?;
    stream.shutdown().await
}

async fn give(stream: &mut TcpStream, mut random: Random, bytes: u64) -> io::Result<String> {
    let (mut buffer, mut hash, mut left) = (vec![0; CHUNK], Sha256::new(), bytes);
    while left > 0 {
        let part = random.next(&mut buffer, left);
        hash.update(part);
        stream.write_all(part).await?;
        left -= u64::try_from(part.len()).unwrap_or(left);
    }
    Ok(hex(hash))
}

async fn take(stream: &mut TcpStream) -> io::Result<(u64, String)> {
    let (mut buffer, mut hash, mut bytes) = (vec![0; CHUNK], Sha256::new(), 0);
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok((bytes, hex(hash)));
        }
        hash.update(buffer.get(..length).unwrap_or_default());
        bytes += u64::try_from(length).unwrap_or(0);
    }
}

fn hash(mut random: Random, bytes: u64) -> String {
    let (mut buffer, mut hash, mut left) = (vec![0; CHUNK], Sha256::new(), bytes);
    while left > 0 {
        let part = random.next(&mut buffer, left);
        hash.update(part);
        left -= u64::try_from(part.len()).unwrap_or(left);
    }
    hex(hash)
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Bytes without repetition (xorshift): not secret, but quick.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Zero would stay zero.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Fills the buffer; returns as much of it as is wanted.
    fn next<'a>(&mut self, buffer: &'a mut [u8], left: u64) -> &'a [u8] {
        for word in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.iter_mut().zip(self.0.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
        let length = usize::try_from(left).unwrap_or(buffer.len()).min(buffer.len());
        buffer.get(..length).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_stream() {
        assert_eq!(hash(Random::new(1), 100_000), hash(Random::new(1), 100_000));
        assert_ne!(hash(Random::new(1), 100_000), hash(Random::new(2), 100_000));
        assert_ne!(hash(Random::new(1), 100_000), hash(Random::new(1), 99_999));
        assert_eq!(hash(Random::new(0), 0), hex(Sha256::new()));
    }
}

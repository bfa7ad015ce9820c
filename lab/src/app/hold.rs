//! A client that holds one connection and notices the moment it breaks.

use std::io;
use std::time::Duration;

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::report::{self, Verdict, millis};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// A line echo, `host:port`.
    to: String,
    /// Ends, well, after so many seconds.
    #[arg(long)]
    duration: Option<f64>,
    /// Milliseconds between two lines.
    #[arg(long, default_value_t = 100)]
    interval: u64,
    /// An echo that takes longer (milliseconds) is a broken connection.
    #[arg(long, default_value_t = 5000)]
    limit: u64,
}

pub(crate) async fn run(args: Args) -> io::Result<Verdict> {
    let begun = Instant::now();
    let limit = Duration::from_millis(args.limit);
    let broken = |lines: u64, err: io::Error| {
        report::line(
            &json!({ "broken": err.to_string(), "lines": lines, "after_ms": millis(begun.elapsed()) }),
        );
        Ok(Verdict::Bad)
    };
    let stream = match timeout(limit, TcpStream::connect(&args.to)).await.unwrap_or_else(|_| Err(late())) {
        Ok(stream) => stream,
        Err(err) => return broken(0, err),
    };
    stream.set_nodelay(true)?;
    report::line(&json!({ "open": args.to, "from": stream.local_addr()?, "ms": millis(begun.elapsed()) }));
    let mut stream = BufReader::new(stream);
    let mut tick = tokio::time::interval(Duration::from_millis(args.interval.max(1)));
    let mut end = std::pin::pin!(async {
        match args.duration {
            Some(seconds) => tokio::time::sleep(Duration::from_secs_f64(seconds.max(0.0))).await,
            None => std::future::pending().await,
        }
    });
    let mut stop = std::pin::pin!(report::stopped());
    let mut lines = 0;
    loop {
        // Between two lines nothing is to be read: whatever comes is the end of the connection.
        tokio::select! {
            biased;
            () = &mut end => break,
            stopped = &mut stop => { stopped?; break }
            read = stream.fill_buf() => {
                let err = match read {
                    Ok([]) => io::ErrorKind::UnexpectedEof.into(),
                    Ok(_) => io::Error::other("bytes that were not asked for"),
                    Err(err) => err,
                };
                return broken(lines, err);
            }
            _ = tick.tick() => {}
        }
        let sent = Instant::now();
        match timeout(limit, exchange(&mut stream, lines)).await.unwrap_or_else(|_| Err(late())) {
            Ok(by) => report::line(&json!({ "line": lines, "by": by, "ms": millis(sent.elapsed()) })),
            Err(err) => return broken(lines, err),
        }
        lines += 1;
    }
    report::line(&json!({ "closed": args.to, "lines": lines, "after_ms": millis(begun.elapsed()) }));
    Ok(Verdict::Good)
}

/// Sends a line and takes its echo; says by whom.
async fn exchange(stream: &mut BufReader<TcpStream>, number: u64) -> io::Result<String> {
    stream.get_mut().write_all(format!("hold {number}\n").as_bytes()).await?;
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    match line.trim_end().strip_suffix(&format!(" hold {number}")) {
        Some(by) => Ok(by.to_owned()),
        None => Err(io::Error::other(format!("the echo is not what was sent: {line:?}"))),
    }
}

fn late() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "no answer in time")
}

//! What a tunnel costs: CPU seconds of both its ends, in bulk and in small answers.
//!
//! `cargo bench -p ambit-wire --bench tunnel -- [bulk|ask|plain] [ROUNDS]`. Client and server are threads of
//! their own and not counted; each end of the tunnel is one thread, as one worker of ztunnel. The ways are
//! measured in alternation, and medians are printed: the machine's mood is in all of them alike.
#![expect(clippy::print_stdout, reason = "a benchmark reports to who started it")]
#![expect(clippy::unwrap_used, reason = "a benchmark that fails must stop")]
#![expect(clippy::as_conversions, clippy::indexing_slicing, reason = "figures for the eye")]

use std::{
    env::args,
    future::pending,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use ambit_fixtures::ca::TestCa;
use ambit_model::identity::Identity;
use ambit_wire::{
    copy::{Meter, both_ways},
    hbone::{self, Connect, Connection, Settings, Transport, headers::parse_authority},
    spawn::Spawner,
    tls::{stream, unnamed},
};
use http::HeaderMap;
use nix::sys::{
    resource::{UsageWho, getrusage},
    time::TimeValLike as _,
};
use rustls::{ClientConfig, ServerConfig};
use tokio_rustls::{TlsAcceptor, TlsConnector};

/// How the two ends of the tunnel talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Our own record layer.
    Ours,
    /// rustls' record layer, through tokio-rustls.
    Rustls,
    /// HTTP/2 in the clear: the price of TLS is the difference.
    Clear,
    /// One copy between two sockets, no tunnel.
    Plain,
}

struct Configs {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Configs {
    fn new() -> Self {
        let ca = TestCa::new();
        let identity = |name: &str| Identity::new("cluster.local", "ns", name);
        let (server, client) = (ca.certificate(&identity("b")), ca.certificate(&identity("a")));
        let mut server = (*server.server_config()).clone();
        server.enable_secret_extraction = true;
        let expected: Arc<[Identity]> = [identity("b")].into();
        let mut client = (*client.client_config(expected)).clone();
        client.enable_secret_extraction = true;
        Self { server: Arc::new(server), client: Arc::new(client) }
    }
}

/// CPU of this thread, or of all, so far: user, system, in seconds; and how often it slept.
fn usage(who: UsageWho) -> (f64, f64, i64) {
    let usage = getrusage(who).unwrap();
    let seconds = |time: nix::sys::time::TimeVal| time.num_microseconds() as f64 / 1e6;
    (seconds(usage.user_time()), seconds(usage.system_time()), usage.voluntary_context_switches())
}

#[expect(clippy::disallowed_methods, reason = "a benchmark is its own supervisor")]
fn task(future: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(future);
}

/// A thread with a runtime of its own that runs `body` until told to stop, and then tells what it used.
struct Worker {
    stop: Option<tokio::sync::oneshot::Sender<()>>,
    used: thread::JoinHandle<(f64, f64, i64)>,
}

impl Worker {
    fn start(body: impl Future<Output = ()> + Send + 'static) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let used = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! { () = body => {}, _ = stopped => {} }
            });
            usage(UsageWho::RUSAGE_THREAD)
        });
        Self { stop: Some(stop), used }
    }

    fn stop(mut self) -> (f64, f64, i64) {
        let _ = self.stop.take().unwrap().send(());
        self.used.join().unwrap()
    }
}

/// Both ends of a tunnel between `listen` and `to`.
fn tunnel(way: Way, configs: &Configs, listen: TcpListener, to: SocketAddr) -> Vec<Worker> {
    listen.set_nonblocking(true).unwrap();
    if way == Way::Plain {
        return vec![Worker::start(async move {
            let listen = tokio::net::TcpListener::from_std(listen).unwrap();
            loop {
                let (near, _) = listen.accept().await.unwrap();
                task(async move {
                    let far = tokio::net::TcpStream::connect(to).await.unwrap();
                    near.set_nodelay(true).unwrap();
                    far.set_nodelay(true).unwrap();
                    both_ways(near, far, Arc::<Meter>::default()).await;
                });
            }
        })];
    }
    let middle = TcpListener::bind("127.0.0.1:0").unwrap();
    middle.set_nonblocking(true).unwrap();
    let between = middle.local_addr().unwrap();
    let (server, client) = (configs.server.clone(), configs.client.clone());
    let far = Worker::start(async move {
        let middle = tokio::net::TcpListener::from_std(middle).unwrap();
        loop {
            let (tcp, _) = middle.accept().await.unwrap();
            tcp.set_nodelay(true).unwrap();
            let server = server.clone();
            task(async move {
                match way {
                    Way::Ours => serve(stream::accept(server, tcp).await.unwrap(), to).await,
                    Way::Rustls => serve(TlsAcceptor::from(server).accept(tcp).await.unwrap(), to).await,
                    Way::Clear | Way::Plain => serve(tcp, to).await,
                }
            });
        }
    });
    let near = Worker::start(async move {
        let listen = tokio::net::TcpListener::from_std(listen).unwrap();
        let tcp = tokio::net::TcpStream::connect(between).await.unwrap();
        tcp.set_nodelay(true).unwrap();
        let connection = match way {
            Way::Ours => connected(stream::connect(client, unnamed(), tcp).await.unwrap()).await,
            Way::Rustls => connected(TlsConnector::from(client).connect(unnamed(), tcp).await.unwrap()).await,
            Way::Clear | Way::Plain => connected(tcp).await,
        };
        loop {
            let (app, _) = listen.accept().await.unwrap();
            app.set_nodelay(true).unwrap();
            let connection = connection.clone();
            task(async move {
                let authority = parse_authority("10.0.0.9:80").unwrap();
                let (stream, _) =
                    connection.open(Connect { authority, headers: HeaderMap::new() }).await.unwrap();
                both_ways(app, stream, Arc::<Meter>::default()).await;
            });
        }
    });
    vec![near, far]
}

async fn serve(io: impl Transport, to: SocketAddr) {
    let take = |incoming: hbone::Incoming| {
        task(async move {
            let app = tokio::net::TcpStream::connect(to).await.unwrap();
            app.set_nodelay(true).unwrap();
            both_ways(app, incoming.accept(None).unwrap(), Arc::<Meter>::default()).await;
        });
    };
    let _ = hbone::serve(io, &Settings::default(), take, pending(), pending()).await;
}

async fn connected(io: impl Transport + Send + 'static) -> Connection {
    let spawner = Spawner::new(|_, future| task(future));
    hbone::connect(io, Vec::new(), &Settings::default(), &spawner).await.unwrap()
}

/// Sends `bytes` through, as fast as it goes; gives the tunnel's CPU seconds per GB, the kernel's part of
/// them, those of all with client and server, and GB/s.
fn bulk(way: Way, configs: &Configs, streams: usize, bytes: usize) -> [f64; 4] {
    let sink = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap();
    let (to, at) = (sink.local_addr().unwrap(), listen.local_addr().unwrap());
    let workers = tunnel(way, configs, listen, to);
    let each = bytes / streams;
    let before = usage(UsageWho::RUSAGE_SELF);
    let start = Instant::now();
    let sinks = thread::spawn(move || {
        let drains: Vec<_> = (0..streams)
            .map(|_| {
                let (mut from, _) = sink.accept().unwrap();
                thread::spawn(move || {
                    let mut piece = vec![0; 256 * 1024];
                    let mut got = 0;
                    loop {
                        match from.read(&mut piece).unwrap() {
                            0 => return got,
                            read => got += read,
                        }
                    }
                })
            })
            .collect();
        drains.into_iter().map(|drain| drain.join().unwrap()).sum::<usize>()
    });
    let sources: Vec<_> = (0..streams)
        .map(|_| {
            thread::spawn(move || {
                let mut into = TcpStream::connect(at).unwrap();
                let piece = vec![7; 256 * 1024];
                let mut left = each;
                while left > 0 {
                    let now = left.min(piece.len());
                    into.write_all(&piece[..now]).unwrap();
                    left -= now;
                }
            })
        })
        .collect();
    sources.into_iter().for_each(|source| source.join().unwrap());
    assert_eq!(sinks.join().unwrap(), each * streams);
    let wall = start.elapsed().as_secs_f64();
    let gigabytes = (each * streams) as f64 / 1e9;
    let after = usage(UsageWho::RUSAGE_SELF);
    let all = after.0 + after.1 - before.0 - before.1;
    let used: Vec<_> = workers.into_iter().map(Worker::stop).collect();
    let user: f64 = used.iter().map(|used| used.0).sum();
    let system: f64 = used.iter().map(|used| used.1).sum();
    [(user + system) / gigabytes, system / gigabytes, all / gigabytes, gigabytes / wall]
}

/// `clients` ask for 1 KiB at full speed, or all together at `rate` a second; gives CPU µs per question,
/// wake-ups per question, questions per second, and the median answer in µs.
fn ask(way: Way, configs: &Configs, clients: usize, rate: Option<f64>, time: Duration) -> [f64; 4] {
    let sink = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = TcpListener::bind("127.0.0.1:0").unwrap();
    let (to, at) = (sink.local_addr().unwrap(), listen.local_addr().unwrap());
    let workers = tunnel(way, configs, listen, to);
    let stop = Arc::new(AtomicBool::new(false));
    // One thread on each side serves everybody: hundreds of threads would measure the scheduler.
    let answers = Worker::start(async move {
        sink.set_nonblocking(true).unwrap();
        let sink = tokio::net::TcpListener::from_std(sink).unwrap();
        loop {
            let (mut from, _) = sink.accept().await.unwrap();
            from.set_nodelay(true).unwrap();
            task(async move {
                use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
                let mut question = [0; 100];
                while from.read_exact(&mut question).await.is_ok() {
                    if from.write_all(&[1; 1024]).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    let latencies = Arc::new(Mutex::new(Vec::new()));
    let (ready, is_ready) = mpsc::channel();
    let asking = {
        let (stop, latencies) = (stop.clone(), latencies.clone());
        Worker::start(async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            for index in 0..clients {
                let (stop, latencies, ready) = (stop.clone(), latencies.clone(), ready.clone());
                task(async move {
                    let mut into = tokio::net::TcpStream::connect(at).await.unwrap();
                    into.set_nodelay(true).unwrap();
                    let period = rate.map(|rate| Duration::from_secs_f64(clients as f64 / rate));
                    let offset = period.map(|period| period * index as u32 / clients as u32);
                    let mut next = tokio::time::Instant::now() + offset.unwrap_or_default();
                    let mut mine = Vec::new();
                    let mut answer = [0; 1024];
                    while !stop.load(Ordering::Relaxed) {
                        if let Some(period) = period {
                            tokio::time::sleep_until(next).await;
                            next += period;
                        }
                        let start = Instant::now();
                        into.write_all(&[2; 100]).await.unwrap();
                        into.read_exact(&mut answer).await.unwrap();
                        mine.push(start.elapsed().as_secs_f64() * 1e6);
                    }
                    latencies.lock().unwrap().extend(mine);
                    let _ = ready.send(());
                });
            }
            pending::<()>().await;
        })
    };
    thread::park_timeout(time);
    stop.store(true, Ordering::Relaxed);
    for _ in 0..clients {
        is_ready.recv_timeout(Duration::from_secs(5)).unwrap();
    }
    let used: Vec<_> = workers.into_iter().map(Worker::stop).collect();
    asking.stop();
    answers.stop();
    let mut latencies = latencies.lock().unwrap();
    latencies.sort_by(f64::total_cmp);
    let count = latencies.len() as f64;
    let cpu: f64 = used.iter().map(|used| used.0 + used.1).sum();
    let sleeps: i64 = used.iter().map(|used| used.2).sum();
    [cpu * 1e6 / count, sleeps as f64 / count, count / time.as_secs_f64(), latencies[latencies.len() / 2]]
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Measures all `ways` in turn, `rounds` times, and prints the medians.
fn alternate(
    title: &str,
    columns: [&str; 4],
    ways: &[Way],
    rounds: usize,
    measure: impl Fn(Way) -> [f64; 4],
) {
    let mut figures = vec![vec![]; ways.len()];
    for _ in 0..rounds {
        for (&way, figures) in ways.iter().zip(&mut figures) {
            figures.push(measure(way));
        }
    }
    println!("{title:<26}{}", columns.map(|column| format!("{column:>14}")).concat());
    for (way, figures) in ways.iter().zip(&figures) {
        let medians = [0, 1, 2, 3].map(|column| median(figures.iter().map(|one| one[column]).collect()));
        println!("  {:<24}{}", format!("{way:?}"), medians.map(|one| format!("{one:>14.3}")).concat());
    }
}

fn main() {
    let words: Vec<String> = args().skip(1).filter(|word| word != "--bench").collect();
    let asked = |word: &str| {
        words.iter().all(|one| one.parse::<usize>().is_ok()) || words.iter().any(|one| one == word)
    };
    let rounds = words.iter().find_map(|word| word.parse().ok()).unwrap_or(5);
    let configs = Configs::new();
    let bulk_columns = ["CPU s/GB", "kernel", "all s/GB", "GB/s"];
    let ask_columns = ["CPU us/req", "sleeps/req", "req/s", "p50 us"];
    let tunnels = [Way::Ours, Way::Rustls, Way::Clear];
    if asked("bulk") {
        for streams in [1, 8] {
            let title = format!("bulk, {streams} streams");
            alternate(&title, bulk_columns, &tunnels, rounds, |way| bulk(way, &configs, streams, 1 << 30));
        }
    }
    if asked("ask") {
        let time = Duration::from_secs(2);
        alternate("64 ask at full speed", ask_columns, &tunnels, rounds, |way| {
            ask(way, &configs, 64, None, time)
        });
        alternate("64 ask 3200 times a s", ask_columns, &tunnels, rounds, |way| {
            ask(way, &configs, 64, Some(3200.0), time)
        });
    }
    if asked("plain") {
        alternate("plain bulk", bulk_columns, &[Way::Plain], rounds, |way| bulk(way, &configs, 1, 4 << 30));
        let time = Duration::from_secs(2);
        alternate("plain 64 ask at full speed", ask_columns, &[Way::Plain], rounds, |way| {
            ask(way, &configs, 64, None, time)
        });
    }
}

//! Where strangers are let in: places for connections of whom nothing is known yet, shared between the addresses that
//! they come from.

use std::{
    collections::HashMap,
    future, io,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tracing::{debug, warn};

/// A listener with a number of places.
///
/// An address holds at most half as many places as are free, so one alone gets a third of them, and even many together
/// leave some. There is no fixed share: a load balancer may stand for a thousand tunnels, and a node for all of its own.
#[derive(Debug)]
pub struct Entrance {
    listener: TcpListener,
    places: Places,
}

/// Kept for as long as the connection is a stranger's, or lives.
#[derive(Debug)]
pub struct Place {
    from: IpAddr,
    places: Places,
    _permit: OwnedSemaphorePermit,
}

/// How many connections were closed because their address holds its share. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TurnedAway(Places);

#[derive(Clone, Debug)]
struct Places(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    free: Arc<Semaphore>,
    /// Only addresses that hold a place: no more than there are places.
    held: Mutex<HashMap<IpAddr, Share>>,
    turned_away: AtomicU64,
}

#[derive(Debug, Default)]
struct Share {
    places: usize,
    is_told: bool,
}

impl Entrance {
    /// Lets in `most` at once.
    pub fn new(listener: TcpListener, most: usize) -> Self {
        let free = Arc::new(Semaphore::new(most));
        let shared = Shared { free, held: Mutex::default(), turned_away: AtomicU64::new(0) };
        Self { listener, places: Places(Arc::new(shared)) }
    }

    /// The next connection, and its place.
    pub async fn accept(&self) -> io::Result<(TcpStream, SocketAddr, Place)> {
        // First a place, then a connection: those over the limit wait in the kernel's queue.
        let Ok(mut permit) = Arc::clone(&self.places.0.free).acquire_owned().await else {
            return future::pending().await;
        };
        loop {
            let (stream, from) = self.listener.accept().await?;
            match self.places.take(permit, from.ip().to_canonical()) {
                Ok(place) => return Ok((stream, from, place)),
                // The connection is closed: to wait, it would need a place.
                Err(still_free) => permit = still_free,
            }
        }
    }

    /// What is counted.
    pub fn turned_away(&self) -> TurnedAway {
        TurnedAway(self.places.clone())
    }
}

impl TurnedAway {
    /// Until now.
    pub fn count(&self) -> u64 {
        self.0.0.turned_away.load(Relaxed)
    }
}

impl Places {
    fn take(&self, permit: OwnedSemaphorePermit, from: IpAddr) -> Result<Place, OwnedSemaphorePermit> {
        let mut held = self.held();
        let free = self.0.free.available_permits() + permit.num_permits();
        let share = held.entry(from).or_default();
        if share.places * 2 < free {
            share.places += 1;
            return Ok(Place { from, places: self.clone(), _permit: permit });
        }
        self.0.turned_away.fetch_add(1, Relaxed);
        if share.is_told {
            debug!(client.addr = %from, "Connection turned away: its address holds its share of the places");
        } else {
            share.is_told = true;
            warn!(
                client.addr = %from, held = share.places, free,
                "Connections turned away: their address holds its share of the places; what opens connections there and says nothing?"
            );
        }
        Err(permit)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<IpAddr, Share>> {
        self.0.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut held = self.places.held();
        if let Some(share) = held.get_mut(&self.from) {
            share.places = share.places.saturating_sub(1);
            if share.places == 0 {
                held.remove(&self.from);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncReadExt as _, net::TcpSocket, time::timeout};

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    async fn entrance(most: usize) -> Entrance {
        Entrance::new(TcpListener::bind("127.0.0.1:0").await.unwrap(), most)
    }

    async fn dial(entrance: &Entrance, from: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(format!("{from}:0").parse().unwrap()).unwrap();
        socket.connect(entrance.listener.local_addr().unwrap()).await.unwrap()
    }

    async fn let_in(entrance: &Entrance) -> (IpAddr, Place) {
        let (_, from, place) = timeout(DEADLINE, entrance.accept()).await.unwrap().unwrap();
        (from.ip(), place)
    }

    #[tokio::test]
    async fn one_address_gets_a_third_and_others_still_get_in() {
        let entrance = entrance(9).await;
        let (mut strangers, mut places) = (Vec::new(), Vec::new());
        for _ in 0..3 {
            strangers.push(dial(&entrance, "127.0.0.2").await);
            places.push(let_in(&entrance).await);
        }
        let mut greedy = dial(&entrance, "127.0.0.2").await;
        let _other = dial(&entrance, "127.0.0.3").await;
        let (from, _place) = let_in(&entrance).await;
        assert_eq!(from.to_string(), "127.0.0.3");
        assert_eq!(entrance.turned_away().count(), 1);
        // It is closed, and does not wait.
        assert!(matches!(timeout(DEADLINE, greedy.read(&mut [0])).await.unwrap(), Ok(0) | Err(_)));
        places.pop();
        let _again = dial(&entrance, "127.0.0.2").await;
        assert_eq!(let_in(&entrance).await.0.to_string(), "127.0.0.2");
        assert_eq!(entrance.turned_away().count(), 1);
    }

    #[tokio::test]
    async fn many_addresses_together_leave_some() {
        let entrance = entrance(90).await;
        let mut held = Vec::new();
        for last in 2..8 {
            let from = format!("127.0.0.{last}");
            for _ in 0..40 {
                let stream = dial(&entrance, &from).await;
                let before = entrance.turned_away().count();
                tokio::select! {
                    biased;
                    accepted = entrance.accept() => held.push((stream, accepted.unwrap().2)),
                    // It was turned away, and nobody else comes.
                    () = async {
                        while entrance.turned_away().count() == before {
                            tokio::task::yield_now().await;
                        }
                    } => {}
                }
            }
        }
        let _other = dial(&entrance, "127.0.0.1").await;
        assert_eq!(let_in(&entrance).await.0.to_string(), "127.0.0.1");
        assert!(held.len() > 60, "{}", held.len());
    }

    #[tokio::test]
    async fn who_has_left_is_forgotten() {
        let entrance = entrance(3).await;
        let _one = dial(&entrance, "127.0.0.2").await;
        let (_, place) = let_in(&entrance).await;
        assert_eq!(entrance.places.held().len(), 1);
        drop(place);
        assert!(entrance.places.held().is_empty());
        assert_eq!(entrance.places.0.free.available_permits(), 3);
    }
}

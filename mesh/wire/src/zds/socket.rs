//! A SEQPACKET unix socket that carries packets and, beside them, descriptors.
//!
//! A descriptor that is received is owned at once and closed with its owner: no path, error or not,
//! leaves one behind.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::net::{
    self as unix, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::{Interest, unix::AsyncFd};

use super::frame::LIMIT;

/// Room for descriptors in one packet. One is the most the protocol knows; a peer that sends more is
/// caught with them in hand, one that sends more than this by the kernel's truncation mark.
const DESCRIPTORS: usize = 4;

/// Connections that wait to be accepted: more tunnels than a node ever has.
const BACKLOG: i32 = 16;

const NONBLOCKING: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// One connected socket. Receiving can be cancelled without losing a packet.
#[derive(Debug)]
pub struct Packets(AsyncFd<OwnedFd>);

/// A listening socket.
#[derive(Debug)]
pub struct Listener(AsyncFd<OwnedFd>);

/// One packet as it came.
#[derive(Debug)]
pub struct Packet {
    /// Its bytes, at most [`LIMIT`].
    pub bytes: Vec<u8>,
    /// The descriptor beside it.
    pub descriptor: Option<OwnedFd>,
}

/// Why nothing could be received.
#[derive(Debug, thiserror::Error)]
pub enum ReceiveError {
    /// The peer hung up.
    #[error("the peer closed the connection")]
    Closed,
    /// A packet longer than the protocol's.
    #[error("a packet longer than {LIMIT} bytes was cut")]
    Truncated,
    /// More descriptors than the protocol's one.
    #[error("a packet carried more than one descriptor")]
    TooManyDescriptors,
    /// The kernel could not hand a descriptor over.
    #[error("a descriptor was lost; is the limit of open files (ulimit -n) reached?")]
    DescriptorLost,
    /// The system refused.
    #[error("receiving failed")]
    Io(#[source] io::Error),
}

impl Packets {
    /// Connects to the listener at `path`.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let socket = unix::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, NONBLOCKING, None)?;
        unix::connect(&socket, &SocketAddrUnix::new(path)?)?;
        Self::over(socket)
    }

    /// Two ends connected to each other.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = unix::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, NONBLOCKING, None)?;
        Ok((Self::over(a)?, Self::over(b)?))
    }

    fn over(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self(watched(socket)?))
    }

    /// Sends one packet, with a descriptor beside it if there is one. The descriptor stays the caller's.
    pub async fn send(&self, bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        self.send_many(bytes, descriptor.as_slice()).await
    }

    async fn send_many(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let sent = self
            .0
            .async_io(Interest::WRITABLE, |socket| {
                let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
                let mut beside = SendAncillaryBuffer::new(&mut room);
                if !descriptors.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(descriptors)) {
                    return Err(io::ErrorKind::InvalidInput.into());
                }
                // A peer that is gone must be an error here, not a SIGPIPE.
                Ok(unix::sendmsg(socket, &[IoSlice::new(bytes)], &mut beside, SendFlags::NOSIGNAL)?)
            })
            .await?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    /// Receives one packet.
    pub async fn receive(&self) -> Result<Packet, ReceiveError> {
        let (bytes, mut descriptors, flags) =
            self.0.async_io(Interest::READABLE, receive).await.map_err(ReceiveError::from_io)?;
        if flags.contains(ReturnFlags::TRUNC) {
            return Err(ReceiveError::Truncated);
        }
        if descriptors.len() > 1 {
            return Err(ReceiveError::TooManyDescriptors);
        }
        if flags.contains(ReturnFlags::CTRUNC) {
            return Err(ReceiveError::DescriptorLost);
        }
        // End of file and an empty packet look alike, and no message of the protocol is empty.
        if bytes.is_empty() {
            return Err(ReceiveError::Closed);
        }
        Ok(Packet { bytes, descriptor: descriptors.pop() })
    }
}

fn receive(socket: &OwnedFd) -> io::Result<(Vec<u8>, Vec<OwnedFd>, ReturnFlags)> {
    let mut bytes = vec![0; LIMIT];
    let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut beside = RecvAncillaryBuffer::new(&mut room);
    let into = &mut [IoSliceMut::new(&mut bytes)];
    let got = unix::recvmsg(socket, into, &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = Vec::new();
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    bytes.truncate(got.bytes);
    Ok((bytes, descriptors, got.flags))
}

impl ReceiveError {
    fn from_io(error: io::Error) -> Self {
        let gone = matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe);
        if gone { Self::Closed } else { Self::Io(error) }
    }
}

impl Listener {
    /// Listens at `path`, in the place of whatever socket a former process left there.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let socket = unix::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, NONBLOCKING, None)?;
        unix::bind(&socket, &SocketAddrUnix::new(path)?)?;
        unix::listen(&socket, BACKLOG)?;
        Ok(Self(watched(socket)?))
    }

    /// Waits for the next connection.
    pub async fn accept(&self) -> io::Result<Packets> {
        let socket =
            self.0.async_io(Interest::READABLE, |socket| Ok(unix::accept_with(socket, NONBLOCKING)?)).await?;
        Packets::over(socket)
    }
}

#[expect(unsafe_code, reason = "tokio asks its caller to vouch that the descriptor stays what it is")]
fn watched(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the `AsyncFd` owns the descriptor, nothing here ever replaces or closes it before, and
    // an `OwnedFd` names the same open socket for as long as it lives.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

impl AsFd for Packets {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// Open descriptors of this process, for tests that look for leaks.
#[cfg(test)]
pub(super) fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn namespace() -> File {
        File::open("/proc/self/ns/net").unwrap()
    }

    #[tokio::test]
    async fn a_descriptor_travels_and_is_closed_on_exec() {
        let (a, b) = Packets::pair().unwrap();
        a.send(b"hi", Some(namespace().as_fd())).await.unwrap();
        let packet = b.receive().await.unwrap();
        assert_eq!(packet.bytes, b"hi");
        let flags = rustix::io::fcntl_getfd(packet.descriptor.unwrap()).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[tokio::test]
    async fn packets_keep_their_edges() {
        let (a, b) = Packets::pair().unwrap();
        a.send(b"one", None).await.unwrap();
        a.send(b"two", None).await.unwrap();
        assert_eq!(b.receive().await.unwrap().bytes, b"one");
        assert_eq!(b.receive().await.unwrap().bytes, b"two");
    }

    #[tokio::test]
    async fn a_lying_peer_leaves_no_descriptor_behind() {
        let (a, b) = Packets::pair().unwrap();
        let ns = namespace();
        let before = open_descriptors();
        for _ in 0..50 {
            a.send_many(b"two", &[ns.as_fd(), ns.as_fd()]).await.unwrap();
            assert!(matches!(b.receive().await, Err(ReceiveError::TooManyDescriptors)));
            a.send_many(&[7; LIMIT + 1], &[ns.as_fd()]).await.unwrap();
            assert!(matches!(b.receive().await, Err(ReceiveError::Truncated)));
            a.send_many(b"", &[ns.as_fd()]).await.unwrap();
            assert!(matches!(b.receive().await, Err(ReceiveError::Closed)));
        }
        assert_eq!(open_descriptors(), before);
    }

    #[tokio::test]
    async fn more_descriptors_than_there_is_room_for_are_refused() {
        let (a, b) = Packets::pair().unwrap();
        let ns = namespace();
        let mut room = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
        let many = [ns.as_fd(); 20];
        let before = open_descriptors();
        let mut beside = SendAncillaryBuffer::new(&mut room);
        assert!(beside.push(SendAncillaryMessage::ScmRights(&many)));
        unix::sendmsg(&a, &[IoSlice::new(b"x")], &mut beside, SendFlags::empty()).unwrap();
        assert!(matches!(b.receive().await, Err(ReceiveError::TooManyDescriptors)));
        assert_eq!(open_descriptors(), before);
    }

    #[tokio::test]
    async fn a_hang_up_is_noticed_by_both_operations() {
        let (a, b) = Packets::pair().unwrap();
        drop(a);
        assert!(matches!(b.receive().await, Err(ReceiveError::Closed)));
        assert_eq!(b.send(b"x", None).await.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("z.sock");
        drop(Listener::bind(&path).unwrap());
        assert!(path.exists(), "a socket's file outlives it");
        let listener = Listener::bind(&path).unwrap();
        let a = Packets::connect(&path).unwrap();
        let b = listener.accept().await.unwrap();
        a.send(b"x", None).await.unwrap();
        assert_eq!(b.receive().await.unwrap().bytes, b"x");
    }

    #[tokio::test]
    async fn a_path_that_is_too_long_or_absent_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Packets::connect(&dir.path().join("absent")).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(Listener::bind(&dir.path().join("x".repeat(200))).is_err());
    }
}

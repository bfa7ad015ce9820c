//! Queries that are forwarded, and what comes back.

use std::collections::HashSet;

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RecordType},
};
use tokio::net::TcpListener;

use super::*;

/// Sockets of this namespace.
struct Here;

impl Sockets for Here {
    fn udp(&self, to: SocketAddr) -> io::Result<UdpSocket> {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = std::net::UdpSocket::bind(any)?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket)
    }

    fn tcp(&self, to: SocketAddr) -> io::Result<TcpSocket> {
        if to.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }
    }
}

fn question() -> (Asked, Vec<u8>) {
    let mut message = Message::new(0x0102, MessageType::Query, OpCode::Query);
    message.add_query(Query::query(Name::from_ascii("example.org.").unwrap(), RecordType::TXT));
    let packet = message.to_vec().unwrap();
    (Asked::read(&packet).unwrap(), packet)
}

/// The response to `packet` that says nothing but is unmistakably one, with a last byte of its own.
fn response(packet: &[u8], mark: u8) -> Vec<u8> {
    let mut response = packet.to_vec();
    response[2] |= 0x80;
    response.push(mark);
    response
}

fn forwarder(nameservers: &[SocketAddr]) -> Forwarder<Here> {
    let conf =
        ResolvConf { nameservers: nameservers.to_vec(), patience: Duration::from_millis(300), attempts: 2 };
    Forwarder::new(Here, Arc::new(conf))
}

async fn nameserver() -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    (socket, address)
}

/// A port on which nobody listens.
async fn nobody() -> SocketAddr {
    nameserver().await.1
}

#[tokio::test]
async fn an_answer_comes_back_as_it_was_given_with_the_clients_id() {
    let (socket, address) = nameserver().await;
    let serve = async {
        let mut packet = [0; 600];
        let (length, client) = socket.recv_from(&mut packet).await.unwrap();
        socket.send_to(&response(&packet[..length], 42), client).await.unwrap();
    };
    let (asked, packet) = question();
    let forwarder = forwarder(&[address]);
    let (answer, ()) = tokio::join!(forwarder.ask(&asked, &packet, Protocol::Udp), serve);
    assert_eq!(answer.unwrap(), response(&packet, 42));
}

#[tokio::test]
async fn answers_with_another_id_question_or_source_are_not_believed() {
    let (socket, address) = nameserver().await;
    let (stranger, _) = nameserver().await;
    let serve = async {
        let mut packet = [0; 600];
        let (length, client) = socket.recv_from(&mut packet).await.unwrap();
        let good = response(&packet[..length], 1);
        let mut other_id = good.clone();
        other_id[0] ^= 0xff;
        let mut other_name = good.clone();
        other_name[13] ^= 0x01;
        // The stranger knows ID and question; its address gives it away.
        let forged = response(&packet[..length], 66);
        stranger.send_to(&forged, client).await.unwrap();
        for wrong in [&other_id[..], &other_name, &packet[..length], &[7; 3]] {
            socket.send_to(wrong, client).await.unwrap();
        }
        socket.send_to(&good, client).await.unwrap();
    };
    let (asked, packet) = question();
    let forwarder = forwarder(&[address]);
    let (answer, ()) = tokio::join!(forwarder.ask(&asked, &packet, Protocol::Udp), serve);
    assert_eq!(answer.unwrap(), response(&packet, 1));
}

#[tokio::test]
async fn ids_and_ports_are_drawn_for_each_question() {
    let (socket, address) = nameserver().await;
    let forwarder = forwarder(&[address]);
    let (asked, packet) = question();
    let (mut ids, mut ports) = (HashSet::new(), HashSet::new());
    for _ in 0..20 {
        let serve = async {
            let mut packet = [0; 600];
            let (length, client) = socket.recv_from(&mut packet).await.unwrap();
            socket.send_to(&response(&packet[..length], 0), client).await.unwrap();
            ([packet[0], packet[1]], client.port())
        };
        let (answer, (id, port)) = tokio::join!(forwarder.ask(&asked, &packet, Protocol::Udp), serve);
        answer.unwrap();
        ids.insert(id);
        ports.insert(port);
    }
    assert!(ids.len() > 15, "{ids:?}");
    assert!(ports.len() > 5, "{ports:?}");
}

#[tokio::test]
async fn the_next_nameserver_is_asked_and_remembered_when_one_does_not_answer() {
    let (silent, silent_address) = nameserver().await;
    let (socket, address) = nameserver().await;
    let forwarder = forwarder(&[nobody().await, silent_address, address]);
    let (asked, packet) = question();
    for _ in 0..2 {
        let serve = async {
            let mut packet = [0; 600];
            let (length, client) = socket.recv_from(&mut packet).await.unwrap();
            socket.send_to(&response(&packet[..length], 9), client).await.unwrap();
        };
        let (answer, ()) = tokio::join!(forwarder.ask(&asked, &packet, Protocol::Udp), serve);
        assert_eq!(answer.unwrap(), response(&packet, 9));
    }
    let mut heard = 0;
    while silent.try_recv_from(&mut [0; 600]).is_ok() {
        heard += 1;
    }
    assert_eq!(heard, 1, "the silent one is not asked first again");
}

#[tokio::test]
async fn when_nobody_answers_the_reason_is_told() {
    let (asked, packet) = question();
    let none = forwarder(&[]).ask(&asked, &packet, Protocol::Udp).await.unwrap_err();
    assert!(matches!(none, ForwardError::NoNameserver), "{none}");
    let (_silent, address) = nameserver().await;
    let silent = forwarder(&[address]).ask(&asked, &packet, Protocol::Udp).await.unwrap_err();
    assert!(matches!(silent, ForwardError::Silent { nameserver, .. } if nameserver == address), "{silent}");
    let refused = forwarder(&[nobody().await]).ask(&asked, &packet, Protocol::Tcp).await.unwrap_err();
    assert!(matches!(refused, ForwardError::Unreachable { .. }), "{refused}");
}

#[tokio::test]
async fn a_stream_is_asked_in_a_stream() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serve = async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut packet = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut packet).await.unwrap();
        let mut large = response(&packet, 5);
        large.resize(60_000, 5);
        // In pieces, as a slow nameserver would.
        for piece in framed(&large).unwrap().chunks(20_000) {
            stream.write_all(piece).await.unwrap();
        }
        stream
    };
    let (asked, packet) = question();
    let forwarder = forwarder(&[address]);
    let (answer, _stream) = tokio::join!(forwarder.ask(&asked, &packet, Protocol::Tcp), serve);
    let answer = answer.unwrap();
    assert_eq!((answer.len(), &answer[..2]), (60_000, &packet[..2]));
}

#[test]
fn a_message_too_long_for_a_stream_is_an_error() {
    assert!(framed(&vec![0; 65_536]).is_err());
    assert_eq!(framed(&[7]).unwrap(), [0, 1, 7]);
}

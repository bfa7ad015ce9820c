//! DNS messages, byte by byte, and bytes that are none.

use proptest::prelude::*;

use super::*;

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn read(message: &Message) -> Asked {
    Asked::read(&message.to_vec().unwrap()).unwrap()
}

fn reply_to(packet: &[u8]) -> Message {
    match Asked::read(packet) {
        Err(Unusable::Reply(reply)) => Message::from_vec(&reply).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn protocol_errors_are_answered_as_such() {
    let mut response = question("a.b.", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    let mut update = question("a.b.", RecordType::A);
    update.metadata.op_code = OpCode::Update;
    let mut two = question("a.b.", RecordType::A);
    two.add_query(Query::query(Name::from_ascii("c.").unwrap(), RecordType::A));
    let none = Message::new(0x1234, MessageType::Query, OpCode::Query);
    let mut cut = question("a.b.", RecordType::A).to_vec().unwrap();
    cut.truncate(15);
    let cases = [
        (response.to_vec().unwrap(), ResponseCode::FormErr),
        (update.to_vec().unwrap(), ResponseCode::NotImp),
        (two.to_vec().unwrap(), ResponseCode::FormErr),
        (none.to_vec().unwrap(), ResponseCode::FormErr),
        (cut, ResponseCode::FormErr),
    ];
    for (packet, code) in cases {
        let reply = reply_to(&packet).metadata;
        assert_eq!(
            (reply.id, reply.message_type, reply.response_code),
            (0x1234, MessageType::Response, code)
        );
    }
    assert_eq!(Asked::read(&[1, 2, 3]).unwrap_err(), Unusable::Ignore);
    assert_eq!(Asked::read(&[]).unwrap_err(), Unusable::Ignore);
}

#[test]
fn only_addresses_of_the_internet_are_candidates() {
    assert_eq!(read(&question("a.", RecordType::A)).family(), Some(Family::V4));
    assert_eq!(read(&question("a.", RecordType::AAAA)).family(), Some(Family::V6));
    for kind in
        [RecordType::SRV, RecordType::TXT, RecordType::CNAME, RecordType::ANY, RecordType::Unknown(999)]
    {
        assert_eq!(read(&question("a.", kind)).family(), None, "{kind}");
    }
    let mut chaos = question("a.", RecordType::A);
    for query in &mut chaos.queries {
        query.set_query_class(DNSClass::CH);
    }
    assert_eq!(read(&chaos).family(), None);
}

#[test]
fn names_are_compared_in_lower_case() {
    assert_eq!(read(&question("WeB.Shop.", RecordType::A)).name().as_deref(), Some("web.shop"));
    assert_eq!(read(&question("_x._tcp.a-b.", RecordType::A)).name().as_deref(), Some("_x._tcp.a-b"));
    assert_eq!(read(&question(".", RecordType::A)).name(), None);
    let mut strange = question("abc.", RecordType::A).to_vec().unwrap();
    // A label may hold any byte, a dot too.
    strange[14] = b'.';
    assert_eq!(Asked::read(&strange).unwrap().name(), None);
}

#[test]
fn types_are_a_closed_list_for_metrics() {
    assert_eq!(read(&question("a.", RecordType::SRV)).type_word(), "SRV");
    assert_eq!(read(&question("a.", RecordType::Unknown(12_345))).type_word(), "other");
}

#[test]
fn an_owned_answer_is_authoritative_and_short_lived() {
    let owned =
        Owned { canonical: None, addresses: vec!["10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap()] };
    let asked = read(&question("WEB.shop.", RecordType::A));
    let answer = Message::from_vec(&asked.owned(&owned, 512)).unwrap();
    let metadata = answer.metadata;
    assert!(metadata.authoritative && metadata.recursion_available && metadata.recursion_desired);
    assert_eq!(
        (metadata.id, metadata.response_code, metadata.truncation),
        (0x1234, ResponseCode::NoError, false)
    );
    assert_eq!(answer.queries.first().map(|query| query.name().to_ascii()).as_deref(), Some("WEB.shop."));
    let records: Vec<_> = answer.answers.iter().map(|record| (record.ttl, record.data.ip_addr())).collect();
    assert_eq!(records, [(30, "10.0.0.1".parse().ok()), (30, "10.0.0.2".parse().ok())]);
    assert!(answer.edns.is_none());
}

#[test]
fn an_empty_answer_is_no_error() {
    let asked = read(&question("web.shop.", RecordType::AAAA));
    let answer =
        Message::from_vec(&asked.owned(&Owned { canonical: None, addresses: Vec::new() }, 512)).unwrap();
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError);
    assert!(answer.metadata.authoritative && answer.answers.is_empty());
}

#[test]
fn a_name_without_its_search_domain_is_its_canonical_name() {
    let asked = read(&question("www.example.com.shop.svc.cluster.local.", RecordType::A));
    let owned = Owned {
        canonical: Some("www.example.com".to_owned()),
        addresses: vec!["240.0.0.1".parse().unwrap()],
    };
    let answer = Message::from_vec(&asked.owned(&owned, 512)).unwrap();
    let shown: Vec<_> = answer.answers.iter().map(ToString::to_string).collect();
    assert_eq!(
        shown,
        [
            "www.example.com.shop.svc.cluster.local. 30 IN CNAME www.example.com.",
            "www.example.com. 30 IN A 240.0.0.1"
        ]
    );
}

#[test]
fn what_does_not_fit_is_left_out_and_said_so() {
    let addresses: Vec<IpAddr> = (0..100).map(|n| IpAddr::from([10, 0, 0, n])).collect();
    let owned = Owned { canonical: None, addresses };
    let mut message = question("web.shop.", RecordType::A);
    let bare = read(&message);
    assert_eq!(bare.payload(), 512);
    let bytes = bare.owned(&owned, bare.payload());
    assert!(bytes.len() <= 512);
    let short = Message::from_vec(&bytes).unwrap();
    assert!(short.metadata.truncation && short.answers.len() < 100);
    let whole = Message::from_vec(&bare.owned(&owned, u16::MAX)).unwrap();
    assert!(!whole.metadata.truncation && whole.answers.len() == 100);
    // With EDNS a client takes more, and is told what we take.
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    let asked = read(&message);
    let answer = Message::from_vec(&asked.owned(&owned, asked.payload())).unwrap();
    assert_eq!((answer.answers.len(), answer.edns.map(|edns| edns.max_payload())), (100, Some(4096)));
}

#[test]
fn a_small_payload_is_taken_for_the_smallest() {
    let mut message = question("web.shop.", RecordType::A);
    let mut edns = Edns::new();
    edns.set_max_payload(100);
    message.set_edns(edns);
    assert_eq!(read(&message).payload(), 512);
}

#[test]
fn a_response_is_believed_only_if_it_repeats_the_question() {
    let asked = read(&question("web.shop.", RecordType::A));
    let with = |name: &str, kind: RecordType, change: fn(&mut Metadata)| {
        let mut message = question(name, kind);
        message.metadata.message_type = MessageType::Response;
        change(&mut message.metadata);
        asked.is_answered_by(&message.to_vec().unwrap(), 0x1234)
    };
    assert!(with("web.shop.", RecordType::A, |_| {}));
    assert!(with("WEB.Shop.", RecordType::A, |_| {}));
    assert!(!with("web.shop.", RecordType::AAAA, |_| {}));
    assert!(!with("evil.shop.", RecordType::A, |_| {}));
    assert!(!with("web.shop.", RecordType::A, |metadata| metadata.id = 1));
    assert!(!with("web.shop.", RecordType::A, |metadata| metadata.message_type = MessageType::Query));
    let mut bare = Message::new(0x1234, MessageType::Response, OpCode::Query);
    assert!(!asked.is_answered_by(&bare.to_vec().unwrap(), 0x1234));
    bare.metadata.response_code = ResponseCode::FormErr;
    assert!(asked.is_answered_by(&bare.to_vec().unwrap(), 0x1234));
    assert!(!asked.is_answered_by(&[0x12, 0x34], 0x1234));
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(packet in proptest::collection::vec(any::<u8>(), 0..600)) {
        exercise(&packet);
    }

    /// Most random bytes fail in the header; these get further.
    #[test]
    fn damaged_questions_are_read_or_refused(
        at in any::<prop::sample::Index>(), byte: u8, more in proptest::collection::vec(any::<u8>(), 0..40)
    ) {
        let mut message = question("web.shop.svc.cluster.local.", RecordType::A);
        message.set_edns(Edns::new());
        let mut packet = message.to_vec().unwrap();
        let length = packet.len();
        packet[at.index(length)] = byte;
        packet.extend(more);
        exercise(&packet);
    }
}

fn exercise(packet: &[u8]) {
    if let Ok(asked) = Asked::read(packet) {
        let (name, _, _) = (asked.name(), asked.family(), asked.shown());
        let canonical = name.filter(|name| name.len() < 200);
        let owned = Owned { canonical, addresses: vec![IpAddr::from([10, 0, 0, 1])] };
        assert!(asked.owned(&owned, 512).len() <= 512);
        assert!(!asked.failed().is_empty());
        asked.is_answered_by(packet, 1);
    }
}

//! Which limits count a request, with which others, and what becomes of the table.

use http::{Method, Request, header as headers};
use proptest::{collection::vec, prelude::*};

use super::*;
use crate::{identity::Identity, name::Label, route::Path};

const SECOND: Duration = Duration::from_secs(1);

fn rate(requests: u32, burst: u32) -> Rate {
    Rate::new(requests, SECOND, burst).expect("a rate")
}

fn local(rate: Rate, by: Vec<Attribute>) -> Arc<LocalLimit> {
    Arc::new(LocalLimit::new(rate, by, Vec::new()).expect("a limit"))
}

fn limit(scope: Scope, local: Vec<Arc<LocalLimit>>) -> RateLimit {
    RateLimit { policy: PolicyKey::new("shop", "p"), scope, local, global: None }
}

fn head(path: &str, user: Option<&str>) -> Parts {
    let mut request = Request::new(());
    *request.uri_mut() = path.parse().expect("a path");
    if let Some(user) = user {
        request.headers_mut().insert("x-user", user.parse().expect("a value"));
    }
    request.into_parts().0
}

fn nobody() -> Caller<'static> {
    Caller { identity: None, address: [10, 0, 0, 1].into() }
}

fn by_user() -> Attribute {
    Attribute::Header(header("x-user").expect("a name"))
}

fn service() -> ServiceKey {
    ServiceKey::new("shop", "web")
}

/// What one limit by user is asked for a request of `user`.
fn of_user(counter: &Arc<Counter>, limit: &LocalLimit, user: &str) -> Lookup {
    Lookup { counter: counter.clone(), key: limit.key(&nobody(), &head("/", Some(user))) }
}

#[test]
fn a_limit_counts_what_its_target_gets() {
    let origin = |name: &str| Origin { created: 0, key: RouteKey::new("shop", name) };
    let rule = |name: &str| Rule { name: Some(name.into()), ..Rule::default() };
    let route = |rule: Option<&str>, ports: &[u16]| Scope::Route {
        route: RouteKey::new("shop", "r"),
        rule: rule.map(Label::from),
        ports: ports.into(),
    };
    let (own, other) = ((origin("r"), rule("a")), (origin("s"), rule("a")));
    let to = |port, by: Option<&'static str>| (port, by);
    let table = [
        (Scope::Waypoint, to(80, None), true),
        (Scope::Service { ports: [].into() }, to(81, None), true),
        (Scope::Service { ports: [80].into() }, to(80, Some("own")), true),
        (Scope::Service { ports: [80].into() }, to(81, None), false),
        (route(None, &[80]), to(80, Some("own")), true),
        (route(Some("a"), &[80]), to(80, Some("own")), true),
        (route(Some("b"), &[80]), to(80, Some("own")), false),
        (route(None, &[80]), to(80, Some("other")), false),
        (route(None, &[80]), to(80, None), false),
        // A GRPCRoute of the same name, at another port.
        (route(None, &[80]), to(81, Some("own")), false),
    ];
    for (scope, (port, by), expected) in table {
        let by = by.map(|name| if name == "own" { (&own.0, &own.1) } else { (&other.0, &other.1) });
        let counted = limit(scope.clone(), Vec::new()).counts(&Going { port, by });
        assert_eq!(counted, expected, "{scope:?} {port} {by:?}");
    }
}

#[test]
fn a_limit_counts_what_it_matches() {
    let prefix = Match::path(Path::prefix("/api").expect("a path")).method(Method::GET);
    let limit = LocalLimit::new(rate(1, 1), Vec::new(), vec![prefix]).expect("a limit");
    assert!(limit.counts(&head("/api/x", None)));
    assert!(!limit.counts(&head("/apis", None)));
    assert!(LocalLimit::new(rate(1, 1), Vec::new(), Vec::new()).expect("a limit").counts(&head("/", None)));
}

#[test]
fn requests_are_told_apart_by_what_the_limit_names() {
    let identity = Identity::new("td", "shop", "front");
    let caller = Caller { identity: Some(&identity), ..nobody() };
    let parts = head("/a?b", Some("ann"));
    let texts = [
        (by_user(), Some("ann")),
        (Attribute::Header(headers::COOKIE), None),
        (Attribute::Principal, Some("spiffe://td/ns/shop/sa/front")),
        (Attribute::Namespace, Some("shop")),
        (Attribute::Address, Some("10.0.0.1")),
        (Attribute::Path, Some("/a")),
        (Attribute::Method, Some("GET")),
    ];
    for (attribute, expected) in texts {
        assert_eq!(attribute.text(&caller, &parts).as_deref(), expected, "{attribute:?}");
    }
    assert_eq!(Attribute::Principal.text(&nobody(), &parts), None);
    let key = |user: Option<&str>| Key::of(&[by_user()], &caller, &head("/", user));
    assert_ne!(key(Some("ann")), key(Some("bob")));
    assert_ne!(key(None), key(Some("")), "who has none is not who says nothing");
    assert_eq!(key(None), key(None));
    let long = "a".repeat(256);
    assert_eq!(key(Some(&format!("{long}b"))), key(Some(&format!("{long}c"))), "a beginning is enough");
    assert!(!format!("{:?}", key(Some("secret"))).contains("secret"));
}

#[test]
fn a_descriptor_without_a_value_is_left_out() {
    let entry = |key: &str, value| Entry { key: key.into(), value };
    let fixed = EntryValue::Fixed("gold".into());
    let descriptors = vec![
        vec![entry("tier", fixed.clone()), entry("path", EntryValue::Of(Attribute::Path))],
        vec![entry("user", EntryValue::Of(by_user()))],
    ];
    let to = Destination::Service { service: service(), port: 80, subset: None };
    let limit = GlobalLimit::new(to.clone(), "shop", SECOND, OnError::Take, descriptors).expect("a limit");
    let asked = limit.descriptors_of(&nobody(), &head("/a", None));
    assert_eq!(asked, [[("tier", "gold".to_owned()), ("path", "/a".to_owned())]]);
    assert_eq!(limit.descriptors_of(&nobody(), &head("/a", Some("ann"))).len(), 2);
    let one = |key: &str, value: &EntryValue| vec![vec![entry(key, value.clone())]];
    let long = "a".repeat(TEXT + 1);
    for (domain, timeout, descriptors, error) in [
        ("", SECOND, one("a", &fixed), InvalidLimit::Domain),
        (&*long, SECOND, one("a", &fixed), InvalidLimit::Domain),
        ("d", Duration::ZERO, one("a", &fixed), InvalidLimit::Timeout),
        ("d", LONGEST_TIMEOUT + SECOND, one("a", &fixed), InvalidLimit::Timeout),
        ("d", SECOND, Vec::new(), InvalidLimit::Descriptors),
        ("d", SECOND, vec![Vec::new()], InvalidLimit::Entries(0)),
        ("d", SECOND, one("", &fixed), InvalidLimit::Entry(0, 0)),
        ("d", SECOND, one("a", &EntryValue::Fixed(long.as_str().into())), InvalidLimit::Entry(0, 0)),
    ] {
        let made = GlobalLimit::new(to.clone(), domain, timeout, OnError::Take, descriptors);
        assert_eq!(made, Err(error));
    }
}

#[test]
fn of_two_limits_the_one_with_less_room_is_nearer_to_its_end() {
    let standing = |limit, remaining, reset: Option<Duration>| Standing { limit, remaining, reset };
    let (wide, tight) = (standing(100, 90, Some(SECOND)), standing(5, 4, Some(SECOND)));
    let (later, unknown) = (standing(9, 4, Some(60 * SECOND)), standing(7, 4, None));
    for (one, other, nearer) in
        [(wide, tight, tight), (tight, later, later), (tight, unknown, tight), (tight, tight, tight)]
    {
        assert_eq!((one.nearer(other), other.nearer(one)), (nearer, nearer));
    }
}

#[test]
fn a_request_is_taken_by_all_limits_or_by_none() {
    let (wide, narrow) = (local(rate(10, 10), Vec::new()), local(rate(1, 1), vec![by_user()]));
    let limit = limit(Scope::Waypoint, vec![wide.clone(), narrow.clone()]);
    let counters = limit.counters(&service());
    let lookups = |user: &str| -> Vec<_> {
        let parts = head("/", Some(user));
        let both = counters.iter().zip(&limit.local);
        both.map(|(counter, limit)| Lookup { counter: counter.clone(), key: limit.key(&nobody(), &parts) })
            .collect()
    };
    let mut table = Table::default();
    let nearest = Some(Standing { limit: 1, remaining: 0, reset: Some(SECOND) });
    assert_eq!(table.take(&lookups("ann"), SECOND), Ok(Taken { together: 0, nearest }));
    for _ in 0..20 {
        let excess = table.take(&lookups("ann"), SECOND).expect_err("no room");
        assert_eq!(excess.counter.to_string(), "shop/p local[1]");
        assert_eq!((excess.limit, excess.remaining, excess.wait), (1, 0, SECOND));
    }
    // What was refused has spent nothing of the wide one: nine more have room.
    for user in 0..9 {
        assert!(table.take(&lookups(&user.to_string()), SECOND).is_ok(), "{user}");
    }
    let excess = table.take(&lookups("last"), SECOND).expect_err("no room");
    assert_eq!(excess.counter.to_string(), "shop/p local[0]");
    assert_eq!((excess.wait, excess.reset), (SECOND / 10, SECOND));
}

#[test]
fn a_limit_goes_on_counting_as_long_as_it_is_the_same() {
    let mut table = Table::default();
    let take = |table: &mut Table, limit: &RateLimit, of: &ServiceKey| {
        let counter = limit.counters(of).remove(0);
        let key = limit.local[0].key(&nobody(), &head("/", None));
        table.take(&[Lookup { counter, key }], SECOND).is_ok()
    };
    let scope = || Scope::Service { ports: [].into() };
    let before = limit(scope(), vec![local(rate(1, 1), Vec::new())]);
    assert!(take(&mut table, &before, &service()));
    // Written anew: another match, and another limit behind it.
    let matches = vec![Match::path(Path::prefix("/").expect("a path"))];
    let rewritten = LocalLimit::new(rate(1, 1), Vec::new(), matches).expect("a limit");
    let after = limit(scope(), vec![Arc::new(rewritten), local(rate(5, 5), Vec::new())]);
    assert!(!take(&mut table, &after, &service()));
    assert!(
        take(&mut table, &limit(scope(), vec![local(rate(2, 1), Vec::new())]), &service()),
        "another rate"
    );
    assert!(take(&mut table, &before, &ServiceKey::new("shop", "api")), "another service");
    let of_waypoint = limit(Scope::Waypoint, before.local.clone());
    assert!(take(&mut table, &of_waypoint, &service()), "another target");
    assert!(
        !take(&mut table, &of_waypoint, &ServiceKey::new("shop", "api")),
        "the waypoint's services together"
    );
}

#[test]
fn buckets_that_are_full_make_room_and_the_others_are_shared() {
    let (one, mut table) = (local(rate(1, 1), vec![by_user()]), Table::new(Bounds { each: 2, all: 3 }));
    let counter = limit(Scope::Waypoint, vec![one.clone()]).counters(&service()).remove(0);
    let mut take =
        |user: &str, now| table.take(&[of_user(&counter, &one, user)], now).map(|taken| taken.together);
    assert_eq!(take("a", SECOND), Ok(0));
    assert_eq!(take("b", SECOND), Ok(0));
    // There is no room: all others together are one.
    assert_eq!(take("c", SECOND), Ok(1));
    assert!(take("d", SECOND).is_err());
    assert!(take("a", SECOND).is_err(), "those with a bucket keep it");
    // After a second those of `a` and `b` are full, and gone.
    assert_eq!(take("d", SECOND * 2), Ok(0));
    assert!(take("d", SECOND * 2).is_err());
    assert_eq!(table.len(), 1, "that of `d`: the shared one was full, too");
    table.sweep(SECOND * 5);
    assert!(table.is_empty());
    assert_eq!((table.evicted(), table.evicted()), (4, 0));
}

proptest! {
    /// However many names a client gives itself, in whatever order and time: the table is bounded, and so is what
    /// gets through.
    #[test]
    fn names_are_no_way_around_a_limit(
        asked in vec((0..40_u32, 0..200_u64), 1..200),
        each in 1..6_usize,
        all in 1..8_usize,
    ) {
        let one = local(rate(2, 3), vec![by_user()]);
        let counter = limit(Scope::Waypoint, vec![one.clone()]).counters(&service()).remove(0);
        let mut table = Table::new(Bounds { each, all });
        let (mut now, mut taken) = (SECOND, 0_u128);
        for (user, later) in asked {
            now += Duration::from_millis(later);
            let lookup = of_user(&counter, &one, &user.to_string());
            taken += u128::from(table.take(&[lookup], now).is_ok());
            prop_assert!(table.len() <= each.min(all) + 1);
        }
        // As many buckets as there may be, each with its burst and what the time brought.
        let brought = (now - SECOND).as_nanos() * 2 / SECOND.as_nanos();
        prop_assert!(taken <= u128::try_from(each.min(all) + 1).expect("few") * (3 + brought));
    }
}

#[test]
fn a_header_is_named_as_headers_are() {
    assert!(header("x-user").is_some());
    assert!(header(":path").is_none());
    assert!(header("").is_none());
}

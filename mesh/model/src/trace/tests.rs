//! Traces as they are told, and told on.

use proptest::prelude::*;

use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SPAN: &str = "00f067aa0ba902b7";
const EVERYTHING: Sampler = Sampler { heeds_caller: true, ratio: Ratio::ALL };

fn headers(all: &[(&'static str, &str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in all {
        headers.append(*name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
    }
    headers
}

fn read(all: &[(&'static str, &str)]) -> Received {
    Received::read(&headers(all))
}

/// Trace, span and wish; the trace is empty if there is no caller.
fn told(received: &Received) -> (String, String, Wish) {
    let parent = received.parent.as_ref();
    let trace = parent.map(|parent| parent.trace.to_string()).unwrap_or_default();
    (trace, parent.map(|parent| parent.span.to_string()).unwrap_or_default(), received.wish)
}

fn caller(wish: Wish) -> (String, String, Wish) {
    (TRACE.to_owned(), SPAN.to_owned(), wish)
}

/// What is written for who was told so; its own span is 7.
fn written(all: &[(&'static str, &str)]) -> Vec<(String, String)> {
    let mut headers = headers(all);
    Context::of(&Received::read(&headers), &EVERYTHING, || 9, 7).write(&mut headers);
    let text = |value: &HeaderValue| value.to_str().expect("text").to_owned();
    headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect()
}

fn one(name: &str, value: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), value.to_owned())]
}

#[test]
fn a_traceparent_is_read_as_the_standard_says() {
    let parent = |flags: &str| read(&[("traceparent", &format!("00-{TRACE}-{SPAN}-{flags}"))]);
    assert_eq!(told(&parent("01")), caller(Wish::Record));
    assert_eq!(told(&parent("00")), caller(Wish::Drop));
    assert_eq!(told(&parent("ff")), caller(Wish::Record));
    assert!(parent("03").is_random && !parent("01").is_random);
    // A version to come may have more fields.
    for later in [format!("cc-{TRACE}-{SPAN}-01"), format!("cc-{TRACE}-{SPAN}-01-what-is-to-come")] {
        assert_eq!(told(&read(&[("traceparent", &later)])), caller(Wish::Record), "{later}");
    }
}

#[test]
fn a_malformed_traceparent_is_as_none_and_counted() {
    let zeros = "0".repeat(32);
    let malformed = [
        String::new(),
        "00".to_owned(),
        format!("ff-{TRACE}-{SPAN}-01"),
        format!("00-{TRACE}-{SPAN}-01-more"),
        format!("00-{TRACE}-{SPAN}-01-"),
        format!("cc-{TRACE}-{SPAN}-01.more"),
        format!("00-{TRACE}-{SPAN}-1"),
        format!("00-{TRACE}-{SPAN}"),
        format!("0-{TRACE}-{SPAN}-01"),
        format!("00-{zeros}-{SPAN}-01"),
        format!("00-{TRACE}-{}-01", "0".repeat(16)),
        format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        format!("00-{TRACE}-{SPAN}-0g"),
        format!("00_{TRACE}_{SPAN}_01"),
        format!("00-{TRACE}{SPAN}--01"),
        "é".repeat(55),
    ];
    for text in malformed {
        let received = read(&[("traceparent", &text), ("tracestate", "a=1")]);
        assert_eq!(told(&received), (String::new(), String::new(), Wish::Open), "{text:?}");
        assert_eq!((received.forms, received.malformed), (Forms::default(), Forms::default().and(Form::W3c)));
        assert_eq!(received.state, None, "a state without a traceparent says nothing");
    }
    let twice = format!("00-{TRACE}-{SPAN}-01");
    let received = read(&[("traceparent", &twice), ("traceparent", &twice)]);
    assert!(received.parent.is_none() && received.malformed.has(Form::W3c));
}

#[test]
fn a_state_is_one_list_and_passed_on() {
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let state = |lines: &[&str]| {
        let mut all = vec![("traceparent", parent.as_str())];
        all.extend(lines.iter().map(|line| ("tracestate", *line)));
        let received = read(&all);
        let state = received.state.map(|state| state.to_str().expect("text").to_owned());
        (state, received.malformed.has(Form::State))
    };
    let well = |text: &str| (Some(text.to_owned()), false);
    assert_eq!(state(&["a=1, b=2 ,,c=3", "d@e=4"]), well("a=1,b=2,c=3,d@e=4"));
    assert_eq!(state(&["a=x y"]), well("a=x y"));
    assert_eq!(state(&["1a=2", "3@b=4"]), well("1a=2,3@b=4"));
    assert_eq!(state(&["", " , "]), (None, false));
    assert_eq!(state(&[]), (None, false));
    for bad in
        ["a", "=1", "a=", "A=1", "a=1=2", "a=1,a=2", "a@=1", "@a=1", "a@b@c=1", "a=\u{e9}", "a b=1", "a@1=2"]
    {
        assert_eq!(state(&[bad]), (None, true), "{bad}");
    }
    let many = |count: usize| (0..count).map(|number| format!("k{number}=1")).collect::<Vec<_>>().join(",");
    assert_eq!(state(&[&many(32)]).0, Some(many(32)));
    assert_eq!(state(&[&many(33)]), (None, true));
}

#[test]
fn of_a_long_state_large_entries_go_first_and_then_the_last() {
    let (large, small) = (format!("large={}", "x".repeat(200)), "y".repeat(110));
    let few = format!("a={small},{large},b={small},c={small}");
    let parent = format!("00-{TRACE}-{SPAN}-01");
    let state = |text: &str| read(&[("traceparent", &parent), ("tracestate", text)]).state;
    let expected = format!("a={small},b={small},c={small}");
    assert_eq!(state(&few).expect("a state"), expected.as_str());
    let several = format!("{expected},d={small},e={small}");
    assert_eq!(state(&several).expect("a state"), format!("{expected},d={small}").as_str());
}

#[test]
fn b3_is_read_in_one_header_and_in_several() {
    let single = |text: &str| read(&[("b3", text)]);
    assert_eq!(told(&single(&format!("{TRACE}-{SPAN}-1"))), caller(Wish::Record));
    assert_eq!(told(&single(&format!("{TRACE}-{SPAN}-0-{SPAN}"))), caller(Wish::Drop));
    assert_eq!(told(&single(&format!("{TRACE}-{SPAN}"))), caller(Wish::Open));
    assert_eq!(told(&single(&format!("{TRACE}-{SPAN}-d"))), caller(Wish::Debug));
    assert_eq!(single("0").wish, Wish::Drop);
    let short = told(&single("a3ce929d0e0e4736-00f067aa0ba902b7-1"));
    assert_eq!(short.0, "0000000000000000a3ce929d0e0e4736");
    let (trace, span) = (("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN));
    assert_eq!(told(&read(&[trace, span, ("x-b3-sampled", "1")])), caller(Wish::Record));
    assert_eq!(told(&read(&[trace, span, ("x-b3-sampled", "false")])), caller(Wish::Drop));
    assert_eq!(
        told(&read(&[trace, span, ("x-b3-flags", "1"), ("x-b3-parentspanid", SPAN)])),
        caller(Wish::Debug)
    );
    assert_eq!(told(&read(&[trace, span])), caller(Wish::Open));
    assert_eq!(read(&[("x-b3-sampled", "0")]).wish, Wish::Drop);
    assert!(read(&[("x-b3-flags", "0")]).forms.is_empty());
}

#[test]
fn malformed_b3_is_as_none_and_counted() {
    let upper = TRACE.to_uppercase();
    for text in [
        String::new(),
        "2".to_owned(),
        format!("{TRACE}-{SPAN}-2"),
        format!("{TRACE}-{SPAN}-1-{SPAN}-1"),
        format!("{TRACE}-{SPAN}-1-"),
        format!("{upper}-{SPAN}-1"),
        format!("{TRACE}0-{SPAN}-1"),
        format!("{TRACE}-0000000000000000-1"),
        format!("0000000000000000-{SPAN}-1"),
    ] {
        let received = read(&[("b3", &text)]);
        assert!(received.parent.is_none() && received.malformed.has(Form::B3), "{text:?}");
    }
    let (trace, span) = (("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN));
    for bad in [
        &[trace][..],
        &[span],
        &[trace, trace, span],
        &[trace, span, ("x-b3-sampled", "yes")],
        &[trace, span, ("x-b3-flags", "2")],
        &[trace, span, ("x-b3-parentspanid", "1")],
    ] {
        let received = read(bad);
        assert!(received.parent.is_none() && received.malformed.has(Form::B3Multi), "{bad:?}");
    }
}

#[test]
fn the_first_form_counts_and_all_are_written() {
    let w3c = format!("00-{TRACE}-{SPAN}-00");
    let other = format!("{}-{SPAN}-1", "1".repeat(32));
    let both = [("traceparent", w3c.as_str()), ("b3", other.as_str())];
    assert_eq!(told(&read(&both)), caller(Wish::Drop));
    let expected = [
        one("traceparent", &format!("00-{TRACE}-0000000000000007-00")),
        one("b3", &format!("{TRACE}-0000000000000007-0")),
    ];
    assert_eq!(written(&both), expected.concat());
    let broken = [("traceparent", "no"), ("tracestate", "a=1"), ("b3", &other)];
    assert_eq!(written(&broken), one("b3", &format!("{}-0000000000000007-1", "1".repeat(32))));
}

#[test]
fn what_is_written_names_the_own_span() {
    let fresh = "00-00000000000000000000000000000009-0000000000000007-01";
    assert_eq!(written(&[]), one("traceparent", fresh), "a trace of its own for who brings none");
    assert_eq!(written(&[("traceparent", "malformed"), ("x-b3-spanid", SPAN)]), one("traceparent", fresh));
    let parent = format!("00-{TRACE}-{SPAN}-03");
    let with_state = [("traceparent", parent.as_str()), ("tracestate", "a=1"), ("tracestate", "b=2")];
    let expected =
        [one("traceparent", &format!("00-{TRACE}-0000000000000007-03")), one("tracestate", "a=1,b=2")];
    assert_eq!(written(&with_state), expected.concat());
    let short = ("x-b3-traceid", "a3ce929d0e0e4736");
    let expected = [
        one("x-b3-traceid", "a3ce929d0e0e4736"),
        one("x-b3-spanid", "0000000000000007"),
        one("x-b3-flags", "1"),
    ];
    assert_eq!(written(&[short, ("x-b3-spanid", SPAN), ("x-b3-flags", "1")]), expected.concat());
    assert_eq!(written(&[("b3", "0")]), one("b3", "0000000000000009-0000000000000007-0"));
}

#[test]
fn a_share_of_the_roots_is_recorded_and_the_callers_word_holds() {
    let half = Sampler { heeds_caller: true, ratio: "0.5".parse().expect("a ratio") };
    let trace = |low: u64| TraceId::drawn(u128::from(low));
    assert!(half.records(Wish::Open, trace(u64::MAX / 2 - 4096)));
    assert!(!half.records(Wish::Open, trace(u64::MAX / 2 + 4096)));
    assert!(half.records(Wish::Record, trace(u64::MAX)) && half.records(Wish::Debug, trace(u64::MAX)));
    assert!(!half.records(Wish::Drop, trace(1)));
    let deaf = Sampler { heeds_caller: false, ..half };
    assert!(deaf.records(Wish::Drop, trace(1)) && !deaf.records(Wish::Record, trace(u64::MAX)));
    let all = Sampler { heeds_caller: true, ratio: Ratio::ALL };
    assert!(all.records(Wish::Open, trace(u64::MAX)));
    assert!(!Sampler { ratio: Ratio::NONE, ..all }.records(Wish::Open, trace(1)));
    for text in ["", "1.1", "-0.1", "NaN", "inf", "half", "1%"] {
        assert_eq!(text.parse::<Ratio>(), Err(InvalidRatio), "{text}");
    }
}

proptest! {
    #[test]
    fn no_header_makes_it_panic_or_write_what_nobody_can_read(
        values in prop::collection::vec((0_usize..8, prop::collection::vec(0x20_u8..=0xff, 0..80)), 0..12),
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in values {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.append(ALL[name].clone(), value);
            }
        }
        let context = Context::of(&Received::read(&headers), &EVERYTHING, || 1, 2);
        context.write(&mut headers);
        let again = Received::read(&headers);
        prop_assert!(again.malformed.is_empty());
        prop_assert_eq!(again.parent, Some(Parent { trace: context.trace, span: context.span }));
    }

    #[test]
    fn what_is_written_is_read_back(
        (trace, span) in (1_u128.., 1_u64..),
        flags in 0_u8..4,
        entries in prop::collection::btree_map("[a-z][a-z0-9_/*-]{0,20}", "[!-+.-<>-~]{1,20}", 0..40),
    ) {
        let parent = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
        let state = entries.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",");
        let mut headers = headers(&[("traceparent", &parent), ("tracestate", &state)]);
        let received = Received::read(&headers);
        prop_assert_eq!(received.malformed.has(Form::State), entries.len() > 32);
        let context = Context::of(&received, &EVERYTHING, || 0, span);
        context.write(&mut headers);
        let again = Received::read(&headers);
        prop_assert_eq!(&again.parent, &received.parent);
        prop_assert_eq!(again.wish, received.wish);
        prop_assert_eq!(&again.state, &received.state);
        prop_assert!(again.state.is_none_or(|state| state.len() <= 512));
    }

    #[test]
    fn nearly_well_formed_parents_never_panic(text in "[0-9a-f]{0,3}-[0-9a-fA-F]{30,34}-[0-9a-f]{15,17}-[0-9a-f]{1,3}(-[ -~]{0,5})?") {
        let _ = read(&[("traceparent", &text), ("b3", &text)]);
    }
}

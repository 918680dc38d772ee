//! Tests of envelopes: parsing, writing, refusals.

use proptest::prelude::*;

use super::*;

fn payload_of(line: &str) -> String {
    String::from_utf8(parse(line.as_bytes()).unwrap().payload.to_vec()).unwrap()
}

#[test]
fn a_string_is_the_payload_and_of_other_values_their_text_is() {
    assert_eq!(payload_of(r#"{"payload":"a\nb\u0000"}"#), "a\nb\0");
    assert_eq!(payload_of(r#"{"payload": {"b": 1,  "a":[1.10]} }"#), r#"{"b": 1,  "a":[1.10]}"#);
    assert_eq!(payload_of(r#"{"payload":17.0}"#), "17.0");
    assert_eq!(payload_of(r#"{"payload":null}"#), "null");
    assert_eq!(payload_of(r#"{"payload":""}"#), "");
    assert_eq!(payload_of(r#"{"payload_base64":"aGk="}"#), "hi");
}

#[test]
fn headers_keep_their_order_repeat_and_need_not_be_text() {
    let line =
        r#"{"id":"7","headers":{"b":"1","a":["2",{"base64":"/w=="}],"b":"3"},"order_key":"k","payload":1}"#;
    let envelope = parse(line.as_bytes()).unwrap();
    let headers: Vec<_> = envelope.headers.iter().map(|(name, value)| (&name[..], &value[..])).collect();
    assert_eq!(headers, [("b", &b"1"[..]), ("a", b"2"), ("a", b"\xff"), ("b", b"3")]);
    assert_eq!((envelope.id.as_deref(), envelope.order_key.as_deref()), (Some("7"), Some(&b"k"[..])));
}

#[test]
fn what_is_no_envelope_is_refused_without_quoting_it() {
    for (line, what) in [
        (r#"{"payload":1,"hunter2":1}"#, "a field is unknown"),
        (r#"{"payload":1,"payload":2}"#, "given twice"),
        (r#"{"payload":1,"id":hunter2}"#, "not valid JSON"),
        (r#"{"payload":"hunter2"#, "ends too early"),
        (r#"{"payload":1,"id":["hunter2"]}"#, "not of the type"),
        (r#"{"payload":1,"headers":{"hunter2":5}}"#, "not of the type"),
        (r#"{"payload":1,"headers":{"a":{"base64":"hunter2"}}}"#, "not base64"),
        (r#"{"payload":1,"order_key":["hunter2"]}"#, "not of the type"),
        (r#"{"payload_base64":"hunter2"}"#, "payload_base64 is not base64"),
        (r#"{"payload_base64":"","payload":"hunter2"}"#, "give one"),
        (r#"{"id":"hunter2"}"#, "neither"),
        (r#""hunter2""#, "not of the type"),
        ("\u{feff}{}", "not valid JSON"),
    ] {
        let error = parse(line.as_bytes()).unwrap_err();
        assert!(error.contains(what), "{line}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
    assert!(parse(b"{\"payload\":\"\xff\"}").is_err());
}

#[test]
fn deep_nesting_neither_overflows_nor_is_refused_in_a_payload() {
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    assert_eq!(payload_of(&format!(r#"{{"payload":{deep}}}"#)), deep);
    assert!(parse(format!(r#"{{"payload":1,"headers":{{"a":{deep}}}}}"#).as_bytes()).is_err());
}

fn written(message: &Outgoing) -> String {
    let mut line = Vec::new();
    write(message, &mut line).unwrap();
    String::from_utf8(line).unwrap()
}

fn with_payload(payload: &'static [u8]) -> Outgoing {
    Outgoing { id: "1".into(), payload: Bytes::from_static(payload), ..Outgoing::default() }
}

#[test]
fn a_payload_is_written_as_readable_as_its_bytes_allow() {
    assert_eq!(written(&with_payload(br#"{"a":1}"#)), "{\"id\":\"1\",\"payload\":{\"a\":1}}\n");
    assert_eq!(written(&with_payload(b"{\"a\":\n1}")), "{\"id\":\"1\",\"payload\":\"{\\\"a\\\":\\n1}\"}\n");
    assert_eq!(written(&with_payload(b"\"x\"")), "{\"id\":\"1\",\"payload\":\"\\\"x\\\"\"}\n");
    assert_eq!(written(&with_payload(b"\xff")), "{\"id\":\"1\",\"payload_base64\":\"/w==\"}\n");
}

fn bytes() -> impl Strategy<Value = Bytes> {
    prop_oneof![
        prop::collection::vec(any::<u8>(), 0..40).prop_map(Bytes::from),
        "\\PC{0,20}".prop_map(Bytes::from),
        r#" ?[{\[]("a": ?[0-9\n\r]{1,3})?[}\]] ?"#.prop_map(Bytes::from),
    ]
}

proptest! {
    #[test]
    fn what_is_written_reads_back_the_same(
        id in "\\PC{0,8}",
        payload in bytes(),
        order_key in prop::option::of(bytes()),
        headers in prop::collection::vec(("[a-c\\n\"]{0,2}", bytes()), 0..6),
        own_id in "[a-f0-9]{0,4}",
        millis in prop::option::of(0_u64..10_000_000_000_000),
        null_payload: bool,
    ) {
        let mut expected = headers.clone();
        let place = |name: &String| headers.iter().position(|(own, _)| own == name);
        expected.sort_by_key(|(name, _)| place(name));
        if !own_id.is_empty() {
            expected.push((HEADER_ID.to_owned(), own_id.clone().into()));
        }
        let timestamp = millis.map(|millis| UNIX_EPOCH + Duration::from_millis(millis));
        let payload = if null_payload { Bytes::new() } else { payload };
        let message = Outgoing {
            id: id.clone(),
            own_id,
            order_key: order_key.clone(),
            timestamp,
            headers,
            payload: payload.clone(),
            null_payload,
            ..Outgoing::default()
        };
        let line = written(&message);
        prop_assert_eq!(line.matches('\n').count(), 1);
        prop_assert!(BEGINNINGS.iter().any(|beginning| line.starts_with(beginning)), "{}", line);
        let read = parse(line.trim_end_matches('\n').as_bytes()).unwrap();
        let id = Some(id).filter(|id| !id.is_empty());
        prop_assert_eq!(read, Envelope { id, order_key, timestamp, headers: expected, payload, null_payload });
    }
}

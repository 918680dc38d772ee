use aws_sdk_sqs::types::MessageAttributeValue;
use onceward::{Outgoing, OwnHeaders, OwnSecrets};

use super::*;

#[test]
fn attributes_system_attributes_and_ids_become_a_message() {
    let attribute =
        |text: &str| MessageAttributeValue::builder().data_type("String").string_value(text).build().unwrap();
    let received = Received::builder()
        .message_id("m-1")
        .body("pay")
        .attributes(System::MessageGroupId, "g")
        .attributes(System::SequenceNumber, "18849496460467696128")
        .attributes(System::MessageDeduplicationId, "d")
        .attributes(System::ApproximateReceiveCount, "2")
        .attributes(System::SentTimestamp, "1700000000000")
        .message_attributes("tenant", attribute("a"))
        .message_attributes("sqs-sequence-number", attribute("forged"))
        .build();
    let message = from(received, "orders".into(), &queue(OwnHeaders::default()));
    assert_eq!((message.id(), &message.payload()[..]), (Some(&b"m-1"[..]), &b"pay"[..]));
    assert_eq!(message.order_key().unwrap(), &"g");
    assert!(message.is_redelivered() && message.defect().is_none());
    assert_eq!(message.timestamp(), Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
    let position = message.position().unwrap();
    assert_eq!((&*position.incarnation, position.partition), ("orders#g", 1));
    assert_eq!(u128::from(position.offset) + (1 << 64), 18_849_496_460_467_696_128);
    for (name, value) in [
        ("tenant", "a"),
        ("sqs-sequence-number", "18849496460467696128"),
        ("sqs-message-deduplication-id", "d"),
    ] {
        assert_eq!(message.header(name).unwrap(), &value);
    }
}

#[test]
fn an_sns_envelope_is_taken_off_and_its_absence_is_a_defect() {
    let body = r#"{"Type":"Notification","MessageId":"n-1","TopicArn":"arn:t","Message":"pay",
        "MessageAttributes":{"tenant":{"Type":"String","Value":"a"},"blob":{"Type":"Binary","Value":"/w=="}}}"#;
    let sns = QueueConfig { unwrap_sns: true, ..queue(OwnHeaders::default()) };
    let received = |body: &str| Received::builder().message_id("m-1").body(body).build();
    let message = from(received(body), "orders".into(), &sns);
    assert_eq!((message.id(), &message.payload()[..]), (Some(&b"n-1"[..]), &b"pay"[..]));
    assert_eq!(message.header("tenant").unwrap(), &"a");
    assert_eq!(message.header("blob").unwrap(), &b"\xff"[..]);
    assert!(from(received("pay"), "orders".into(), &sns).defect().is_some());

    // Its letter has no envelope any more, and keeps the types, if it is known to be one.
    let own = sealing(b"0123456789abcdef");
    let letter = letter(&message, &own);
    let (sent, _) = form::entry(0, &letter).unwrap();
    let sent_attributes = sent.message_attributes.clone();
    let again = || {
        let again = Received::builder().message_id("m-2").body(sent.message_body.clone());
        again.set_message_attributes(sent_attributes.clone()).build()
    };
    let queue = |own| QueueConfig { unwrap_sns: true, ..queue(own) };
    let known = from(again(), "orders".into(), &queue(own));
    assert!(known.defect().is_none());
    assert_eq!((known.id(), &known.payload()[..]), (Some(&b"n-1"[..]), &b"pay"[..]));
    assert_eq!(sent_attributes.as_ref().unwrap()["blob"].data_type, "Binary");
    assert!(from(again(), "orders".into(), &queue(OwnHeaders::default())).defect().is_some());
}

fn queue(own_headers: OwnHeaders) -> QueueConfig {
    QueueConfig { own_headers, ..QueueConfig::new("http://h/orders") }
}

fn sealing(secret: &[u8; 16]) -> OwnHeaders {
    OwnHeaders::authenticated(OwnSecrets::new(secret).unwrap())
}

/// The letter of `message`, as the pipeline makes it.
fn letter(message: &Message, own: &OwnHeaders) -> Outgoing {
    let id = String::from_utf8(message.id().unwrap().to_vec()).unwrap();
    let ours = [("onceward-scope", "billing"), ("onceward-generation", "0"), (HEADER_MESSAGE_ID, &id)];
    let ours = ours.map(|(name, value)| (name.to_owned(), Bytes::copy_from_slice(value.as_bytes())));
    let theirs = message.headers().map(|(name, value)| (name.to_owned(), value.clone()));
    let mut headers: Vec<_> = theirs.chain(ours).collect();
    let own_id = "k-0".to_owned();
    let to_seal = || {
        let headers = headers.iter().map(|(name, value)| (name.as_str(), &value[..]));
        headers.chain([(HEADER_ID, own_id.as_bytes())])
    };
    if let Some((name, value)) = own.seal_parts(&LETTER, to_seal, Some(message.payload())) {
        headers.push((name.to_owned(), value));
    }
    let (payload, native) = (message.payload().clone(), message.native().cloned());
    Outgoing { id, own_id, headers, payload, native, ..Outgoing::default() }
}

fn delivered(sent: &onceward::Outgoing) -> Received {
    let (sent, _) = form::entry(0, sent).unwrap();
    let received = Received::builder().message_id("m-2").body(sent.message_body);
    received.set_message_attributes(sent.message_attributes).build()
}

#[test]
fn a_sealed_letter_is_believed_whatever_its_payload_and_a_forged_one_is_not() {
    let own = sealing(b"0123456789abcdef");
    for payload in [&b"pay"[..], b"", b"\xff\x00"] {
        let message = Message::builder(payload.to_vec()).message_id("m-1").header("tenant", "a").build();
        let known = from(delivered(&letter(&message, &own)), "orders".into(), &queue(own.clone()));
        assert_eq!((known.id(), &known.payload()[..]), (Some(&b"m-1"[..]), payload));
        assert!(own.believes(&LETTER, &known));
        for (sealed_by, read_by) in [
            (OwnHeaders::default(), own.clone()),
            (sealing(b"fedcba9876543210"), own.clone()),
            (own.clone(), OwnHeaders::default()),
        ] {
            let other =
                from(delivered(&letter(&message, &sealed_by)), "orders".into(), &queue(read_by.clone()));
            assert_eq!((other.id(), &other.payload()[..]), (Some(&b"m-2"[..]), payload), "its id is SQS's");
            assert!(!read_by.believes(&LETTER, &other));
        }
    }
}

#[test]
fn an_id_that_anybody_can_write_is_a_header_and_not_the_id() {
    let attribute =
        |text: &str| MessageAttributeValue::builder().data_type("String").string_value(text).build().unwrap();
    let packed =
        format!(r#"[["{HEADER_MESSAGE_ID}","victim"],["onceward-key","k"],["sqs-sender-id","admin"]]"#);
    let received = || {
        let received = Received::builder().message_id("m-1").body("pay");
        let received = received.message_attributes(HEADER_ID, attribute("victim"));
        received.message_attributes(pack::PACKED, attribute(&packed)).build()
    };
    for own in [OwnHeaders::default(), sealing(b"0123456789abcdef")] {
        let message = from(received(), "orders".into(), &queue(own));
        assert_eq!(message.id(), Some(&b"m-1"[..]));
        assert_eq!(message.header(HEADER_ID).unwrap(), &"victim");
    }
    let trusted = from(received(), "orders".into(), &queue(OwnHeaders::trusted()));
    assert_eq!(trusted.id(), Some(&b"victim"[..]));
}

#[test]
fn no_producers_header_passes_for_what_sqs_says() {
    let attribute =
        MessageAttributeValue::builder().data_type("String").string_value("admin").build().unwrap();
    let names = ["sqs-sender-id", "SQS-Sender-Id", "sqs_sender_id", "sqs.sequence-number", "sqs-anything"];
    let packed: Vec<_> = names.iter().map(|name| format!(r#"["{name}","admin"]"#)).collect();
    let packed = format!("[{}]", packed.join(","));
    let packed = MessageAttributeValue::builder().data_type("String").string_value(packed).build().unwrap();
    let received = Received::builder().message_id("m-1").body("pay").attributes(System::SenderId, "AIDA");
    let received =
        names.iter().fold(received, |received, name| received.message_attributes(*name, attribute.clone()));
    let received = received.message_attributes("sqsx", attribute).message_attributes(pack::PACKED, packed);
    let message = from(received.build(), "orders".into(), &queue(OwnHeaders::trusted()));
    let headers: Vec<_> = message.headers().map(|(name, value)| (name, &value[..])).collect();
    assert_eq!(headers, [("sqs-sender-id", &b"AIDA"[..]), ("sqsx", b"admin")]);
    let form = message.native().unwrap().get::<Form>().unwrap();
    assert_eq!(form.attributes.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["sqsx"]);
}

//! Packed headers and bodies are found again; what a producer sends becomes a message that can be sent on within SQS's limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onceward::Outgoing;
use onceward_sqs::fuzzing::{body, deliver, pack, payload, send, unpack};

fuzz_target!(|data: &[u8]| {
    if let Some(headers) = unpack(data) {
        let size: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(size <= data.len());
        round_trip(headers.into_iter().map(|(name, value)| (name, value.to_vec())).collect());
    }
    let (text, encoded) = body(data);
    let found = if encoded { payload(text.as_bytes()).expect("base64") } else { text.into_bytes().into() };
    assert_eq!(found, data);

    let parts: Vec<_> = data.split(|byte| *byte == 0xff).collect();
    let name = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
    round_trip(parts.chunks_exact(2).map(|pair| (name(pair[0]), pair[1].to_vec())).collect());
    let types = ["String", "Binary", "Number", "Binary.png"];
    let attributes: Vec<_> = parts
        .get(1..)
        .unwrap_or_default()
        .chunks_exact(2)
        .enumerate()
        .map(|(index, pair)| (name(pair[0]), types[index % types.len()].to_owned(), pair[1].to_vec()))
        .collect();
    for unwrap_sns in [false, true] {
        sent_on(&name(parts[0]), &attributes, unwrap_sns);
        // The body as one that SNS or a letter of ours could have.
        sent_on(&name(data), &[("onceward-headers".into(), "String".into(), data.to_vec())], unwrap_sns);
    }
});

fn round_trip(headers: Vec<(String, Vec<u8>)>) {
    match pack(&headers) {
        None => assert!(headers.is_empty()),
        Some(text) => {
            assert!(text.bytes().all(|byte| matches!(byte, b' '..=0x7f)));
            let found = unpack(text.as_bytes()).expect("packed headers");
            assert!(found.len() == headers.len());
            assert!(found.iter().zip(&headers).all(|(one, other)| one.0 == other.0 && one.1 == other.1));
        }
    }
}

fn sent_on(body: &str, attributes: &[(String, String, Vec<u8>)], unwrap_sns: bool) {
    let message = deliver(body, attributes, unwrap_sns);
    assert!(message.payload().len() <= body.len());
    let outgoing = Outgoing {
        destination: "http://127.0.0.1/queue".into(),
        own_id: "ours".into(),
        headers: message.headers().map(|(name, value)| (name.to_owned(), value.clone())).collect(),
        payload: message.payload().clone(),
        native: message.native().cloned(),
        ..Outgoing::default()
    };
    if let Some((text, sent)) = send(&outgoing) {
        assert!(sent.len() <= 10 && !text.is_empty());
        let again = deliver(&text, &sent, false);
        assert_eq!(again.payload(), message.payload());
        assert!(again.defect().is_none(), "{:?}", again.defect());
    }
}

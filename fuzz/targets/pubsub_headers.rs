//! Packed headers are found again; what a producer sends becomes a message that can be sent on within Pub/Sub's limits.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onceward::Outgoing;
use onceward_pubsub::fuzzing::{deliver, pack, send, unpack};

fuzz_target!(|data: &[u8]| {
    let text = String::from_utf8_lossy(data).into_owned();
    let packed = [("onceward-headers".to_owned(), text)];
    if let Some(headers) = unpack(&packed) {
        let size: usize = headers.iter().map(|(name, value)| name.len() + value.len()).sum();
        assert!(size <= packed[0].1.len());
        round_trip(&headers.into_iter().map(|(name, value)| (name, value.to_vec())).collect::<Vec<_>>());
    }
    sent_on(data, &packed);

    let parts: Vec<_> = data.split(|byte| *byte == 0xff).collect();
    let text = |part: &[u8]| String::from_utf8_lossy(part).into_owned();
    let pairs = || parts[1..].chunks_exact(2);
    round_trip(&pairs().map(|pair| (text(pair[0]), pair[1].to_vec())).collect::<Vec<_>>());
    sent_on(parts[0], &pairs().map(|pair| (text(pair[0]), text(pair[1]))).collect::<Vec<_>>());
});

fn round_trip(headers: &[(String, Vec<u8>)]) {
    let attributes = pack(headers);
    assert_eq!(attributes.is_empty(), headers.is_empty());
    assert!(attributes.iter().all(|(_, value)| value.len() <= 1024));
    let found = unpack(&attributes).expect("packed headers");
    assert!(found.len() == headers.len());
    assert!(found.iter().zip(headers).all(|(one, other)| one.0 == other.0 && one.1 == other.1));
}

fn sent_on(payload: &[u8], attributes: &[(String, String)]) {
    let message = deliver(payload, attributes);
    assert_eq!(message.payload(), payload);
    let headers: Vec<_> = message.headers().map(|(name, value)| (name.to_owned(), value.clone())).collect();
    let outgoing = Outgoing {
        destination: "projects/p/topics/t".into(),
        headers: headers.clone(),
        payload: message.payload().clone(),
        ..Outgoing::default()
    };
    let Some(sent) = send(&outgoing) else { return };
    assert!(sent.len() <= 100 && (!sent.is_empty() || !payload.is_empty()));
    let is_name = |name: &str| (1..=256).contains(&name.len()) && !name.starts_with("goog");
    assert!(sent.iter().all(|(name, value)| is_name(name) && value.len() <= 1024));
    let again = deliver(payload, &sent);
    assert!(again.defect().is_none(), "{:?}", again.defect());
    let mut found: Vec<_> = again.headers().map(|(name, value)| (name.to_owned(), value.clone())).collect();
    let mut expected = headers;
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
}

//! Checks that our own headers count in their scope only, and only if they are sealed where that is required; on a
//! letter that is redelivered they describe the original message.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use onceward::dead_letter::{HEADER_GENERATION, HEADER_KEY, HEADER_REASON, HEADER_SCOPE};
use onceward::fuzzing::{letter, own_headers};
use onceward::testing::MemoryPublisher;
use onceward::{Key, Message, OwnHeaders, OwnSecrets, Scope};

static PUBLISHER: LazyLock<Arc<MemoryPublisher>> = LazyLock::new(|| Arc::new(MemoryPublisher::new()));

fuzz_target!(|data: &[u8]| {
    let (ours, other) = (Scope::parse("fuzz").unwrap(), Scope::parse("other").unwrap());
    // A producer's headers: any values, in any order.
    let parts: Vec<_> = data.split(|byte| *byte == 0xff).collect();
    let names = [HEADER_SCOPE, HEADER_GENERATION, HEADER_KEY, HEADER_REASON];
    let mut message = Message::builder(data.to_vec());
    for (index, part) in parts.iter().enumerate() {
        message = message.header(names[index % names.len()], part.to_vec());
    }
    let message = message.build();
    let sealed = OwnHeaders::authenticated(OwnSecrets::new(b"a secret of the fuzzer").unwrap());
    let trusted = OwnHeaders::trusted();
    // Whatever it writes, a producer without the secret is not believed.
    assert_eq!(own_headers(&ours, &message, &sealed), None);
    let reason = message.header(HEADER_REASON).map(|reason| reason.to_vec());
    if let Some((key, _)) = own_headers(&ours, &message, &trusted)
        && reason.as_deref() != Some(b"mismatch")
    {
        assert_eq!(parts[0], b"fuzz");
        let hex = message.header(HEADER_KEY).map(|hex| String::from_utf8_lossy(hex).to_ascii_lowercase());
        assert!(key.is_none_or(|key| Some(key.to_string()) == hex));
    }
    if parts[0] != b"other" {
        assert_eq!(own_headers(&other, &message, &trusted), None);
    }

    // A letter of ours, of a message with such headers, and the letter of that letter.
    let Some(seed) = data.first_chunk::<20>() else { return };
    let (key, generation) = seed.split_at(16);
    let key = Key::from_bytes(key.try_into().unwrap());
    let generation = u32::from_le_bytes(generation.try_into().unwrap()) % 900_000;
    let error = String::from_utf8_lossy(data);
    let mut came = message;
    for generation in [generation, generation + 1] {
        let sent = letter(PUBLISHER.clone(), &ours, key, &came, generation, &error, &sealed);
        assert!(sent.headers.iter().all(|(_, value)| value.len() <= 1024.max(data.len())));
        came = MemoryPublisher::as_delivered(&sent).build();
        assert_eq!(own_headers(&ours, &came, &sealed), Some((Some(key), generation + 1)));
        assert_eq!(own_headers(&other, &came, &trusted), None);
    }
});

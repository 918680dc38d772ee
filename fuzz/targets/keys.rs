//! A key is of the value that serde_json finds, and a document keeps its fingerprint when it is serialised again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onceward::{Fingerprint, Fingerprinting, KeyExtractor, KeySource, KeyText, Message, Scope};
use serde_json::Value;
use serde_json::value::RawValue;

const POINTERS: [&str; 4] = ["/id", "/a/id", "/a/0/id", "/0"];

fuzz_target!(|payload: &[u8]| {
    let message = Message::builder(payload.to_vec()).build();
    let scope = Scope::parse("fuzz").unwrap();
    let document = serde_json::from_slice::<Value>(payload);
    for pointer in POINTERS {
        let keys = KeyExtractor::new(&scope, vec![KeySource::JsonPointer(pointer.into())]);
        match (keys.key_of(&message), &document) {
            (Ok(key), Ok(document)) => assert_same(&keys, key, document.pointer(pointer)),
            // Half of a surrogate pair or a large exponent, beside the key.
            (Ok(_), Err(_)) => assert!(serde_json::from_slice::<&RawValue>(payload).is_ok()),
            (Err(error), _) => assert!(error.to_string().len() < 400),
        }
    }
    let print = Fingerprint::of_json(payload);
    if let Ok(document) = &document
        && print != Fingerprint::of(payload)
        && keeps_its_numbers(document)
    {
        for text in [document.to_string(), serde_json::to_string_pretty(document).unwrap()] {
            assert_eq!(print, Fingerprint::of_json(text.as_bytes()));
        }
    }
    let _ = Fingerprinting::Pointers(POINTERS.map(String::from).to_vec()).of(payload);
});

fn assert_same(keys: &KeyExtractor, key: onceward::Key, value: Option<&Value>) {
    let number;
    let text = match value {
        Some(Value::String(text)) => KeyText::Text(text),
        // Beyond 64 bits it is floating point there.
        Some(Value::Number(number)) if number.is_f64() => return,
        Some(value) => {
            number = value.to_string();
            KeyText::Literal(&number)
        }
        None => panic!("a key of nothing"),
    };
    assert_eq!(keys.keys_from_text(0, &[text]), Ok(vec![key]));
}

/// True if no number becomes floating point, which has fewer digits.
fn keeps_its_numbers(value: &Value) -> bool {
    match value {
        Value::Number(number) => !number.is_f64(),
        Value::Array(items) => items.iter().all(keeps_its_numbers),
        Value::Object(members) => members.values().all(keeps_its_numbers),
        _ => true,
    }
}

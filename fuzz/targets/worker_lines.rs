//! A request is one line from which the message is found again, and is bounded; a worker's line never becomes an answer that it
//! is not, nor text that acts on a terminal.
#![no_main]

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libfuzzer_sys::fuzz_target;
use onceward::{Message, Scope};
use onceward_cli::handlers::worker_lines::{ProtocolLine, line, request};
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let (name, value) = data.split_at(data.len().min(4));
    let name = String::from_utf8_lossy(name).into_owned();
    let message =
        Message::builder(data.to_vec()).header(name.clone(), value.to_vec()).message_id(value).build();
    let written = request(7, &Scope::parse("fuzz").unwrap(), &message).expect("a request");
    let (end, text) = written.split_last().expect("a line end");
    let is_one_line = |character: char| !matches!(character, '\n' | '\r' | '\u{2028}' | '\u{2029}');
    assert!(*end == b'\n' && String::from_utf8_lossy(text).chars().all(is_one_line));
    assert!(text.len() <= 6 * 3 * data.len() + 1024);
    let read: Value = serde_json::from_slice(text).expect("JSON");
    assert_eq!(found(&read["payload"], &read["payload_base64"]), data);
    assert_eq!(found(&read["headers"][&name], &read["headers_base64"][&name]), value);
    assert_eq!(found(&read["message_id"], &read["message_id_base64"]), value);

    for id in [0, 1, 7] {
        match line(id, data) {
            ProtocolLine::Done(result) => {
                assert!(id > 0);
                // Half of a surrogate pair or a large exponent is no `Value`, and may be a result.
                if let Ok(answer) = serde_json::from_slice::<Value>(of_line(data)) {
                    let read = result.map(|result| serde_json::from_slice::<Value>(&result).expect("JSON"));
                    assert!(answer["ok"] == true && read.unwrap_or_default() == answer["result"]);
                }
            }
            ProtocolLine::Failed(text) => assert!(id > 0 && is_plain(&text)),
            ProtocolLine::Wrong(why) => assert!(is_plain(&why)),
            ProtocolLine::Ignored | ProtocolLine::Ready => {}
        }
    }
});

fn found(text: &Value, encoded: &Value) -> Vec<u8> {
    match (text.as_str(), encoded.as_str()) {
        (Some(text), None) => text.as_bytes().to_vec(),
        (None, Some(encoded)) => STANDARD.decode(encoded).expect("base64"),
        other => panic!("{other:?}"),
    }
}

fn of_line(data: &[u8]) -> &[u8] {
    data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data).trim_ascii()
}

fn is_plain(text: &str) -> bool {
    text.len() <= 8 * 1024 && !text.chars().any(char::is_control)
}

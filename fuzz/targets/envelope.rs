//! Checks that an envelope is read back as it was written, on one line, and that any payload can be written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use onceward::Outgoing;
use onceward_file::fuzzing::{parse, recognise, write};

fuzz_target!(|line: &[u8]| {
    if let Some(Ok(letter)) = recognise(line) {
        assert_eq!(parse(line.trim_ascii()), Ok(letter));
    }
    match parse(line) {
        Ok(message) => assert_eq!(read_again(&message), grouped(message)),
        Err(what) => assert!(what.len() < 300 && what.is_ascii(), "{what}"),
    }
    let (name, payload) = line.split_at(line.len().min(3));
    let message = Outgoing {
        id: String::from_utf8_lossy(name).into_owned(),
        order_key: Some(payload.to_vec().into()),
        headers: vec![(String::from_utf8_lossy(payload).into_owned(), name.to_vec().into())],
        payload: payload.to_vec().into(),
        ..Outgoing::default()
    };
    assert_eq!(read_again(&message), message);
});

fn read_again(message: &Outgoing) -> Outgoing {
    let line = write(message).expect("it can be written");
    let (end, line) = line.split_last().expect("a line end");
    assert!(*end == b'\n' && !line.contains(&b'\n'));
    parse(line).expect("it can be read")
}

/// Headers of one name stand together after they are written.
fn grouped(mut message: Outgoing) -> Outgoing {
    let mut names: Vec<String> = Vec::new();
    for (name, _) in &message.headers {
        if !names.contains(name) {
            names.push(name.clone());
        }
    }
    message.headers.sort_by_key(|(name, _)| names.iter().position(|known| known == name));
    message
}

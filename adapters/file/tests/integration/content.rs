//! Sources that do not hold plain lines of UTF-8: a byte order mark, compressed files, other encodings, our own letters.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use onceward::adapter::{CheckpointStore, Consumer, Settlement};
use onceward::{Error, ErrorKind};
use onceward_file::{FileConfig, FileConsumer, Format, backlog, check_content};

use crate::support::{
    self, Checkpoints, LIMIT, ack, append, end, file, follow, open_with, receive, scope, settle, texts,
};

const GZIP: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03\xab\x56\xca\x4c\n\x51\xb2\x32\n\xac\x05\x00";

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

fn configs(path: &std::path::Path) -> [FileConfig; 4] {
    [(Format::Raw, false), (Format::Envelope, false), (Format::Raw, true), (Format::Envelope, true)].map(
        |(format, follow)| {
            let mut config = FileConfig::new(path);
            (config.format, config.follow) = (format, follow);
            config
        },
    )
}

async fn refusal(consumer: &mut FileConsumer) -> Error {
    let received = tokio::time::timeout(LIMIT, consumer.receive()).await.expect("nothing comes");
    received.map(|batch| batch.map(|batch| texts(&batch))).unwrap_err()
}

#[tokio::test]
async fn a_byte_order_mark_is_dropped_and_the_offsets_stay_right() {
    let line = r#"{"id":"1","payload":"a"}"#;
    for (format, expected) in [(Format::Raw, line), (Format::Envelope, "a")] {
        let (_directory, path) = file(format!("\u{feff}{line}\n{line}\n"));
        let checkpoints = Checkpoints::new();
        let mut config = FileConfig::new(&path);
        config.format = format;
        let mut consumer = open_with(config.clone(), &checkpoints).await;
        let mut deliveries = receive(&mut consumer, 2).await;
        assert_eq!(texts(&deliveries), [expected, expected]);
        assert!(deliveries.iter().all(|delivery| delivery.message.defect().is_none()));
        let second = deliveries.split_off(1);
        // Read again from the file, it has no mark either.
        settle(&consumer, deliveries, Settlement::Retry { after: std::time::Duration::ZERO }).await;
        let again = receive(&mut consumer, 1).await;
        assert_eq!(texts(&again), [expected]);
        ack(&consumer, again).await;
        assert_eq!(checkpoints.offset(), 3 + line.len() as u64 + 1);
        drop((consumer, second));
        let mut consumer = open_with(config, &checkpoints).await;
        let rest = receive(&mut consumer, 1).await;
        assert_eq!(texts(&rest), [expected]);
        ack(&consumer, rest).await;
        end(&mut consumer).await;
    }
    let (_directory, path) = file("\u{feff}\n\u{feff}\n");
    let store = Checkpoints::new();
    let found = backlog(&FileConfig::new(&path), &scope(), &*store).await.unwrap().unwrap();
    assert_eq!((found.bytes, found.messages), (8, Some(1)), "the mark alone is an empty line");
}

#[tokio::test]
async fn what_is_no_plain_text_is_refused_when_it_is_opened_and_nothing_of_it_is_noted() {
    let wide = utf16("{\"id\":1}\n{\"id\":2}\n");
    let marked = [&b"\xff\xfe"[..], &wide].concat();
    for (content, hint) in
        [(GZIP, "zcat"), (&wide[..], "iconv"), (&marked[..], "iconv"), (b"PK\x03\x04\n", "unzip")]
    {
        let (_directory, path) = file(content);
        assert!(check_content(&path).unwrap_err().to_string().contains(hint));
        for config in configs(&path) {
            let checkpoints = Checkpoints::new();
            let store = Arc::clone(&checkpoints) as Arc<dyn CheckpointStore>;
            let error = FileConsumer::open(config, scope(), store).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(hint), "{error}");
            assert_eq!(checkpoints.saves.load(Ordering::SeqCst), 0);
        }
    }
    let (_directory, path) = file("caf\u{e9}\n");
    check_content(&path).unwrap();
    check_content(&path.with_extension("missing")).unwrap();
}

#[tokio::test]
async fn a_stream_that_is_no_plain_text_is_refused_before_its_first_line() {
    let wide = utf16("a\nb\nc\n");
    for content in [GZIP, b"\xff\xfea\0\n\0", b"BZh91AY&SY\x12\xff\n\x01", &wide] {
        for format in [Format::Raw, Format::Envelope] {
            let mut config = FileConfig::new("-");
            config.format = format;
            let mut consumer =
                FileConsumer::from_reader(config, std::io::Cursor::new(content.to_vec())).unwrap();
            let error = refusal(&mut consumer).await;
            assert_eq!(error.kind(), ErrorKind::Config, "{content:?}");
        }
    }
    let mut marked =
        FileConsumer::from_reader(FileConfig::new("-"), "\u{feff}one\ntwo\n".as_bytes()).unwrap();
    assert_eq!(texts(&receive(&mut marked, 2).await), ["one", "two"]);
}

#[tokio::test]
async fn a_followed_file_that_begins_or_is_rotated_to_something_else_is_refused_after_the_lines_before_it() {
    let (directory, path) = file("");
    let mut consumer = follow(&path, &Checkpoints::new()).await;
    append(&path, GZIP);
    assert_eq!(refusal(&mut consumer).await.kind(), ErrorKind::Config);

    let path = directory.path().join("rotated");
    std::fs::write(&path, "one\n").unwrap();
    let checkpoints = Checkpoints::new();
    let mut consumer = follow(&path, &checkpoints).await;
    let one = receive(&mut consumer, 1).await;
    std::fs::rename(&path, directory.path().join("rotated.1")).unwrap();
    std::fs::write(&path, GZIP).unwrap();
    ack(&consumer, one).await;
    assert!(refusal(&mut consumer).await.to_string().contains("gzip"));
}

#[tokio::test]
async fn a_letter_in_a_raw_source_is_the_message_that_it_holds() {
    let headers =
        r#"{"tenant":"a","onceward-scope":"test","onceward-generation":"0","onceward-reason":"permanent"}"#;
    let letter = format!(r#"{{"id":"m1","headers":{headers},"payload":{{"id":1}}}}"#);
    let torn = &letter[..letter.len() - 8];
    let (_directory, path) = file(format!("{{\"id\":0}}\n{letter}\n{torn}\n{{\"id\":2}}\n"));
    let mut consumer = support::open(&path, &Checkpoints::new()).await;
    let deliveries = receive(&mut consumer, 4).await;
    let message = &deliveries[1].message;
    assert_eq!((&message.payload()[..], message.id()), (&b"{\"id\":1}"[..], Some(&b"m1"[..])));
    assert_eq!(message.header("onceward-generation").unwrap(), &"0");
    assert!(deliveries[2].message.defect().is_some(), "half a letter is no payload");
    assert_eq!(texts(&[deliveries.into_iter().nth(3).unwrap()]), ["{\"id\":2}"]);
}

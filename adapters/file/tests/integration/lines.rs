//! Tests of the messages that lines become: content, limits, positions, envelopes, and paths that cannot be read.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::sync::Arc;

use onceward::adapter::{Consumer, Defect};
use onceward::{ErrorKind, Message};
use onceward_file::{FileConfig, FileConsumer, Format};

use crate::support::{self, Checkpoints, ack, end, file, open, open_with, receive, scope, texts};

#[tokio::test]
async fn bytes_pass_as_they_are_and_empty_lines_are_no_messages() {
    let (_directory, path) = file(b"\n\r\nnul\0byte\r\n\xff\xfe\n\n end \n\n");
    let mut consumer = open(&path, &Checkpoints::new()).await;
    let deliveries = receive(&mut consumer, 3).await;
    let payloads: Vec<_> = deliveries.iter().map(|delivery| &delivery.message.payload()[..]).collect();
    assert_eq!(payloads, [&b"nul\0byte"[..], b"\xff\xfe", b" end "]);
    let offsets: Vec<_> =
        deliveries.iter().map(|delivery| delivery.message.position().unwrap().offset).collect();
    assert_eq!(offsets, [3, 13, 17]);
    assert_eq!(deliveries[0].message.origin(), path.to_str());
    ack(&consumer, deliveries).await;
    end(&mut consumer).await;
}

#[tokio::test]
async fn a_line_of_32_mb_passes_whole_and_so_do_its_neighbours() {
    let large = "x".repeat(32 * 1024 * 1024);
    let (_directory, path) = file(format!("before\n{large}\nafter\n"));
    let mut consumer = open(&path, &Checkpoints::new()).await;
    let deliveries = receive(&mut consumer, 3).await;
    assert_eq!(deliveries[0].message.payload(), "before");
    assert!(deliveries[1].message.payload() == large.as_bytes());
    assert_eq!(deliveries[1].message.defect(), None);
    assert_eq!(deliveries[2].message.payload(), "after");
}

#[tokio::test]
async fn a_line_over_the_limit_comes_with_its_defect_and_stops_nobody() {
    for format in [Format::Raw, Format::Envelope] {
        let good = r#"{"payload":"good"}"#;
        let (_directory, path) = file(format!("{good}\n{}\n{good}\n", "x".repeat(300_000)));
        let mut config = FileConfig::new(&path);
        config.max_message_bytes = 2000;
        config.format = format;
        let mut consumer = open_with(config, &Checkpoints::new()).await;
        let deliveries = receive(&mut consumer, 3).await;
        let message = &deliveries[1].message;
        assert_eq!(message.defect(), Some(&Defect::Oversize { bytes: 300_000, limit: 2000 }));
        assert_eq!(message.payload(), "x".repeat(1024).as_bytes());
        assert_eq!(message.position().unwrap().offset, good.len() as u64 + 1);
        assert!([0, 2].iter().all(|at| deliveries[*at].message.defect().is_none()));
    }
}

fn headers(message: &Message) -> Vec<(&str, &[u8])> {
    message.headers().map(|(name, value)| (name, &value[..])).collect()
}

#[tokio::test]
async fn an_envelope_gives_id_headers_and_payload_and_what_is_none_is_dead_lettered_raw() {
    let lines = concat!(
        r#"{"id":"7","headers":{"a":["1","2"],"b":{"base64":"/w=="}},"order_key":"k","payload":{"n":1}}"#,
        "\n",
        r#"{"id":"8","surprise":1,"payload":"x"}"#,
        "\nno json\n",
        r#"{"payload_base64":"AP8="}"#,
        "\n"
    );
    let (_directory, path) = file(lines);
    let mut config = FileConfig::new(&path);
    config.format = Format::Envelope;
    let mut consumer = open_with(config, &Checkpoints::new()).await;
    let deliveries = receive(&mut consumer, 4).await;
    let messages: Vec<_> = deliveries.iter().map(|delivery| &delivery.message).collect();
    assert_eq!(messages[0].id(), Some(&b"7"[..]));
    assert_eq!(headers(messages[0]), [("a", &b"1"[..]), ("a", b"2"), ("b", b"\xff")]);
    assert_eq!(messages[0].order_key().map(|key| &key[..]), Some(&b"k"[..]));
    assert_eq!(messages[0].payload(), r#"{"n":1}"#);
    for (message, raw) in
        [(messages[1], r#"{"id":"8","surprise":1,"payload":"x"}"#), (messages[2], "no json")]
    {
        assert!(matches!(message.defect(), Some(Defect::Malformed { .. })), "{:?}", message.defect());
        assert_eq!((message.payload(), message.id()), (&raw.as_bytes().into(), None));
        assert!(message.position().is_some());
    }
    assert_eq!(&messages[3].payload()[..], b"\0\xff");
}

#[tokio::test]
async fn a_batch_has_at_most_its_limits() {
    let (_directory, path) = file("0123456789\n".repeat(100));
    let mut config = FileConfig::new(&path);
    config.batch_messages = 7;
    let mut consumer = open_with(config.clone(), &Checkpoints::new()).await;
    assert_eq!(consumer.receive().await.unwrap().unwrap().len(), 7);
    config.batch_bytes = 25;
    let mut consumer = open_with(config, &Checkpoints::new()).await;
    assert_eq!(consumer.receive().await.unwrap().unwrap().len(), 3);
}

async fn refusal(config: FileConfig) -> onceward::Error {
    FileConsumer::open(config, scope(), Checkpoints::new()).await.expect_err("opened")
}

#[tokio::test]
async fn a_path_that_cannot_be_read_is_refused_with_what_to_do() {
    let (directory, _path) = file("one\n");
    let missing = refusal(FileConfig::new(directory.path().join("none"))).await;
    assert_eq!(missing.kind(), ErrorKind::Config);
    assert!(missing.to_string().contains("follow = true"), "{missing}");
    let no_file = refusal(FileConfig::new(directory.path())).await;
    assert_eq!(no_file.kind(), ErrorKind::Config);
    assert!(no_file.to_string().contains("directory"), "{no_file}");
    let mut device = FileConfig::new("/dev/null");
    device.follow = true;
    assert!(refusal(device).await.to_string().contains("leave follow out"));
}

#[tokio::test]
async fn a_file_without_the_right_to_read_it_is_denied() {
    const FORBIDDEN: &str = "ONCEWARD_TEST_FORBIDDEN_FILE";
    if let Some(path) = std::env::var_os(FORBIDDEN) {
        assert_eq!(refusal(FileConfig::new(path)).await.kind(), ErrorKind::Denied);
        return;
    }
    let (_directory, path) = file("one\n");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    // The superuser may read everything: the same test then runs as an unprivileged user.
    let mut test = std::process::Command::new(std::env::current_exe().unwrap());
    test.args(["--exact", "lines::a_file_without_the_right_to_read_it_is_denied"]).env(FORBIDDEN, &path);
    if std::fs::File::open(&path).is_ok() {
        test.uid(65534);
    }
    let output = test.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

#[tokio::test]
async fn what_it_can_do_is_said() {
    let (_directory, path) = file("one\n");
    let capabilities = open(&path, &Checkpoints::new()).await.capabilities();
    assert!(capabilities.finite && capabilities.ordered && !capabilities.delayed_retry);
    assert_eq!(capabilities.heartbeat, None);
    assert!(!support::follow(&path, &Checkpoints::new()).await.capabilities().finite);
}

#[tokio::test]
async fn a_dropped_receive_loses_nothing_and_keeps_the_order() {
    let text: String = (0..5000).map(|number| format!("line {number}\n")).collect();
    let (_directory, path) = file(&text);
    let mut consumer = open(&path, &Checkpoints::new()).await;
    let mut deliveries = Vec::new();
    let mut dropped = 0;
    while deliveries.len() < 5000 {
        // Each call is polled a few times at most and then dropped, wherever it has got to.
        let polls = fastrand_like(dropped);
        let call = consumer.receive();
        tokio::select! {
            biased;
            received = call => deliveries.extend(received.unwrap().unwrap()),
            () = yield_times(polls) => dropped += 1,
        }
        assert!(dropped < 10_000_000, "no progress");
    }
    assert!(dropped > 0, "the test must drop calls to say anything");
    let expected: Vec<_> = text.lines().collect();
    assert_eq!(texts(&deliveries), expected);
    ack(&consumer, deliveries).await;
    end(&mut consumer).await;
}

/// 0 to 3, in a fixed order without a pattern.
fn fastrand_like(seed: usize) -> usize {
    (seed.wrapping_mul(2_654_435_761) >> 7) % 4
}

async fn yield_times(times: usize) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_call_dropped_while_the_store_saves_loses_nothing() {
    /// Saves only at the second try; the first one hangs until it is dropped.
    struct Hanging(std::sync::atomic::AtomicBool);

    #[async_trait::async_trait]
    impl onceward::adapter::CheckpointStore for Hanging {
        async fn load_checkpoint(
            &self,
            _: &onceward::Scope,
            _: &str,
        ) -> Result<Option<onceward::adapter::Checkpoint>, onceward::Error> {
            Ok(None)
        }

        async fn save_checkpoint(
            &self,
            _: &onceward::Scope,
            _: &str,
            _: &onceward::adapter::Checkpoint,
        ) -> Result<(), onceward::Error> {
            if !self.0.swap(true, std::sync::atomic::Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            Ok(())
        }
    }

    let (_directory, path) = file("one\ntwo\n");
    let store = Arc::new(Hanging(false.into()));
    let mut consumer = FileConsumer::open(FileConfig::new(&path), scope(), store.clone()).await.unwrap();
    while !store.0.load(std::sync::atomic::Ordering::SeqCst) {
        let call = tokio::time::timeout(std::time::Duration::from_millis(5), consumer.receive()).await;
        assert!(call.is_err());
    }
    assert_eq!(texts(&receive(&mut consumer, 2).await), ["one", "two"]);
}

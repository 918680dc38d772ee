//! Tests of the backlog as tools see it: computed from the saved offset, without disturbing the reader.

use onceward_file::{Backlog, FileConfig, backlog};

use crate::support::{Checkpoints, ack, file, follow, open, receive, run_to_end, scope};

async fn left(config: &FileConfig, checkpoints: &Checkpoints) -> Backlog {
    backlog(config, &scope(), checkpoints).await.unwrap().unwrap()
}

#[tokio::test]
async fn what_is_settled_is_no_backlog_and_what_is_in_flight_is() {
    let (_directory, path) = file("one\n\r\ntwo\nthree\nunfinished");
    let (config, checkpoints) = (FileConfig::new(&path), Checkpoints::new());
    assert_eq!(left(&config, &checkpoints).await, Backlog { bytes: 26, messages: Some(4) });

    let mut consumer = open(&path, &checkpoints).await;
    let mut deliveries = receive(&mut consumer, 4).await;
    let rest = deliveries.split_off(1);
    ack(&consumer, deliveries).await;
    assert_eq!(left(&config, &checkpoints).await.messages, Some(3));
    drop(rest);
    drop(consumer);
    run_to_end(&path, &checkpoints, &["two", "three", "unfinished"]).await;
    assert_eq!(left(&config, &checkpoints).await, Backlog { bytes: 10, messages: Some(1) });
}

#[tokio::test]
async fn a_rotated_file_that_is_not_finished_counts_with_the_new_one() {
    let (directory, path) = file("one\ntwo\n");
    let checkpoints = Checkpoints::new();
    let mut config = FileConfig::new(&path);
    config.follow = true;
    let mut consumer = follow(&path, &checkpoints).await;
    let mut deliveries = receive(&mut consumer, 2).await;
    let rest = deliveries.split_off(1);
    ack(&consumer, deliveries).await;
    drop(rest);
    drop(consumer);
    std::fs::rename(&path, directory.path().join("orders.1")).unwrap();
    assert_eq!(left(&config, &checkpoints).await, Backlog { bytes: 4, messages: Some(1) });
    std::fs::write(&path, "three\nfour\n").unwrap();
    assert_eq!(left(&config, &checkpoints).await, Backlog { bytes: 15, messages: Some(3) });
}

#[tokio::test]
async fn streams_have_none_and_an_absent_file_an_empty_one() {
    let checkpoints = Checkpoints::new();
    for stream in ["-", "/dev/null"] {
        assert_eq!(backlog(&FileConfig::new(stream), &scope(), &*checkpoints).await.unwrap(), None);
    }
    let (directory, _) = file("");
    let absent = FileConfig::new(directory.path().join("absent"));
    assert_eq!(left(&absent, &checkpoints).await, Backlog { bytes: 0, messages: Some(0) });
}

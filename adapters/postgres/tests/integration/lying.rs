//! Servers that lie: an invalid answer is an error, at the start and later, and the process continues.
use std::time::Duration;

use onceward_postgres::{PgConfig, PgStore};
use onceward_test_servers::lying::Liar;
use onceward_test_servers::lying::postgres::{self, Lie};

fn config(liar: &Liar) -> PgConfig {
    let url = format!("postgres://app:secret@{}/db?sslmode=disable", liar.address());
    {
        let mut config = PgConfig::new(&url);
        config.options.connect_timeout = Duration::from_millis(500);
        config
    }
}

#[tokio::test]
async fn messages_that_no_server_sends_are_errors_of_the_connection() {
    for lie in [
        Lie::Length(b'R', 0, false),
        Lie::Length(b'R', 3, false),
        Lie::Length(b'R', 4, false),
        Lie::Length(b'E', 0, true),
        Lie::Length(b'K', 5, true),
        Lie::Length(b'S', 6, true),
        Lie::Length(b'?', 8, true),
        Lie::First(b"R\0\0\0\x08\0\0\0\x05"),
        Lie::First(b"R\0\0\0\x0a\0\0\0\x0a\xff\xff"),
        Lie::First(b"S\0\0\0\x05x"),
        Lie::First(b"E\0\0\0\x06Sx"),
        Lie::First(b"N\0\0\0\x04"),
        Lie::First(b"HTTP/1.1 200 OK\r\n\r\n"),
        // Rows that end too early: a row description, a row, a text without an end.
        Lie::Answer(b"T\0\0\0\x06\xff\xff"),
        Lie::Answer(b"T\0\0\0\x06\0\x01"),
        Lie::Answer(b"D\0\0\0\x06\0\x01"),
        Lie::Answer(b"D\0\0\0\x0a\0\x01\x7f\xff\xff\xff"),
        Lie::Answer(b"C\0\0\0\x05x"),
        Lie::Answer(b"Z\0\0\0\x04"),
        Lie::Answer(b"A\0\0\0\x05x"),
    ] {
        let liar = postgres::start(lie);
        let error = PgStore::open(config(&liar)).await.map(drop).unwrap_err();
        assert!(error.is_retryable(), "{lie:?}: {error:?}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        let error = PgStore::missing_migrations(&config(&liar)).await.unwrap_err();
        assert!(error.is_retryable(), "{lie:?}: {error:?}");
    }
}

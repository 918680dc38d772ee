//! A file that is damaged while it is open.

use std::io::{Seek, SeekFrom, Write};

use onceward::{ErrorKind, Store};
use onceward_sqlite::{SqliteConfig, SqliteStore};
use sqlx::{Connection, Executor, SqliteConnection};

use crate::support::{TERMS, claim, completion, request, scope};

/// The claims stay held, and completions are retried: with another answer their effects would happen again.
#[tokio::test]
async fn a_file_that_is_damaged_meanwhile_is_not_taken_for_records_that_cannot_be_read() {
    for first_page in [0_u64, 1] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("onceward.db");
        let store = SqliteStore::open(SqliteConfig::new(&path)).await.unwrap();
        let lease = claim(&store, 1).await;
        let url = format!("sqlite://{}", path.display());
        let mut other = SqliteConnection::connect(&url).await.unwrap();
        // Another's write, so that the store looks at the pages again.
        other.execute("CREATE TABLE orders (id)").await.unwrap();
        other.execute("PRAGMA wal_checkpoint(TRUNCATE)").await.unwrap();
        let length = std::fs::metadata(&path).unwrap().len();
        let mut raw = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
        raw.seek(SeekFrom::Start(first_page * 4096)).unwrap();
        raw.write_all(&vec![0xaa; usize::try_from(length - first_page * 4096).unwrap()]).unwrap();
        drop(raw);
        let answers = [
            store.complete(&scope(), &[completion(lease)]).await.remove(0).map(drop),
            store.claim(&scope(), &TERMS, &[request(2)]).await.remove(0).map(drop),
        ];
        for answer in answers {
            let error = answer.unwrap_err();
            assert_ne!(error.kind(), ErrorKind::Corrupt, "{error:?}");
            assert!(error.to_string().contains("restore"), "{error}");
        }
    }
}

//! Claims and completions that several tests need.

use std::time::Duration;

use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Entropy, Lease};
use onceward::{Key, Scope, Store};
use onceward_sqlite::SqliteStore;

pub(crate) const TERMS: ClaimTerms =
    ClaimTerms { lease: Duration::from_secs(60), max_attempts: 3, ttl: Duration::from_secs(3_600) };

pub(crate) fn scope() -> Scope {
    Scope::parse("billing").unwrap()
}

pub(crate) fn key(n: u8) -> Key {
    Key::from_bytes([n; 16])
}

pub(crate) fn request(n: u8) -> ClaimRequest {
    ClaimRequest { key: key(n), owner: Entropy::system().token(), fingerprint: None, generation: 0 }
}

pub(crate) async fn claim(store: &SqliteStore, n: u8) -> Lease {
    match store.claim(&scope(), &TERMS, &[request(n)]).await.remove(0).unwrap() {
        Claim::Claimed(claimed) => claimed.lease,
        other => panic!("expected a claim, got {other:?}"),
    }
}

pub(crate) fn completion(lease: Lease) -> CompleteRequest {
    CompleteRequest::new(lease, TERMS.ttl)
}

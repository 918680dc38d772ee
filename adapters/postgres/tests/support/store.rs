//! Keys, claims and stores for tests of trouble.

#![allow(dead_code, clippy::unwrap_used)]

use std::time::Duration;

use onceward::store::{Claim, ClaimRequest, ClaimTerms, CompleteRequest, Entropy, Lease};
use onceward::{Key, Scope};
use onceward_postgres::{PgConfig, PgStore};

pub(crate) const TTL: Duration = Duration::from_secs(3_600);

pub(crate) fn scope() -> Scope {
    Scope::parse("edges").unwrap()
}

pub(crate) fn terms() -> ClaimTerms {
    ClaimTerms { lease: Duration::from_secs(60), ttl: TTL, max_attempts: 5 }
}

pub(crate) fn key(n: u32) -> Key {
    Key::of(&scope(), format!("order {n}")).unwrap()
}

pub(crate) fn requests(numbers: impl IntoIterator<Item = u32>) -> Vec<ClaimRequest> {
    let mut entropy = Entropy::system();
    let request = |n| ClaimRequest { key: key(n), owner: entropy.token(), fingerprint: None, generation: 0 };
    numbers.into_iter().map(request).collect()
}

pub(crate) fn completion(lease: Lease) -> CompleteRequest {
    CompleteRequest::new(lease, TTL)
}

pub(crate) fn lease(claim: &Claim) -> Lease {
    match claim {
        Claim::Claimed(claimed) => claimed.lease,
        other => panic!("not claimed: {other:?}"),
    }
}

pub(crate) async fn store_at(url: &str) -> PgStore {
    PgStore::open(PgConfig::new(url)).await.unwrap()
}

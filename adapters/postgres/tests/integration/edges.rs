//! Answers that must be the same as other stores give: completions repeated over newer fences, and large generations.

use onceward::Store;
use onceward::adapter::StoreAdmin;
use onceward::store::{
    Burial, BuryRequest, Claim, ClaimRequest, Completion, FailRequest, MAX_GENERATION, OwnerToken, Reason,
};
use onceward_test_servers::postgres::Postgres;

use crate::store as support;
use crate::store::{TTL, completion, lease, requests, scope, store_at, terms};

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_over_a_newer_fence_is_recognised_when_it_is_repeated() {
    let server = Postgres::start();
    let store = store_at(&server.url("postgres")).await;
    let request = requests([1]);
    let first = lease(&store.claim(&scope(), &terms(), &request).await.remove(0).unwrap());
    // The key is claimed by another, and then forgotten: its row keeps the newer fence.
    assert!(store.forget(&scope(), &[first.key]).await.remove(0).unwrap());
    let second = lease(&store.claim(&scope(), &terms(), &requests([1])).await.remove(0).unwrap());
    assert!(second.fence > first.fence);
    assert!(store.forget(&scope(), &[first.key]).await.remove(0).unwrap());
    let done = completion(first);
    let answer = store.complete(&scope(), std::slice::from_ref(&done)).await.remove(0).unwrap();
    assert_eq!(answer, Completion::Inserted);
    let again = store.complete(&scope(), std::slice::from_ref(&done)).await.remove(0).unwrap();
    assert_eq!(again, Completion::Repeated);
    // Fences keep growing nevertheless.
    assert!(store.forget(&scope(), &[first.key]).await.remove(0).unwrap());
    let third = lease(&store.claim(&scope(), &terms(), &requests([1])).await.remove(0).unwrap());
    assert!(third.fence > second.fence, "{third:?} after {second:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_key_opens_for_its_next_generation_up_to_the_last() {
    let server = Postgres::start();
    let store = store_at(&server.url("postgres")).await;
    let claim = |key, n: u8, generation| {
        let owner = OwnerToken::from_bytes([n; 16]);
        let request = ClaimRequest { key, owner, fingerprint: None, generation };
        let store = store.clone();
        async move { store.claim(&scope(), &terms(), &[request]).await.remove(0).unwrap() }
    };
    // A dead key opens for its next generation only; where nothing is known any is taken.
    for (n, generation) in (1_u8..).zip([0, 1, MAX_GENERATION - 1, MAX_GENERATION]) {
        let key = support::key(n.into());
        let taken = claim(key, n, generation).await;
        assert!(matches!(&taken, Claim::Claimed(claimed) if claimed.generation == generation), "{taken:?}");
        let lease = lease(&taken);
        let error = "no".to_owned();
        let failed = FailRequest { lease, error, terminal: Some(Reason::Permanent) };
        store.fail(&scope(), &[failed]).await.remove(0).unwrap();
        let buried = store.bury(&scope(), &[BuryRequest { lease, ttl: TTL }]).await.remove(0).unwrap();
        assert_eq!(buried, Burial::Dead);
        let again = claim(key, n + 100, generation).await;
        assert!(matches!(again, Claim::Dead { generation: dead, .. } if dead == generation), "{again:?}");
        let found = store.inspect(&scope(), &key).await.unwrap().unwrap();
        assert_eq!(found.generation, generation);
        let next = generation + 1;
        if next <= MAX_GENERATION {
            let redriven = claim(key, n + 200, next).await;
            assert!(
                matches!(&redriven, Claim::Claimed(claimed) if claimed.generation == next),
                "{redriven:?}"
            );
        }
    }
}

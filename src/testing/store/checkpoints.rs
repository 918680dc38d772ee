//! Checks of [`CheckpointStore`].

use super::CheckpointHarness;
use super::case::Case;
use crate::checkpoint::{Checkpoint, CheckpointStore};

fn checkpoint(offset: u64) -> Checkpoint {
    Checkpoint {
        incarnation: format!("inode {offset}"),
        offset,
        evidence: "head=\"Zürich 日本\"\n".to_owned(),
    }
}

/// A source that was never saved has no checkpoint.
pub async fn an_unknown_source_has_no_checkpoint<H: CheckpointHarness>(harness: &H) {
    let case = Case::new(harness).await;
    assert_eq!(case.store.load_checkpoint(&case.scope, "orders.jsonl").await.expect("it answers"), None);
}

/// A saved checkpoint is loaded by another worker as it was, up to the largest offset a file can have.
pub async fn a_saved_checkpoint_is_loaded_by_another_worker<H: CheckpointHarness>(harness: &H) {
    let case = Case::new(harness).await;
    let other = Case::new(harness).await;
    for offset in [0, 1, i64::MAX as u64] {
        let saved = checkpoint(offset);
        case.store.save_checkpoint(&case.scope, "orders.jsonl", &saved).await.expect("it saves");
        let loaded = other.store.load_checkpoint(&case.scope, "orders.jsonl").await.expect("it answers");
        assert_eq!(loaded, Some(saved));
    }
}

/// The last save wins, also one that goes back: a new incarnation starts from its beginning.
pub async fn the_last_saved_checkpoint_wins<H: CheckpointHarness>(harness: &H) {
    let case = Case::new(harness).await;
    for offset in [10, 20, 5] {
        case.store.save_checkpoint(&case.scope, "orders.jsonl", &checkpoint(offset)).await.expect("it saves");
    }
    let loaded = case.store.load_checkpoint(&case.scope, "orders.jsonl").await.expect("it answers");
    assert_eq!(loaded, Some(checkpoint(5)));
}

/// Checkpoints of other scopes and sources are apart.
pub async fn checkpoints_of_scopes_and_sources_are_apart<H: CheckpointHarness>(harness: &H) {
    let billing = Case::of_scope(harness, "billing").await;
    let audit = Case::of_scope(harness, "audit").await;
    billing.store.save_checkpoint(&billing.scope, "a", &checkpoint(1)).await.expect("it saves");
    billing.store.save_checkpoint(&billing.scope, "b/Zürich", &checkpoint(2)).await.expect("it saves");
    audit.store.save_checkpoint(&audit.scope, "a", &checkpoint(3)).await.expect("it saves");
    for (case, source, offset) in [(&billing, "a", 1), (&billing, "b/Zürich", 2), (&audit, "a", 3)] {
        let loaded = case.store.load_checkpoint(&case.scope, source).await.expect("it answers");
        assert_eq!(loaded, Some(checkpoint(offset)), "{} of {}", source, case.scope);
    }
}

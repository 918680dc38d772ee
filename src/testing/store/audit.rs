//! Checks of [`AuditLog`].

use super::StoreHarness;
use crate::key::Scope;
use crate::store::{AuditEntry, AuditLog};

fn scope(name: &str) -> Scope {
    Scope::parse(name).expect("a scope")
}

fn entry(subject: &str, settles: bool, number: usize) -> AuditEntry {
    AuditEntry { subject: subject.into(), settles, text: format!(r#"{{"note":"Zürich \"{number}\""}}"#) }
}

/// Entries are read by another worker, the newest first, in the order in which they were appended, page by page; a subject counts
/// as settled once an entry settles it, in its own scope only.
///
/// # Panics
/// If one of these does not hold.
pub async fn audit_entries_are_kept_in_order<H: StoreHarness>(harness: &H)
where
    H::Store: AuditLog,
{
    let (one, other) = (harness.store().await, harness.store().await);
    let (billing, mail) = (scope("audit-billing"), scope("audit-mail"));
    assert!(other.read(&billing, None, 10).await.expect("it answers").is_empty());
    one.append(&billing, &[]).await.expect("nothing is appended");
    let first = [entry("at a:0:1", false, 1), entry("at a:0:2", true, 2)];
    one.append(&billing, &first).await.expect("it appends");
    one.append(&mail, &[entry("at a:0:1", true, 3)]).await.expect("it appends");
    one.append(&billing, &[entry("at a:0:1", false, 4)]).await.expect("it appends");

    let records = other.read(&billing, None, 10).await.expect("it answers");
    let texts: Vec<_> = records.iter().map(|record| record.text.clone()).collect();
    let expected = [4, 2, 1].map(|number| entry("", false, number).text);
    assert_eq!(texts, expected);
    assert!(records.is_sorted_by(|newer, older| newer.number > older.number), "{records:?}");
    let page = other.read(&billing, Some(records[0].number), 1).await.expect("it answers");
    assert_eq!(page, [records[1].clone()]);
    let last = other.read(&billing, Some(records[2].number), 10).await.expect("it answers");
    assert!(last.is_empty(), "{last:?}");

    let asked = ["at a:0:2", "at a:0:1", "at a:0:2", "unknown"].map(str::to_owned);
    let settled = other.settled(&billing, &asked).await.expect("it answers");
    assert_eq!(settled, [true, false, true, false]);
    assert_eq!(other.settled(&mail, &asked).await.expect("it answers"), [false, true, false, false]);
    assert!(other.settled(&billing, &[]).await.expect("it answers").is_empty());
    assert_eq!(other.settled(&scope("audit-none"), &asked).await.expect("it answers"), [false; 4]);
}

/// Entries are removed once they are old enough, the oldest first and no more than asked for, in their own scope only. What they have
/// settled stays settled, numbers stay as they are, and later entries have larger ones.
///
/// # Panics
/// If one of these does not hold.
pub async fn old_audit_entries_are_removed<H: StoreHarness>(harness: &H)
where
    H::Store: AuditLog,
{
    let store = harness.store().await;
    let (billing, mail, age) = (scope("old-billing"), scope("old-mail"), harness.timing().ttl);
    let numbers = async |scope: &Scope| -> Vec<u64> {
        let records = store.read(scope, None, 100).await.expect("it answers");
        records.iter().map(|record| record.number).collect()
    };
    let remove = async |limit: u32| store.remove_older(&billing, age, limit).await.expect("it answers");
    assert_eq!(remove(10).await, 0, "nothing was appended");
    let old = [entry("a", true, 1), entry("b", false, 2), entry("c", false, 3), entry("d", true, 4)];
    store.append(&billing, &old).await.expect("it appends");
    store.append(&mail, &[entry("a", false, 5)]).await.expect("it appends");
    harness.advance(age).await;
    store.append(&billing, &[entry("e", false, 6), entry("f", true, 7)]).await.expect("it appends");
    let all = numbers(&billing).await;
    assert_eq!(all.len(), 6);
    assert_eq!(remove(3).await, 3);
    assert_eq!(numbers(&billing).await, all[..3], "the oldest three");
    assert_eq!(remove(100).await, 1);
    assert_eq!(numbers(&billing).await, all[..2], "those that are young");
    assert_eq!(remove(100).await, 0);
    let page = store.read(&billing, Some(all[0]), 1).await.expect("it answers");
    let texts: Vec<_> = page.iter().map(|record| (record.number, &record.text)).collect();
    assert_eq!(texts, [(all[1], &entry("", false, 6).text)]);
    let subjects = ["a", "b", "c", "d", "e", "f"].map(str::to_owned);
    let settled = store.settled(&billing, &subjects).await.expect("it answers");
    assert_eq!(settled, [true, false, false, true, false, true]);
    assert_eq!(numbers(&mail).await.len(), 1, "another scope");
    harness.advance(age).await;
    assert_eq!(remove(100).await, 2);
    assert!(numbers(&billing).await.is_empty());
    store.append(&billing, &[entry("g", false, 8)]).await.expect("it appends");
    let [last] = numbers(&billing).await[..] else { panic!("one entry is there") };
    assert!(last > all[0], "{last} after {all:?}");
}

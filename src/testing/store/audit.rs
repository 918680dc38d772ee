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

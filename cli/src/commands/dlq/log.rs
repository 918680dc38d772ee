//! `dlq log`: shows the audit trail.

use onceward::store::AuditRecord;
use serde_json::Value;

use super::context::{load, open_store};
use crate::args::LetterLogArgs;
use crate::commands::audit::{KeyChange, LetterRecord};
use crate::commands::failure;
use crate::config::Lookup;
use crate::exit::{Exit, Failure};
use crate::handlers::text::printable;
use crate::output::Output;

/// Entries of one call to the store.
const PAGE: u32 = 1_000;
/// The most bytes of a text that are printed.
const TEXT_LIMIT: usize = 512;

pub(super) async fn log(args: &LetterLogArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let (config, scope) = load(&args.config, env)?;
    let (store, audit) = open_store(&config).await?;
    let (mut found, mut before, limit) = (Vec::new(), None, args.limit as usize);
    let read = loop {
        let page = match audit.read(&scope, before, PAGE).await {
            Ok(page) => page,
            Err(error) => break Err(failure::failure(&error)),
        };
        before = page.last().map(|record| record.number);
        let is_last = page.len() < PAGE as usize;
        found.extend(page.into_iter().filter(|record| is_asked_for(record, args.id.as_deref())));
        if is_last || found.len() >= limit {
            break Ok(());
        }
    };
    store.close().await;
    read?;
    found.truncate(limit);
    found.iter().rev().try_for_each(|record| print(record, args.json, out))?;
    Ok(Exit::Done)
}

/// Entries about keys are `keys explain`'s.
fn is_asked_for(record: &AuditRecord, id: Option<&str>) -> bool {
    match id {
        Some(id) => serde_json::from_str::<LetterRecord>(&record.text).is_ok_and(|own| own.letter == id),
        None => serde_json::from_str::<KeyChange>(&record.text).is_err(),
    }
}

/// An entry of another version is printed as it is.
fn print(record: &AuditRecord, json: bool, out: &mut Output) -> Result<(), Failure> {
    if json {
        let mut entry =
            serde_json::from_str(&record.text).unwrap_or_else(|_| Value::from(record.text.clone()));
        if let Some(fields) = entry.as_object_mut() {
            fields.insert("number".to_owned(), record.number.into());
        }
        out.json(&entry)?;
        return Ok(());
    }
    match serde_json::from_str::<LetterRecord>(&record.text) {
        Ok(own) => out.line(printable(own.words().as_bytes(), TEXT_LIMIT * 2))?,
        Err(_) => out.line(printable(record.text.as_bytes(), TEXT_LIMIT))?,
    }
    Ok(())
}

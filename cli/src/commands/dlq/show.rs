//! `dlq show`: shows one dead letter.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use onceward::OwnHeaders;
use onceward::adapter::Delivery;
use serde_json::{Value, json};

use super::context::{LettersContext, load};
use super::letter::ReadLetter;
use crate::args::LetterShowArgs;
use crate::commands::failure;
use crate::config::Lookup;
use crate::exit::{Exit, Failure};
use crate::handlers::text::printable;
use crate::output::Output;

/// The most bytes of a header or a payload that are printed for people.
const VALUE_LIMIT: usize = 2 * 1024;
const PAYLOAD_LIMIT: usize = 64 * 1024;

pub(super) async fn show(args: &LetterShowArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let (config, scope) = load(&args.letters.config, env)?;
    let mut context = LettersContext::open(args.letters.from.as_deref(), config, scope).await?;
    let found = find(&mut context, &args.id).await;
    let (scope, own) = (context.scope.clone(), context.own.clone());
    let found = context.close(found).await?;
    let letter = found.as_ref().and_then(|delivery| ReadLetter::of(&delivery.message, &scope));
    let Some(letter) = letter else {
        let sentence =
            "there is no such dead letter; `onceward dlq list` shows the ids of those that there are";
        return Err(Failure::new(Exit::Failed, sentence));
    };
    if args.payload {
        out.write(letter.message.payload())?;
    } else if args.letters.json {
        out.json(&as_json(&letter, &own)?)?;
    } else {
        print(&letter, &own, out)?;
    }
    Ok(Exit::Done)
}

/// The first letter with this id.
async fn find(context: &mut LettersContext, id: &str) -> Result<Option<Delivery>, Failure> {
    while let Some(batch) = context.reader.next().await.map_err(|error| failure::failure(&error))? {
        let has_id = |delivery: &Delivery| {
            ReadLetter::of(&delivery.message, &context.scope).is_some_and(|letter| letter.id() == id)
        };
        if let Some(found) = batch.into_iter().find(has_id) {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn as_json(letter: &ReadLetter<'_>, own: &OwnHeaders) -> Result<Value, Failure> {
    let facts = serde_json::to_value(letter.facts(own, SystemTime::now()));
    let mut shown =
        facts.map_err(|error| Failure::new(Exit::Failed, format!("writing JSON failed: {error}")))?;
    let headers = letter.message.headers().map(|(name, value)| json!([name, String::from_utf8_lossy(value)]));
    shown["headers"] = headers.collect();
    match std::str::from_utf8(letter.message.payload()) {
        Ok(text) => shown["payload"] = text.into(),
        Err(_) => shown["payload_base64"] = STANDARD.encode(letter.message.payload()).into(),
    }
    Ok(shown)
}

fn print(letter: &ReadLetter<'_>, own: &OwnHeaders, out: &mut Output) -> Result<(), Failure> {
    let facts = letter.facts(own, SystemTime::now());
    out.line(format_args!("id: {}", printable(facts.id.as_bytes(), VALUE_LIMIT)))?;
    for (name, value) in letter.message.headers() {
        let name = printable(name.as_bytes(), VALUE_LIMIT);
        out.line(format_args!("{name}: {}", printable(value, VALUE_LIMIT)))?;
    }
    out.line("")?;
    let payload = letter.message.payload();
    let text = match std::str::from_utf8(payload) {
        Ok(_) => printable(payload, PAYLOAD_LIMIT),
        Err(_) => format!("({} bytes that are no text; --payload writes them to a file)", payload.len()),
    };
    out.line(text)?;
    Ok(())
}

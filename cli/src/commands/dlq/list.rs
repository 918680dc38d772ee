//! `dlq list`: lists dead letters.

use onceward::OwnHeaders;

use super::context::{LettersContext, load};
use super::filter::Filter;
use super::letter::{LetterFacts, ReadLetter};
use crate::args::LetterListArgs;
use crate::commands::failure;
use crate::commands::keys::time;
use crate::config::Lookup;
use crate::exit::{Exit, Failure};
use crate::handlers::text::printable;
use crate::output::{Output, OutputError};

/// The most bytes of an error that are printed.
const ERROR_LIMIT: usize = 80;

pub(super) async fn list(args: &LetterListArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let filter = Filter::new(&args.filter)?;
    let (config, scope) = load(&args.letters.config, env)?;
    let mut context = LettersContext::open(args.letters.from.as_deref(), config, scope).await?;
    let listed = each(&mut context, args, &filter, out).await;
    let (listed, skipped) = context.close(listed).await?;
    if !args.letters.json {
        out.line(format_args!("listed={listed} skipped={skipped}"))?;
    }
    Ok(Exit::Done)
}

async fn each(
    context: &mut LettersContext,
    args: &LetterListArgs,
    filter: &Filter<'_>,
    out: &mut Output,
) -> Result<(usize, usize), Failure> {
    let (mut listed, mut skipped) = (0, 0);
    if !args.letters.json {
        out.line(format_args!("{:>9}  {:<18} {:>8}  {:<67}  ERROR", "AGE", "REASON", "ATTEMPTS", "ID"))?;
    }
    while listed < filter.limit() {
        let Some(batch) = context.reader.next().await.map_err(|error| failure::failure(&error))? else {
            break;
        };
        for delivery in &batch {
            match ReadLetter::of(&delivery.message, &context.scope).filter(|letter| filter.matches(letter)) {
                Some(letter) if listed < filter.limit() => {
                    listed += 1;
                    print(&letter, &context.own, filter, args.letters.json, out)?;
                }
                Some(_) => {}
                None => skipped += 1,
            }
        }
    }
    Ok((listed, skipped))
}

fn print(
    letter: &ReadLetter<'_>,
    own: &OwnHeaders,
    filter: &Filter<'_>,
    json: bool,
    out: &mut Output,
) -> Result<(), OutputError> {
    let facts = letter.facts(own, filter.now());
    if json { out.json(&facts) } else { out.line(line(&facts)) }
}

/// One line for people.
pub(super) fn line(facts: &LetterFacts) -> String {
    let age =
        facts.age_ms.map_or_else(|| "unknown".to_owned(), |age| time(std::time::Duration::from_millis(age)));
    let attempts = facts.attempts.map(|attempts| attempts.to_string()).unwrap_or_default();
    let error = printable(facts.error.as_deref().unwrap_or_default().as_bytes(), ERROR_LIMIT);
    let id = printable(facts.id.as_bytes(), 512);
    format!("{age:>9}  {:<18} {attempts:>8}  {id:<67}  {error}", facts.reason).trim_end().to_owned()
}

//! `dlq purge`: deletes dead letters, with a confirmation and audit entries.

use std::sync::Arc;

use onceward::adapter::{Delivery, Tag};

use super::audit::Auditor;
use super::context::{CHANGE, LettersContext, load};
use super::filter::Filter;
use super::letter::ReadLetter;
use super::list::line;
use crate::args::LetterPurgeArgs;
use crate::commands::audit::{LetterAction, Operator};
use crate::commands::consent::consent;
use crate::commands::failure;
use crate::commands::progress::PacedProgress;
use crate::config::Lookup;
use crate::exit::{Exit, Failure};
use crate::logging::AUDIT;
use crate::output::Output;

/// The most letters of one step.
const STEP: usize = 100;

pub(super) async fn purge(
    args: &LetterPurgeArgs,
    env: Lookup<'_>,
    out: &mut Output,
) -> Result<Exit, Failure> {
    let filter = Filter::new(&args.filter)?;
    let (config, scope) = load(&args.letters.config, env)?;
    if !args.dry_run {
        consent(
            args.yes,
            &format!("Delete the dead letters of {} that the filter selects, for ever?", config.scope),
            CHANGE,
        )?;
    }
    let context = LettersContext::open(args.letters.from.as_deref(), config, scope).await?;
    let PurgeCounts { purged, skipped } =
        purge_selected(context, args, filter, Operator::new(env), out).await?;
    let skipped = if skipped > 0 { format!(" skipped={skipped}") } else { String::new() };
    let name = if args.dry_run { "would-purge" } else { "purged" };
    match args.letters.json {
        true => out.json(&serde_json::json!({ name: purged }))?,
        false => out.line(format_args!("{name}={purged}{skipped}"))?,
    }
    Ok(Exit::Done)
}

/// Deletes the letters that `filter` selects, for `operator`.
pub(super) async fn purge_selected(
    mut context: LettersContext,
    args: &LetterPurgeArgs,
    filter: Filter<'_>,
    operator: Operator,
    out: &mut Output,
) -> Result<PurgeCounts, Failure> {
    let (audit, scope) = (Arc::clone(&context.audit), context.scope.clone());
    let auditor = Auditor::new(audit, scope, operator, args.why.as_deref(), false);
    let mut work =
        Purging { args, filter, progress: PacedProgress::new(args.rate), auditor, purged: 0, skipped: 0 };
    let ended = work.run(&mut context, out).await;
    let Purging { purged, skipped, auditor, .. } = work;
    if !args.dry_run {
        let (scope, user) = (&context.scope, auditor.user());
        tracing::info!(target: AUDIT, %scope, purged, skipped, user, why = args.why, "dead letters purged");
    }
    context.close(ended).await?;
    Ok(PurgeCounts { purged, skipped })
}

/// How many letters were deleted, and how many the filter excluded.
#[derive(Clone, Copy, Debug)]
pub(super) struct PurgeCounts {
    pub(super) purged: usize,
    skipped: usize,
}

struct Purging<'a> {
    args: &'a LetterPurgeArgs,
    filter: Filter<'a>,
    progress: PacedProgress,
    auditor: Auditor,
    purged: usize,
    skipped: usize,
}

impl Purging<'_> {
    async fn run(&mut self, context: &mut LettersContext, out: &mut Output) -> Result<(), Failure> {
        while self.purged < self.filter.limit() {
            let Some(batch) = context.reader.next().await.map_err(|error| failure::failure(&error))? else {
                break;
            };
            let selected: Vec<_> =
                batch.iter().filter_map(|delivery| self.select(context, delivery)).collect();
            self.skipped += batch.len() - selected.len();
            for step in selected.chunks(self.progress.step(STEP)) {
                let left = self.filter.limit() - self.purged;
                self.delete(context, &step[..step.len().min(left)], out).await?;
            }
            self.progress.print(format_args!("purged={} skipped={}", self.purged, self.skipped));
        }
        Ok(())
    }

    fn select<'m>(&self, context: &LettersContext, delivery: &'m Delivery) -> Option<(Tag, ReadLetter<'m>)> {
        let letter = ReadLetter::of(&delivery.message, &context.scope)?;
        self.filter.matches(&letter).then_some((delivery.tag, letter))
    }

    /// The entry first: no letter is deleted without one, and where nothing can be deleted it is the deletion.
    async fn delete(
        &mut self,
        context: &mut LettersContext,
        letters: &[(Tag, ReadLetter<'_>)],
        out: &mut Output,
    ) -> Result<(), Failure> {
        let failed = |error| failure::failure(&error);
        self.purged += letters.len();
        if self.args.dry_run {
            for (_, letter) in letters {
                let facts = letter.facts(&context.own, self.filter.now());
                if self.args.letters.json { out.json(&facts)? } else { out.line(line(&facts))? }
            }
            return Ok(());
        }
        let all: Vec<_> = letters.iter().map(|(_, letter)| letter).collect();
        self.auditor.record(LetterAction::Purged, &all).await.map_err(failed)?;
        let tags: Vec<_> = letters.iter().map(|(tag, _)| *tag).collect();
        context.reader.delete(&tags).await.map_err(failed)?;
        let next = self.progress.add(letters.len());
        context.reader.wait_until(next).await;
        Ok(())
    }
}

//! `dlq redrive`: moves dead letters back to their source, with a confirmation and audit entries.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onceward::adapter::{Delivery, Tag};
use onceward::own_headers::LETTER;
use onceward::store::{Reason, Redrive, RedriveRequest, StoreAdmin};
use onceward::{Error, HeaderTrust, Key, Scope};
use serde_json::json;

use super::audit::Auditor;
use super::context::{CHANGE, LettersContext, load};
use super::filter::Filter;
use super::letter::ReadLetter;
use super::republish::Republisher;
use crate::args::RedriveArgs;
use crate::commands::audit::{LetterAction, Operator};
use crate::commands::consent::consent;
use crate::commands::failure;
use crate::commands::progress::PacedProgress;
use crate::config::Lookup;
use crate::exit::{Exit, Failure};
use crate::logging::AUDIT;
use crate::output::Output;
use crate::registry;

/// The most letters of one step.
const STEP: usize = 100;

pub(super) async fn redrive(args: &RedriveArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let filter = Filter::new(&args.filter)?;
    let (config, scope) = load(&args.letters.config, env)?;
    let payload = payload(args)?;
    if !args.dry_run {
        let to = registry::describe_source(&config);
        let question =
            format!("Move the dead letters of {} back to {to}? They are handled again.", config.scope);
        consent(args.yes, &question, CHANGE)?;
    }
    let context = LettersContext::open(args.letters.from.as_deref(), config, scope).await?;
    let counts = redrive_selected(context, args, filter, payload, Operator::new(env), out).await?;
    let RedriveCounts { redriven, resolved, left, skipped, .. } = counts;
    let name = if args.dry_run { "would-redrive" } else { "redriven" };
    if args.letters.json {
        out.json(&json!({ name: redriven, "resolved": resolved, "left": left, "skipped": skipped }))?;
    } else {
        let skipped = if skipped > 0 { format!(" skipped={skipped}") } else { String::new() };
        out.line(format_args!("{name}={redriven} resolved={resolved} left={left}{skipped}"))?;
    }
    Ok(Exit::Done)
}

/// Moves the letters that `filter` selects back to their source, with `payload` in the place of their own, for `operator`.
pub(super) async fn redrive_selected(
    mut context: LettersContext,
    args: &RedriveArgs,
    filter: Filter<'_>,
    payload: Option<Bytes>,
    operator: Operator,
    out: &mut Output,
) -> Result<RedriveCounts, Failure> {
    let (audit, scope) = (Arc::clone(&context.audit), context.scope.clone());
    let mut work = Redriving {
        auditor: Auditor::new(audit, scope, operator, args.why.as_deref(), payload.is_some()),
        republisher: Republisher {
            to: context.to.clone(),
            own: context.own.clone(),
            sends_headers: context.own.seals() || context.needs_headers,
            payload,
        },
        args,
        filter,
        progress: PacedProgress::new(args.rate),
        seen: HashSet::new(),
        selected: 0,
        counts: RedriveCounts::default(),
    };
    let ended = work.run(&mut context, out).await;
    let (counts, user) = (work.counts, work.auditor.user());
    if !args.dry_run {
        let RedriveCounts { redriven, resolved, left, skipped, .. } = counts;
        tracing::info!(
            target: AUDIT, scope = %context.scope, redriven, resolved, left, skipped, user, why = args.why,
            "dead letters redriven"
        );
    }
    context.close(ended).await?;
    Ok(counts)
}

/// The content of `--payload-file`.
fn payload(args: &RedriveArgs) -> Result<Option<Bytes>, Failure> {
    let Some(file) = &args.payload_file else { return Ok(None) };
    let read = std::fs::read(file).map_err(|error| {
        let sentence = format!("--payload-file: {} cannot be read ({error})", file.display());
        Failure::new(Exit::Usage, sentence)
    })?;
    Ok(Some(read.into()))
}

/// What became of letters.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RedriveCounts {
    pub(super) redriven: u64,
    pub(super) resolved: u64,
    left: u64,
    skipped: u64,
    /// Why the last letter of the filter that was left could not be redriven.
    pub(super) obstacle: Option<&'static str>,
}

struct Redriving<'r> {
    args: &'r RedriveArgs,
    filter: Filter<'r>,
    progress: PacedProgress,
    auditor: Auditor,
    republisher: Republisher,
    /// Hashes of the letters so far: one that has died again in the meantime is left to the next command.
    seen: HashSet<u64>,
    selected: usize,
    counts: RedriveCounts,
}

/// A letter that is to be redriven.
struct Candidate<'m> {
    tag: Tag,
    letter: ReadLetter<'m>,
}

impl Redriving<'_> {
    /// Processes letters until no letter is left, or the limit is reached.
    async fn run(&mut self, context: &mut LettersContext, out: &mut Output) -> Result<(), Failure> {
        while self.selected < self.filter.limit() {
            let Some(batch) = context.reader.next().await.map_err(|error| failure::failure(&error))? else {
                break;
            };
            let mut candidates = Vec::new();
            for delivery in &batch {
                candidates.extend(self.select(context, delivery, out)?);
            }
            for step in steps(candidates, self.progress.step(STEP)) {
                self.step(context, &step, out).await?;
                let next = self.progress.add(step.len());
                context.reader.wait_until(next).await;
            }
            let RedriveCounts { redriven, resolved, left, skipped, .. } = self.counts;
            self.progress
                .print(format_args!("redriven={redriven} resolved={resolved} left={left} skipped={skipped}"));
        }
        Ok(())
    }

    /// The letter of `delivery`, if it is to be redriven.
    fn select<'m>(
        &mut self,
        context: &LettersContext,
        delivery: &'m Delivery,
        out: &mut Output,
    ) -> Result<Option<Candidate<'m>>, Failure> {
        let Some(letter) = ReadLetter::of(&delivery.message, &context.scope) else {
            self.counts.left += 1;
            tracing::debug!("message left that is not a dead letter of this scope");
            return Ok(None);
        };
        if !self.filter.matches(&letter) {
            self.counts.skipped += 1;
            return Ok(None);
        }
        if self.selected >= self.filter.limit() {
            return Ok(None);
        }
        self.selected += 1;
        if let Some(why) = self.obstacle(context, &letter) {
            self.counts.left += 1;
            self.counts.obstacle = Some(why);
            tracing::warn!(letter = letter.id(), why, "dead letter left");
            self.report(&letter, "left", Some(why), out)?;
            return Ok(None);
        }
        Ok(Some(Candidate { tag: delivery.tag, letter }))
    }

    /// Why `letter` cannot be redriven.
    fn obstacle(&mut self, context: &LettersContext, letter: &ReadLetter<'_>) -> Option<&'static str> {
        let own = &context.own;
        // What dies again while the command runs would be redriven for ever.
        let has_died_since = letter.died_at().is_some_and(|at| at > self.filter.now());
        if !self.seen.insert(identity(letter)) || has_died_since {
            return Some("it arrived while the command was running");
        }
        let must_be_sealed = own.trust() == HeaderTrust::Authenticated && !self.args.unsealed;
        if must_be_sealed && !own.believes(&LETTER, letter.message) {
            return Some("it is not sealed with [key] secret; use --unsealed to redrive it anyway");
        }
        // The key belongs to another message and is not changed.
        if letter.reason == Reason::Mismatch && !self.republisher.sends_headers {
            return Some(
                "its key belongs to another message; set [key] secret, so that it gets a key of its own",
            );
        }
        None
    }

    /// Redrives letters with distinct keys. Killed at any point it may be repeated: what is published twice is recognised by its
    /// key, and no letter is deleted before its entry is durable.
    async fn step(
        &mut self,
        context: &mut LettersContext,
        step: &[Candidate<'_>],
        out: &mut Output,
    ) -> Result<(), Failure> {
        let failed = |error: Error| failure::failure(&error);
        if self.args.dry_run {
            self.counts.redriven += step.len() as u64;
            return step.iter().try_for_each(|own| self.report(&own.letter, "would-redrive", None, out));
        }
        let all: Vec<_> = step.iter().map(|own| &own.letter).collect();
        self.auditor.record(LetterAction::Redrive, &all).await.map_err(failed)?;
        let ttl = context.config.limits().ttl.get();
        let answers = open_keys(&*context.store.store, &context.scope, ttl, step).await.map_err(failed)?;
        let is_resolved = |answer: &Option<Redrive>| *answer == Some(Redrive::Resolved);
        let (mut resolved, mut open) = (Vec::new(), Vec::new());
        for (own, answer) in step.iter().zip(&answers) {
            if is_resolved(answer) { resolved.push(own) } else { open.push(own) }
        }
        let messages: Vec<_> = open.iter().map(|own| self.republisher.message(&own.letter)).collect();
        let published = match messages.is_empty() {
            true => Vec::new(),
            false => self.republisher.to.to.publish(&messages).await,
        };
        let mut confirmed = Vec::new();
        let mut refused = None;
        for (own, answer) in open.into_iter().zip(published) {
            match answer {
                Ok(()) => confirmed.push(own),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        self.finish(context, LetterAction::Resolved, &resolved, out).await?;
        self.finish(context, LetterAction::Redriven, &confirmed, out).await?;
        self.counts.resolved += resolved.len() as u64;
        self.counts.redriven += confirmed.len() as u64;
        refused.map_or(Ok(()), |error| Err(failed(error)))
    }

    /// Records that letters are done with, and deletes them.
    async fn finish(
        &self,
        context: &mut LettersContext,
        action: LetterAction,
        letters: &[&Candidate<'_>],
        out: &mut Output,
    ) -> Result<(), Failure> {
        let failed = |error: Error| failure::failure(&error);
        let all: Vec<_> = letters.iter().map(|own| &own.letter).collect();
        self.auditor.record(action, &all).await.map_err(failed)?;
        let tags: Vec<_> = letters.iter().map(|own| own.tag).collect();
        context.reader.delete(&tags).await.map_err(failed)?;
        letters.iter().try_for_each(|own| self.report(&own.letter, action.as_str(), None, out))
    }

    /// One line of JSON; for people the numbers suffice, but for a dry run.
    fn report(
        &self,
        letter: &ReadLetter<'_>,
        result: &str,
        why: Option<&str>,
        out: &mut Output,
    ) -> Result<(), Failure> {
        if self.args.letters.json {
            let line = match why {
                Some(why) => json!({ "id": letter.id(), "result": result, "why": why }),
                None => json!({ "id": letter.id(), "result": result }),
            };
            out.json(&line)?;
        } else if self.args.dry_run {
            let facts = letter.facts(&self.republisher.own, self.filter.now());
            out.line(super::list::line(&facts))?;
        }
        Ok(())
    }
}

/// Opens the keys of letters; `None` for one whose key is not changed: it has none, or it is another message's.
async fn open_keys(
    store: &dyn StoreAdmin,
    scope: &Scope,
    ttl: Duration,
    step: &[Candidate<'_>],
) -> Result<Vec<Option<Redrive>>, Error> {
    let own_key = |own: &Candidate<'_>| own.letter.key().filter(|_| own.letter.reason != Reason::Mismatch);
    let request = |own: &Candidate<'_>| {
        let generation = own.letter.generation;
        own_key(own).map(|key| RedriveRequest { key, generation, ttl })
    };
    let requests: Vec<_> = step.iter().filter_map(request).collect();
    let answers = match requests.is_empty() {
        true => Vec::new(),
        false => store.redrive(scope, &requests).await,
    };
    let mut answers = answers.into_iter();
    step.iter()
        .map(|own| match own_key(own).and_then(|_| answers.next()) {
            Some(answer) => answer.map(Some),
            None => Ok(None),
        })
        .collect()
}

/// Splits letters into steps, in order: at most `most` in each, no key twice, since a store is asked for distinct keys, and no
/// order key twice, so that a publish that fails lets nothing of its order key overtake it.
fn steps(candidates: Vec<Candidate<'_>>, most: usize) -> Vec<Vec<Candidate<'_>>> {
    let mut steps: Vec<Vec<Candidate<'_>>> = Vec::new();
    let (mut keys, mut order_keys) = (HashSet::<Key>::new(), HashSet::new());
    for candidate in candidates {
        let (key, order_key) = (candidate.letter.key(), candidate.letter.message.order_key().cloned());
        let is_new = key.is_none_or(|key| !keys.contains(&key))
            && order_key.as_ref().is_none_or(|order_key| !order_keys.contains(order_key));
        match steps.last_mut().filter(|step| is_new && step.len() < most) {
            Some(step) => step.push(candidate),
            None => {
                keys.clear();
                order_keys.clear();
                steps.push(vec![candidate]);
            }
        }
        keys.extend(key);
        order_keys.extend(order_key);
    }
    steps
}

/// Identifies a message by its key and payload, in whatever generation it died.
fn identity(letter: &ReadLetter<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    letter.key().map_or_else(|| letter.id(), |key| key.to_string()).hash(&mut hasher);
    letter.message.payload().hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use onceward::Message;

    use super::*;

    fn letter(key: u8, order_key: &'static str) -> Message {
        let message = Message::builder("x")
            .header("onceward-scope", "a")
            .header("onceward-generation", "0")
            .header("onceward-reason", "permanent")
            .header("onceward-key", format!("{key:032x}"));
        if order_key.is_empty() { message.build() } else { message.order_key(order_key).build() }
    }

    fn lengths(letters: &[Message], most: usize) -> Vec<usize> {
        let scope = Scope::parse("a").unwrap();
        let candidates = letters.iter().enumerate().map(|(number, message)| Candidate {
            tag: Tag { epoch: 0, number: number as u64 },
            letter: ReadLetter::of(message, &scope).unwrap(),
        });
        let steps = steps(candidates.collect(), most);
        let numbers: Vec<_> = steps.iter().flatten().map(|own| own.tag.number).collect();
        assert!(numbers.is_sorted(), "in order");
        steps.iter().map(Vec::len).collect()
    }

    #[test]
    fn a_step_has_no_key_and_no_order_key_twice() {
        let free = [letter(1, ""), letter(2, ""), letter(3, "")];
        assert_eq!(lengths(&free, 100), [3]);
        assert_eq!(lengths(&free, 2), [2, 1]);
        assert_eq!(lengths(&[letter(1, ""), letter(2, ""), letter(1, ""), letter(2, "")], 100), [2, 2]);
        assert_eq!(
            lengths(&[letter(1, "a"), letter(2, "b"), letter(3, "a"), letter(4, "a")], 100),
            [2, 1, 1]
        );
    }
}

//! `onceward dlq redrive`: moves dead letters back to their source, with a confirmation and an audit line.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onceward::adapter::{Consumer, Delivery, Settlement, StoreAdmin};
use onceward::dead_letter::{
    HEADER_GENERATION, HEADER_ID, HEADER_KEY, HEADER_MAC, HEADER_MESSAGE_ID, HEADER_PREFIX, HEADER_REASON,
    HEADER_SCOPE,
};
use onceward::own_headers::LETTER;
use onceward::store::{Reason, Redrive, RedriveRequest};
use onceward::{HeaderTrust, Key, Message, Outgoing, Scope};

use crate::args::{DlqCommand, RedriveArgs};
use crate::config::{self, Config, Lookup};
use crate::exit::{Exit, Failure};
use crate::logging::{self, AUDIT};
use crate::output::Output;
use crate::registry::{self, Letters, Purpose};

/// The destination counts as empty after this time without a letter.
const QUIET: Duration = Duration::from_secs(5);

pub(super) async fn dlq(command: &DlqCommand, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    match command {
        DlqCommand::Redrive(args) => redrive(args, env, out).await,
    }
}

async fn redrive(args: &RedriveArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let config = super::failure::load(&args.config.file, env)?;
    logging::start(config.telemetry.log, env)?;
    consent(args, &config)?;
    let failed = |error| super::failure::failure(&error);
    let scope = config::scope(&config).map_err(failed)?;
    let store = registry::open_store(&config, Purpose::Operate).await.map_err(failed)?;
    let opened =
        registry::open_letters(&config, &scope, store.checkpoints.clone(), args.from.as_deref()).await;
    let letters = opened.map_err(failed)?;
    let mut work = Redriving {
        args,
        scope,
        config: &config,
        store: Arc::clone(&store.store),
        letters,
        counts: Counts::default(),
    };
    let ended = work.run().await;
    let closed = work.letters.ends.from.close().await;
    store.close().await;
    let Counts { redriven, resolved, left } = work.counts;
    let user = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(env);
    tracing::info!(target: AUDIT, scope = %work.scope, redriven, resolved, left, user, "dead letters redriven by the command");
    ended?;
    closed.map_err(failed)?;
    out.line(format_args!("redriven={redriven} resolved={resolved} left={left}"))?;
    Ok(Exit::Done)
}

/// Asks for confirmation on a terminal; elsewhere `--yes` is required.
fn consent(args: &RedriveArgs, config: &Config) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let sentence =
            "there is no terminal for the confirmation; give --yes to move dead letters without it";
        return Err(Failure::new(Exit::Usage, sentence));
    }
    let to = registry::describe_source(config);
    // A terminal that cannot be written to gives no answer.
    let _ = write!(
        io::stderr(),
        "Move the dead letters of {} back to {to}? They are handled again. [y/N] ",
        config.scope
    );
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    match answer.trim() {
        "y" | "Y" | "yes" if read.is_ok() => Ok(()),
        _ => Err(Failure::new(Exit::Failed, "nothing was changed")),
    }
}

#[derive(Debug, Default)]
struct Counts {
    redriven: u64,
    resolved: u64,
    left: u64,
}

struct Redriving<'r> {
    args: &'r RedriveArgs,
    scope: Scope,
    config: &'r Config,
    store: Arc<dyn StoreAdmin>,
    letters: Letters,
    counts: Counts,
}

/// The result for one letter.
enum LetterResult {
    /// Published and confirmed.
    Redriven,
    /// Its key has completed, or a later letter replaces it.
    Resolved,
    /// It is left, for this reason.
    Left(&'static str),
}

impl Redriving<'_> {
    /// Processes letters until no letter is left, or the limit is reached.
    async fn run(&mut self) -> Result<(), Failure> {
        let (mut seen, mut left, mut read) = (HashSet::new(), Vec::new(), 0);
        while read < self.args.limit {
            let received = tokio::time::timeout(QUIET, self.letters.ends.from.receive()).await;
            let Ok(received) = received else { break };
            let Some(batch) = received.map_err(|error| super::failure::failure(&error))? else { break };
            for delivery in batch {
                read += 1;
                // A message that has died again in the meantime is left to the next command.
                let is_new = read <= self.args.limit && seen.insert(identity(&delivery.message));
                match if is_new {
                    self.letter(&delivery.message).await?
                } else {
                    LetterResult::Left("it arrived while the command was running")
                } {
                    LetterResult::Redriven => self.counts.redriven += 1,
                    LetterResult::Resolved => self.counts.resolved += 1,
                    LetterResult::Left(why) => {
                        self.counts.left += 1;
                        tracing::warn!(letter = identity(&delivery.message), why, "dead letter left");
                        // Returning it at once would deliver it again.
                        left.push(delivery);
                        continue;
                    }
                }
                self.delete(delivery).await?;
            }
        }
        Ok(())
    }

    async fn letter(&self, letter: &Message) -> Result<LetterResult, Failure> {
        let text = |name| letter.header(name).and_then(|value| std::str::from_utf8(value).ok());
        let generation = text(HEADER_GENERATION).and_then(|text| text.parse::<u32>().ok());
        let (Some(generation), Some(reason)) = (generation, text(HEADER_REASON)) else {
            return Ok(LetterResult::Left("it is not a dead letter of onceward"));
        };
        if text(HEADER_SCOPE) != Some(self.scope.as_str()) {
            return Ok(LetterResult::Left("it belongs to another scope"));
        }
        let own = &self.letters.own;
        let must_be_sealed = own.trust() == HeaderTrust::Authenticated && !self.args.unsealed;
        if must_be_sealed && !own.believes(&LETTER, letter) {
            return Ok(LetterResult::Left(
                "it is not sealed with [key] secret; use --unsealed to redrive it anyway",
            ));
        }
        let sends_headers = own.seals() || self.letters.needs_headers;
        if reason == Reason::Mismatch.as_str() {
            // The key belongs to another message and is not changed.
            if !sends_headers {
                return Ok(LetterResult::Left(
                    "its key belongs to another message; set [key] secret, so that it gets a key of its own",
                ));
            }
        } else if let Some(key) = text(HEADER_KEY).and_then(Key::from_hex) {
            let ttl = self.config.limits().ttl.get();
            let request = RedriveRequest { key, generation, ttl };
            let answer = self.store.redrive(&self.scope, &[request]).await.pop();
            let Some(answer) = answer else {
                return Ok(LetterResult::Left("the store returned no result for its key"));
            };
            match answer.map_err(|error| super::failure::failure(&error))? {
                Redrive::Resolved => return Ok(LetterResult::Resolved),
                // If the key is unknown or not dead, the redelivered message is claimed as usual.
                Redrive::Open { .. } | Redrive::NotDead => {}
            }
        }
        let published = self.letters.ends.to.publish(&[self.message(letter, sends_headers)]).await;
        for confirmed in published {
            confirmed.map_err(|error| super::failure::failure(&error))?;
        }
        Ok(LetterResult::Redriven)
    }

    /// The message of `letter`, without our headers, or with them and a new seal.
    fn message(&self, letter: &Message, sends_headers: bool) -> Outgoing {
        let text = |name: &str| {
            let value = letter.header(name)?;
            Some(String::from_utf8_lossy(value).into_owned())
        };
        let is_kept = |name: &str| match name.starts_with(HEADER_PREFIX) {
            true => sends_headers && ![HEADER_ID, HEADER_MAC].contains(&name) && !name.ends_with("-mac"),
            false => true,
        };
        let kept = letter.headers().filter(|(name, _)| is_kept(name));
        let mut headers: Vec<(String, Bytes)> =
            kept.map(|(name, value)| (name.to_owned(), value.clone())).collect();
        let own_id = text(HEADER_ID).filter(|_| sends_headers).unwrap_or_default();
        let of_message = || letter.id().map(|id| String::from_utf8_lossy(id).into_owned());
        let id = text(HEADER_MESSAGE_ID).or_else(of_message).unwrap_or_default();
        if sends_headers && !id.is_empty() && letter.header(HEADER_MESSAGE_ID).is_none() {
            headers.push((HEADER_MESSAGE_ID.to_owned(), id.clone().into()));
        }
        let pairs = || {
            let own_id = (!own_id.is_empty()).then_some((HEADER_ID, own_id.as_bytes()));
            headers.iter().map(|(name, value)| (name.as_str(), &value[..])).chain(own_id)
        };
        let payload = (!letter.has_null_payload()).then_some(&letter.payload()[..]);
        if sends_headers && let Some((name, value)) = self.letters.own.seal_parts(&LETTER, pairs, payload) {
            headers.push((name.to_owned(), value));
        }
        Outgoing {
            destination: self.letters.ends.destination(letter),
            id,
            own_id,
            order_key: letter.order_key().cloned(),
            headers,
            payload: letter.payload().clone(),
            null_payload: letter.has_null_payload(),
            timestamp: letter.timestamp(),
            native: letter.native().cloned(),
        }
    }

    async fn delete(&self, delivery: Delivery) -> Result<(), Failure> {
        let acker = self.letters.ends.from.acker();
        for settled in acker.settle(&[(delivery.tag, Settlement::Ack)]).await {
            settled.map_err(|error| super::failure::failure(&error))?;
        }
        Ok(())
    }
}

/// Identifies a letter: its key, or else its id, and its payload.
fn identity(letter: &Message) -> String {
    let text = |name| letter.header(name).map(|value| String::from_utf8_lossy(value).into_owned());
    let mut payload = DefaultHasher::new();
    letter.payload().hash(&mut payload);
    let name = text(HEADER_KEY).or_else(|| text(HEADER_ID)).unwrap_or_default();
    format!("{} {:016x}", name.chars().take(64).collect::<String>(), payload.finish())
}

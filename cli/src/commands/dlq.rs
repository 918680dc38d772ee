//! `onceward dlq redrive`: moves dead letters back to their source, with consent, and with a line in the log that says who.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, BufRead, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use onceward::dead_letter::{
    HEADER_GENERATION, HEADER_ID, HEADER_KEY, HEADER_MAC, HEADER_MESSAGE_ID, HEADER_PREFIX, HEADER_REASON,
    HEADER_SCOPE,
};
use onceward::own_headers::LETTER;
use onceward::store::{Reason, Redrive, RedriveRequest};
use onceward::{Consumer, Delivery, HeaderTrust, Key, Message, Outgoing, Scope, Settlement, StoreAdmin};

use crate::args::{DlqCommand, RedriveArgs};
use crate::config::{Config, Lookup};
use crate::exit::{Exit, Failure};
use crate::logging::{self, AUDIT};
use crate::output::Output;
use crate::registry::{self, Letters, Purpose};

/// So long nothing may come until there is nothing more.
const QUIET: Duration = Duration::from_secs(5);

pub(super) async fn dlq(command: &DlqCommand, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    match command {
        DlqCommand::Redrive(args) => redrive(args, env, out).await,
    }
}

async fn redrive(args: &RedriveArgs, env: Lookup<'_>, out: &mut Output) -> Result<Exit, Failure> {
    let config = super::load(&args.config.file, env)?;
    logging::start(config.telemetry.log, env)?;
    consent(args, &config)?;
    let failed = |error| super::failure(&error);
    let scope = registry::scope(&config).map_err(failed)?;
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
    tracing::info!(target: AUDIT, scope = %work.scope, redriven, resolved, left, user, "dead letters were redriven by hand");
    ended?;
    closed.map_err(failed)?;
    out.line(format_args!("redriven={redriven} resolved={resolved} left={left}"))?;
    Ok(Exit::Done)
}

/// Asks on a terminal; anywhere else `--yes` must have been given.
fn consent(args: &RedriveArgs, config: &Config) -> Result<(), Failure> {
    if args.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        let sentence = "there is no terminal to ask on; give --yes to move dead letters without being asked";
        return Err(Failure::new(Exit::Usage, sentence));
    }
    let to = registry::describe_source(config);
    // A terminal that cannot be written to gives no answer either.
    let _ = write!(
        io::stderr(),
        "Move the dead letters of {} back to {to}? They are handled once more. [y/N] ",
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

/// What is done with one letter.
enum Fate {
    /// Published, confirmed.
    Redriven,
    /// Its key has completed, or a later letter speaks for it.
    Resolved,
    /// It stays, and why.
    Left(&'static str),
}

impl Redriving<'_> {
    /// Until there are no more letters, or as many as were asked for have been looked at.
    async fn run(&mut self) -> Result<(), Failure> {
        let (mut seen, mut left, mut looked_at) = (HashSet::new(), Vec::new(), 0);
        while looked_at < self.args.limit {
            let received = tokio::time::timeout(QUIET, self.letters.ends.from.receive()).await;
            let Ok(received) = received else { break };
            let Some(batch) = received.map_err(|error| super::failure(&error))? else { break };
            for delivery in batch {
                looked_at += 1;
                // What has died again meanwhile is for another time.
                let is_new = looked_at <= self.args.limit && seen.insert(identity(&delivery.message));
                match if is_new {
                    self.letter(&delivery.message).await?
                } else {
                    Fate::Left("it is for another time")
                } {
                    Fate::Redriven => self.counts.redriven += 1,
                    Fate::Resolved => self.counts.resolved += 1,
                    Fate::Left(why) => {
                        self.counts.left += 1;
                        tracing::warn!(
                            letter = identity(&delivery.message),
                            why,
                            "a dead letter stays where it is"
                        );
                        // To give it back at once would have it delivered again.
                        left.push(delivery);
                        continue;
                    }
                }
                self.delete(delivery).await?;
            }
        }
        Ok(())
    }

    async fn letter(&self, letter: &Message) -> Result<Fate, Failure> {
        let text = |name| letter.header(name).and_then(|value| std::str::from_utf8(value).ok());
        let generation = text(HEADER_GENERATION).and_then(|text| text.parse::<u32>().ok());
        let (Some(generation), Some(reason)) = (generation, text(HEADER_REASON)) else {
            return Ok(Fate::Left("it is no dead letter of onceward"));
        };
        if text(HEADER_SCOPE) != Some(self.scope.as_str()) {
            return Ok(Fate::Left("it is of another scope"));
        }
        let own = &self.letters.own;
        let must_be_sealed = own.trust() == HeaderTrust::Authenticated && !self.args.unsealed;
        if must_be_sealed && !own.believes(&LETTER, letter) {
            return Ok(Fate::Left("it is not sealed with [key] secret: --unsealed takes it all the same"));
        }
        let sends_headers = own.seals() || self.letters.needs_headers;
        if reason == Reason::Mismatch.as_str() {
            // The key belongs to another message and stays as it is.
            if !sends_headers {
                return Ok(Fate::Left(
                    "its key belongs to another message: give [key] secret, so that it gets one of its own",
                ));
            }
        } else if let Some(key) = text(HEADER_KEY).and_then(Key::from_hex) {
            let ttl = self.config.limits().ttl.get();
            let request = RedriveRequest { key, generation, ttl };
            let answer = self.store.redrive(&self.scope, &[request]).await.pop();
            let Some(answer) = answer else { return Ok(Fate::Left("the store did not answer for its key")) };
            match answer.map_err(|error| super::failure(&error))? {
                Redrive::Resolved => return Ok(Fate::Resolved),
                // Of a key that is not known, or not dead, the message itself finds out what holds.
                Redrive::Open { .. } | Redrive::NotDead => {}
            }
        }
        let published = self.letters.ends.to.publish(&[self.message(letter, sends_headers)]).await;
        for confirmed in published {
            confirmed.map_err(|error| super::failure(&error))?;
        }
        Ok(Fate::Redriven)
    }

    /// The message of `letter`: with our headers, sealed anew, or without them.
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
            settled.map_err(|error| super::failure(&error))?;
        }
        Ok(())
    }
}

/// What tells a letter from others: its key and its payload, or its id.
fn identity(letter: &Message) -> String {
    let text = |name| letter.header(name).map(|value| String::from_utf8_lossy(value).into_owned());
    let mut payload = DefaultHasher::new();
    letter.payload().hash(&mut payload);
    let name = text(HEADER_KEY).or_else(|| text(HEADER_ID)).unwrap_or_default();
    format!("{} {:016x}", name.chars().take(64).collect::<String>(), payload.finish())
}

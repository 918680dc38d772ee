//! Arguments of `onceward dlq`.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand, ValueHint};
use onceward::store::Reason;

use super::file::FileArgs;
use crate::config::HumanDuration;

/// `onceward dlq`.
#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// List dead letters of this scope, in the order of their destination; nothing is changed
    ///
    /// Letters stay where they are. A queue returns them to their places, marked as redelivered, and may count a delivery; a queue with
    /// a visibility timeout hides them until the command ends.
    ///
    /// With --json, each letter is one line: id, reason, generation, key, error, attempts, lost, died_at, age_ms, origin, position,
    /// message_id, bytes, sealed. Absent values are left out. The last line without --json is listed=N skipped=N; skipped are letters
    /// that the filter excludes and messages that are not dead letters of this scope.
    List(LetterListArgs),
    /// Show one dead letter with its headers and payload; nothing is changed
    ///
    /// With --json, one line as of `dlq list`, with headers, a list of pairs, and payload, or payload_base64 if it is not UTF-8 text.
    /// Exit code 1 if there is no such letter.
    Show(LetterShowArgs),
    /// Move dead letters of this scope from `[dead_letter]` back to the source, to be handled again
    ///
    /// For each letter: opens its key in the store for the next generation, publishes the message to the source and waits for the
    /// confirmation (sealed with `[key] secret` if set), then deletes the letter (in a topic or a file: skips it from then on). A
    /// letter whose key has completed in the meantime is only deleted. Letters that arrive while the command runs, letters of other
    /// scopes and letters that cannot be redriven are left. The command may be interrupted and repeated: no effect of a completed key
    /// is repeated, and messages with the same order key arrive in the order of their letters.
    ///
    /// To redrive one letter with a corrected payload: dlq show FILE ID --payload > f, edit f, dlq redrive FILE --id ID --payload-file f.
    ///
    /// Prints redriven=N resolved=N left=N, and skipped=N if a filter excluded letters. With --json, one line for each letter of the
    /// filter, with id, result (redriven, resolved, left or would-redrive) and why, and last a line with the numbers.
    Redrive(RedriveArgs),
    /// Delete dead letters of this scope for ever
    ///
    /// In a topic or a file, they are skipped from then on. Their keys stay dead for the TTL: copies of the messages are still
    /// acked. Prints purged=N, and skipped=N if a filter excluded letters.
    Purge(LetterPurgeArgs),
    /// Show the audit trail: which letters were redriven and purged, by whom and why
    ///
    /// Entries are in the store, from the oldest to the newest. With --json, each entry is one line: number, at, run, action, letter,
    /// user, uid, why, key, generation, reason, message_id, edited. Actions are redrive (recorded before the message is published),
    /// redriven (confirmed), resolved (the key had completed, so the letter was only deleted) and purged.
    Log(LetterLogArgs),
}

/// The letters of a configuration.
#[derive(Debug, Args)]
pub struct LettersArgs {
    /// The configuration.
    #[command(flatten)]
    pub config: FileArgs,
    /// The queue to read letters from, if `dead_letter.to` names an exchange; the subscription, if it names a Pub/Sub topic
    #[arg(long, value_name = "QUEUE")]
    pub from: Option<String>,
    /// Print JSON lines instead of text
    #[arg(long)]
    pub json: bool,
}

/// Which letters; by default all of this scope.
#[derive(Debug, Default, Args)]
pub struct LetterFilter {
    /// The letter with this id, as shown by `dlq list`
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// Letters with this reason
    #[arg(long, value_parser = PossibleValuesParser::new(Reason::ALL.map(Reason::as_str)))]
    pub reason: Option<String>,
    /// Letters whose message died at least this long ago
    #[arg(long, value_name = "DURATION")]
    pub older_than: Option<HumanDuration>,
    /// Letters whose message died less than this long ago
    #[arg(long, value_name = "DURATION")]
    pub newer_than: Option<HumanDuration>,
    /// Letters of the key with this hash, as shown by `dlq list` and `keys get`
    #[arg(long, value_name = "HEX")]
    pub key: Option<String>,
    /// Letters whose error contains this text
    #[arg(long, value_name = "TEXT")]
    pub error: Option<String>,
    /// Letters whose message had this id
    #[arg(long, value_name = "ID")]
    pub message_id: Option<String>,
    /// The most letters of this filter, up to 1000000
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
}

/// `onceward dlq list`.
#[derive(Debug, Args)]
pub struct LetterListArgs {
    /// The letters.
    #[command(flatten)]
    pub letters: LettersArgs,
    /// The filter.
    #[command(flatten)]
    pub filter: LetterFilter,
}

/// `onceward dlq show`.
#[derive(Debug, Args)]
pub struct LetterShowArgs {
    /// The letters.
    #[command(flatten)]
    pub letters: LettersArgs,
    /// The id of the letter, as shown by `dlq list`
    #[arg(value_name = "ID")]
    pub id: String,
    /// Write the payload to standard output, byte for byte, and nothing else
    #[arg(long, conflicts_with = "json")]
    pub payload: bool,
}

/// `onceward dlq redrive`.
#[derive(Debug, Args)]
pub struct RedriveArgs {
    /// The letters.
    #[command(flatten)]
    pub letters: LettersArgs,
    /// The filter.
    #[command(flatten)]
    pub filter: LetterFilter,
    /// Also redrive letters that are not sealed with `[key] secret`: letters of earlier versions, or with a payload that was
    /// corrected in the queue. Anyone who can write to the dead-letter destination can then choose their keys
    #[arg(long)]
    pub unsealed: bool,
    /// Publish the content of this file as the payload of the letter. The key is open for it, whatever its fingerprint
    #[arg(long, value_name = "FILE", requires = "id", value_hint = ValueHint::FilePath)]
    pub payload_file: Option<PathBuf>,
    /// The most letters per second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
    /// Show what would be redriven, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Why, for the audit trail; at most 500 bytes
    #[arg(long, value_name = "TEXT", value_parser = short_text)]
    pub why: Option<String>,
    /// Do not ask for confirmation; required without a terminal
    #[arg(long)]
    pub yes: bool,
}

/// `onceward dlq purge`.
#[derive(Debug, Args)]
pub struct LetterPurgeArgs {
    /// The letters.
    #[command(flatten)]
    pub letters: LettersArgs,
    /// The filter.
    #[command(flatten)]
    pub filter: LetterFilter,
    /// The most letters per second
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub rate: Option<u32>,
    /// Show what would be purged, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Why, for the audit trail; at most 500 bytes
    #[arg(long, value_name = "TEXT", value_parser = short_text)]
    pub why: Option<String>,
    /// Do not ask for confirmation; required without a terminal
    #[arg(long)]
    pub yes: bool,
}

/// `onceward dlq log`.
#[derive(Debug, Args)]
pub struct LetterLogArgs {
    /// The configuration.
    #[command(flatten)]
    pub config: FileArgs,
    /// Only entries of the letter with this id
    #[arg(long, value_name = "ID")]
    pub id: Option<String>,
    /// The newest N entries, up to 1000000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
    /// Print JSON lines instead of text
    #[arg(long)]
    pub json: bool,
}

pub(super) fn short_text(text: &str) -> Result<String, String> {
    if text.len() > 500 { Err("longer than 500 bytes; shorten it".to_owned()) } else { Ok(text.to_owned()) }
}

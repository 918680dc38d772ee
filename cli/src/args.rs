//! The command line.

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{ArgGroup, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::config::{HumanDuration, KeyPart, adapter_tables};

/// Puts deduplication in front of a handler written in any language: one effect for each message, whatever the broker
/// delivers again.
#[derive(Debug, Parser)]
#[command(name = "onceward", version, subcommand_required = true, arg_required_else_help = true)]
pub struct CommandLine {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl CommandLine {
    /// Reads the arguments; the first is the program's own name.
    ///
    /// # Errors
    /// A mistake in them, or a request for help or the version; the error knows how to print itself.
    pub fn read<I, T>(args: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<std::ffi::OsString> + Clone,
    {
        Self::from_arg_matches(&Self::clap().try_get_matches_from(args)?)
    }

    /// The command line's definition, with the adapters of this build in `--version`.
    pub fn clap() -> clap::Command {
        Self::command().long_version(VERSION.as_str())
    }
}

static VERSION: LazyLock<String> = LazyLock::new(|| {
    let of = |compiled_in: bool| {
        let adapters = adapter_tables().into_iter();
        let tables: Vec<_> = adapters
            .filter(|adapter| adapter.is_compiled_in == compiled_in)
            .map(|adapter| adapter.table)
            .collect();
        if tables.is_empty() { "none".to_owned() } else { tables.join(", ") }
    };
    format!("{}\nadapters: {}\nnot in this build: {}", env!("CARGO_PKG_VERSION"), of(true), of(false))
});

/// What the program can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Consume until SIGTERM, SIGINT or SIGHUP, or to the end of a file
    ///
    /// A first signal drains and exits 0; one that comes more than a second later exits at once. A file source without
    /// `follow` runs to its end, and any source does with --until-empty; then a line tells the figures, on standard output (on standard error with
    /// [handler.stdout]): received=N handled=N duplicates=N retried=N dead-lettered=N, and where they are not 0
    /// given-back, parked, rejected, mismatch-acked, unprotected, observed-duplicates, suspected-double-effects,
    /// letters-dropped and abandoned. Exit codes: 0 done or drained, 1 failed, 3 done with dead letters, 78 wrong
    /// configuration, 124 the drain deadline passed, 129, 130 or 143 second signal. ONCEWARD_LOG sets what is logged, such as
    /// debug or onceward=debug,warn.
    Run(RunArgs),
    /// Check a configuration and what it names, and advise
    ///
    /// One line for each finding. Exit code 1 if any is an error, 78 if the configuration itself is wrong.
    Check(CheckArgs),
    /// Look at a configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the JSON Schema of the configuration file
    Schema,
    /// Write a commented starter configuration
    Init(InitArgs),
    /// Create or upgrade the store's schema, never the application's tables
    Migrate(FileArgs),
    /// Look at and change the keys in the store
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Send what handlers have put into the outbox, and look at what waits in it
    #[command(subcommand)]
    Outbox(OutboxCommand),
    /// Move dead letters back to their source
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Show backlog, messages in flight, dead letters, and keys by state
    Status(ReportArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// A configuration file.
#[derive(Debug, Args)]
pub struct FileArgs {
    /// The configuration file
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
}

/// A configuration file, and how to report on it.
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// The configuration file.
    #[command(flatten)]
    pub config: FileArgs,
    /// Print JSON instead of text
    #[arg(long)]
    pub json: bool,
}

/// `onceward run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The configuration file.
    #[command(flatten)]
    pub config: FileArgs,
    /// Stop when the source is idle, whatever it is
    #[arg(long)]
    pub until_empty: bool,
    /// How long source, store and handler may take to answer at the start; then the run fails. Without end when left out,
    /// or 1m for a run that ends by itself (a file, or --until-empty)
    #[arg(long, value_name = "DURATION")]
    pub startup_timeout: Option<HumanDuration>,
}

/// `onceward check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// What to check and how to report.
    #[command(flatten)]
    pub report: ReportArgs,
    /// Only parse; connect to nothing
    #[arg(long)]
    pub offline: bool,
}

/// `onceward config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the effective configuration: defaults included, secrets redacted
    Show(FileArgs),
}

/// `onceward outbox`.
#[derive(Debug, Subcommand)]
pub enum OutboxCommand {
    /// Publish what is in the outbox, until SIGTERM or SIGINT
    ///
    /// Each row at least once, under an id that stays the same; the rows of one order key in the order of their commits.
    /// Several relays may run at once. It publishes to the broker of [outbox.rabbitmq] or, without one, of the source. A row
    /// that fails is tried again until it succeeds, and holds back its own order key only. Exit codes: 0 stopped by a
    /// signal, 1 failed, 78 wrong configuration, 130 or 143 second signal.
    Relay(FileArgs),
    /// Show how many rows wait, for how long, and which fail and why
    Status(ReportArgs),
}

/// `onceward dlq`.
#[derive(Debug, Subcommand)]
pub enum DlqCommand {
    /// Move dead letters of this scope from `[dead_letter]` back to the source, so that they are handled once more
    ///
    /// For each letter its key is opened in the store, the message is published to the source, confirmed and, with
    /// `[key] secret`, sealed; then the letter is deleted (in a file: passed over for good). A letter whose key has completed
    /// meanwhile is only deleted. Letters that came while the command runs, those of other scopes and those that cannot be
    /// redriven stay where they are. It may be stopped and repeated: no effect of a completed key happens again. On standard
    /// output: redriven=N resolved=N left=N.
    Redrive(RedriveArgs),
}

/// `onceward dlq redrive`.
#[derive(Debug, Args)]
pub struct RedriveArgs {
    /// The configuration.
    #[command(flatten)]
    pub config: FileArgs,
    /// Also take letters that are not sealed with `[key] secret`: those of earlier versions, or with a payload that was corrected.
    /// Whoever can write to the dead-letter destination then chooses their keys
    #[arg(long)]
    pub unsealed: bool,
    /// The queue to take letters from, where `dead_letter.to` names an exchange
    #[arg(long, value_name = "QUEUE")]
    pub from: Option<String>,
    /// At most so many letters, up to 1000000
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit: u32,
    /// Do it without asking; required where there is no terminal
    #[arg(long)]
    pub yes: bool,
}

/// `onceward init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where to write it; an existing file is never overwritten. Standard output when left out
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
}

/// `onceward keys`.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Show the record of one key
    #[command(
        override_usage = "onceward keys get [OPTIONS] <FILE> <VALUE>...\n       onceward keys get [OPTIONS] <FILE> --hash <HEX>"
    )]
    Get(KeyArgs),
    /// Say in words what the next delivery of a key will meet, and why
    #[command(
        override_usage = "onceward keys explain [OPTIONS] <FILE> <VALUE>...\n       onceward keys explain [OPTIONS] <FILE> --hash <HEX>"
    )]
    Explain(KeyArgs),
    /// List keys by their hashes, with state, age and attempts
    List(ListArgs),
    /// Count keys by state
    Stats(ReportArgs),
    /// Remove the keys of the store that have expired, of all scopes
    ///
    /// `run` does it as it goes. It is for stores that only programs with a loop of their own write to, and for schedulers.
    Purge(ReportArgs),
    /// Forget a key, so that its message is handled again when it comes
    #[command(
        override_usage = "onceward keys forget [OPTIONS] <FILE> <VALUE>...\n       onceward keys forget [OPTIONS] <FILE> --hash <HEX>"
    )]
    Forget(ChangeArgs),
    /// Mark a key completed, so that its message is not handled
    #[command(
        override_usage = "onceward keys complete [OPTIONS] <FILE> <VALUE>...\n       onceward keys complete [OPTIONS] <FILE> --hash <HEX>"
    )]
    Complete(ChangeArgs),
    /// Import completed keys, as JSON lines, from an earlier deduplication table
    ///
    /// Each line is {"key": VALUE}, with a list of values for a composite, or {"hash": HEX} as `keys list` shows it; and
    /// "age": "3h" or "completed_at": "2026-01-02T03:04:05Z" (or seconds since 1970) if it was not just now. Where the
    /// key stands in JSON, a text and a number are different keys, as in the messages. Nothing is imported if any line
    /// is wrong. It may be repeated.
    Import(ImportArgs),
}

/// One key, named by the values it is made of or by its hash.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("named").required(true).args(["values", "hash"])))]
pub struct KeyArgs {
    /// What to look in and how to report.
    #[command(flatten)]
    pub report: ReportArgs,
    /// The value that the message bears, or several for a composite, in order
    #[arg(value_name = "VALUE")]
    pub values: Vec<String>,
    /// Where the values stand in the message, one for each; every source in `[key] from` is tried when left out
    #[arg(long, value_name = "SOURCE", requires = "values")]
    pub from: Vec<KeyPart>,
    /// The values are JSON: `"42"`, in quotes, is a text and `42` a number. Otherwise each is looked for as both
    #[arg(long, requires = "values")]
    pub typed: bool,
    /// The key's hash, as `keys list` shows it, instead of its values
    #[arg(long, value_name = "HEX")]
    pub hash: Option<String>,
}

/// One key, and consent to change it.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// The key.
    #[command(flatten)]
    pub key: KeyArgs,
    /// Do it without asking; required where there is no terminal
    #[arg(long)]
    pub yes: bool,
}

/// `onceward keys list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// What to look in and how to report.
    #[command(flatten)]
    pub report: ReportArgs,
    /// Only keys in this state
    #[arg(long, value_enum)]
    pub state: Option<KeyState>,
    /// At most so many, up to 10000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Go on after this hash, the last one of an earlier list
    #[arg(long, value_name = "HEX")]
    pub after: Option<String>,
}

/// The states that keys can be listed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyState {
    /// Claimed, under a lease that may have run out.
    Pending,
    /// Its effect has happened.
    Completed,
    /// Its last attempt failed.
    Failed,
    /// It failed for good, and its dead letter is being published.
    Terminal,
    /// Its message is dead-lettered.
    Dead,
}

/// `onceward keys import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// What to import into and how to report.
    #[command(flatten)]
    pub report: ReportArgs,
    /// Where the values stand in the messages, one for each; the first source in `[key] from` when left out
    #[arg(long, value_name = "SOURCE")]
    pub from: Vec<KeyPart>,
    /// The JSON lines; standard input when left out, or `-`
    #[arg(value_name = "NDJSON", value_hint = ValueHint::FilePath)]
    pub lines: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<CommandLine, clap::Error> {
        CommandLine::read(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        CommandLine::clap().debug_assert();
    }

    #[test]
    fn a_key_is_named_by_values_or_by_hash() {
        let Ok(CommandLine { command: Command::Keys(KeysCommand::Forget(change)) }) =
            read("onceward keys forget f.toml a b --from json:/a --from header:b --yes")
        else {
            panic!("not read as keys forget")
        };
        assert!(change.yes);
        assert_eq!(change.key.values, ["a", "b"]);
        assert_eq!(change.key.from, [KeyPart::Json("/a".into()), KeyPart::Header("b".into())]);

        assert!(read("onceward keys get f.toml --hash 00ff --json").is_ok());
        for wrong in [
            "onceward keys get f.toml",
            "onceward keys purge",
            "onceward keys get f.toml a --hash 00ff",
            "onceward keys get f.toml a --from nowhere",
            "onceward keys list f.toml --limit 0",
        ] {
            let error = read(wrong).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{wrong}");
        }
    }

    #[test]
    fn the_usage_of_a_command_on_one_key_names_the_file_first() {
        for command in ["get", "explain", "forget", "complete"] {
            let help = read(&format!("onceward keys {command} --help")).unwrap_err().to_string();
            let (file, value) = (help.find("<FILE>").unwrap(), help.find("<VALUE>").unwrap());
            assert!(file < value, "{help}");
            assert!(help.contains("<FILE> --hash <HEX>"), "{help}");
        }
    }

    #[test]
    fn the_version_lists_the_adapters_of_this_build() {
        let error = read("onceward --version").unwrap_err();
        assert_eq!(error.exit_code(), 0);
        let text = error.to_string();
        let (has, has_not) = text.split_once("not in this build: ").unwrap();
        assert!(has.contains("source.file") && has.contains("store.memory"), "{text}");
        assert_eq!(has.contains("store.sqlite"), cfg!(feature = "sqlite"), "{text}");
        assert_eq!(has_not.contains("handler.http"), !cfg!(feature = "http"), "{text}");
    }
}

//! Command-line arguments: [`CommandLine`].

mod bench;
mod dlq;
mod file;
mod observe;
mod run;
#[cfg(feature = "telemetry")]
mod top;

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{ArgGroup, Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, ValueHint};
use clap_complete::Shell;

use crate::config::{KeyPart, adapter_tables};

pub use bench::BenchArgs;
pub use dlq::{
    DlqCommand, LetterFilter, LetterListArgs, LetterLogArgs, LetterPurgeArgs, LetterShowArgs, LettersArgs,
    RedriveArgs,
};
pub use file::{FileArgs, ReportArgs};
pub use observe::ObserveArgs;
pub use run::RunArgs;
#[cfg(feature = "telemetry")]
pub use top::TopArgs;

/// Deduplicates messages in front of a handler written in any language: one effect per message, however often the broker
/// delivers it.
#[derive(Debug, Parser)]
#[command(name = "onceward", version, subcommand_required = true, arg_required_else_help = true)]
pub struct CommandLine {
    /// The command to run.
    #[command(subcommand)]
    pub command: Command,
}

impl CommandLine {
    /// Parses the arguments; the first is the name of the program.
    ///
    /// # Errors
    /// An invalid argument, or a request for help or the version; the error prints itself.
    pub fn parse_from_args<I, T>(args: I) -> Result<Self, clap::Error>
    where
        I: IntoIterator<Item = T>,
        T: Into<std::ffi::OsString> + Clone,
    {
        Self::from_arg_matches(&Self::clap().try_get_matches_from(args)?)
    }

    /// The definition of the command line, with the adapters of this build in `--version`.
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

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the pipeline until SIGTERM, SIGINT or SIGHUP, or to the end of a file
    ///
    /// The first signal drains the pipeline, and the program exits with 0. A signal more than a second later exits at once.
    ///
    /// A file source without `follow` ends at the end of the file; with --until-empty every source ends when it is idle, and
    /// one that cannot report that is refused.
    /// Then one line of counters is printed to standard output (to standard error with [handler.stdout]):
    ///
    ///   received=N handled=N duplicates=N retried=N dead-lettered=N
    ///
    /// followed by the counters that are not 0 among given-back, parked, rejected, mismatch-acked, unprotected,
    /// observed-duplicates, suspected-double-effects, letters-dropped and abandoned.
    ///
    /// Exit codes: 0 done or drained, 1 failed, 2 invalid command line, 3 done with dead letters, 78 invalid configuration,
    /// 124 drain deadline passed, 129, 130 or 143 second signal.
    ///
    /// ONCEWARD_LOG sets the log filter, for example debug or onceward=debug,warn.
    #[command(verbatim_doc_comment)]
    Run(RunArgs),
    /// Run in observe mode, and report on duplicates: how many, how late, and which key and ttl fit them
    ///
    /// Runs the configuration with mode = "observe", whatever its mode is: EVERY message is handled, duplicates included, and settled
    /// at the source. Completions are recorded in the store under the scope. Stops after --for, when the source ends (with
    /// --until-empty: when it is idle), or at SIGINT or SIGTERM, and prints the report to standard output (to standard error with
    /// [handler.stdout]).
    ///
    /// With --json, one line: scope, source, store, observed_ms, ended_by (limit, empty or signal), deliveries, duplicates,
    /// duplicate_age_ms, keys, mismatches, key_from, payloads, recommended and limits.
    ///
    /// Exit codes: as of `run`.
    Observe(ObserveArgs),
    /// Check a configuration and the systems it names
    ///
    /// Prints one line for each finding. Exit codes: 0 no errors, 1 a finding is an error, 78 invalid configuration.
    Check(CheckArgs),
    /// Show a configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the JSON Schema of the configuration file
    Schema,
    /// Write a commented starter configuration
    Init(InitArgs),
    /// Create or upgrade the schema of the store; application tables are never changed
    Migrate(FileArgs),
    /// Show and change the keys in the store
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Publish the rows of the outbox, and show its backlog
    #[command(subcommand)]
    Outbox(OutboxCommand),
    /// Show dead letters, move them back to their source, or delete them
    #[command(subcommand)]
    Dlq(DlqCommand),
    /// Show backlog, messages in flight, dead letters, and keys by state
    Status(ReportArgs),
    /// Measure throughput with this source and store: raw, with a claim for each message, and with onceward
    ///
    /// Creates a queue, topic or file of its own beside that of the source, named `onceward-bench-….NAME`, fills it, and consumes it in
    /// four ways in turns, again for each round: `raw` receives and acknowledges, `one-by-one` claims one message after the other
    /// as loops by hand do, `onceward` is the pipeline with the settings of the file, and `tuned` has larger batches and more
    /// concurrency. The handler counts messages, whatever the file's is. Neither the source's messages nor its keys are touched; all that was
    /// created is removed at the end, also after a signal, apart from keys that cannot be forgotten: those made of positions are
    /// named, with the time within which they expire. A rate limit and adaptive concurrency of the file are switched off.
    ///
    /// Each run is checked: with deduplication each message is handled exactly once, without it once for each copy. Rates are from
    /// the first delivery to the last acknowledgement; ratios are of the runs of one round, and their median is shown with the
    /// least and the most. one-by-one gets a tenth of the messages.
    ///
    /// With --json, one line: scope, source, store, temporary, messages, bytes, duplicates_percent, rounds, tuned, results,
    /// keys_expire_within_ms (null if no keys are left) and runs.
    ///
    /// Exit codes: 0 measured, 1 a run failed or did not check, 2 invalid command line, 78 invalid configuration.
    Bench(BenchArgs),
    /// Show the live figures of a running process, again each second, until a signal
    ///
    /// Reads /status.json of `telemetry.listen`, as the status page does: events per second, lag, pauses and their reasons, messages in
    /// flight, ages of duplicates, and recent warnings and dead letters. Exit code 1 if nothing answers there.
    #[cfg(feature = "telemetry")]
    Top(TopArgs),
    /// Print a completion script for a shell
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// `onceward check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The configuration and the output format.
    #[command(flatten)]
    pub report: ReportArgs,
    /// Only parse the configuration, without connecting
    #[arg(long)]
    pub offline: bool,
}

/// `onceward config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print the effective configuration, with defaults and redacted secrets
    Show(FileArgs),
}

/// `onceward outbox`.
#[derive(Debug, Subcommand)]
pub enum OutboxCommand {
    /// Publish the rows of the outbox until SIGTERM or SIGINT
    ///
    /// Publishes each row at least once, with a stable id, and the rows of one order key in commit order. Several relays may
    /// run concurrently. The target is the broker of [outbox.NAME], by default that of the source. A failed row is retried until it succeeds, and blocks its own order key only.
    ///
    /// Exit codes: 0 stopped by a signal, 1 failed, 78 invalid configuration, 130 or 143 second signal.
    Relay(FileArgs),
    /// Show the number and age of unpublished rows, and the rows that fail with their errors
    Status(ReportArgs),
}

/// `onceward init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// The file to create; an existing file is never overwritten. Default: standard output
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
    /// Explain how the next delivery of a key will be handled, why, and what happened to the key so far
    ///
    /// After the explanation: failures, lost claims, times and the last error; the trace of the run that completed it, if
    /// telemetry.keep_trace_context is set; and from the audit trail what operators did to the key and its dead letters, when, who and
    /// why. With --json one line for each key: the fields of `keys get`, words, history (a list of entries of the audit trail, the
    /// oldest first; null if it cannot be read, with the cause as history_error) and history_cut (true if entries older than the newest 100000 of the scope were not searched).
    #[command(
        override_usage = "onceward keys explain [OPTIONS] <FILE> <VALUE>...\n       onceward keys explain [OPTIONS] <FILE> --hash <HEX>"
    )]
    Explain(KeyArgs),
    /// List keys by hash, with state, failures and age
    List(ListArgs),
    /// Count keys by state
    Stats(ReportArgs),
    /// Remove expired keys of all scopes from the store, and entries of this scope's audit trail that are older than audit_retention
    ///
    /// `run` does both continuously. Use this command for stores that only library users write to, or from a scheduler.
    Purge(ReportArgs),
    /// Forget a key: its message is handled again at the next delivery
    #[command(
        override_usage = "onceward keys forget [OPTIONS] <FILE> <VALUE>...\n       onceward keys forget [OPTIONS] <FILE> --hash <HEX>"
    )]
    Forget(ChangeArgs),
    /// Mark a key completed: its message is not handled
    #[command(
        override_usage = "onceward keys complete [OPTIONS] <FILE> <VALUE>...\n       onceward keys complete [OPTIONS] <FILE> --hash <HEX>"
    )]
    Complete(ChangeArgs),
    /// Import completed keys, as JSON lines, from an earlier deduplication table
    ///
    /// Each line is {"key": VALUE}, with a list of values for a composite key, or {"hash": HEX} as shown by `keys list`.
    /// Add "age": "3h" or "completed_at": "2026-01-02T03:04:05Z" (or seconds since 1970) unless the key completed just
    /// now. For keys from JSON a string and a number are different keys, as in the messages. If any line is invalid,
    /// nothing is imported. The command may be repeated.
    Import(ImportArgs),
}

/// One key, given by its values or its hash.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("named").required(true).args(["values", "hash"])))]
pub struct KeyArgs {
    /// The configuration and the output format.
    #[command(flatten)]
    pub report: ReportArgs,
    /// The value in the message, or several for a composite key, in order
    #[arg(value_name = "VALUE")]
    pub values: Vec<String>,
    /// The place of each value in the message. Default: every entry of `[key] from` is tried
    #[arg(long, value_name = "SOURCE", requires = "values")]
    pub from: Vec<KeyPart>,
    /// Parse the values as JSON: `"42"` in quotes is a string, `42` a number. By default both are tried
    #[arg(long, requires = "values")]
    pub typed: bool,
    /// The hash of the key, as shown by `keys list`, instead of its values
    #[arg(long, value_name = "HEX")]
    pub hash: Option<String>,
}

/// One key, and the confirmation to change it.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// The key.
    #[command(flatten)]
    pub key: KeyArgs,
    /// Why, for the audit trail; at most 500 bytes
    #[arg(long, value_name = "TEXT", value_parser = dlq::short_text)]
    pub why: Option<String>,
    /// Do not ask for confirmation; required without a terminal
    #[arg(long)]
    pub yes: bool,
}

/// `onceward keys list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The configuration and the output format.
    #[command(flatten)]
    pub report: ReportArgs,
    /// Only keys in this state
    #[arg(long, value_enum)]
    pub state: Option<KeyState>,
    /// The most keys to list, up to 10000
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub limit: u32,
    /// Continue after this hash, the last one of an earlier list
    #[arg(long, value_name = "HEX")]
    pub after: Option<String>,
}

/// The states to filter a list by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyState {
    /// Claimed, under a lease that may have expired.
    Pending,
    /// Its effect has happened.
    Completed,
    /// Its last attempt failed.
    Failed,
    /// It failed permanently, and its dead letter is being published.
    Terminal,
    /// Its message is dead-lettered.
    Dead,
}

/// `onceward keys import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The configuration and the output format.
    #[command(flatten)]
    pub report: ReportArgs,
    /// The place of each value in the messages. Default: the first entry of `[key] from`
    #[arg(long, value_name = "SOURCE")]
    pub from: Vec<KeyPart>,
    /// The JSON lines. Default, or `-`: standard input
    #[arg(value_name = "NDJSON", value_hint = ValueHint::FilePath)]
    pub lines: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<CommandLine, clap::Error> {
        CommandLine::parse_from_args(line.split_whitespace())
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
        assert_eq!(has_not.contains("handler.http"), !cfg!(feature = "http"), "{text}");
    }
}

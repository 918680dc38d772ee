//! The log filter: from the environment, with defaults and lines that are never logged.

use std::sync::LazyLock;

use onceward_plugin::LogRule;
use tracing::Level;
use tracing_subscriber::EnvFilter;

use super::audit::AUDIT;
use crate::config::Lookup;
use crate::exit::{Exit, Failure};
use crate::plugins::REGISTERED;

/// The variables with the filter, in the syntax of `tracing-subscriber`: `debug`, or `onceward=debug,warn`. The first one
/// that is set counts.
const VARIABLES: [&str; 2] = ["ONCEWARD_LOG", "RUST_LOG"];

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// Common other spellings of levels.
const ALIASES: [(&str, &str); 5] =
    [("warning", "warn"), ("err", "error"), ("information", "info"), ("critical", "error"), ("none", "off")];

/// The rule for the HTTP library of the program itself.
const HTTP: LogRule = LogRule::new("hyper", "error");

/// The rules for all libraries, each once.
static RULES: LazyLock<Vec<LogRule>> = LazyLock::new(|| {
    let mut rules: Vec<_> = REGISTERED.iter().flat_map(|adapter| adapter.log).copied().collect();
    rules.push(HTTP);
    rules.sort_by_key(|rule| rule.target);
    rules.dedup();
    rules
});

/// True if a line may be logged under any filter.
pub(super) fn is_allowed(target: &str, level: Level) -> bool {
    let is_of = |library: &str| {
        target.strip_prefix(library).is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', ':']))
    };
    RULES.iter().all(|rule| {
        let is_never = rule.never.iter().any(|never| target.starts_with(never));
        let has_secrets = level > Level::DEBUG && rule.has_secrets_at_trace && is_of(rule.target);
        !is_never && !has_secrets
    })
}

/// The filter in the environment, or the default.
///
/// # Errors
/// The filter is invalid. Ignoring it could hide all lines.
pub(super) fn parse(env: Lookup<'_>) -> Result<EnvFilter, Failure> {
    let given = VARIABLES
        .into_iter()
        .find_map(|name| env(name).filter(|text| !text.trim().is_empty()).map(|text| (name, text)));
    let (name, text) = match &given {
        Some((name, text)) => (*name, text.as_str()),
        None => (VARIABLES[0], "info"),
    };
    let refused = |what: String| {
        let fix =
            "write a level (error, warn, info, debug, trace, off), or directives such as onceward=debug,warn";
        Failure::new(Exit::Config, format!("{name}: {what}; {fix}"))
    };
    let directives = directives(text).map_err(refused)?;
    EnvFilter::try_new(directives).map_err(|_| refused("is not a valid log filter".to_owned()))
}

/// The directives of `text`, with its aliases resolved and the defaults added.
fn directives(text: &str) -> Result<String, String> {
    let mut own = Vec::new();
    let mut overall = None;
    for directive in text.split(',').map(str::trim).filter(|directive| !directive.is_empty()) {
        if let Some(level) = level(directive) {
            overall = Some(level);
        } else {
            own.push(checked(directive)?);
        }
    }
    // A directive for one target must not silence the others.
    let overall = overall.unwrap_or("info");
    let mut all = vec![overall.to_owned()];
    if !matches!(overall, "debug" | "trace") {
        let is_quieter = |level: &str| place(level) > place(overall);
        let quiet = RULES.iter().map(|rule| {
            let level = if is_quieter(rule.level) { overall } else { rule.level };
            format!("{}={level}", rule.target)
        });
        all.extend(quiet);
    }
    all.extend(own);
    all.push(format!("{AUDIT}=info"));
    Ok(all.join(","))
}

fn place(level: &str) -> Option<usize> {
    LEVELS.iter().position(|known| *known == level)
}

fn level(text: &str) -> Option<&'static str> {
    let lower = text.to_ascii_lowercase();
    let alias = ALIASES.into_iter().find(|(alias, _)| *alias == lower).map(|(_, level)| level);
    LEVELS.into_iter().find(|level| *level == lower).or(alias)
}

/// Checks a directive, `TARGET=LEVEL` or one of our targets: a mistyped level would be read as the name of a module.
fn checked(directive: &str) -> Result<String, String> {
    let shown: String = directive.chars().take(40).flat_map(char::escape_debug).collect();
    // `[span{field=value}]=debug` may contain an equals sign; `tracing-subscriber` parses spans itself.
    if directive.contains('[') {
        return Ok(directive.to_owned());
    }
    match directive.split_once('=') {
        Some((target, text)) if is_path(target) => {
            let level = level(text.trim()).ok_or_else(|| format!("\"{shown}\" ends in no level"))?;
            Ok(format!("{target}={level}"))
        }
        None if is_path(directive) && (directive.starts_with("onceward") || directive.contains("::")) => {
            Ok(directive.to_owned())
        }
        _ => Err(format!("\"{shown}\" is neither a level nor a directive")),
    }
}

/// True for a module path.
fn is_path(text: &str) -> bool {
    text.split("::").all(|part| {
        !part.is_empty()
            && part.chars().all(|character| character.is_ascii_alphanumeric() || character == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(text: &str) -> Result<String, String> {
        let env = |name: &str| (name == "ONCEWARD_LOG").then(|| text.to_owned());
        match parse(&env) {
            Ok(filter) => Ok(filter.to_string()),
            Err(failure) => {
                assert_eq!(failure.exit(), Exit::Config);
                Err(failure.sentence().unwrap_or_default().to_owned())
            }
        }
    }

    /// The level of a target in `filter`, as `tracing-subscriber` prints it.
    fn level_of<'f>(filter: &'f str, target: &str) -> Option<&'f str> {
        filter.split(',').find_map(|directive| directive.strip_prefix(target)?.strip_prefix('='))
    }

    fn overall(filter: &str) -> Vec<&str> {
        filter.split(',').filter(|directive| !directive.contains('=')).collect()
    }

    #[test]
    fn levels_are_understood_in_every_spelling() {
        for (text, level) in [
            ("warn", "warn"),
            ("warning", "warn"),
            ("WARNING", "warn"),
            (" Info ", "info"),
            ("err", "error"),
            ("debug", "debug"),
            ("trace", "trace"),
            ("off", "off"),
            ("onceward=debug", "info"),
            ("onceward_adapter=trace,warning", "warn"),
            (",,info,", "info"),
        ] {
            assert_eq!(overall(&with(text).unwrap()), [level], "{text}");
        }
        let default = parse(&|_| None).unwrap().to_string();
        assert_eq!(overall(&default), ["info"]);
    }

    #[test]
    fn what_is_no_filter_is_refused_and_never_hides_all_lines() {
        for text in [
            "a=b=c",
            "verbose",
            "inof",
            "warnings",
            "loud",
            "onceward=loud",
            "=debug",
            "5x",
            "info;debug",
            "warn info",
            "onceward:debug",
            "onceward.adapter=debug",
            "debug=",
            "{",
            "\u{1b}[2J",
        ] {
            let said = with(text).unwrap_err();
            assert!(said.starts_with("ONCEWARD_LOG: ") && said.contains("write a level"), "{text}: {said}");
            assert!(!said.contains('\u{1b}'), "{said:?}");
        }
        assert_eq!(level_of(&with("onceward=debug").unwrap(), "onceward"), Some("debug"));
    }

    #[test]
    fn audits_always_pass_and_libraries_are_quiet_unless_they_are_asked_for() {
        for text in ["off", "error", "warn", "trace", "onceward::audit=off"] {
            assert_eq!(level_of(&with(text).unwrap(), AUDIT), Some("info"), "{text}");
        }
        for text in ["info", "warning", "onceward=debug"] {
            let filter = with(text).unwrap();
            assert_eq!(level_of(&filter, "lapin"), Some("off"), "{filter}");
            assert_eq!(level_of(&filter, "sqlx"), Some("error"), "{filter}");
        }
        assert_eq!(level_of(&with("off").unwrap(), "sqlx"), Some("off"));
        assert_eq!(level_of(&with("debug").unwrap(), "sqlx"), None);
        assert_eq!(level_of(&with("info,lapin=warn").unwrap(), "lapin"), Some("warn"));
    }

    #[test]
    fn payloads_and_passwords_of_the_amqp_client_are_never_logged() {
        assert!(!is_allowed("lapin::returned_messages", Level::WARN));
        for target in ["lapin::io_loop", "lapin::channel", "lapin", "amq_protocol::frame", "amq_protocol_tcp"]
        {
            assert!(!is_allowed(target, Level::TRACE), "{target}");
            assert!(is_allowed(target, Level::DEBUG), "{target}");
        }
        for target in ["onceward::pipeline", "onceward_adapter", "lapinary"] {
            assert!(is_allowed(target, Level::TRACE), "{target}");
        }
    }
}

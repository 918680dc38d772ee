//! Log lines on standard error: what is logged, in which form, and that no value in them acts on a terminal or forges a
//! line.

use std::fmt::Write as _;
use std::io::{self, Write};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{LogFormat, Lookup};
use crate::exit::{Exit, Failure};
use crate::handlers::text::is_unprintable;

/// What is logged: `tracing-subscriber`'s directives, such as `debug` or `onceward=debug,warn`.
const FILTER_VARIABLES: [&str; 2] = ["ONCEWARD_LOG", "RUST_LOG"];

/// The target of the lines that say who changed which key. They are logged whatever the filter says.
pub(crate) const AUDIT: &str = "onceward::audit";

/// Begins to log.
///
/// # Errors
/// One sentence, if the filter in the environment is none.
pub(crate) fn start(format: LogFormat, env: Lookup<'_>) -> Result<(), Failure> {
    let filter = filter(env)?;
    let logger =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Escaping(format));
    // A second start in one process keeps the first: only tests do that.
    let _ = match format {
        LogFormat::Text => logger.finish().try_init(),
        LogFormat::Json => logger.json().flatten_event(true).finish().try_init(),
    };
    Ok(())
}

fn filter(env: Lookup<'_>) -> Result<EnvFilter, Failure> {
    let given = FILTER_VARIABLES
        .into_iter()
        .find_map(|name| env(name).filter(|text| !text.trim().is_empty()).map(|text| (name, text)));
    let filter = match given {
        None => EnvFilter::new("info"),
        Some((name, text)) => EnvFilter::try_new(text).map_err(|_| {
            let fix = "write a level such as debug, or directives such as onceward=debug,warn";
            Failure::new(Exit::Config, format!("{name}: is no filter for log lines; {fix}"))
        })?,
    };
    match format!("{AUDIT}=info").parse() {
        Ok(audit) => Ok(filter.add_directive(audit)),
        Err(_) => Ok(filter),
    }
}

/// Writes each line to standard error with its control characters escaped, but for the line end.
#[derive(Clone, Copy)]
struct Escaping(LogFormat);

impl<'a> MakeWriter<'a> for Escaping {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        *self
    }
}

impl Write for Escaping {
    /// Never fails: a reader of the log that has gone must not end a run.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = io::stderr().write_all(escaped(line, self.0).as_bytes());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One line, as one line.
fn escaped(line: &[u8], format: LogFormat) -> String {
    let text = String::from_utf8_lossy(line);
    let body = text.strip_suffix('\n').unwrap_or(&text);
    let mut out = String::with_capacity(text.len());
    for character in body.chars() {
        // Writing to a `String` cannot fail.
        let _ = match (is_unprintable(character), format) {
            (false, _) => out.write_char(character),
            (true, LogFormat::Text) => write!(out, "{}", character.escape_default()),
            // JSON's own escape; all of these are in the first plane.
            (true, LogFormat::Json) => write!(out, "\\u{:04x}", u32::from(character)),
        };
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_can_neither_forge_a_line_nor_act_on_a_terminal() {
        let line = "INFO key=a\nERROR forged \x1b[2J\u{9b}1m\u{202e}\n".as_bytes();
        assert_eq!(
            escaped(line, LogFormat::Text),
            "INFO key=a\\nERROR forged \\u{1b}[2J\\u{9b}1m\\u{202e}\n"
        );
        let json = escaped("{\"a\":\"\u{9b}\u{7f}ü\"}\n".as_bytes(), LogFormat::Json);
        assert_eq!(json, "{\"a\":\"\\u009b\\u007fü\"}\n");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["a"], "\u{9b}\u{7f}ü");
    }

    #[test]
    fn the_filter_comes_from_the_environment_and_always_lets_audits_pass() {
        let env = |name: &str| (name == "ONCEWARD_LOG").then(|| "error".to_owned());
        assert_eq!(filter(&env).unwrap().to_string(), "onceward::audit=info,error");
        assert_eq!(filter(&|_| None).unwrap().to_string(), "onceward::audit=info,info");
        let wrong = filter(&|_| Some("a=b=c".to_owned())).unwrap_err();
        assert_eq!(wrong.exit(), Exit::Config);
        assert!(wrong.sentence().is_some_and(|text| text.starts_with("ONCEWARD_LOG: ")), "{wrong:?}");
    }
}

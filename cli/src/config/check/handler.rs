//! Checks `[handler.*]`.

use super::rules::{Checked, HOUR, MILLISECOND, duration, text, texts, url, within};
use crate::config::{Address, Config, Handler, HandlerProgram, HttpHandler, HumanDuration};
use crate::handlers::{EVERYTHING, SUSPECT_LIMIT, Statuses};

/// The longest time for which a broker lets a message be held; a handler that runs for half a day is no message handler.
const MOST_TIMEOUT: HumanDuration = HumanDuration::from_secs(12 * 3_600);

pub(super) fn check(config: &Config) -> Checked {
    let timeout = format!("{}.timeout", config.handler.path());
    duration(config, &timeout, config.handler.timeout(), MILLISECOND..=MOST_TIMEOUT)?;
    match &config.handler {
        Handler::Http(handler) => http(config, handler),
        Handler::Exec(handler) => {
            program(config, "handler.exec", handler.program())?;
            match handler.exit.keys().find(|code| !matches!(code.parse(), Ok(1_u8..))) {
                Some(code) => Err(config.refuse(
                    &format!("handler.exec.exit.{code}"),
                    "is not an exit code that can be given a meaning",
                    "write a whole number from 1 to 255; 0 always completes",
                )),
                None => Ok(()),
            }
        }
        Handler::Worker(handler) => {
            program(config, "handler.worker", handler.program())?;
            duration(
                config,
                "handler.worker.start_timeout",
                handler.start_timeout,
                MILLISECOND..=MOST_TIMEOUT,
            )?;
            within(config, "handler.worker.processes", handler.processes, 1..=1024)?;
            within(config, "handler.worker.in_flight", handler.in_flight, 1..=1024)?;
            within(config, "handler.worker.batch", handler.batch, 1..=1000)?;
            let at_once = handler.in_flight.saturating_mul(handler.batch);
            if at_once > SUSPECT_LIMIT {
                let key = if handler.in_flight >= handler.batch { "in_flight" } else { "batch" };
                return Err(config.refuse(
                    &format!("handler.worker.{key}"),
                    format!(
                        "lets a process have {at_once} messages at once (in_flight × batch), and no more than \
                         {SUSPECT_LIMIT} can run alone after its death"
                    ),
                    "lower handler.worker.in_flight or handler.worker.batch",
                ));
            }
            Ok(())
        }
        Handler::Sql(handler) => {
            text(config, "handler.sql.statement", &handler.statement)?;
            within(config, "handler.sql.batch", handler.batch, 1..=1000)?;
            let most = config.pipeline.concurrency.min(config.pipeline.max_batch);
            if handler.batch > most {
                return Err(config.refuse(
                    "handler.sql.batch",
                    format!(
                        "is {}, and no more than {most} messages run at once or are claimed together",
                        handler.batch
                    ),
                    "raise pipeline.concurrency and pipeline.max_batch to at least as much, or lower it",
                ));
            }
            Ok(())
        }
        Handler::Publish(_) | Handler::Stdout(_) => Ok(()),
    }
}

/// Only the program has to be there: an argument may well be an empty text.
fn program(config: &Config, table: &str, program: HandlerProgram<'_>) -> Checked {
    texts(
        config,
        &format!("{table}.command"),
        program.command.get(..1).unwrap_or_default(),
        Address::is_empty,
    )?;
    let inherited = program.inherit_env.iter().enumerate();
    let inherited = inherited.filter(|(_, name)| *name != EVERYTHING);
    let inherited = inherited.map(|(at, name)| (format!("{table}.inherit_env[{at}]"), name));
    let set = program.env.keys().map(|name| (format!("{table}.env.{name}"), name));
    for (key, name) in inherited.chain(set) {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(config.refuse(&key, "is no variable's name", "write a name such as DB_PASSWORD"));
        }
        if name.starts_with("ONCEWARD_") {
            return Err(config.refuse(
                &key,
                "begins with ONCEWARD_, as what this program says of a message does",
                "give it another name",
            ));
        }
    }
    match program.env.iter().find(|(_, value)| value.expose().contains('\0')) {
        Some((name, _)) => Err(config.refuse(
            &format!("{table}.env.{name}"),
            "holds a NUL character, which no variable can",
            "write it without",
        )),
        None => Ok(()),
    }
}

fn http(config: &Config, handler: &HttpHandler) -> Checked {
    url(config, "handler.http.url", handler.url.address(), &["http", "https"])?;
    duration(config, "handler.http.keep_alive", handler.keep_alive, HumanDuration::from_secs(0)..=HOUR)?;
    within(config, "handler.http.batch", handler.batch, 1..=1000)?;
    if let Some(name) = handler.status.keys().find(|name| !Statuses::is_name(name)) {
        return Err(config.refuse(
            &format!("handler.http.status.{name}"),
            "is neither a status nor a class of them",
            "write a number from 200 to 599, or \"2xx\", \"3xx\", \"4xx\" or \"5xx\"",
        ));
    }
    for (name, value) in &handler.headers {
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if name.is_empty() || !name.chars().all(is_token) {
            return Err(config.refuse(
                "handler.http.headers",
                "holds a name that no HTTP header can have",
                "write letters, digits and `-`, without spaces or colons",
            ));
        }
        if names_the_message(name) {
            return Err(config.refuse(
                &format!("handler.http.headers.{name}"),
                "is set by this program to what belongs to the message",
                "remove it, or give it another name",
            ));
        }
        if value.expose().chars().any(|c| c.is_control() && c != '\t') {
            return Err(config.refuse(
                &format!("handler.http.headers.{name}"),
                "holds a control character",
                "write it on one line, and look for a line end in the environment variable",
            ));
        }
    }
    Ok(())
}

/// Headers that identify the message of a request, or its length.
fn names_the_message(header: &str) -> bool {
    let header = header.to_ascii_lowercase();
    matches!(&*header, "idempotency-key" | "content-length" | "transfer-encoding")
        || header.starts_with("onceward-")
}

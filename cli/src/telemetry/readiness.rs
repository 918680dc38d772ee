//! Readiness: whether messages are consumed, and if not, why: [`Readiness`].

use std::fmt;

use onceward::outbox::RelayCounts;
use onceward::telemetry::{Counters, HandlerOutage, HandlerState, SourceState};

use super::watched::{LONGEST_REASON, Watched, Work};
use crate::handlers::text::printable;

/// Whether messages are consumed, and if not, why. Its text is the reply of `/health/ready`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Readiness {
    /// Messages are consumed.
    Ready,
    /// A part is not ready yet, with its error after the first attempt.
    Starting(&'static str, Option<String>),
    /// The store does not respond.
    StoreDown,
    /// The source does not deliver, for this reason.
    SourceDown(String),
    /// The handler is unavailable, for this reason; intake is paused.
    HandlerDown(HandlerOutage),
    /// A signal has started the drain.
    Draining,
}

impl Readiness {
    pub(super) fn current(watched: &Watched) -> Self {
        if watched.draining.is_cancelled() {
            return Self::Draining;
        }
        let ready = match &watched.work {
            Work::Run(work) => work.get().map(|counters| Self::from_run(counters)),
            Work::Relay(work) => work.get().map(|counts| Self::from_relay(counts)),
        };
        ready.unwrap_or_else(|| {
            let known = watched.waits_for.lock().clone();
            match known {
                Some((part, reason)) => Self::Starting(part, Some(reason)),
                None => Self::Starting("store", None),
            }
        })
    }

    fn from_run(counters: &Counters) -> Self {
        if !counters.is_store_up() {
            return Self::StoreDown;
        }
        match counters.source().map(|source| source.state()) {
            None | Some(SourceState::Up) => {}
            Some(SourceState::Starting) => return Self::Starting("source", None),
            Some(SourceState::Down(reason)) => return Self::SourceDown(reason),
        }
        match counters.handler_state() {
            HandlerState::Up => Self::Ready,
            HandlerState::Down(reason) => Self::HandlerDown(reason),
        }
    }

    fn from_relay(counts: &RelayCounts) -> Self {
        if counts.is_outbox_up() { Self::Ready } else { Self::StoreDown }
    }

    /// The state without texts of handlers, brokers and stores.
    pub(super) fn without_texts(&self) -> String {
        match self {
            Self::Starting(part, _) => Self::Starting(part, None).to_string(),
            Self::SourceDown(_) => "the source is down".to_owned(),
            Self::HandlerDown(outage) => match outage.failed_messages {
                Some(count) => {
                    format!("the handler is unavailable: {count} different messages failed in a row")
                }
                None => "the handler is unavailable".to_owned(),
            },
            Self::Ready | Self::StoreDown | Self::Draining => self.to_string(),
        }
    }

    pub(super) fn is_ready(&self) -> bool {
        *self == Self::Ready
    }
}

impl fmt::Display for Readiness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |text: &str| printable(text.as_bytes(), LONGEST_REASON);
        match self {
            Self::Ready => f.write_str("ready"),
            Self::Starting(part, None) => write!(f, "starting: waiting for the {part}"),
            Self::Starting(part, Some(reason)) => {
                write!(f, "starting: waiting for the {part}: {}", line(reason))
            }
            Self::StoreDown => f.write_str("the store does not respond"),
            Self::SourceDown(reason) => write!(f, "the source is down: {}", line(reason)),
            Self::HandlerDown(outage) => {
                write!(f, "the handler is unavailable: {}", line(&outage.to_string()))
            }
            Self::Draining => f.write_str("draining"),
        }
    }
}

#[cfg(test)]
mod tests {
    use onceward::{Error, ErrorKind};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::telemetry::MessageSource;

    const FILE: MessageSource = MessageSource { adapter: "file", system: "file" };

    #[test]
    fn a_start_says_what_it_waits_for_and_why() {
        let draining = CancellationToken::new();
        let watched = Watched::run("billing", FILE, draining.clone());
        let said = || Readiness::current(&watched).to_string();
        assert_eq!(said(), "starting: waiting for the store");
        let error = Error::new(ErrorKind::Unavailable, "open the queue \"q\"", "connection\nrefused");
        watched.waits_for("source", &error);
        assert_eq!(
            said(),
            "starting: waiting for the source: cannot open the queue \"q\": connection\\nrefused"
        );
        assert_eq!(Readiness::current(&watched).without_texts(), "starting: waiting for the source");
        assert!(!Readiness::current(&watched).is_ready());
        watched.started(std::sync::Arc::default());
        assert_eq!(said(), "the store does not respond");
        draining.cancel();
        assert_eq!(said(), "draining");
    }

    #[test]
    fn a_reason_is_one_short_line() {
        let said = Readiness::SourceDown(format!("a\r\nb{}", "x".repeat(5_000))).to_string();
        assert!(said.starts_with("the source is down: a\\r\\nb") && said.len() < 400, "{said}");
        assert_eq!(Readiness::SourceDown("secret".into()).without_texts(), "the source is down");
    }
}

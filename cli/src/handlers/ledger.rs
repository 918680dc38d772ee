//! Counts how often each message of a measurement was handled: [`Ledger`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};

use onceward::{HandlerError, Message};

/// The beginning of the payloads that a [`Ledger`] counts; a [`Mark`] follows.
const FIRST: &[u8] = br#"{"onceward-bench":""#;
/// The digits of the number of a message.
const DIGITS: usize = 12;

/// Names a message of one run: the run, and the number of the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// The run, eight hexadecimal digits of it.
    pub(crate) run: u32,
    /// The message, from 0. Copies have the same number.
    pub(crate) number: u64,
}

impl std::fmt::Display for Mark {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:08x}-{:0DIGITS$}", self.run, self.number)
    }
}

impl Mark {
    /// The beginning of a JSON object with the mark, up to the comma or brace that follows.
    pub(crate) fn open_object(self) -> String {
        format!("{}{self}\"", String::from_utf8_lossy(FIRST))
    }

    /// The mark of a payload, if it has one.
    fn of(payload: &[u8]) -> Option<Self> {
        let mark = payload.strip_prefix(FIRST)?.get(..8 + 1 + DIGITS)?;
        let (run, number) = std::str::from_utf8(mark).ok()?.split_once('-')?;
        Some(Self { run: u32::from_str_radix(run, 16).ok()?, number: number.parse().ok()? })
    }
}

/// How often each message of one run was handled. Handlers that run at the same time share it without a lock.
#[derive(Debug)]
pub(crate) struct Ledger {
    run: u32,
    handled: Box<[AtomicU16]>,
    strays: AtomicU64,
}

impl Ledger {
    /// A ledger of `run` with `messages` different messages, two bytes for each.
    pub(crate) fn new(run: u32, messages: u64) -> Self {
        let handled = (0..messages).map(|_| AtomicU16::new(0)).collect();
        Self { run, handled, strays: AtomicU64::new(0) }
    }

    /// Counts a message as handled.
    pub(crate) fn count(&self, payload: &[u8]) {
        let of_this_run = Mark::of(payload).filter(|mark| mark.run == self.run);
        let place = of_this_run.and_then(|mark| self.handled.get(usize::try_from(mark.number).ok()?));
        match place {
            Some(handled) => {
                // A message that is handled 65535 times is as wrong as one that is handled once more.
                let more = |handled: u16| handled.checked_add(1);
                let _ = handled.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
            }
            None => {
                self.strays.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// How often each message was handled, by number.
    pub(crate) fn handled(&self) -> impl Iterator<Item = u16> {
        self.handled.iter().map(|handled| handled.load(Ordering::Relaxed))
    }

    /// Messages of other runs.
    pub(crate) fn strays(&self) -> u64 {
        self.strays.load(Ordering::Relaxed)
    }
}

/// The handler that counts each message in a [`Ledger`], and does nothing else.
#[derive(Clone, Debug)]
pub(crate) struct LedgerHandler(Arc<Ledger>);

impl LedgerHandler {
    pub(crate) fn new(ledger: Arc<Ledger>) -> Self {
        Self(ledger)
    }

    #[allow(clippy::unnecessary_wraps, reason = "as the other handlers")]
    pub(crate) fn handle(&self, message: &Message) -> Result<(), HandlerError> {
        self.0.count(message.payload());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_counted_under_its_number_and_one_of_another_run_is_a_stray() {
        let ledger = Ledger::new(0xa1, 3);
        let payload = |run, number| format!("{},\"x\":1}}", Mark { run, number }.open_object()).into_bytes();
        for (run, number) in [(0xa1, 0), (0xa1, 2), (0xa1, 2), (0xa2, 1), (0xa1, 3)] {
            ledger.count(&payload(run, number));
        }
        ledger.count(b"{}");
        ledger.count(&payload(0xa1, 1)[..20]);
        assert_eq!(ledger.handled().collect::<Vec<_>>(), [1, 0, 2]);
        assert_eq!(ledger.strays(), 4);
    }
}

//! One run: executes the orders in the payload, and writes its notes to the ledger.

use std::path::Path;
use std::time::Duration;

use onceward_test_support::effects::{self, Kind, Note, now_us};
use serde::Deserialize;

use crate::parent;

/// The content of a payload. Fields that are left out are zero or absent.
#[derive(Debug, Deserialize)]
pub(crate) struct Order {
    /// The recipient of the effect.
    #[serde(default)]
    pub id: String,
    /// The action; by default an effect.
    #[serde(default, rename = "do")]
    pub deed: Deed,
    /// How long a run takes before its effect.
    #[serde(default)]
    pub ms: u64,
    /// In how many runs, counted in the ledger, the deed is done; later runs have their effect. 0: in all.
    #[serde(default)]
    pub times: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Deed {
    /// The effect.
    #[default]
    Ok,
    /// Fail, and ask for another run.
    Fail,
    /// Fail for good.
    Permanent,
    /// Kill the program that started this one, then die.
    Kill,
    /// End without an answer.
    Exit,
    /// Never end, as long as the program that started this one lives.
    Hang,
}

/// What is known of a run beside its payload.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub key: String,
    pub fence: u64,
    pub attempt: u32,
}

/// How a run ended.
pub(crate) enum Ended {
    Well,
    Failed,
    FailedForGood,
    WithoutAnswer,
}

/// Runs the order in `payload`. What is no JSON object is an order for an effect in the name of its length.
pub(crate) fn run(ledger: &Path, payload: &[u8], told: Told) -> Ended {
    let order = serde_json::from_slice(payload).unwrap_or_else(|_| Order {
        id: format!("{} bytes", payload.len()),
        deed: Deed::Ok,
        ms: 0,
        times: 0,
    });
    let start_us = now_us();
    let mut note = Note {
        kind: Kind::Start,
        id: order.id.clone(),
        key: told.key,
        worker: std::process::id(),
        fence: told.fence,
        attempt: told.attempt,
        start_us,
        end_us: start_us,
    };
    write(ledger, &note);
    std::thread::sleep(Duration::from_millis(order.ms));
    let deed = if is_over(ledger, &order) { Deed::Ok } else { order.deed };
    match deed {
        Deed::Ok => {
            note.kind = Kind::Effect;
            note.end_us = now_us();
            write(ledger, &note);
            Ended::Well
        }
        Deed::Fail => Ended::Failed,
        Deed::Permanent => Ended::FailedForGood,
        Deed::Kill => {
            parent::kill();
            Ended::WithoutAnswer
        }
        Deed::Exit => Ended::WithoutAnswer,
        Deed::Hang => {
            parent::outlive();
            Ended::WithoutAnswer
        }
    }
}

/// Whether the deed was done in as many runs as it shall be.
fn is_over(ledger: &Path, order: &Order) -> bool {
    if order.deed == Deed::Ok || order.times == 0 {
        return false;
    }
    let notes = effects::read(ledger).unwrap_or_else(|error| give_up(&format!("read the ledger: {error}")));
    // This run has noted its own start.
    notes.iter().filter(|note| note.kind == Kind::Start && note.id == order.id).count() > order.times
}

fn write(ledger: &Path, note: &Note) {
    if let Err(error) = effects::append(ledger, note) {
        give_up(&format!("write the ledger: {error}"));
    }
}

/// A run that cannot be written down must not look like one that never was.
#[allow(clippy::print_stderr)]
fn give_up(why: &str) -> ! {
    eprintln!("effect-worker cannot {why}");
    std::process::exit(65)
}

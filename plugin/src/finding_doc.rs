//! Meanings of the codes of findings: [`FindingDoc`].

use onceward::ErrorKind;

/// The meaning of a code that findings have, for the reference page `findings.md`. A plugin lists those of its own warnings and errors
/// in a constant `FINDINGS`.
///
/// ```
/// use onceward_plugin::FindingDoc;
///
/// pub const FINDINGS: &[FindingDoc] = &[FindingDoc::new(
///     "pigeon-loft-crowded",
///     "More pigeons live in the loft than it has places. Those without a place fly away, and their messages are lost.",
///     "Build a larger loft.",
/// )];
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FindingDoc {
    /// The code: lowercase words with hyphens, the first of which names the adapter unless several adapters report it.
    pub code: &'static str,
    /// What is the case, and what follows from it.
    pub meaning: &'static str,
    /// What to do.
    pub fix: &'static str,
}

impl FindingDoc {
    /// The meaning of `code`.
    pub const fn new(code: &'static str, meaning: &'static str, fix: &'static str) -> Self {
        Self { code, meaning, fix }
    }
}

/// The code of a part that could not be checked.
pub(crate) const fn code_of(kind: ErrorKind) -> &'static str {
    match kind {
        ErrorKind::Unavailable => "unavailable",
        ErrorKind::Timeout => "timeout",
        ErrorKind::Throttled => "throttled",
        ErrorKind::Denied => "denied",
        ErrorKind::Corrupt => "corrupt",
        ErrorKind::Config => "contradiction",
        ErrorKind::Unsupported => "unsupported",
        _ => "failed",
    }
}

/// The codes that are not those of one adapter.
pub const FINDINGS: &[FindingDoc] = &[
    FindingDoc::new(
        "unavailable",
        "A broker, store or handler could not be reached, or refuses requests for now: the connection was refused or lost, the server \
         is starting, read-only or out of memory.",
        "Start the server, or correct the address. The message states which part and why.",
    ),
    FindingDoc::new(
        "timeout",
        "A broker, store or handler did not respond in time.",
        "Check the network and the load of the server. For a store that is far away, raise `timeout` of its table.",
    ),
    FindingDoc::new(
        "throttled",
        "A server rejected the request because there were too many.",
        "Check again later, or raise the quota.",
    ),
    FindingDoc::new(
        "denied",
        "A server rejected the credentials, or the user lacks a permission.",
        "Correct the credentials, or grant the permission that the message names.",
    ),
    FindingDoc::new(
        "corrupt",
        "Data of a store cannot be read: a later version wrote it, or it is damaged.",
        "Update the program, or restore the data; `onceward keys get` reads single keys.",
    ),
    FindingDoc::new(
        "contradiction",
        "The configuration contradicts the set-up of a server: a queue that does not exist, a store that drops keys when its memory is \
         full, a schema of another version.",
        "Change the one or the other, as the message states.",
    ),
    FindingDoc::new(
        "unsupported",
        "A part does not offer what the configuration needs.",
        "Use another, or leave the option out.",
    ),
    FindingDoc::new(
        "failed",
        "A part could not be checked, for another reason.",
        "The message states the reason.",
    ),
    FindingDoc::new(
        "schema-steps-missing",
        "The schema of the store is of an earlier version. The next run takes the missing steps, if its user may change the schema.",
        "Run `onceward migrate` with a user that may.",
    ),
    FindingDoc::new(
        "delivery-limit-low",
        "The broker gives a message up after a number of deliveries that leaves no room beside the attempts for redeliveries that \
         crashes and lost connections cause.",
        "Raise the broker's limit to `retry.max_attempts` + 5 or more, or lower `max_attempts`. Give the queue a dead-letter exchange or \
         policy of its own, so that nothing is dropped.",
    ),
    FindingDoc::new(
        "ack-timeout-short",
        "The broker takes a delivery back before the handler's timeout has passed. The handler is not run twice, since the claim is \
         held, but the message is delivered again, and again.",
        "Raise the broker's timeout, or lower the handler's.",
    ),
    FindingDoc::new(
        "ttl-below-redelivery-horizon",
        "A key is forgotten before the last moment at which a duplicate of its message can arrive: the retries and the retention of the \
         broker together take longer than the store's `ttl`. A duplicate that comes after that is handled again.",
        "Raise `ttl` above the time that the message states, or lower the retention of the topic or queue.",
    ),
    FindingDoc::new(
        "order-within-worker",
        "The order is kept by this worker only: the broker gives messages of one key to several workers.",
        "Run one worker, or use what the broker offers: partitions, FIFO groups, ordering keys, a single active consumer.",
    ),
    FindingDoc::new(
        "order-key-blocks-source",
        "The broker cannot pause single order keys. When as many messages wait in the worker as it may hold, behind others of their key \
         or for a retry, nothing more is received, of any key.",
        "Raise `pipeline.max_waiting` if one blocked key may hold more, or retry for a shorter time.",
    ),
    FindingDoc::new(
        "store-in-memory",
        "The keys are in the memory of the process. They are forgotten when it ends, and other workers do not see them.",
        "Use another store for anything but a trial.",
    ),
];

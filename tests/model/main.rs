//! The claim protocol as a small exhaustive model: every interleaving of two workers, a broker that redelivers, a store, and
//! a bounded number of faults. [`stateright`] walks all of it and looks for a state in which a promise is broken.
//!
//! | file | job |
//! |---|---|
//! | `record.rs` | the store: the states of a key, and what each request finds and writes |
//! | `worker.rs` | one lane: from receive to settle |
//! | `state.rs` | the whole system in one value, and what the properties remember |
//! | `model.rs` `enabled.rs` `steps.rs` | bounds, faults and actions; when each can happen; what it does |
//! | `properties.rs` | what must hold |
//! | `sound.rs` | the protocol holds it, and every path ends |
//! | `bugs.rs` | each planted bug breaks it |
//! | `witnesses.rs` | the cases it is about do occur |
//! | `redrive.rs` `redrive/checks.rs` | a second, smaller model: dead letters and their redrive |
//! | `order/mod.rs` `order/checks.rs` | a third, smaller model: sequences of messages of one lane |
//! | `library.rs` | the library's own transitions do the same in every state reached |
//! | `check.rs` | how models are explored |
//!
//! # From the model's words to those of the guarantees
//!
//! | model | guarantees |
//! |---|---|
//! | `Stage::{Absent, Pending, Failed, Completed, Dead}` | the states of a key; a released claim leaves `Absent` with its attempts and losses |
//! | `Stage::Terminal` | failed(terminal, reason), held under a lease by the worker that publishes its dead letter |
//! | `ClaimId { token, fence }` | owner token and fence; both are compared in every write |
//! | `Record::lapsed` | the lease is over, in the store's time |
//! | `Record::lost`, `Record::started` | `lost ≥ 1`; the fenced `started` write |
//! | `Request::Claim` → `Claimed`, `InProgress`, `Settled`, `Exhausted` | the answers of claim; `Settled` is `Completed` or `Dead`. `Mismatch` is not modelled |
//! | `Request::Complete` → `Written` | pending and mine, or absent: completed → ack |
//! | … `Already` | completed by this claim → ack |
//! | … `Settled` | completed or dead by another → ack, a suspected double |
//! | … `Refused` | pending or failed by another → not acked |
//! | `Request::Commit` | the inbox: the effect and the fenced completion in one transaction; anything but `Written` rolls back |
//! | `Phase::Claiming` while the key is in progress | `on_in_progress = hold`; `Action::Park` is `park` |
//! | `Action::Asked` | a request is applied and its reply arrives |
//! | `Action::ReplyLost`, `RequestDelayed` | rule 4: unknown is not failed; the lane sends the same request again |
//! | `Phase::InDoubt`, `RunAgain`, `AskAgain`, `Abandon` | a commit of unknown outcome: the attempt runs again, or the claim is repeated and returns the outcome |
//! | `Late`, `LateRequestArrives` | a request of a zombie, a dead worker, or a connection that was given up |
//! | `Action::DeadlinePasses` | rule 3: the worker's own deadline, always before the store's lease ends |
//! | `Action::LeaseLapses` | the lease ends. No fault once no worker keeps it alive |
//! | a lane whose steps are not taken for a while | a paused worker; a zombie after `DeadlinePasses` and `LeaseLapses` |
//! | `Action::HandlerCancelled`, `HandlerSucceeds` when overdue | the cancellation token was heeded; or the handler was past every check |
//! | `Action::HandlerUnavailable` | the verdict `Unavailable`: the claim is released, the run counts as no attempt, the message stays. The time of the retry is not modelled, nor is the circuit breaker |
//! | `Action::ReleaseUnstarted` | releasing an unstarted claim; then the message goes back |
//! | `Action::Publish`, `ConfirmLost`, `Request::MarkDead` | publish, confirmed → mark dead → ack |
//! | `Action::TakeBack` | visibility or ack timeout, rebalance: the broker delivers again what a live worker holds |
//! | `Action::Ack` with an old receipt | may delete the message (`Ack`) or be refused (`AckLost`) |
//! | `Action::Forget` | forgotten, failed over |
//! | `Action::Expire` | the TTL ends; it is longer than any lease |
//! | `Action::StoreCrash` | the store's server crashes, or fails over to a standby that has what was synced: `claim_for_commit` |
//! | `redrive::Record::redrive` | compare-and-set dead(g) → absent(g + 1) |
//! | `redrive::Action::Move`, `Copy` | a delivery that has our dead-letter headers, moved by any party |
//!
//! # What `deduplicated` promises, as the model reads it
//!
//! Two effects are excused only if an owner died between its effect and its completion; or if its lapsed claim was taken over,
//! or its claim forgotten, during the run. "During the run" includes a handler that is past every check when its lease
//! ends and makes its effect after that: no protocol can stop it, only a sink that compares fences. `effectively-once` has no
//! excuse.
//!
//! # Bounds
//!
//! - Two lanes, on two workers or on one. Two messages: two copies of one key, or two keys; or one message.
//! - One or two attempts.
//! - Up to five faults of any kinds in one path (`Bounds::faults`); the cases in `sound.rs` say how many. Between faults every
//!   path ends, which `every_path_ends` shows; so a state without a next step must be a settled one, and that is how "every
//!   message settles" is checked.
//! - No two requests are late simultaneously.
//! - A worker that dies is restarted at once: being down is the same as taking no steps.
//! - States that differ only in the names of lanes, of copies, of tokens and of fences are explored once. A few are met under
//!   two names, depending on the way there, so the number of states may differ a little from run to run.
//!
//! Not modelled: fingerprints, positions, batches, caches, and time other than the order of deadlines.

mod bugs;
mod check;
mod enabled;
mod library;
mod model;
mod order;
mod properties;
mod record;
mod redrive;
mod sound;
mod state;
mod steps;
mod witnesses;
mod worker;

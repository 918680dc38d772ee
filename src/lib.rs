//! Onceward stands between a broker that delivers *at least once* and a handler whose effect shall happen *once*.

#![warn(missing_debug_implementations)]

mod active_claim;
pub mod adapter;
mod cancellation;
pub mod checkpoint;
mod coalesce;
mod consumer;
pub mod dead_letter;
mod delivery;
mod error;
mod extract;
#[cfg_attr(not(feature = "failpoints"), doc(hidden))]
pub mod failpoints;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod handler;
mod headers;
mod hosts;
mod janitor;
mod key;
mod message;
mod once;
pub mod outbox;
pub mod own_headers;
pub mod pipeline;
#[cfg(unix)]
mod private_file;
mod publisher;
pub mod retry;
pub mod store;
mod tag;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

pub mod telemetry;

pub use cancellation::Cancellation;
pub use checkpoint::{Checkpoint, CheckpointStore};
pub use consumer::{Acker, Capabilities, Consumer, FlowControl, Notice, Settled};
pub use dead_letter::DeadLetters;
pub use delivery::{Delivery, Settlement, Tag};
pub use error::{Error, ErrorKind};
pub use extract::{KeyExtractor, KeySource, KeyText};
#[cfg(feature = "testing")]
pub use handler::TestRun;
pub use handler::{
    FnHandler, Handled, Handler, HandlerError, HandlerFn, IntoReply, ResultExt, StatementFailure,
    StatementParameter, TxFn, TxHandler, TxHandlerFn, Verdict, handler, handler_fn, tx_handler,
};
#[cfg(feature = "tower")]
pub use handler::{ServiceHandler, tower_handler};
pub use hosts::{host_of, is_local_host};
pub use janitor::{Janitor, purge_expired};
pub use key::{Fingerprint, Fingerprinting, KEY_FORMAT, Key, KeyError, MAX_KEY_BYTES, Scope};
pub use message::{Defect, Message, MessageBuilder, Native, Position};
pub use once::{Deduplicator, ExhaustedKey, HeldClaim, Once, OnceConfig, OnceError};
pub use own_headers::{HeaderTrust, OwnHeaders, OwnSecrets};
pub use pipeline::config::PipelineConfig;
pub use pipeline::{Deduplicated, EffectivelyOnce, Pipeline, PipelineBuilder, Summary};
#[cfg(unix)]
pub use private_file::{open_private, private_path};
pub use publisher::{GatheredPublisher, Outgoing, Publisher};
pub use store::{Expiring, MemoryStore, SharedStore, Store, StoreAdmin, TransactionalStore};

/// The name of this version, as recorded in stores and printed by the program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

//! The contract between the pipeline and a broker or store adapter.
//!
//! A **broker adapter** implements [`Consumer`] and [`Acker`] for a source, and [`Publisher`] for a destination of dead
//! letters, retries and outbox rows, and [`Replies`] if messages of the source can ask for a reply. A **store adapter** implements [`Store`]; [`StoreAdmin`] and [`AuditLog`] if an
//! operator shall list its keys and redrive dead letters; [`Expiring`] if it does not expire records by itself; and [`TransactionalStore`] if handlers
//! can write to the same database. The functions of [`transition`] are the protocol of one key, for stores that decide
//! in this process. Logins and files follow the same rules in all adapters: [`is_local_host`], `open_private`.
//!
//! Each contract has a conformance suite in `onceward::testing` (feature `testing`). Programs that only run a pipeline
//! need nothing of this module.

pub use crate::checkpoint::{Checkpoint, CheckpointStore};
pub use crate::consumer::{Acker, Capabilities, Consumer, FlowControl, Notice, Settled};
pub use crate::delivery::{Delivery, Settlement, Tag};
pub use crate::handler::{StatementFailure, StatementParameter};
pub use crate::hosts::{host_of, is_local_host};
pub use crate::key::KEY_FORMAT;
pub use crate::message::{Defect, Native};
#[cfg(unix)]
pub use crate::private_file::{open_private, private_path};
pub use crate::publisher::{Outgoing, Publisher};
pub use crate::replies::{HEADER_RESULT, Replied, Replies, Reply};
pub use crate::store::{AuditLog, Expiring, Store, StoreAdmin, TransactionalStore, transition};
pub use crate::telemetry::{SourceHealth, SourceState};

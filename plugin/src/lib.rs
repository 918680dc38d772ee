//! The contract between an adapter and the `onceward` program.
//!
//! ```text
//! onceward.toml ──▶ table (your type) ──check──▶ problems with line, key and fix
//!                          │
//!                          └──open──▶ Consumer · Store · Publisher ──▶ pipeline
//! ```
//!
//! | role | table | trait |
//! |---|---|---|
//! | source of messages | `[source.NAME]` | [`SourcePlugin`] |
//! | store of keys | `[store.NAME]` | [`StorePlugin`] |
//! | publish target of a handler | `[handler.publish.NAME]` | [`TargetPlugin`] |
//! | broker of the outbox relay | `[outbox.NAME]` | [`RelayPlugin`] |
//!
//! The implementing type *is* the table: [`table!`] declares it, its fields are the options, and their doc comments become the
//! configuration reference. Where the library's configuration struct has an option as well, the struct has its range and default as
//! constants, which the table uses; `documentation::assert_documented` compares what both say with them.
//!
//! A plugin reports problems of the configuration as a [`Problem`]: key, problem and fix, never a value. The program
//! adds file and line.
//!
//! A connection table with a name and a secret, and its check:
//!
//! ```
//! use onceward_plugin::value::{Address, HumanDuration};
//! use onceward_plugin::{Checked, Context, check, table};
//!
//! table! {
//!     /// Carrier pigeons.
//!     PigeonConnection {
//!         /// Where the loft is: `pigeon://host`.
//!         pub url: Address,
//!         /// How long a flight may take, from 1s to 1d.
//!         #[serde(default = "::onceward_plugin::default::secs::<3_600>")]
//!         pub flight: HumanDuration,
//!     }
//! }
//!
//! impl PigeonConnection {
//!     fn check(&self, context: &Context<'_>) -> Checked {
//!         check::url(context, "url", &self.url, &["pigeon"])?;
//!         let range = HumanDuration::from_secs(1)..=HumanDuration::from_secs(86_400);
//!         check::duration(context, "flight", self.flight, range)
//!     }
//! }
//! ```

extern crate self as onceward_plugin;

pub mod check;
mod context;
pub mod default;
#[doc(hidden)]
pub mod documentation;
pub mod files;
mod finding_doc;
mod log_rule;
mod memory;
mod outbox;
mod problem;
mod secrets;
pub mod source;
mod statement;
mod store;
mod table;
mod target;
pub mod value;

#[doc(hidden)]
pub use {schemars, serde};

pub use context::{Context, HandlerFacts};
pub use finding_doc::{FINDINGS, FindingDoc};
pub use log_rule::LogRule;
pub use memory::MemoryTable;
pub use outbox::{AnyOutbox, ReadyRelay};
pub use problem::{Checked, Exposure, Finding, Problem, sentence};
pub use secrets::Secrets;
pub use source::{
    Backlog, DeadLetterStatus, LetterTarget, Letters, Place, SourceFacts, SourceParts, SourcePlugin,
    TemporarySource,
};
pub use statement::{PipelineParts, ReadyPipeline, StatementStore};
pub use store::{HasStoreLimits, OpenStore, Purpose, StoreFacts, StoreLimits, StorePlugin};
pub use target::{RelayPlugin, Target, TargetPlugin};

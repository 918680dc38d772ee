//! The pipeline: receives deliveries, claims their keys, runs the handler, records the outcome and settles: [`Pipeline`].

mod breaker;
mod builder;
mod chance;
mod claim;
pub mod config;
mod context;
mod dead_letters;
mod dispatch;
mod event;
mod gate;
mod guarantee;
mod halt;
mod handle;
mod heartbeat;
mod identity;
mod intake;
mod kept_alive;
mod key_sources;
pub(crate) mod limits;
mod measure;
mod outcomes;
mod process;
mod receipt;
mod record;
mod reply;
mod run;
mod run_clock;
mod runnable;
mod runner;
mod sequence;
mod settle;
mod settler;
mod side_by_side;
mod slots;
mod spans;
pub mod start_check;
mod store_calls;
mod summary;
mod takeovers;
#[cfg(test)]
mod tests;
mod work;

pub use builder::PipelineBuilder;
pub use guarantee::{Deduplicated, EffectivelyOnce, Guarantee};
pub use runnable::Pipeline;
pub use summary::Summary;

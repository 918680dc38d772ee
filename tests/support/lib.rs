//! Support for whole-system tests: the programs they run, the folder each has for itself, and what is written down.

pub mod chance;
pub mod database;
pub mod effects;
pub mod ledger;
pub mod orders;
pub mod process;
pub mod scene;
pub mod setup;

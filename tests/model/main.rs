//! Exhaustive model of the claim protocol.

mod bugs;
mod check;
mod enabled;
mod library;
mod model;
mod properties;
mod record;
mod sound;
mod state;
mod steps;
mod witnesses;
mod worker;

//! Exhaustive model of the claim protocol.

mod bugs;
mod check;
mod model;
mod properties;
mod record;
mod sound;
mod state;
mod witnesses;
mod worker;

//! Traces and metrics of the program over real brokers, as a collector and a scraper receive them.

mod events;
mod letter_actions;
mod letters;
pub(crate) mod scrape;
mod traces;

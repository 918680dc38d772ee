//! Traces and metrics of the program over real brokers, as a collector and a scraper receive them.

mod events;
mod letter_actions;
mod letters;
mod rare_events;
pub(crate) mod scrape;
mod traces;

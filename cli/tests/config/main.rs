//! The configuration as its users meet it: what parses, what is refused and in which words, and what is never printed.

mod advice;
mod canaries;
mod contradictions;
mod derived;
mod examples;
mod mistakes;
mod parsing;
mod plaintext;
mod schema;
mod secrets;
mod variables;

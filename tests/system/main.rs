//! The whole program, run as its users run it, and killed, stopped, starved and misconfigured.

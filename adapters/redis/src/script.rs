//! The scripts that decide what becomes of a key, in the server.

use std::sync::LazyLock;

/// One script: its text, and the hash that the server knows it by once it has seen it.
#[derive(Debug)]
pub(crate) struct Script {
    pub(crate) source: &'static str,
    pub(crate) sha: String,
}

macro_rules! scripts {
    ($($name:ident = $file:literal,)+) => {
        $(
            pub(crate) static $name: LazyLock<Script> = LazyLock::new(|| {
                Script::new(concat!(include_str!("scripts/record.lua"), include_str!($file)))
            });
        )+
    };
}

scripts! {
    CLAIM = "scripts/claim.lua",
    COMPLETE = "scripts/complete.lua",
    RENEW = "scripts/renew.lua",
    FAIL = "scripts/fail.lua",
    BURY = "scripts/bury.lua",
    RELEASE = "scripts/release.lua",
    REDRIVE = "scripts/redrive.lua",
    FORGET = "scripts/forget.lua",
    INSPECT = "scripts/inspect.lua",
    STATES = "scripts/states.lua",
}

impl Script {
    fn new(source: &'static str) -> Self {
        Self { source, sha: redis::Script::new(source).get_hash().to_owned() }
    }
}

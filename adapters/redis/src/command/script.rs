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
                Script::new(concat!(include_str!("lua/record.lua"), include_str!($file)))
            });
        )+
    };
}

scripts! {
    CLAIM = "lua/claim.lua",
    COMPLETE = "lua/complete.lua",
    RENEW = "lua/renew.lua",
    FAIL = "lua/fail.lua",
    BURY = "lua/bury.lua",
    RELEASE = "lua/release.lua",
    REDRIVE = "lua/redrive.lua",
    FORGET = "lua/forget.lua",
    INSPECT = "lua/inspect.lua",
    STATES = "lua/states.lua",
}

impl Script {
    fn new(source: &'static str) -> Self {
        Self { source, sha: redis::Script::new(source).get_hash().to_owned() }
    }
}

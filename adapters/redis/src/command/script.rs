//! The Lua scripts that decide each step of a key in the server: [`LuaScript`].

use std::sync::LazyLock;

/// A script: its text, and the hash by which the server caches it.
#[derive(Debug)]
pub(crate) struct LuaScript {
    pub(crate) source: &'static str,
    pub(crate) sha: String,
}

macro_rules! scripts {
    ($($name:ident = $($file:literal)+,)+) => {
        $(
            pub(crate) static $name: LazyLock<LuaScript> = LazyLock::new(|| {
                LuaScript::new(concat!(
                    include_str!("lua/record.lua"),
                    include_str!("lua/compact.lua"),
                    $(include_str!($file)),+
                ))
            });
        )+
    };
}

scripts! {
    CLAIM = "lua/claim.lua",
    COMPLETE = "lua/compact_complete.lua" "lua/complete.lua",
    RENEW = "lua/renew.lua",
    FAIL = "lua/fail.lua",
    BURY = "lua/bury.lua",
    RELEASE = "lua/release.lua",
    REDRIVE = "lua/redrive.lua",
    FORGET = "lua/forget.lua",
    INSPECT = "lua/inspect.lua",
    STATES = "lua/states.lua",
}

impl LuaScript {
    fn new(source: &'static str) -> Self {
        Self { source, sha: redis::Script::new(source).get_hash().to_owned() }
    }
}

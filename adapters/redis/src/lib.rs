//! Redis or Valkey (6.2 or later) as the store of [`onceward`]: one server, Sentinels, or a cluster.
//!
//! [`RedisStore`] decides every step of a key in the server, by scripts on the server's clock: one round trip for each
//! batch and server. [`RedisConfig`] says where the servers are and how to use them.
//!
//! ```text
//! batch ─▶ grouped by slot (cluster) ─▶ one pipeline a server: EVALSHA … ─▶ [SET, WAIT over another connection]
//!             ─▶ answers in order
//!             MOVED: look the slots up again · ASK, TRYAGAIN: each key alone · NOSCRIPT: once more with the text
//! ```
//!
//! # What it promises, and what it does not
//! The level is `deduplicated`. What a server has answered survives its process as far as its append-only file does:
//! with `appendfsync everysec` a crash of the server loses nothing, a power failure up to a second. **Replication is
//! asynchronous: a failover loses the last claims and completions**, so that two handlers may overlap and a duplicate may
//! run. [`wait_replicas`](RedisConfig::wait_replicas) narrows that and does not close it. Where that is too much, take a
//! store with an inbox.
//!
//! A timeout is *unknown*, not failed: the same call with the same token recognises itself. Connections are replaced
//! after each error that may mean a dead one, a replica where the primary was, or a login that was withdrawn; and a
//! connection that stays silent is replaced as soon as another one answers, however long or short callers wait.
//!
//! In a cluster a node that cannot be reached fails its own keys only: its items of a batch fail after about a second the
//! first time, and at once from then on until it answers again.
//!
//! # What is kept
//! | Redis key (with the prefix `ow`) | value |
//! |---|---|
//! | `ow:{b}` + 6 bytes of the scope's hash + the 16 bytes of the key; `b` one of 64 bytes, the key's slot | the record |
//! | `ow:!format` | the version of all this; another one is refused |
//! | `ow:!checkpoint:…` | offsets of sources without a broker; they never expire |
//! | `ow:{b}!` | what `WAIT` waits for; lives for a minute |
//!
//! The record's TTL is the Redis key's own; the lease is a field of the value, so that fence and attempts outlive it. The
//! first byte of a value names its form. A completion at the first attempt takes the shortest:
//!
//! | completed key, 1 M of them, Redis 7.0 as Debian builds it | bytes each |
//! |---|---|
//! | without a fingerprint: fence and time as one integer | 129 |
//! | with a fingerprint | 161 |
//! | the same with a prefix of 8 characters | 16 more |
//!
//! (Debian's allocator rounds to 16 bytes. With the allocator that Redis brings along, which rounds to 8, the same records
//! come to 113 and 145 by reckoning.) The short forms keep no owner token: the fence, given out once, tells the claim. And
//! without a fingerprint, the age of a completion is rounded up by at most a tenth of its handler's run.
//!
//! After [`forget`](onceward::StoreAdmin::forget) the fence stays for as long as the record would have lived, so that it goes
//! on growing even if the server's clock is set back; after the TTL it grows with the clock.
//!
//! # Lists and statistics
//! Redis has no index of keys. [`list`](onceward::StoreAdmin::list) and [`stats`](onceward::StoreAdmin::stats) walk over the names
//! of **all** Redis keys of all primaries with `SCAN`, 1,000 at a step, and give up after
//! [`scan_limit`](RedisConfig::scan_limit). Keys that come or go meanwhile may be missed; while Redis resizes its table a
//! key may be counted twice. They are for people, not for each message.
//!
//! # Limits
//! Leases and TTLs beyond 100 years are kept as 100 years. Database numbers other than 0 are for single servers only.
//! TLS is always verified.

mod address;
mod ask;
mod call;
mod check;
mod checkpoint;
mod completing;
mod config;
mod confirm;
mod connect;
mod error;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod group;
mod keys;
mod link;
mod network;
mod plain;
mod plaintext;
mod replies;
mod scan;
mod script;
mod store;
mod wire;

#[cfg(feature = "plugin")]
pub mod plugin;

pub use config::RedisConfig;
pub use store::RedisStore;

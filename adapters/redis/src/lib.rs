//! Redis or Valkey (6.2 or later) as the store of [`onceward`]: one server, Sentinels, or a cluster.
//!
//! [`RedisStore`] decides each step of a key in the server, with Lua scripts on the server's clock: one round trip for each
//! batch and server. [`RedisConfig`] says where the servers are and how the store uses them.
//!
//! ```text
//! batch ─▶ split by slot (cluster) ─▶ one pipeline per server: EVALSHA … ─▶ [SET, WAIT on a second connection]
//!             ─▶ results in order
//!             MOVED: read the slots again · ASK, TRYAGAIN: one call per key · NOSCRIPT: once more, with the text
//! ```
//!
//! # Guarantees and limits
//! The level is `deduplicated`. Acknowledged writes survive a crash of the server as far as its append-only file does: with
//! `appendfsync everysec` a crash of the process loses nothing, a power failure up to a second. **Replication is
//! asynchronous: a failover loses the last claims and completions**, so that two handlers may overlap and a duplicate may
//! run. [`wait_replicas`](RedisOptions::wait_replicas) narrows the gap and does not close it. If that is not enough, use a
//! store with an inbox.
//!
//! A timeout is *unknown*, not failed: the same call with the same token recognises itself. A connection is replaced after
//! each error that may mean a dead connection, a replica in place of the primary, or a withdrawn login; a connection that
//! stays silent is replaced as soon as another one can be opened, however long callers wait.
//!
//! In a cluster an unreachable node fails its own keys only: its items of a batch fail after about a second the first time,
//! and at once from then on until it responds again.
//!
//! # Stored data
//! | Redis key (with the prefix `ow`) | value |
//! |---|---|
//! | `ow:{b}` + 6 bytes of the scope's hash + the 16 bytes of the key; `b` one of 64 bytes, the slot of the key | the record |
//! | `ow:!format` | the version of this format; another version is refused |
//! | `ow:!checkpoint:…` | checkpoints of sources without a broker; they never expire |
//! | `ow:!audit:…`, `ow:!settled:…` | what operators changed, and which dead letters are done with; they never expire |
//! | `ow:!c` + 6 bytes of the scope's hash | the directory of compact records, while there are any |
//! | the same + 4 bytes | a slice of compact records |
//! | `ow:{b}!` | the write that `WAIT` waits for; expires after a minute |
//!
//! The record's TTL is that of the Redis key; the lease is a field of the value, so that fence and attempts outlive it. The
//! first byte of a value names its form. A completion at the first attempt takes the shortest form:
//!
//! | completed key, 1 M of them, Redis 7.0 as packaged by Debian | bytes each |
//! |---|---|
//! | without a fingerprint: fence and time as one integer | 129 |
//! | with a fingerprint | 161 |
//! | the same with a prefix of 8 characters | 16 more |
//!
//! (Debian's allocator rounds to 16 bytes. With the allocator that Redis bundles, which rounds to 8, the same records
//! would take 113 and 145 bytes.) The short forms keep no owner token: the fence, which is never issued twice, identifies the
//! claim. Without a fingerprint, the age of a completion is rounded up by at most a tenth of its handler's run time. A completed
//! key may live for up to a thousandth of its TTL longer, never shorter.
//!
//! After [`forget`](onceward::adapter::StoreAdmin::forget) the fence stays for as long as the record would have lived, so that it grows
//! even if the server's clock is set back; after the TTL it grows with the clock.
//!
//! # Compact layout
//! With [`RedisLayout::Compact`] a completion moves from its own Redis key into a *slice*, a hash of some 60 to 100 fields that Redis
//! keeps without gaps. 1 M keys, Redis 7.0 as packaged by Debian, difference of `used_memory`: **21.4 bytes each, 23.5 with a
//! fingerprint**. Below 300,000 keys a scope takes more for each, 28 bytes at 100,000 and 45 at 20,000, because slices are few or part
//! empty. Expired fields take up to a quarter more until their slice is written again. A completion takes the server about three times as
//! long as in the plain layout, a claim a third longer.
//!
//! Every process reads both layouts, whichever it writes, so that the setting can be changed process by process, under load, in either
//! direction. All processes must be of a version that knows compact records before the first one writes them: its first completions
//! raise `ow:!format` to `records 2`, which earlier versions refuse when they start, and which nothing lowers. Commands that only
//! read do not raise it. A cluster has no compact layout: while a slot moves, neither node sees all slices. Sentinels and replicas are
//! no different from the plain layout.
//!
//! **It is for scopes whose publishers are trusted.** Anyone who may publish to the scope and guesses a key that another producer is going
//! to use finds, in some 65,536 tries, a payload whose 16 bits agree with the other's. Published first, it runs, and the other's
//! message is acked as its copy. In the plain layout that takes 2¹²⁸ tries.
//!
//! A compact record keeps less:
//!
//! | | plain | compact |
//! |---|---|---|
//! | the key | 128 bits | 68 bits: a new message is taken for a copy of another with a probability of *live keys* / 2⁶⁸, 3 in 10¹⁵ with a million |
//! | the payload's fingerprint | 128 bits | 16 bits: one in 65,536 mismatches passes as a copy |
//! | owner and fence | fence | 8 bits: one in 256 [`DoneByAnother`](onceward::store::Completion::DoneByAnother) reads as `Repeated`; both ack |
//! | fence in an inspection | exact | at most a unit too large |
//! | time of the completion | exact, or a tenth of the run | in units of TTL / 262,144, at least 1 ms, rounded up: a key lives for up to a unit longer |
//! | time of the first claim | the same | in steps of a fifth of the run |
//!
//! These stay plain: a completion with a result, of a later generation, after a failure, loss or release; with a TTL of more than
//! 400 days, or another one than the compact records of the scope have; of a key that agrees with a live compact one in 64 bits and not
//! in the next 4. So after a change of the TTL new completions stay plain until the last compact one has expired. Results that are kept,
//! and the ids of `keep_trace_context`, make each completion a plain one, of 110 to 250 bytes.
//!
//! [`list`](onceward::adapter::StoreAdmin::list) shows the first 68 bits of the keys of compact records and zeros after them; `inspect`
//! and `forget` find the record by that. The fence that [`forget`](onceward::adapter::StoreAdmin::forget) leaves is then kept under the key
//! it was given: after one from a list, the next claim of the true key has a larger fence only if the server's clock was not set
//! back. Forget by the true key where it is known.
//!
//! # Lists and statistics
//! Redis has no index of keys. [`list`](onceward::adapter::StoreAdmin::list) and [`stats`](onceward::adapter::StoreAdmin::stats) scan **all** Redis keys
//! of all primaries with `SCAN`, 1,000 per step, and fail beyond [`scan_limit`](RedisOptions::scan_limit). Keys that are
//! created or deleted in the meantime may be missed; while Redis resizes its table a key may be counted twice. They are for
//! operators, not for each message.
//!
//! # Limits
//! Leases and TTLs beyond 100 years are shortened to 100 years. Databases other than 0 are for single servers only. TLS is
//! always verified.

mod audit;
mod check;
mod checkpoint;
mod command;
mod config;
mod endpoint;
mod error;
mod executor;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod network;
mod record;
mod scan;
mod store;

#[cfg(feature = "plugin")]
pub mod plugin;

/// The client crate, in the version whose `Client` `from_client` takes.
pub use redis;

pub use config::{RedisConfig, RedisLayout, RedisOptions};
pub use endpoint::{ClientCertificate, PasswordProvider, RedisEndpoint, RedisServers};
pub use store::RedisStore;

/// Compiles the example of the README.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

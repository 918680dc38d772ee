//! Meanings of the codes of findings about Redis.

use onceward_plugin::FindingDoc;

/// The codes, in alphabetical order.
pub const FINDINGS: &[FindingDoc] = &[
    FindingDoc::new(
        "redis-asynchronous-replicas",
        "Replication is asynchronous. A failover loses the last claims and completions, and their handlers may run \
         again.",
        "Set `wait_replicas`, which makes the loss less likely; or use Postgres where an effect must not happen twice.",
    ),
    FindingDoc::new(
        "redis-evicted-keys",
        "The server has dropped keys since its start, under an eviction policy other than the present one. They may \
         include claims and completed keys.",
        "Nothing, once `maxmemory-policy` is `noeviction`: the count starts again with the server.",
    ),
    FindingDoc::new(
        "redis-fsync-by-system",
        "The append-only file is synced by the operating system. A power failure loses up to half a minute of \
         completions, and their duplicates are handled again.",
        "Set `appendfsync everysec`, or `always`.",
    ),
    FindingDoc::new(
        "redis-large-slices",
        "With `layout = \"compact\"`, completed keys are kept in hashes of up to 128 fields. The server's settings make it keep \
         smaller hashes as tables, in which a key takes five times the memory. Everything works.",
        "Set `hash-max-listpack-entries` (before Redis 7: `hash-max-ziplist-entries`) to 128 or more, and \
         `hash-max-listpack-value` (`hash-max-ziplist-value`) to 8 or more.",
    ),
    FindingDoc::new(
        "redis-no-append-only-file",
        "There is no append-only file. A crash or restart of the server loses all keys since the last snapshot, and \
         without snapshots all keys; their duplicates are handled again.",
        "Set `appendonly yes`.",
    ),
    FindingDoc::new(
        "redis-no-scan",
        "The user may not use SCAN. `onceward keys list` and the statistics of keys are refused; everything else works.",
        "Grant `+scan` if operators need them.",
    ),
    FindingDoc::new(
        "redis-too-few-replicas",
        "Fewer replicas are connected than `wait_replicas` demands. Nothing is claimed until they are.",
        "Start the replicas, or lower `wait_replicas`.",
    ),
];

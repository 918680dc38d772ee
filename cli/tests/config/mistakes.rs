//! Each kind of mistake, with the one sentence it gets.

use std::path::Path;

use onceward_cli::config::Config;

use crate::examples::{base_and, base_with, no_env, refusal};

#[test]
fn an_error_names_file_line_key_and_fix() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("orders.toml");
    std::fs::write(&file, base_with("'json:/id'", "'json:id'")).unwrap();
    let error = Config::load(&file, &no_env).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "{}:7: key.from[0]: is not a JSON pointer to a field; \
             write json:/order/id, with ~1 for / and ~0 for ~ inside a name",
            file.display()
        )
    );
    assert_eq!(
        (error.line(), error.key(), error.file()),
        (Some(7), Some("key.from[0]"), Some(file.as_path()))
    );

    let error = Config::load(Path::new("absent/orders.toml"), &no_env).unwrap_err();
    assert_eq!(
        error.to_string(),
        "absent/orders.toml: cannot be read (No such file or directory); \
         give the path of a configuration, or write one with `onceward init`"
    );
}

/// Each kind of mistake, with the one sentence it gets.
#[test]
fn each_mistake_gets_its_sentence() {
    for (source, sentence) in [
        // Names.
        (base_with("from =", "form ="), "line 7: key.form: is not a known name; did you mean from?"),
        (
            base_with("[store.sqlite]", "[store.sqllite]"),
            "line 4: store.sqllite: is not a known name; did you mean sqlite?",
        ),
        (base_and("[pipelines]\n"), "line 12: pipelines: is not a known name; did you mean pipeline?"),
        (
            base_and("[pipeline]\nzzz = 1\n"),
            "line 13: pipeline.zzz: is not a known name; write one of concurrency, adaptive_concurrency, rate_limit, ordering, \
             order_by, max_in_flight, max_waiting, max_waiting_per_partition, max_in_flight_bytes, max_message_bytes, \
             max_batch, claims_ahead and 5 more",
        ),
        (
            base_and("[pipeline]\nrate_limit = 0\n"),
            "line 13: pipeline.rate_limit: is out of range; write how many handlers may start per second, from 0.001 to 1000000",
        ),
        (
            base_and("[pipeline]\nrate_limit = nan\n"),
            "line 13: pipeline.rate_limit: is out of range; write how many handlers may start per second, from 0.001 to 1000000",
        ),
        (
            base_and("[retry]\njitter = 'ful'\n"),
            "line 13: retry.jitter: is not one of the known values; did you mean full?",
        ),
        (
            base_and("[policy]\non_mismatch = 'zzz'\n"),
            "line 13: policy.on_mismatch: is not one of the known values; write one of dead-letter, ack, process",
        ),
        // Missing and too many.
        (
            base_with("scope = 'billing'\n", ""),
            "line 1: scope: is missing; add `scope = \"…\"`, the name of the consumer whose keys these are",
        ),
        (
            base_with("[source.file]\npath = 'orders.ndjson'\n", ""),
            "line 1: source: is missing; add [source.rabbitmq], [source.kafka], [source.sqs], [source.pubsub] or [source.file]",
        ),
        (base_with("path = 'onceward.db'\n", ""), "line 4: store.sqlite.path: is missing; add `path = …`"),
        (base_and("[store.memory]\n"), "line 12: store: names sqlite and memory; keep exactly one of them"),
        (
            base_with("[handler.stdout]\ntimeout = '10s'\n", "[handler]\n"),
            "line 8: handler: names none of its kinds; write exactly one of http, exec, worker, sql, publish, stdout",
        ),
        // Types, ranges and forms.
        (base_with("'billing'", "7"), "line 1: scope: has another type or range; write text in quotes"),
        (
            base_with("'billing'", "2020-01-01"),
            "line 1: scope: has another type or range; write text in quotes",
        ),
        (
            base_and("[pipeline]\nconcurrency = 'many'\n"),
            "line 13: pipeline.concurrency: has another type or range; write a whole number from 0 to 4294967295",
        ),
        (
            base_and("[pipeline]\nconcurrency = 99999999999999999999\n"),
            "line 13: pipeline.concurrency: has another type or range; write a whole number from 0 to 4294967295",
        ),
        (
            base_and("[pipeline]\nconcurrency = 0\n"),
            "line 13: pipeline.concurrency: is out of range; write a whole number from 1 to 65536",
        ),
        (
            base_with("'10s'", "'10'"),
            "line 9: handler.stdout.timeout: is not a duration; \
             write a number with a unit, such as \"200ms\", \"30s\", \"5m\" or \"7d\"",
        ),
        (
            base_with("'10s'", "'0s'"),
            "line 9: handler.stdout.timeout: is out of range; write a duration from 1ms to 12h",
        ),
        (
            base_and("[pipeline]\nmax_message_bytes = 0\n"),
            "line 13: pipeline.max_message_bytes: is zero, so that no message could be handled; write a size such as \
             \"16MiB\", or leave it out",
        ),
        (
            base_and("[pipeline]\nmax_in_flight_bytes = 'lots'\n"),
            "line 13: pipeline.max_in_flight_bytes: is not a size; \
             write a number with a unit, such as \"64KiB\", \"64MiB\" or \"1GiB\"",
        ),
        (
            base_and("[telemetry]\nlisten = 'localhost'\n"),
            "line 13: telemetry.listen: is not an address to listen on; \
             write an IP address and a port, such as 127.0.0.1:9464",
        ),
        (base_with("'billing'", "' '"), "line 1: scope: is empty; write its name"),
        (
            base_with("['json:/id']", "[]"),
            "line 7: key.from: is an empty list; name at least one source, such as message-id",
        ),
        (
            base_with("['json:/id']", "[[]]"),
            "line 7: key.from[0]: is a composite of nothing; name at least one part in it",
        ),
        (
            base_with("['json:/id']", "'json:/id'"),
            "line 7: key.from: has another type or range; write an array, such as [\"…\"]",
        ),
        (
            base_with("[key]\nfrom = ['json:/id']\n", ""),
            "line 1: key.from: is missing, and a file source has no message identity to fall back on; \
             add `from` to [key], such as from = [\"json:/id\"] or from = [\"position\"]",
        ),
        (
            base_with("[handler.stdout]", "[handler.http]\nurl = 'ftp://h/'"),
            "line 9: handler.http.url: is not a URL of the kind needed here; write one that starts with http:// or \
             https://, with `@`, `/`, `:`, `?` and `#` in a password percent-encoded",
        ),
        (
            base_with("[handler.stdout]", "[handler.exec]\ncommand = []"),
            "line 9: handler.exec.command: is an empty list; write at least one",
        ),
        (
            base_with("[source.file]", "source = 'file'\n[x]"),
            "line 2: source: has another type or range; write a table",
        ),
        // Syntax.
        (
            base_with("'onceward.db'", "onceward.db"),
            "line 5: store.sqlite.path: invalid TOML, string values must be quoted; put text between double quotes",
        ),
        (
            base_with("path = 'onceward.db'", "path = 'a'\npath = 'b'"),
            "line 6: store.sqlite.path: invalid TOML, duplicate key; keep one of the two",
        ),
    ] {
        assert_eq!(refusal(&source), sentence, "{source}");
    }
}

//! Values that are each within their limits and contradict each other.

use onceward_cli::config::Guarantee;

use crate::examples::{BASE, base_and, base_with, parse, refusal};

/// Values that are each within their limits and contradict each other.
#[test]
fn each_contradiction_gets_its_sentence() {
    let sql = base_with("[handler.stdout]\n", "[handler.sql]\nstatement = 'select 1'\n");
    let kafka = "scope = 'a'\n[source.kafka]\nbrokers = ['h:1']\ntopics = ['t']\ngroup = 'g'\n[store.memory]\n\
                 [handler.stdout]\n[dead_letter]\nto = 'd'\n";
    let fifo = "scope = 'a'\n[source.sqs]\nqueue_url = 'https://h/q.fifo'\n[store.memory]\n[handler.stdout]\n\
                [dead_letter]\nto = 'https://h/d'\n[pipeline]\n";
    let rabbit = "scope = 'a'\n[source.rabbitmq]\nurl = 'amqp://h/'\nqueue = 'q'\n[store.memory]\n[handler.stdout]\n\
                  [dead_letter]\nto = 'd'\n";
    let outbox = |tables: &str| format!("{sql}[outbox]\n{tables}");
    for (source, sentence) in [
        (
            outbox("[outbox.kafka]\nbrokers = ['h:1']\n[outbox.sqs]\n"),
            "line 16: outbox.sqs: is given as well as outbox.kafka, and a relay publishes to one broker; keep one of the two; \
             rows for another broker need a store, and a relay, of their own",
        ),
        (
            outbox("[outbox.kafka]\nbrokers = []\n"),
            "line 15: outbox.kafka.brokers: is an empty list; write at least one",
        ),
        (
            outbox("[outbox.kafka]\nbrokers = ['h:1']\nproperties.\"group.id\" = 'g'\n"),
            "line 16: outbox.kafka.properties.\"group.id\": is not for passing through; remove it and write the consumer group in \
             `group`",
        ),
        (
            outbox("[outbox.sqs]\nendpoint = 'h:1'\n"),
            "line 15: outbox.sqs.endpoint: is not a URL of the kind needed here; write one that starts with http:// or \
             https://, with `@`, `/`, `:`, `?` and `#` in a password percent-encoded",
        ),
        (
            outbox("[outbox.rabbitmq]\nurl = 'amqp://h/'\nca_file = 'ca.pem'\n"),
            "line 16: outbox.rabbitmq.ca_file: is for TLS, and outbox.rabbitmq.url is without it; write amqps:// in the URL, or \
             remove ca_file",
        ),
        (
            format!("{kafka}[outbox.sqs]\n"),
            "line 10: outbox.sqs: has nothing to publish, since [store.memory] has no outbox; remove it, or use [store.postgres] \
             or [store.sqlite]",
        ),
        (
            format!("{fifo}ordering = 'none'\n"),
            "line 9: pipeline.ordering: gives up the order of the message groups that a FIFO queue is there to keep; \
             remove it, or write ordering = \"key\" with order_by = \"broker\", or use a standard queue",
        ),
        (
            format!("{fifo}ordering = 'partition'\n"),
            "line 9: pipeline.ordering: gives up the order of the message groups that a FIFO queue is there to keep; \
             remove it, or write ordering = \"key\" with order_by = \"broker\", or use a standard queue",
        ),
        (
            format!("{fifo}ordering = 'key'\norder_by = 'json:/c'\n"),
            "line 10: pipeline.order_by: names another order than a FIFO queue's own, which is by message group; \
             remove it, or write ordering = \"key\" with order_by = \"broker\", or use a standard queue",
        ),
        (
            fifo.replace("q.fifo'", "q'\nvisibility = '1500ms'"),
            "line 4: source.sqs.visibility: has a fraction of a second, which SQS does not count; write whole seconds",
        ),
        (
            sql.replace("path = 'onceward.db'", "path = 'onceward.db'\nlease = '10s'"),
            "line 6: store.sqlite.lease: is not longer than handler.sql.timeout, and the store's single writer cannot renew it while the \
             statement runs; make the lease longer than the handler timeout",
        ),
        (
            sql.replace("[store.sqlite]\npath = 'onceward.db'", "[store.memory]"),
            "line 7: handler.sql: needs a store with transactions, which [store.memory] has not; \
             use [store.postgres] or [store.sqlite], or another handler",
        ),
        (
            format!("{}[pipeline]\nconcurrency = 49\n", sql.replace("'select 1'", "'select 1'\nbatch = 50")),
            "line 10: handler.sql.batch: is 50, and no more than 49 messages run at once or are claimed together; \
             raise pipeline.concurrency and pipeline.max_batch to at least as much, or lower it",
        ),
        (
            base_with("[handler.stdout]", "[handler.worker]\ncommand = ['w']\nin_flight = 1024\nbatch = 5"),
            "line 10: handler.worker.in_flight: lets a process have 5120 messages at once (in_flight × batch), and no \
             more than 4096 can run alone after its death; lower handler.worker.in_flight or handler.worker.batch",
        ),
        (
            format!("guarantee = 'effectively-once'\n{BASE}"),
            "line 1: guarantee: promises effectively-once, which [handler.stdout] cannot give: its effect is not in the \
             completion's transaction; use [handler.sql] with [store.postgres] or [store.sqlite], or write \
             guarantee = \"deduplicated\"",
        ),
        (
            format!("guarantee = 'effectively-once'\n{sql}[policy]\non_store_down = 'process'\n"),
            "line 15: policy.on_store_down: handles messages that may be duplicates, which \
             guarantee = \"effectively-once\" rules out; write \"pause\", or guarantee = \"deduplicated\"",
        ),
        (
            base_with("to = 'dead.ndjson'", "to = './orders.ndjson'"),
            "line 11: dead_letter.to: is the file that messages come from; give dead letters a destination of their own",
        ),
        (
            kafka.replace("to = 'd'", "to = 't'"),
            "line 9: dead_letter.to: is a topic that messages come from; give dead letters a destination of their own",
        ),
        (
            kafka.replace("to = 'd'", "to = 'r'").replace("['t']", "['t']\nretry_topics = { r = '10s' }"),
            "line 10: dead_letter.to: is a retry topic of the source; give dead letters a destination of their own",
        ),
        (
            fifo.replace("to = 'https://h/d'", "to = 'https://H:443/q.fifo/'"),
            "line 7: dead_letter.to: is the queue that messages come from; give dead letters a destination of their own",
        ),
        (
            rabbit.replace("to = 'd'", "to = 'q'"),
            "line 8: dead_letter.to: is the queue that messages come from; give dead letters a destination of their own",
        ),
        (
            rabbit.replace("to = 'd'", "to = 'q.wait.5s'"),
            "line 8: dead_letter.to: is a wait queue of the source; give dead letters a destination of their own",
        ),
        (
            rabbit.replace(
                "[handler.stdout]",
                "[handler.publish.rabbitmq]\nurl = 'amqp://u:p@h/'\nrouting_key = 'q'",
            ),
            "line 8: handler.publish.rabbitmq.routing_key: leads back to the source, so that messages would circulate for \
             ever; publish to another destination",
        ),
        (
            base_with("path = 'onceward.db'", "path = 'onceward.db'\nlease = '5s'\ntimeout = '5s'"),
            "line 7: store.sqlite.timeout: is not shorter than store.sqlite.lease, so a claim could expire before its \
             answer arrives; lower timeout or raise lease",
        ),
        (
            base_with("path = 'onceward.db'", "path = 'onceward.db'\nttl = '10s'\nlease = '30s'"),
            "line 6: store.sqlite.ttl: is shorter than store.sqlite.lease, so a key would be forgotten sooner than its \
             claim; raise ttl, which has to cover every later delivery of the same message",
        ),
        (
            base_with("[dead_letter]\nto = 'dead.ndjson'\n", ""),
            "line 1: policy.on_missing_key: dead-letters by default, but there is no [dead_letter]; add [dead_letter] \
             with `to`, or write on_missing_key = \"hash\", \"process\" or \"reject\" in [policy]",
        ),
        (
            base_with(
                "[dead_letter]\nto = 'dead.ndjson'\n",
                "[policy]\non_missing_key = 'hash'\non_mismatch = 'ack'\non_exhausted = 'dead-letter'\n",
            ),
            "line 13: policy.on_exhausted: dead-letters, but there is no [dead_letter]; add [dead_letter] with `to`, or \
             write on_exhausted = \"park\" in [policy]",
        ),
        (
            base_and("[policy]\non_completed = 'replay-result'\n"),
            "line 13: policy.on_completed: replays results to the senders of messages, and messages of [source.file] have no \
             address for a reply; write \"ack\"",
        ),
        (
            base_and("[pipeline]\nordering = 'key'\n"),
            "line 13: pipeline.ordering: keeps order by key, but pipeline.order_by is missing; add order_by with a \
             header or JSON field, such as \"header:customer\" or \"json:/customer/id\"",
        ),
        (
            base_and("[pipeline]\nmax_in_flight = 8\nconcurrency = 16\n"),
            "line 13: pipeline.max_in_flight: is less than pipeline.concurrency, so that many handlers could never run; \
             raise max_in_flight or lower concurrency",
        ),
        (
            base_and("[pipeline]\nmax_batch = 2000\nmax_in_flight = 1024\n"),
            "line 13: pipeline.max_batch: is more than pipeline.max_in_flight, so no batch could ever be full; \
             lower max_batch or raise max_in_flight",
        ),
        (
            base_with("path = 'orders.ndjson'", "path = 'orders.ndjson'\nmax_message_bytes = '64MiB'")
                + "[pipeline]\nmax_in_flight_bytes = '1MiB'\n",
            "line 4: source.file.max_message_bytes: is more than pipeline.max_in_flight_bytes, so the longest message \
             could never be taken; lower max_message_bytes or raise max_in_flight_bytes",
        ),
        (
            base_and("[retry]\ninitial = '1m'\nmax = '30s'\n"),
            "line 13: retry.initial: is longer than retry.max; lower initial or raise max",
        ),
        (
            kafka.replace(
                "[store.memory]",
                "[source.kafka.properties]\nsession.timeout.ms = 45000\nmax.poll.interval.ms = 44999\n[store.memory]",
            ),
            "line 8: source.kafka.properties.max.poll.interval.ms: is shorter than session.timeout.ms, which Kafka's client \
             rejects; raise it to session.timeout.ms at least, or remove one of the two",
        ),
        (
            kafka.replace(
                "[store.memory]",
                "[source.kafka.properties]\nenable.auto.commit = true\n[store.memory]",
            ),
            "line 7: source.kafka.properties.enable.auto.commit: is not for passing through; \
             remove it, since offsets are committed only after an effect is complete",
        ),
        (
            base_with(
                "[store.sqlite]\npath = 'onceward.db'",
                "[store.redis]\nurl = 'redis://:p@h'\npassword = 'p'",
            ),
            "line 6: store.redis.password: is given, and store.redis.url holds a password too; keep one of the two",
        ),
        (
            base_with(
                "[store.sqlite]\npath = 'onceward.db'",
                "[store.redis]\nurl = 'redis://h'\npassword = 'p'\npassword_file = 'f'",
            ),
            "line 7: store.redis.password_file: is given as well as store.redis.password; keep one of the two",
        ),
    ] {
        assert_eq!(refusal(&source), sentence, "{source}");
    }
}

#[test]
fn secrets_are_long_enough_and_what_is_believed_agrees_with_them() {
    let file = |key: &str, policy: &str| {
        base_with("from = ['json:/id']\n", &format!("from = ['json:/id']\n{key}\n"))
            + &format!("[policy]\n{policy}\n")
    };
    let secret = "secret = '0123456789abcdef'";
    for (source, key, problem) in [
        (file("secret = '0123456789abcde'", ""), "key.secret", "is shorter than 16 bytes"),
        (file(&format!("{secret}\nsecret_file = 's'"), ""), "key.secret_file", "as well as key.secret"),
        (
            file(&format!("{secret}\nprevious_secret = '{secret}'\nprevious_secret_file = 's'"), "")
                .replace(&format!("'{secret}'"), "'0123456789abcdef'"),
            "key.previous_secret_file",
            "as well as key.previous_secret",
        ),
        (file("previous_secret = '0123456789abcdef'", ""), "key.previous_secret", "without key.secret"),
        (file("previous_secret_file = 's'", ""), "key.previous_secret_file", "without key.secret"),
        (file("", "own_headers = 'authenticated'"), "policy.own_headers", "there is no key.secret"),
    ] {
        let said = refusal(&source);
        assert!(said.contains(&format!("{key}: ")) && said.contains(problem), "{said}");
        assert!(!said.contains("0123456"), "{said}");
    }
    let token = "token = '0123456789abcdef'\n";
    let telemetry = |text: &str| base_and(&format!("[telemetry]\n{text}"));
    let listen = "listen = '127.0.0.1:1'\n";
    for (source, key, problem) in [
        (
            telemetry(&format!("{listen}token = '0123456789abcde'")),
            "telemetry.token",
            "is shorter than 16 bytes",
        ),
        (
            telemetry(&format!("{listen}{token}token_file = 's'")),
            "telemetry.token_file",
            "as well as telemetry.token",
        ),
        (telemetry(token), "telemetry.token", "without telemetry.listen"),
        (telemetry("token_file = 's'"), "telemetry.token_file", "without telemetry.listen"),
    ] {
        let said = refusal(&source);
        assert!(said.contains(&format!("{key}: ")) && said.contains(problem), "{said}");
        assert!(!said.contains("0123456"), "{said}");
    }
    let shown = parse(&telemetry(&format!("{listen}{token}"))).to_toml().unwrap();
    assert!(shown.contains("token = \"***\""), "{shown}");
    let config = parse(&file(secret, "own_headers = 'authenticated'"));
    assert!(!config.to_toml().unwrap().contains("0123456"), "it is redacted");
    parse(&config.to_toml().unwrap());
}

#[test]
fn a_key_that_a_wait_in_the_broker_changes_needs_a_secret() {
    let kafka =
        "[source.kafka]\nbrokers = ['h:1']\ntopics = ['t']\ngroup = 'g'\nretry_topics = { 'r' = '1m' }";
    let rabbitmq = "[source.rabbitmq]\nurl = 'amqps://h/%2f'\nqueue = 'q'\nwait_queues_from = '1s'";
    let text = |source: &str, key: &str| {
        base_with("[source.file]\npath = 'orders.ndjson'", source).replace("from = ['json:/id']", key)
    };
    let (position, exchange) =
        ("from = ['json:/id', 'position']", "from = [['header:amqp-exchange', 'message-id']]");
    for (source, key) in [(kafka, position), (rabbitmq, exchange)] {
        let said = refusal(&text(source, key));
        assert!(said.contains("add secret_file to [key]"), "{said}");
        parse(&text(source, &format!("{key}\nsecret_file = 's'")));
        parse(&(text(source, key) + "[policy]\nown_headers = 'trusted'\n"));
        parse(&text(source, "from = ['json:/id', 'message-id']"));
    }
    parse(&text(rabbitmq, position));
}

#[test]
fn without_dead_letters_the_other_choices_must_be_written() {
    let config = parse(&base_with(
        "[dead_letter]\nto = 'dead.ndjson'\n",
        "[policy]\non_missing_key = 'hash'\non_mismatch = 'ack'\non_exhausted = 'park'\n",
    ));
    assert_eq!(config.dead_letter, None);
}

#[test]
fn effectively_once_is_accepted_where_it_can_be_given() {
    for store in ["[store.sqlite]\npath = 'onceward.db'", "[store.postgres]\nurl = 'postgres://h/db'"] {
        let source = base_with("[store.sqlite]\npath = 'onceward.db'", store)
            .replace("[handler.stdout]\n", "[handler.sql]\nstatement = 'select 1'\n");
        assert_eq!(
            parse(&format!("guarantee = 'effectively-once'\n{source}")).guarantee,
            Guarantee::EffectivelyOnce
        );
    }
}

#[test]
fn dead_letters_do_not_lead_back_into_the_queue_of_rabbitmq() {
    let source = "[source.rabbitmq]\nurl = 'amqps://h/%2f'\nqueue = 'orders'";
    let text = base_with("[source.file]\npath = 'orders.ndjson'", source);
    for to in ["orders", "/orders", "orders.wait.800ms"] {
        let said = refusal(&text.replace("dead.ndjson", to));
        assert!(said.contains("dead_letter.to: is "), "{to}: {said}");
    }
    parse(&text.replace("dead.ndjson", "orders.dead"));
}

/// Options that the adapter refuses, in any table.
#[test]
fn properties_that_kafkas_adapter_refuses_are_named_with_their_fix_in_every_table() {
    let source = "[source.kafka]\nbrokers = ['h:1']\ntopics = ['t']\ngroup = 'g'\n";
    let target = "[handler.publish.kafka]\nbrokers = ['h:1']\ntopic = 'out'\n";
    let outbox = "[outbox.kafka]\nbrokers = ['h:1']\n";
    let file = "[source.file]\npath = 'x'\n[key]\nfrom = ['json:/id']\n";
    let rest = "[dead_letter]\nto = 'd'\n";
    let stdout = "[handler.stdout]\n";
    let sql = "[store.sqlite]\npath = 's'\n[handler.sql]\nstatement = 'select 1'\n";
    for (name, value, fix) in [
        ("group.protocol", "consumer", "set it to classic, or remove it"),
        ("isolation.level", "read_uncommitted", "set it to read_committed, or remove it"),
        ("enable.partition.eof", "true", "set it to false, or remove it"),
        ("auto.commit.interval.ms", "100", "remove it"),
        ("offset.store.method", "broker", "remove it"),
    ] {
        let properties = |table| format!("[{table}.properties]\n{name} = '{value}'\n");
        for (table, text) in [
            (
                "source.kafka",
                format!("scope = 'a'\n{source}{}[store.memory]\n{stdout}{rest}", properties("source.kafka")),
            ),
            (
                "handler.publish.kafka",
                format!(
                    "scope = 'a'\n{file}[store.memory]\n{target}{}{rest}",
                    properties("handler.publish.kafka")
                ),
            ),
            ("outbox.kafka", format!("scope = 'a'\n{file}{sql}{rest}{outbox}{}", properties("outbox.kafka"))),
        ] {
            let said = refusal(&text);
            assert!(said.contains(&format!("{table}.properties.{name}: ")), "{said}");
            assert!(said.ends_with(fix) && !said.contains(value), "{said}");
        }
    }
    let classic = format!(
        "scope = 'a'\n{source}properties.\"group.protocol\" = 'classic'\n[store.memory]\n{stdout}{rest}"
    );
    parse(&classic);
}

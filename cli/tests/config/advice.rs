//! Advice about what is accepted.

use crate::examples::{BASE, CONTRACT, base_and, base_with, parse};

/// `text` with a secret, so that nothing is to be said of dead letters.
fn sealed(text: &str) -> String {
    text.replace("['json:/id']\n", "['json:/id']\nsecret = '0123456789abcdef'\n")
}

#[test]
fn advice_says_whose_headers_are_believed_where_that_may_surprise() {
    let keys = |text: &str| -> Vec<String> {
        parse(text).advice().iter().filter_map(|advice| advice.key().map(str::to_owned)).collect()
    };
    let rabbitmq = base_with(
        "[source.file]\npath = 'orders.ndjson'",
        "[source.rabbitmq]\nurl = 'amqps://h/%2f'\nqueue = 'q'",
    );
    let trusting = "[policy]\nown_headers = 'trusted'\n";
    assert_eq!(keys(&rabbitmq), ["dead_letter.to"], "a letter that is moved back by hand is one again");
    assert!(keys(&sealed(&rabbitmq)).is_empty());
    assert_eq!(keys(&format!("{rabbitmq}{trusting}")), ["policy.own_headers"]);
    assert!(keys(&base_and(trusting)).is_empty(), "a file is the operator's own");
}

#[test]
fn advice_names_what_will_not_run_as_intended() {
    let source = CONTRACT.replace("concurrency = 16", "concurrency = 600").replace("\"7d\"", "\"1m\"");
    let source = source.replace("queue = \"orders\"", "queue = \"orders\"\nprefetch = 500");
    let advice: Vec<_> = parse(&source).advice().iter().map(ToString::to_string).collect();
    assert_eq!(
        advice,
        [
            "line 9: source.rabbitmq.prefetch: is less than pipeline.concurrency, so that fewer handlers run at once than may; \
             raise prefetch or lower concurrency",
            "line 13: store.redis.ttl: is shorter than all retries may take (retry.max_attempts × retry.max), so a key \
             could be forgotten before its last attempt; raise ttl, or lower retry.max_attempts or retry.max",
            "line 25: pipeline.ordering: holds within one worker only, unless the queue has a single active consumer; \
             run one worker; or give the queue x-single-active-consumer and write single_active_consumer = true; or use a \
             consistent-hash exchange",
            "line 26: pipeline.order_by: names the broker's key, which [source.rabbitmq] does not give; \
             name a header or JSON field, such as \"header:customer\"",
            "line 27: pipeline.drain_timeout: is shorter than handler.http.timeout, so a handler still running at the \
             end of a drain is cut and its message is redelivered; raise drain_timeout, and the platform's own grace \
             period with it, or lower the handler's timeout",
            "line 36: dead_letter.to: takes letters that nothing proves to be ours when they are moved back: where their \
             key is dead they are dead-lettered again; add secret_file to [key], so that letters are sealed; or move them \
             back with `onceward dlq redrive` only",
        ]
    );
    assert_eq!(parse(BASE).advice(), []);
    let keys = |source: &str| -> Vec<String> {
        parse(source).advice().iter().filter_map(|advice| advice.key().map(str::to_owned)).collect()
    };
    assert_eq!(keys(&format!("mode = 'observe'\n{BASE}")), ["mode"]);
    assert_eq!(keys(&base_with("[store.sqlite]\npath = 'onceward.db'", "[store.memory]")), ["store.memory"]);
    assert_eq!(keys(&base_with("['json:/id']", "['json:/id', 'header:id']")), ["key.from[1]"]);
    assert_eq!(
        keys(&base_and("[pipeline]\nordering = 'none'\norder_by = 'json:/a'\n")),
        ["pipeline.order_by"]
    );
    let kafka = |properties| {
        let source = format!(
            "[source.kafka]\nbrokers = ['h:1']\ntopics = ['t']\ngroup = 'g'\nusername = 'u'\npassword = 'p'\n\
             [source.kafka.properties]\n{properties}"
        );
        keys(&sealed(&base_with("[source.file]\npath = 'orders.ndjson'", &source)))
    };
    assert!(kafka("security.protocol = 'sasl_ssl'").is_empty());
    assert_eq!(keys(&base_and("[policy]\non_store_down = 'process'\n")), ["policy.on_store_down"]);
}

#[test]
fn advice_about_a_rabbitmq_queue_names_what_costs_deliveries_or_messages() {
    let keys = |source: &str, more: &str| -> Vec<String> {
        let source = format!("[source.rabbitmq]\nurl = 'amqps://h/%2f'\nqueue = 'q'\n{source}");
        let text = sealed(&base_with("[source.file]\npath = 'orders.ndjson'", &source)) + more;
        parse(&text).advice().iter().filter_map(|advice| advice.key().map(str::to_owned)).collect()
    };
    assert!(keys("", "").is_empty());
    let timeout = "source.rabbitmq.ack_timeout";
    assert_eq!(keys("ack_timeout = '1m'", "[retry]\nmax = '10m'\n"), [timeout]);
    assert!(keys("ack_timeout = '1m'\nwait_queues_from = '10s'", "[retry]\nmax = '10m'\n").is_empty());
    assert!(keys("ack_timeout = '0s'", "[retry]\nmax = '10m'\n").is_empty());
    let deep = "[pipeline]\nconcurrency = 1\n";
    assert_eq!(keys("prefetch = 5000", deep), ["source.rabbitmq.prefetch"]);
    assert!(keys("prefetch = 20", deep).is_empty());
    assert_eq!(keys("delivery_limit = 4", ""), ["source.rabbitmq.delivery_limit"]);
}

#[test]
fn advice_says_that_rabbitmq_gives_no_message_id() {
    let text = base_with(
        "[source.file]\npath = 'orders.ndjson'",
        "[source.rabbitmq]\nurl = 'amqps://h/%2f'\nqueue = 'q'",
    );
    let by_default = text.replace("[key]\nfrom = ['json:/id']\n", "");
    assert_ne!(text, by_default);
    let advice = parse(&by_default).advice();
    let keys: Vec<_> = advice.iter().filter_map(|advice| advice.key()).collect();
    assert_eq!(keys, ["key.from", "dead_letter.to"]);
    assert!(advice[0].to_string().contains("RabbitMQ itself gives to no message"), "{}", advice[0]);
}

//! The configurations that the tests start from.

use onceward_cli::config::Config;

/// What every error test starts from: line 1 is the scope, and each test adds or replaces lines.
pub(crate) const BASE: &str = "\
scope = 'billing'
[source.file]
path = 'orders.ndjson'
[store.sqlite]
path = 'onceward.db'
[key]
from = ['json:/id']
[handler.stdout]
timeout = '10s'
[dead_letter]
to = 'dead.ndjson'
";

pub(crate) fn no_env(_: &str) -> Option<String> {
    None
}

pub(crate) fn parse(source: &str) -> Config {
    Config::parse(source, &no_env).unwrap_or_else(|error| panic!("{error}\n{source}"))
}

pub(crate) fn refusal(source: &str) -> String {
    match Config::parse(source, &no_env) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(error) => error.to_string(),
    }
}

/// `BASE` with one text replaced; the text must be there.
pub(crate) fn base_with(from: &str, to: &str) -> String {
    assert!(BASE.contains(from), "{from:?} is not in the base");
    BASE.replace(from, to)
}

pub(crate) fn base_and(more: &str) -> String {
    format!("{BASE}{more}")
}

/// The main example of the program's contract, as it is written there.
pub(crate) const CONTRACT: &str = r#"
scope = "billing"                      # required: whose keys these are
guarantee = "deduplicated"             # or "effectively-once" (refused where the parts cannot give it)
mode = "enforce"                       # or "observe": nothing is suppressed, duplicates are measured

[source.rabbitmq]                      # exactly one source
url = "amqp://guest:guest@127.0.0.1:5672/%2f"
queue = "orders"                       # prefetch = 500

[store.redis]                          # exactly one store: redis | postgres | sqlite | memory
url = "redis://127.0.0.1:6379"
ttl = "7d"                             # inside the store's table
lease = "30s"

[key]
from = ["header:idempotency-key", "message-id"]

[handler.http]                         # exactly one: http | exec | worker | sql | publish | stdout
url = "http://127.0.0.1:8080/orders"
timeout = "30s"                        # inside the handler's table

[pipeline]
concurrency = 16
ordering = "key"                       # partition | key | none
order_by = "broker"
drain_timeout = "25s"

[retry]
max_attempts = 5
initial = "200ms"
max = "30s"
jitter = "full"                        # none | full | equal | decorrelated

[dead_letter]
to = "orders.dlq"

[policy]
on_missing_key = "dead-letter"         # hash | process | reject
on_in_progress = "hold"                # park
on_completed = "ack"                   # replay-result
on_mismatch = "dead-letter"            # ack | process
on_store_down = "pause"                # process
on_exhausted = "dead-letter"

[telemetry]
listen = "127.0.0.1:9464"
otlp = "http://127.0.0.1:4317"
log = "text"                           # or "json"
"#;

pub(crate) const SOURCES: [&str; 8] = [
    "[source.rabbitmq]\nurl = 'amqps://h/%2f'\nqueue = 'q'\nprefetch = 200\nusername = 'u'\npassword_file = '/p'\n",
    "[source.kafka]\nbrokers = ['127.0.0.1:9092']\ntopics = ['orders']\ngroup = 'billing'\n\
     [source.kafka.properties]\nsession.timeout.ms = 60000\n'enable.partition.eof' = false\n",
    "[source.sqs]\nqueue_url = 'https://h/orders'\nregion = 'eu-west-1'\nendpoint = 'http://127.0.0.1:9324'\npollers = 4\nvisibility = '60s'\nunwrap_sns = true\n",
    "[source.sqs]\nqueue_url = 'https://h/orders.fifo'\n",
    "[source.pubsub]\nsubscription = 'projects/p/subscriptions/s'\nordered = true\nack_deadline = '60s'\ntopic = 'projects/p/topics/t'\n",
    "[source.pubsub]\nproject = 'p'\nsubscription = 's'\nendpoint = 'http://127.0.0.1:8085'\ncredentials = 'anonymous'\nmax_outstanding_bytes = '10MiB'\n",
    "[source.file]\npath = '-'\nformat = 'envelope'\n",
    "[source.file]\npath = 'orders.ndjson'\nformat = 'raw'\nfollow = true\nmax_message_bytes = 1048576\n",
];

const STORES: [&str; 4] = [
    "[store.redis]\nurl = 'rediss://h:6379'\nusername = 'u'\npassword = 'p'\ntimeout = '2s'\n",
    "[store.postgres]\nurl = 'postgres://h/db'\nschema = 'onceward'\n",
    "[store.sqlite]\npath = 'onceward.db'\nttl = '7d'\nlease = '60s'\n",
    "[store.memory]\n",
];

const HANDLERS: [&str; 10] = [
    "[handler.http]\nurl = 'https://h/orders'\nheaders = { Authorization = 'Bearer x' }\n",
    "[handler.exec]\ncommand = ['./charge.sh']\n",
    "[handler.worker]\ncommand = ['python3', 'w.py']\nprocesses = 4\n",
    "[handler.sql]\nstatement = 'select charge($1::jsonb)'\ntimeout = '10s'\n",
    "[handler.publish.kafka]\nbrokers = ['h:9092']\ntopic = 'out'\nproperties = { 'linger.ms' = 5 }\n",
    "[handler.publish.rabbitmq]\nurl = 'amqp://h'\nrouting_key = 'out'\n",
    "[handler.publish.sqs]\nqueue_url = 'https://h/out'\nregion = 'eu-west-1'\n",
    "[handler.publish.pubsub]\nproject = 'p'\ntopic = 'out'\ncredentials_file = '/k.json'\n",
    "[handler.stdout]\n",
    "[handler.stdout]\ntimeout = '1s'\n",
];

/// Every source with every store with every handler that they allow together.
pub(crate) fn combinations() -> impl Iterator<Item = String> {
    SOURCES.into_iter().flat_map(|source| {
        STORES.into_iter().flat_map(move |store| {
            HANDLERS.into_iter().filter_map(move |handler| {
                let transactional = store.contains("postgres") || store.contains("sqlite");
                (transactional || !handler.contains("handler.sql")).then(|| {
                    format!("scope = 'a'\n{source}{store}{handler}[key]\nfrom = ['json:/id']\n[dead_letter]\nto = 'd'\n")
                })
            })
        })
    })
}

//! Checks `[source.*]`.

use super::{Checked, address, broker, duration, text, texts, url, within};
use crate::config::{Address, Config, FileSource, HumanDuration, KafkaSource, Ordering, Source};

/// The delays for which a way through the broker is worth while.
const LEAST_WAIT: HumanDuration = HumanDuration::from_secs(1);
const MOST_WAIT: HumanDuration = HumanDuration::from_secs(86_400);

/// SQS's own limits.
const LEAST_VISIBILITY: HumanDuration = HumanDuration::from_secs(1);
const MOST_VISIBILITY: HumanDuration = HumanDuration::from_secs(43_200);
const MOST_RETRY_WAIT: HumanDuration = HumanDuration::from_secs(7 * 86_400);

const MAX_MESSAGE_BYTES: u64 = 1 << 30;

pub(super) fn check(config: &Config) -> Checked {
    match &config.source {
        Source::Rabbitmq(source) => {
            broker::rabbitmq(config, "source.rabbitmq", source.broker())?;
            text(config, "source.rabbitmq.queue", &source.queue)?;
            if let Some(prefetch) = source.prefetch {
                within(config, "source.rabbitmq.prefetch", prefetch, 1..=65_535)?;
            }
            if source.delivery_limit == Some(0) {
                return Err(config.refuse(
                    "source.rabbitmq.delivery_limit",
                    "is 0, with which the broker loses each message that is given back",
                    "raise x-delivery-limit on the queue, and write its value here",
                ));
            }
            if let Some(shortest) = source.wait_queues_from {
                const KEY: &str = "source.rabbitmq.wait_queues_from";
                duration(config, KEY, shortest, LEAST_WAIT, MOST_WAIT)?;
                if source.single_active_consumer {
                    return Err(config.refuse(
                        KEY,
                        "gives up the order that single_active_consumer is there to keep",
                        "remove one of the two",
                    ));
                }
            }
            Ok(())
        }
        Source::Kafka(source) => kafka(config, source),
        Source::Sqs(source) => {
            url(config, "source.sqs.queue_url", &source.queue_url, &["http", "https"])?;
            broker::sqs(config, "source.sqs", source.place())?;
            within(config, "source.sqs.pollers", source.pollers, 1..=64)?;
            duration(config, "source.sqs.visibility", source.visibility, LEAST_VISIBILITY, MOST_VISIBILITY)?;
            if source.visibility.get().subsec_nanos() > 0 {
                return Err(config.refuse(
                    "source.sqs.visibility",
                    "is a part of a second, which SQS does not count",
                    "write whole seconds",
                ));
            }
            Ok(())
        }
        Source::File(source) => file(config, source),
    }
}

fn kafka(config: &Config, source: &KafkaSource) -> Checked {
    broker::kafka(config, "source.kafka", source.cluster())?;
    texts(config, "source.kafka.topics", &source.topics, |topic| topic.trim().is_empty())?;
    text(config, "source.kafka.group", &source.group)?;
    retry_topics(config, source)?;
    poll_interval(config, source)
}

/// Of the two only what is written on both sides can contradict itself: the adapter fits one that is not written to the other.
/// Neither bounds a drain, since the member goes on polling while it drains.
fn poll_interval(config: &Config, source: &KafkaSource) -> Checked {
    let key = |name| broker::property_key(config, "source.kafka.properties", name);
    let written = |name| match source.properties.get(name) {
        None => Ok(None),
        Some(text) => text.parse::<u64>().map(Some).map_err(|_| {
            config.refuse(&key(name), "is not a whole number", "write milliseconds, such as 45000")
        }),
    };
    let (session, poll) = (written("session.timeout.ms")?, written("max.poll.interval.ms")?);
    match (session, poll) {
        (Some(session), Some(poll)) if poll < session => Err(config.refuse(
            &key("max.poll.interval.ms"),
            "is shorter than session.timeout.ms, which Kafka's client does not take",
            "raise it to session.timeout.ms at least, or remove one of the two",
        )),
        _ => Ok(()),
    }
}

fn retry_topics(config: &Config, source: &KafkaSource) -> Checked {
    const KEY: &str = "source.kafka.retry_topics";
    if source.retry_topics.is_empty() {
        return Ok(());
    }
    if config.ordering() != Ordering::None {
        return Err(config.refuse(
            KEY,
            "gives up the order that pipeline.ordering is there to keep",
            r#"remove it, or write ordering = "none""#,
        ));
    }
    for (topic, delay) in &source.retry_topics {
        duration(config, &format!("{KEY}.{topic:?}"), *delay, LEAST_WAIT, MOST_RETRY_WAIT)?;
        if source.topics.contains(topic) {
            return Err(config.refuse(
                KEY,
                "names a topic that is in topics as well",
                "give it one of its own",
            ));
        }
    }
    Ok(())
}

fn file(config: &Config, source: &FileSource) -> Checked {
    let path = source.path.to_string_lossy().into_owned();
    address(config, "source.file.path", &Address::from(path))?;
    within(config, "source.file.max_message_bytes", source.max_message_bytes.get(), 1..=MAX_MESSAGE_BYTES)?;
    if source.max_message_bytes > config.pipeline.max_in_flight_bytes {
        return Err(config.refuse(
            "source.file.max_message_bytes",
            "is more than pipeline.max_in_flight_bytes, so the longest message could never be taken",
            "lower max_message_bytes or raise max_in_flight_bytes",
        ));
    }
    Ok(())
}

//! Bindings for librdkafka functions that its Rust wrapper lacks: topic ids and authorized operations, offsets of several
//! partitions, commits with a reported result, and new credentials for a running client. The only unsafe code of this crate.
#![allow(unsafe_code, reason = "calls of a C library")]

use std::collections::{HashMap, HashSet};
use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::bindings as native;
use rdkafka::client::Client;
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode as Code};
use rdkafka::{Offset, TopicPartitionList};

/// The description of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TopicDescription {
    /// The name.
    pub name: String,
    /// Unique per creation of the topic; `None` from brokers older than 2.8.
    pub id: Option<String>,
    /// `None` if the broker does not report it.
    pub allowed: Option<AllowedOperations>,
}

/// The operations on a topic that the user is authorized for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllowedOperations {
    /// Reading records.
    pub read: bool,
    /// Writing records.
    pub write: bool,
}

/// A pointer that is freed on drop.
struct OwnedPointer<T> {
    pointer: *mut T,
    free: unsafe extern "C" fn(*mut T),
}

impl<T> OwnedPointer<T> {
    fn new(pointer: *mut T, free: unsafe extern "C" fn(*mut T)) -> Option<Self> {
        (!pointer.is_null()).then_some(Self { pointer, free })
    }
}

impl<T> Drop for OwnedPointer<T> {
    fn drop(&mut self) {
        // SAFETY: `pointer` came from the function that `free` belongs to, and is freed here only.
        unsafe { (self.free)(self.pointer) }
    }
}

/// Describes topics as [`try_describe_topics`] does, and fails if one of them does not exist.
///
/// # Errors
/// The cluster is unreachable, or a topic does not exist.
pub(crate) fn describe_topics<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    limit: Duration,
) -> KafkaResult<Vec<TopicDescription>> {
    try_describe_topics(client, topics, limit)?.into_iter().collect()
}

/// Describes topics, each named once; returns a result for each, in order. Blocks up to `limit` for the list of brokers, and up
/// to `limit` for each of at most three of them.
///
/// # Errors
/// The cluster is unreachable.
pub fn try_describe_topics<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    limit: Duration,
) -> KafkaResult<Vec<KafkaResult<TopicDescription>>> {
    let brokers = brokers(client, topics.first().copied().unwrap_or_default(), limit)?;
    let brokers = &brokers[..brokers.len().min(BROKERS_TRIED)];
    let mut failed = KafkaError::MetadataFetch(Code::AllBrokersDown);
    for broker in brokers {
        // The list may still contain a broker that has just stopped.
        match describe_at(client, *broker, topics, limit) {
            Err(error) => failed = error,
            described => return described,
        }
    }
    Err(failed)
}

/// How many brokers are tried in turn.
const BROKERS_TRIED: usize = 3;

/// Sends the request of [`try_describe_topics`] to one broker.
fn describe_at<C: ClientContext>(
    client: &Client<C>,
    broker: i32,
    topics: &[&str],
    limit: Duration,
) -> KafkaResult<Vec<KafkaResult<TopicDescription>>> {
    let names = topics.iter().map(|name| CString::new(*name)).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    let rk = client.native_ptr();
    let nothing = || KafkaError::MetadataFetch(Code::Fail);
    // SAFETY: `rk` lives as long as `client`; `names` and `pointers` outlive the call that copies them; each `OwnedPointer` is freed
    // after those that refer to it, and the event's data is copied before it is freed.
    unsafe {
        let operation = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let (options, queue) = admin_request(rk, operation, limit_ms)?;
        native::rd_kafka_AdminOptions_set_broker(options.pointer, broker, ptr::null_mut(), 0);
        let refused = native::rd_kafka_AdminOptions_set_include_authorized_operations(options.pointer, 1);
        drop(OwnedPointer::new(refused, native::rd_kafka_error_destroy));
        let collection =
            native::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let collection =
            OwnedPointer::new(collection, native::rd_kafka_TopicCollection_destroy).ok_or_else(nothing)?;
        native::rd_kafka_DescribeTopics(rk, collection.pointer, options.pointer, queue.pointer);
        let event = wait_for_answer(&queue, limit_ms)?;
        let result = native::rd_kafka_event_DescribeTopics_result(event.pointer);
        if result.is_null() {
            return Err(nothing());
        }
        let mut count = 0;
        let found = native::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        Ok((0..count).map(|index| to_description(*found.add(index))).collect())
    }
}

/// Creates the options of an admin request, with its timeout, and the queue for its answer.
///
/// # Safety
/// `rk` must be a live client.
unsafe fn admin_request(
    rk: *mut native::rd_kafka_t,
    operation: native::rd_kafka_admin_op_t,
    limit_ms: i32,
) -> KafkaResult<(OwnedPointer<native::rd_kafka_AdminOptions_t>, OwnedPointer<native::rd_kafka_queue_t>)> {
    let nothing = || KafkaError::MetadataFetch(Code::Fail);
    // SAFETY: as the caller promises; each pointer is freed by its `OwnedPointer`.
    unsafe {
        let options = native::rd_kafka_AdminOptions_new(rk, operation);
        let options =
            OwnedPointer::new(options, native::rd_kafka_AdminOptions_destroy).ok_or_else(nothing)?;
        native::rd_kafka_AdminOptions_set_request_timeout(options.pointer, limit_ms, ptr::null_mut(), 0);
        let queue = OwnedPointer::new(native::rd_kafka_queue_new(rk), native::rd_kafka_queue_destroy)
            .ok_or_else(nothing)?;
        Ok((options, queue))
    }
}

/// Waits for the answer of an admin request. The request itself has the timeout `limit_ms`; the wait is a second longer, to
/// observe the timeout.
///
/// # Safety
/// The client of `queue` must be live.
unsafe fn wait_for_answer(
    queue: &OwnedPointer<native::rd_kafka_queue_t>,
    limit_ms: i32,
) -> KafkaResult<OwnedPointer<native::rd_kafka_event_t>> {
    // SAFETY: as the caller promises; the event is freed by its `OwnedPointer`.
    unsafe {
        let event = native::rd_kafka_queue_poll(queue.pointer, limit_ms.saturating_add(1000));
        let event = OwnedPointer::new(event, native::rd_kafka_event_destroy)
            .ok_or(KafkaError::MetadataFetch(Code::OperationTimedOut))?;
        match Code::from(native::rd_kafka_event_error(event.pointer)) {
            Code::NoError => Ok(event),
            failed => Err(KafkaError::MetadataFetch(failed)),
        }
    }
}

/// Sends a commit without waiting. A later poll passes its result to the consumer's `commit_callback`.
///
/// The wrapper's asynchronous commit reports no result: librdkafka sends it to a callback of the configuration or to a queue
/// that the caller passes, and the wrapper, which reads events, passes neither (`rd_kafka_cgrp_propagate_commit_result`).
///
/// # Errors
/// The client has no group.
pub(crate) fn commit_async<C: ClientContext>(
    client: &Client<C>,
    offsets: &TopicPartitionList,
) -> KafkaResult<()> {
    // SAFETY: the client lives through the calls; the list is copied; the queue is freed by its `OwnedPointer`, and the client keeps
    // its own reference to it. Without a callback the result is an event of that queue.
    let failed = unsafe {
        let rk = client.native_ptr();
        let queue = OwnedPointer::new(native::rd_kafka_queue_get_main(rk), native::rd_kafka_queue_destroy)
            .ok_or(KafkaError::ConsumerCommit(Code::Fail))?;
        native::rd_kafka_commit_queue(rk, offsets.ptr(), queue.pointer, None, ptr::null_mut())
    };
    match Code::from(failed) {
        Code::NoError => Ok(()),
        failed => Err(KafkaError::ConsumerCommit(failed)),
    }
}

/// An end of a partition's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogEdge {
    /// The offset of the first retained record.
    Low,
    /// One more than the offset of the last record.
    High,
}

/// Requests one edge of each partition from their leaders, in one round. Partitions without a leader are absent from the result.
/// Blocks up to `limit`.
///
/// # Errors
/// The cluster is unreachable.
pub(crate) fn log_edges<C: ClientContext>(
    client: &Client<C>,
    partitions: &[(Arc<str>, i32)],
    edge: LogEdge,
    limit: Duration,
) -> KafkaResult<HashMap<(Arc<str>, i32), u64>> {
    let mut requested = TopicPartitionList::with_capacity(partitions.len());
    let spec = match edge {
        LogEdge::Low => Offset::Beginning,
        LogEdge::High => Offset::End,
    };
    for (topic, partition) in partitions {
        requested.add_partition_offset(topic, *partition, spec)?;
    }
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    let rk = client.native_ptr();
    let nothing = || KafkaError::MetadataFetch(Code::Fail);
    // SAFETY: `rk` lives as long as `client`, `requested` through the call that copies it; each `OwnedPointer` is freed after
    // those that refer to it, and the event's data is copied before it is freed.
    unsafe {
        let operation = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
        let (options, queue) = admin_request(rk, operation, limit_ms)?;
        native::rd_kafka_ListOffsets(rk, requested.ptr(), options.pointer, queue.pointer);
        let event = match wait_for_answer(&queue, limit_ms) {
            // None of them has a leader: the request fails as a whole.
            Err(KafkaError::MetadataFetch(Code::NoEnt)) => return Ok(HashMap::new()),
            answered => answered?,
        };
        let result = native::rd_kafka_event_ListOffsets_result(event.pointer);
        if result.is_null() {
            return Err(nothing());
        }
        let mut count = 0;
        let found = native::rd_kafka_ListOffsets_result_infos(result, &mut count);
        let mut edges = HashMap::with_capacity(count);
        for index in 0..count {
            let own = &*native::rd_kafka_ListOffsetsResultInfo_topic_partition(*found.add(index));
            if Code::from(own.err) == Code::NoError
                && let Ok(offset) = u64::try_from(own.offset)
            {
                let topic = CStr::from_ptr(own.topic).to_string_lossy();
                edges.insert((Arc::from(&*topic), own.partition), offset);
            }
        }
        Ok(edges)
    }
}

/// Returns a broker for requests that any broker answers. By default the client would wait for the controller.
pub(crate) fn any_broker<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    limit: Duration,
) -> KafkaResult<i32> {
    let first = brokers(client, topic, limit)?.first().copied();
    first.ok_or(KafkaError::MetadataFetch(Code::AllBrokersDown))
}

/// Lists the brokers, those that lead a partition of `topic` first.
fn brokers<C: ClientContext>(client: &Client<C>, topic: &str, limit: Duration) -> KafkaResult<Vec<i32>> {
    let metadata = client.fetch_metadata(Some(topic), limit)?;
    let leaders: HashSet<_> =
        metadata.topics().iter().flat_map(|topic| topic.partitions()).map(|own| own.leader()).collect();
    let mut brokers: Vec<_> = metadata.brokers().iter().map(|broker| broker.id()).collect();
    brokers.sort_by_key(|broker| !leaders.contains(broker));
    Ok(brokers)
}

/// # Safety
/// `topic` must be a description whose event is live.
unsafe fn to_description(topic: *const native::rd_kafka_TopicDescription_t) -> KafkaResult<TopicDescription> {
    // SAFETY: as the caller promises; the id and the operations belong to the description.
    unsafe {
        let failed = native::rd_kafka_TopicDescription_error(topic);
        let failed = match failed.is_null() {
            true => Code::NoError,
            false => Code::from(native::rd_kafka_error_code(failed)),
        };
        if failed != Code::NoError {
            return Err(KafkaError::MetadataFetch(failed));
        }
        let name = CStr::from_ptr(native::rd_kafka_TopicDescription_name(topic));
        let id = native::rd_kafka_TopicDescription_topic_id(topic);
        let id = (!id.is_null()).then(|| {
            let high = native::rd_kafka_Uuid_most_significant_bits(id).cast_unsigned();
            let low = native::rd_kafka_Uuid_least_significant_bits(id).cast_unsigned();
            (high, low)
        });
        let mut count = 0;
        let operations = native::rd_kafka_TopicDescription_authorized_operations(topic, &mut count);
        let allowed = (!operations.is_null()).then(|| {
            let may = |wanted| (0..count).any(|index| *operations.add(index) == wanted);
            AllowedOperations {
                read: may(native::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ),
                write: may(native::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE),
            }
        });
        Ok(TopicDescription {
            name: name.to_string_lossy().into_owned(),
            id: id.filter(|id| *id != (0, 0)).map(|(high, low)| format!("{high:016x}{low:016x}")),
            allowed,
        })
    }
}

/// Sets the credentials of a running client for SASL PLAIN and SCRAM. New connections use them.
///
/// # Errors
/// librdkafka's error text, never the password.
pub(crate) fn set_credentials<C: ClientContext>(
    client: &Client<C>,
    username: &str,
    password: &str,
) -> Result<(), String> {
    let c_text = |text: &str| CString::new(text).map_err(|_| "it contains a NUL character".to_owned());
    let (username, password) = (c_text(username)?, c_text(password)?);
    // SAFETY: `rk` lives as long as `client`, the texts through the call that copies them; the error is freed by its `OwnedPointer`
    // after its text was copied.
    unsafe {
        let rk = client.native_ptr();
        let failed = native::rd_kafka_sasl_set_credentials(rk, username.as_ptr(), password.as_ptr());
        match OwnedPointer::new(failed, native::rd_kafka_error_destroy) {
            None => Ok(()),
            Some(failed) => {
                let text = native::rd_kafka_error_string(failed.pointer);
                Err(CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        }
    }
}

/// Returns the cached end of a partition, without a request; `None` if the client has never seen it.
pub(crate) fn cached_end<C: ClientContext>(client: &Client<C>, topic: &str, partition: i32) -> Option<u64> {
    cached_edges(client, topic, partition)?.1
}

/// Returns the cached first offset and end of a partition, without a request.
pub(crate) fn cached_edges<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    partition: i32,
) -> Option<(Option<u64>, Option<u64>)> {
    let topic = CString::new(topic).ok()?;
    let (mut low, mut high) = (0, 0);
    // SAFETY: the client and the name live through the call, which writes the two numbers.
    let failed = unsafe {
        let rk = client.native_ptr();
        native::rd_kafka_get_watermark_offsets(rk, topic.as_ptr(), partition, &mut low, &mut high)
    };
    (Code::from(failed) == Code::NoError).then(|| (u64::try_from(low).ok(), u64::try_from(high).ok()))
}

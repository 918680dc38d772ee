//! What librdkafka can do and its Rust wrapper does not offer: the id of a topic, what a user may do with it, how far a
//! partition reaches as far as the client knows, commits whose result is reported, and another login for a client that runs. The
//! only unsafe code of this crate.
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

/// What the cluster tells of a topic.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Described {
    pub name: String,
    /// Another one each time the topic is made; `None` from brokers older than 2.8.
    pub id: Option<String>,
    /// `None` where the broker does not tell.
    pub allowed: Option<Allowed>,
}

/// What the user may do with a topic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    pub read: bool,
    pub write: bool,
}

/// A pointer that somebody has to free.
struct Owned<T> {
    pointer: *mut T,
    free: unsafe extern "C" fn(*mut T),
}

impl<T> Owned<T> {
    fn new(pointer: *mut T, free: unsafe extern "C" fn(*mut T)) -> Option<Self> {
        (!pointer.is_null()).then_some(Self { pointer, free })
    }
}

impl<T> Drop for Owned<T> {
    fn drop(&mut self) {
        // SAFETY: `pointer` came from the function that `free` belongs to, and is freed here only.
        unsafe { (self.free)(self.pointer) }
    }
}

/// As [`describe_each`]; fails if one of the topics does not exist.
///
/// # Errors
/// The cluster cannot be reached, or there is no such topic.
pub(crate) fn describe<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    limit: Duration,
) -> KafkaResult<Vec<Described>> {
    describe_each(client, topics, limit)?.into_iter().collect()
}

/// Asks the cluster about topics, each named once; an answer for each, in order. Blocks up to `limit` for the list of the brokers, and
/// as long for each of up to three of them.
///
/// # Errors
/// The cluster cannot be reached.
pub fn describe_each<C: ClientContext>(
    client: &Client<C>,
    topics: &[&str],
    limit: Duration,
) -> KafkaResult<Vec<KafkaResult<Described>>> {
    let brokers = brokers(client, topics.first().copied().unwrap_or_default(), limit)?;
    let brokers = &brokers[..brokers.len().min(ASKED)];
    let mut failed = KafkaError::MetadataFetch(Code::AllBrokersDown);
    for broker in brokers {
        // One that has just gone is in the list for a while.
        match describe_by(client, *broker, topics, limit) {
            Err(error) => failed = error,
            told => return told,
        }
    }
    Err(failed)
}

/// How many brokers are asked, one after the other, for what any of them knows.
const ASKED: usize = 3;

/// As [`describe_each`], of one broker.
fn describe_by<C: ClientContext>(
    client: &Client<C>,
    broker: i32,
    topics: &[&str],
    limit: Duration,
) -> KafkaResult<Vec<KafkaResult<Described>>> {
    let names = topics.iter().map(|name| CString::new(*name)).collect::<Result<Vec<_>, _>>()?;
    let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    let rk = client.native_ptr();
    let nothing = || KafkaError::MetadataFetch(Code::Fail);
    // SAFETY: `rk` lives as long as `client`; `names` and `pointers` outlive the call that copies them; each `Owned` is freed
    // after those that refer to it, and what the event owns is copied before it goes.
    unsafe {
        let operation = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS;
        let (options, queue) = request(rk, operation, limit_ms)?;
        native::rd_kafka_AdminOptions_set_broker(options.pointer, broker, ptr::null_mut(), 0);
        let refused = native::rd_kafka_AdminOptions_set_include_authorized_operations(options.pointer, 1);
        drop(Owned::new(refused, native::rd_kafka_error_destroy));
        let collection =
            native::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
        let collection =
            Owned::new(collection, native::rd_kafka_TopicCollection_destroy).ok_or_else(nothing)?;
        native::rd_kafka_DescribeTopics(rk, collection.pointer, options.pointer, queue.pointer);
        let event = answer(&queue, limit_ms)?;
        let result = native::rd_kafka_event_DescribeTopics_result(event.pointer);
        if result.is_null() {
            return Err(nothing());
        }
        let mut count = 0;
        let found = native::rd_kafka_DescribeTopics_result_topics(result, &mut count);
        Ok((0..count).map(|index| one(*found.add(index))).collect())
    }
}

/// The options of an admin request, with its time limit, and the queue for its answer.
///
/// # Safety
/// `rk` is a client that lives.
unsafe fn request(
    rk: *mut native::rd_kafka_t,
    operation: native::rd_kafka_admin_op_t,
    limit_ms: i32,
) -> KafkaResult<(Owned<native::rd_kafka_AdminOptions_t>, Owned<native::rd_kafka_queue_t>)> {
    let nothing = || KafkaError::MetadataFetch(Code::Fail);
    // SAFETY: as the caller promises; what was made is freed by its `Owned`.
    unsafe {
        let options = native::rd_kafka_AdminOptions_new(rk, operation);
        let options = Owned::new(options, native::rd_kafka_AdminOptions_destroy).ok_or_else(nothing)?;
        native::rd_kafka_AdminOptions_set_request_timeout(options.pointer, limit_ms, ptr::null_mut(), 0);
        let queue =
            Owned::new(native::rd_kafka_queue_new(rk), native::rd_kafka_queue_destroy).ok_or_else(nothing)?;
        Ok((options, queue))
    }
}

/// Waits for the answer of an admin request. The request has this limit itself; the wait is a little longer, to see it
/// expire.
///
/// # Safety
/// The client of `queue` lives.
unsafe fn answer(
    queue: &Owned<native::rd_kafka_queue_t>,
    limit_ms: i32,
) -> KafkaResult<Owned<native::rd_kafka_event_t>> {
    // SAFETY: as the caller promises; the event is freed by its `Owned`.
    unsafe {
        let event = native::rd_kafka_queue_poll(queue.pointer, limit_ms.saturating_add(1000));
        let event = Owned::new(event, native::rd_kafka_event_destroy)
            .ok_or(KafkaError::MetadataFetch(Code::OperationTimedOut))?;
        match Code::from(native::rd_kafka_event_error(event.pointer)) {
            Code::NoError => Ok(event),
            failed => Err(KafkaError::MetadataFetch(failed)),
        }
    }
}

/// Sends a commit. Its result comes to the consumer's `commit_callback` with a later poll.
///
/// The wrapper's asynchronous commit reports nothing: librdkafka sends its result to a callback of the configuration or to a
/// queue that the caller names, and the wrapper, which reads events, gives neither (`rd_kafka_cgrp_propagate_commit_result`).
///
/// # Errors
/// The client has no group.
pub(crate) fn commit<C: ClientContext>(client: &Client<C>, offsets: &TopicPartitionList) -> KafkaResult<()> {
    // SAFETY: the client lives through the calls; the list is copied; the queue is freed by its `Owned`, and the client keeps
    // its own reference to it. Without a callback the result is an event of that queue.
    let failed = unsafe {
        let rk = client.native_ptr();
        let queue = Owned::new(native::rd_kafka_queue_get_main(rk), native::rd_kafka_queue_destroy)
            .ok_or(KafkaError::ConsumerCommit(Code::Fail))?;
        native::rd_kafka_commit_queue(rk, offsets.ptr(), queue.pointer, None, ptr::null_mut())
    };
    match Code::from(failed) {
        Code::NoError => Ok(()),
        failed => Err(KafkaError::ConsumerCommit(failed)),
    }
}

/// Which end of a partition is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Edge {
    /// The offset of the first record that is still there.
    Low,
    /// One more than the offset of the last record.
    High,
}

/// Asks the leaders of `partitions` for one edge of each, in one round; those that answer, so none of partitions without a leader.
/// Blocks up to `limit`.
///
/// # Errors
/// The cluster cannot be reached.
pub(crate) fn edges<C: ClientContext>(
    client: &Client<C>,
    partitions: &[(Arc<str>, i32)],
    edge: Edge,
    limit: Duration,
) -> KafkaResult<HashMap<(Arc<str>, i32), u64>> {
    let mut asked = TopicPartitionList::with_capacity(partitions.len());
    let spec = match edge {
        Edge::Low => Offset::Beginning,
        Edge::High => Offset::End,
    };
    for (topic, partition) in partitions {
        asked.add_partition_offset(topic, *partition, spec)?;
    }
    let limit_ms = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    let rk = client.native_ptr();
    let nothing = || KafkaError::MetadataFetch(Code::Fail);
    // SAFETY: `rk` lives as long as `client`, `asked` through the call that copies it; each `Owned` is freed after those that
    // refer to it, and what the event owns is copied before it goes.
    unsafe {
        let operation = native::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_LISTOFFSETS;
        let (options, queue) = request(rk, operation, limit_ms)?;
        native::rd_kafka_ListOffsets(rk, asked.ptr(), options.pointer, queue.pointer);
        let event = match answer(&queue, limit_ms) {
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

/// A broker to ask what any of them knows. By default the controller would be waited for.
pub(crate) fn any_broker<C: ClientContext>(
    client: &Client<C>,
    topic: &str,
    limit: Duration,
) -> KafkaResult<i32> {
    let first = brokers(client, topic, limit)?.first().copied();
    first.ok_or(KafkaError::MetadataFetch(Code::AllBrokersDown))
}

/// The brokers, those that lead a partition of `topic` first.
fn brokers<C: ClientContext>(client: &Client<C>, topic: &str, limit: Duration) -> KafkaResult<Vec<i32>> {
    let told = client.fetch_metadata(Some(topic), limit)?;
    let leaders: HashSet<_> =
        told.topics().iter().flat_map(|topic| topic.partitions()).map(|own| own.leader()).collect();
    let mut brokers: Vec<_> = told.brokers().iter().map(|broker| broker.id()).collect();
    brokers.sort_by_key(|broker| !leaders.contains(broker));
    Ok(brokers)
}

/// # Safety
/// `topic` is a description whose event lives.
unsafe fn one(topic: *const native::rd_kafka_TopicDescription_t) -> KafkaResult<Described> {
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
            Allowed {
                read: may(native::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ),
                write: may(native::rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE),
            }
        });
        Ok(Described {
            name: name.to_string_lossy().into_owned(),
            id: id.filter(|id| *id != (0, 0)).map(|(high, low)| format!("{high:016x}{low:016x}")),
            allowed,
        })
    }
}

/// Gives a client that runs another login, for SASL's PLAIN and SCRAM; it holds for the connections that are made from then on.
///
/// # Errors
/// What librdkafka says; never the password.
pub(crate) fn set_login<C: ClientContext>(
    client: &Client<C>,
    username: &str,
    password: &str,
) -> Result<(), String> {
    let c_text = |text: &str| CString::new(text).map_err(|_| "it holds a NUL character".to_owned());
    let (username, password) = (c_text(username)?, c_text(password)?);
    // SAFETY: `rk` lives as long as `client`, the texts through the call that copies them; the error is freed by its `Owned`
    // after its text was copied.
    unsafe {
        let rk = client.native_ptr();
        let failed = native::rd_kafka_sasl_set_credentials(rk, username.as_ptr(), password.as_ptr());
        match Owned::new(failed, native::rd_kafka_error_destroy) {
            None => Ok(()),
            Some(failed) => {
                let text = native::rd_kafka_error_string(failed.pointer);
                Err(CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        }
    }
}

/// The end of a partition as the client last saw it, without asking the broker; `None` if it never did.
pub(crate) fn known_end<C: ClientContext>(client: &Client<C>, topic: &str, partition: i32) -> Option<u64> {
    known_edges(client, topic, partition)?.1
}

/// The first offset of a partition and its end as the client last saw them, without asking the broker.
pub(crate) fn known_edges<C: ClientContext>(
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

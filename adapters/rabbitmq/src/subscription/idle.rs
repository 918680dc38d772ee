//! Checks whether a queue and its delay queues are empty: [`is_empty`].

use lapin::Connection;
use onceward::ErrorKind;

use crate::delay_queues::DelayQueues;
use crate::inspect::query_queue;

/// True if the queue and its delay queues are empty, those of other processes included; `None` if the broker does not
/// answer.
pub(crate) async fn is_empty(
    connection: &Connection,
    queue: &str,
    delay_queues: Option<&DelayQueues>,
) -> Option<bool> {
    let ready = async || Some(query_queue(connection, queue).await.ok()?.ready > 0);
    let Some(delay_queues) = delay_queues else { return Some(!ready().await?) };
    // The queue last: messages that leave a delay queue meanwhile are in it by then.
    if any_waiting(connection, delay_queues, delay_queues.declared()).await? || ready().await? {
        return Some(false);
    }
    // All known queues are empty; another or an earlier process may have used other delays.
    Some(!(any_waiting(connection, delay_queues, delay_queues.possible()).await? || ready().await?))
}

async fn any_waiting(
    connection: &Connection,
    delay_queues: &DelayQueues,
    queues: Vec<(u64, String)>,
) -> Option<bool> {
    let mut some = false;
    for (delay_ms, name) in queues {
        match query_queue(connection, &name).await {
            Ok(found) => {
                some |= found.ready > 0;
                delay_queues.mark_declared(delay_ms);
            }
            // The queue and its content are gone; the next message for this delay declares it again.
            Err(error) if error.kind() == ErrorKind::Config => delay_queues.mark_missing(delay_ms),
            Err(_) => return None,
        }
    }
    Some(some)
}

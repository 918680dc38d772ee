//! Looks whether a queue and its wait queues are empty: [`is_empty`].

use lapin::Connection;
use onceward::ErrorKind;

use crate::gauge::ask;
use crate::wait::WaitRoom;

/// True if there is no message in the queue and in its wait queues, those of other processes included; `None` if the broker
/// does not tell.
pub(crate) async fn is_empty(connection: &Connection, queue: &str, room: Option<&WaitRoom>) -> Option<bool> {
    let ready = async || Some(ask(connection, queue).await.ok()?.ready > 0);
    let Some(room) = room else { return Some(!ready().await?) };
    // The queue last: what leaves a wait queue meanwhile is in it by then.
    if some_wait(connection, room, room.declared()).await? || ready().await? {
        return Some(false);
    }
    // All that is known is empty; another process, or one before this, may have used other delays.
    Some(!(some_wait(connection, room, room.possible()).await? || ready().await?))
}

async fn some_wait(connection: &Connection, room: &WaitRoom, queues: Vec<(u64, String)>) -> Option<bool> {
    let mut some = false;
    for (delay_ms, name) in queues {
        match ask(connection, &name).await {
            Ok(found) => {
                some |= found.ready > 0;
                room.found(delay_ms);
            }
            // It is gone, and with it what was in it; the next message that is to wait declares it again.
            Err(error) if error.kind() == ErrorKind::Config => room.forget(delay_ms),
            Err(_) => return None,
        }
    }
    Some(some)
}

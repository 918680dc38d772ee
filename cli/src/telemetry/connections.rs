//! The connections to the endpoints: a new one is always accepted, and the oldest of too many is closed.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::AbortHandle;

/// How many connections are open at a time. One more closes the oldest that has asked for nothing or, if all have, the
/// oldest: a health check must be answered however many others stand idle or do not read their answers.
const CONNECTIONS: usize = 64;

/// The open connections, oldest first.
#[derive(Default)]
pub(super) struct Connections(VecDeque<Open>);

struct Open {
    task: AbortHandle,
    has_asked: Arc<AtomicBool>,
}

impl Connections {
    /// Makes room for one more.
    pub(super) fn make_room(&mut self) {
        self.0.retain(|open| !open.task.is_finished());
        if self.0.len() < CONNECTIONS {
            return;
        }
        let idle = self.0.iter().position(|open| !open.has_asked.load(Ordering::Relaxed));
        if let Some(open) = self.0.remove(idle.unwrap_or(0)) {
            open.task.abort();
        }
    }

    /// Adds a connection; `has_asked` becomes true with its first request.
    pub(super) fn add(&mut self, task: AbortHandle, has_asked: Arc<AtomicBool>) {
        self.0.push_back(Open { task, has_asked });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_that_asked_for_nothing_goes_first() {
        let mut connections = Connections::default();
        let mut tasks = Vec::new();
        for number in 0..CONNECTIONS + 2 {
            connections.make_room();
            let task = tokio::spawn(std::future::pending::<()>());
            connections.add(task.abort_handle(), Arc::new(AtomicBool::new(number == 0)));
            tasks.push(task);
        }
        for gone in [1, 2] {
            assert!((&mut tasks[gone]).await.unwrap_err().is_cancelled());
        }
        assert!(!tasks[0].is_finished() && !tasks[3].is_finished() && connections.0.len() == CONNECTIONS);
        connections.0.iter().for_each(|open| open.has_asked.store(true, Ordering::Relaxed));
        connections.make_room();
        assert!((&mut tasks[0]).await.unwrap_err().is_cancelled());
    }
}

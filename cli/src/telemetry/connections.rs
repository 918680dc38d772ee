//! Connections to the endpoints: a new one is always accepted, and closes an old one beyond the limit: [`Connections`].

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::task::AbortHandle;

/// The most open connections. A further one closes another of the host that has most: a health check must be answered however
/// many connections are idle or do not read their responses.
const CONNECTIONS: usize = 256;

/// The open connections, oldest first.
#[derive(Default)]
pub(super) struct Connections(VecDeque<Open>);

struct Open {
    host: IpAddr,
    task: AbortHandle,
    has_asked: Arc<AtomicBool>,
}

impl Connections {
    /// Closes a connection if the limit is reached: of the host with most connections, the oldest without a request or,
    /// if all have one, the oldest.
    pub(super) fn make_room(&mut self) {
        self.0.retain(|open| !open.task.is_finished());
        if self.0.len() < CONNECTIONS {
            return;
        }
        let busiest = self.busiest();
        let oldest = |idle: bool| {
            let is_it =
                |open: &Open| Some(open.host) == busiest && !(idle && open.has_asked.load(Ordering::Relaxed));
            self.0.iter().position(is_it)
        };
        if let Some(open) = oldest(true).or_else(|| oldest(false)).and_then(|place| self.0.remove(place)) {
            open.task.abort();
        }
    }

    fn busiest(&self) -> Option<IpAddr> {
        let mut counts = HashMap::<_, usize>::new();
        for open in &self.0 {
            *counts.entry(open.host).or_default() += 1;
        }
        counts.into_iter().max_by_key(|(_, count)| *count).map(|(host, _)| host)
    }

    /// Adds a connection from `host`; `has_asked` becomes true with its request.
    pub(super) fn add(&mut self, host: IpAddr, task: AbortHandle, has_asked: Arc<AtomicBool>) {
        self.0.push_back(Open { host, task, has_asked });
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::task::JoinHandle;

    use super::*;

    fn open(connections: &mut Connections, host: u8, has_asked: bool) -> JoinHandle<()> {
        connections.make_room();
        let task = tokio::spawn(std::future::pending::<()>());
        let host = Ipv4Addr::new(10, 0, 0, host).into();
        connections.add(host, task.abort_handle(), Arc::new(AtomicBool::new(has_asked)));
        task
    }

    async fn is_closed(task: &mut JoinHandle<()>) -> bool {
        // Each time the runtime polls a limited number of tasks.
        for _ in 0..CONNECTIONS {
            tokio::task::yield_now().await;
        }
        task.is_finished()
    }

    #[tokio::test]
    async fn the_oldest_that_asked_for_nothing_goes_first() {
        let mut connections = Connections::default();
        let mut tasks: Vec<_> =
            (0..CONNECTIONS + 2).map(|number| open(&mut connections, 1, number == 0)).collect();
        assert!(is_closed(&mut tasks[1]).await && is_closed(&mut tasks[2]).await);
        assert!(!tasks[0].is_finished() && !tasks[3].is_finished() && connections.0.len() == CONNECTIONS);
        connections.0.iter().for_each(|open| open.has_asked.store(true, Ordering::Relaxed));
        connections.make_room();
        assert!(is_closed(&mut tasks[0]).await, "all have asked: the oldest goes");
        assert_eq!(connections.0.len(), CONNECTIONS - 1);
        connections.0[0].task.abort();
        assert!(is_closed(&mut tasks[3]).await);
        connections.make_room();
        assert_eq!(connections.0.len(), CONNECTIONS - 2, "what has ended takes no room");
    }

    #[tokio::test]
    async fn a_host_with_many_connections_closes_no_other_hosts() {
        let mut connections = Connections::default();
        let mut probe = open(&mut connections, 2, false);
        let flood: Vec<_> = (0..3 * CONNECTIONS).map(|_| open(&mut connections, 1, true)).collect();
        assert!(!is_closed(&mut probe).await);
        assert_eq!(flood.iter().filter(|task| !task.is_finished()).count(), CONNECTIONS - 1);
    }
}

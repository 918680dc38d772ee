//! Back-pressure on intake: [`Gate`].

use parking_lot::Mutex;
use std::sync::Arc;

use tokio::sync::Notify;

/// Open while there is room for more deliveries, the store answers, and the dispatcher has counted what was taken so
/// far: on several threads, intake must not run ahead of the limits.
#[derive(Debug)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    opened: Notify,
}

#[derive(Clone, Copy, Debug)]
struct GateState {
    open: bool,
    /// Batches that were sent to the dispatcher and not looked at.
    unseen: usize,
}

impl GateState {
    fn lets_pass(self) -> bool {
        self.open && self.unseen == 0
    }
}

impl Gate {
    pub(crate) fn new() -> Arc<Self> {
        let state = Mutex::new(GateState { open: true, unseen: 0 });
        Arc::new(Self { state, opened: Notify::new() })
    }

    /// The dispatcher has looked at its limits.
    pub(crate) fn set_open(&self, open: bool) {
        self.change(|state| state.open = open);
    }

    /// The dispatcher has counted a batch, and will look at its limits.
    pub(crate) fn seen(&self) {
        self.change(|state| {
            state.open = false;
            state.unseen = state.unseen.saturating_sub(1);
        });
    }

    pub(crate) fn sent(&self) {
        self.change(|state| state.unseen += 1);
    }

    fn change(&self, change: impl FnOnce(&mut GateState)) {
        let mut state = self.state.lock();
        let before = state.lets_pass();
        change(&mut state);
        if state.lets_pass() && !before {
            self.opened.notify_one();
        }
    }

    pub(crate) async fn pass(&self) {
        while !self.state.lock().lets_pass() {
            self.opened.notified().await;
        }
    }
}

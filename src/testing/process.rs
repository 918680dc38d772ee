//! A simulated process that can be paused, resumed and killed: [`Process`].

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// The process a worker lives in, as far as others can see it. What crosses its border (calls to store and broker,
/// the handler's own steps) goes through it, and stands still while the process is stopped: for a while, as under
/// `SIGSTOP`, or for good, as after `kill -9`.
///
/// It does not stop the worker's own timers. They cannot be seen from outside: all their consequences have to cross the
/// border.
#[derive(Clone, Debug, Default)]
pub struct Process(Arc<ProcessState>);

#[derive(Debug, Default)]
struct ProcessState {
    stopped: AtomicBool,
    /// Wakes its waiters in their order, so that simulations are repeatable; a `watch` channel does not.
    changed: Notify,
}

impl Process {
    /// A running process.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stops it at its current step. It is dead unless it is resumed; what it has taken from a broker must be taken from
    /// it there, as a broker does when a connection ends.
    pub fn stop(&self) {
        self.set(true);
    }

    /// Lets it go on.
    pub fn resume(&self) {
        self.set(false);
    }

    /// True while it is stopped.
    pub fn is_stopped(&self) -> bool {
        self.0.stopped.load(Ordering::Acquire)
    }

    fn set(&self, stopped: bool) {
        self.0.stopped.store(stopped, Ordering::Release);
        self.0.changed.notify_waiters();
    }

    async fn until(&self, stopped: bool) {
        loop {
            let mut changed = pin!(self.0.changed.notified());
            changed.as_mut().enable();
            if self.is_stopped() == stopped {
                return;
            }
            changed.await;
        }
    }

    /// Waits until the process runs.
    pub async fn runs(&self) {
        self.until(false).await;
    }

    /// Makes `inside` a part of the process: it takes no step while the process is stopped.
    pub async fn inside<T>(&self, inside: impl Future<Output = T>) -> T {
        let mut inside = pin!(inside);
        loop {
            self.runs().await;
            tokio::select! {
                biased;
                () = self.until(true) => {}
                done = &mut inside => return done,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_stopped_process_takes_no_step_until_it_is_resumed() {
        let process = Process::new();
        let (steps, mut seen) = tokio::sync::mpsc::unbounded_channel();
        let inside = {
            let process = process.clone();
            tokio::spawn(async move {
                process
                    .inside(async {
                        for step in 0.. {
                            steps.send(step).unwrap();
                            tokio::time::sleep(Duration::from_secs(1)).await;
                        }
                    })
                    .await;
            })
        };
        tokio::time::sleep(Duration::from_millis(2500)).await;
        process.stop();
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(seen.len(), 3);
        process.resume();
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!(seen.len(), 4);
        assert_eq!(seen.recv().await, Some(0));
        inside.abort();
    }
}

//! Starts child processes so that they inherit no open files, and reaps orphans where this program is process 1.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, WaitOptions, waitpid};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Whether orphans are reaped, and our own children have to be distinguished from them.
static REAPING: AtomicBool = AtomicBool::new(false);

/// Our own children, which the runtime waits for. Kept only while orphans are reaped.
static OWN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// The least time between two searches for orphans.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts a child that inherits nothing but its three standard streams: files that this program inherited itself, or that
/// a library opened without close-on-exec, stay here.
pub(super) fn spawn(command: &mut Command) -> io::Result<Child> {
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
    if !REAPING.load(Ordering::Acquire) {
        return command.spawn();
    }
    // Held until the child is known: it may end at once, and would be taken for an orphan.
    let mut own = own();
    let child = command.spawn()?;
    own.extend(child.id().and_then(|id| i32::try_from(id).ok()));
    Ok(child)
}

/// A child has ended and was waited for, or is left to the runtime, which does not mind if it is reaped here.
pub(super) fn forget(id: i32) {
    if REAPING.load(Ordering::Acquire) {
        own().remove(&id);
    }
}

fn own() -> MutexGuard<'static, BTreeSet<i32>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reaps orphans until `stop` fires, if this program is process 1: the kernel gives it every process whose parent has
/// ended, and those that have ended themselves stay as zombies until they are reaped. Does nothing otherwise.
///
/// # Cancel safety
/// Dropped, it reaps no longer.
pub(crate) async fn reap_orphans(stop: CancellationToken) {
    if !rustix::process::getpid().is_init() {
        return;
    }
    let Ok(mut ended) = signal(SignalKind::child()) else { return };
    REAPING.store(true, Ordering::Release);
    loop {
        reap();
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            _ = ended.recv() => {}
        }
        // Many may end together; one search finds them all. One that ends meanwhile is noted by the signal.
        tokio::time::sleep(PAUSE).await;
    }
}

fn reap() {
    let Ok(processes) = std::fs::read_dir("/proc") else { return };
    let (me, own) = (rustix::process::getpid(), own());
    for process in processes.flatten() {
        let name = process.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        if own.contains(&id) {
            continue;
        }
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { continue };
        // "pid (name) state parent …", where the name may hold anything.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        let (state, parent) = (fields.next(), fields.next().and_then(|parent| parent.parse().ok()));
        if state == Some("Z") && parent == Some(me.as_raw_pid()) {
            let _ = waitpid(Pid::from_raw(id), WaitOptions::NOHANG);
        }
    }
}

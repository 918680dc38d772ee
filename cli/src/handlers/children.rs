//! Starts child processes without inherited files, and reaps orphans if this program is process 1.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use rustix::process::{Pid, WaitOptions, waitpid};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// True while orphans are reaped, and must be distinguished from our own children.
static REAPING: AtomicBool = AtomicBool::new(false);

/// The ids of our own children, which the runtime waits for. Recorded only while orphans are reaped.
static OWN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

/// The shortest pause between two searches for orphans.
const PAUSE: Duration = Duration::from_millis(100);

/// Starts a child that inherits only its three standard streams: no file that this program inherited, or that a library
/// opened without close-on-exec.
pub(super) fn spawn(command: &mut Command) -> io::Result<Child> {
    close_fds::set_fds_cloexec_threadsafe(3, &[]);
    if !REAPING.load(Ordering::Acquire) {
        return command.spawn();
    }
    // Locked until the child is recorded: it may end at once, and would be taken for an orphan.
    let mut own = own();
    let child = command.spawn()?;
    own.extend(child.id().and_then(|id| i32::try_from(id).ok()));
    Ok(child)
}

/// Removes a child that has been waited for, or is left to the runtime, which tolerates that it is reaped here.
pub(super) fn forget(id: i32) {
    if REAPING.load(Ordering::Acquire) {
        own().remove(&id);
    }
}

fn own() -> MutexGuard<'static, BTreeSet<i32>> {
    OWN.lock()
}

/// Reaps orphans until `stop` fires, if this program is process 1: it becomes the parent of every process whose parent has
/// ended, and ended processes stay zombies until they are reaped. Does nothing otherwise.
///
/// # Cancel safety
/// Reaping stops when the future is dropped.
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
        // One search finds all that ended together. A process that ends meanwhile sends another signal.
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
        // "pid (name) state parent …", where the name may contain any character.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        let (state, parent) = (fields.next(), fields.next().and_then(|parent| parent.parse().ok()));
        if state == Some("Z") && parent == Some(me.as_raw_pid()) {
            let _ = waitpid(Pid::from_raw(id), WaitOptions::NOHANG);
        }
    }
}

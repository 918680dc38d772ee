//! Child processes that end with the test process, however that ends: [`Leashed`].

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// A child process in a process group of its own. Dropping it kills the group; if the test process dies first (a panic in a
/// static, SIGKILL), a small shell that waits for that does it, and removes the child's folder, if it has one.
#[derive(Debug)]
pub struct Leashed {
    child: Child,
    warden: Child,
}

/// The group is `$0`, the folder `$1`. What dies may still write for a moment.
const GUARD: &str =
    r#"read -r _; kill -s KILL -- "$0"; [ -z "$1" ] || rm -rf -- "$1" || { sleep 1; rm -rf -- "$1"; }"#;

impl Leashed {
    /// Starts `command`.
    ///
    /// # Errors
    /// The program, or the shell that guards it, cannot be started.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        Self::guarded(command, None)
    }

    /// As [`spawn`](Self::spawn), for a child that has a folder of its own. It stays as long as the test process lives, which
    /// removes it when it is no longer needed, unless the child is in a static, which is never dropped.
    ///
    /// # Errors
    /// As for [`spawn`](Self::spawn).
    pub fn spawn_in(folder: &Path, command: &mut Command) -> io::Result<Self> {
        Self::guarded(command, Some(folder))
    }

    fn guarded(command: &mut Command, folder: Option<&Path>) -> io::Result<Self> {
        let mut child = command.process_group(0).stdin(Stdio::null()).spawn()?;
        // `read` ends when the pipe's other end is closed, by us or by the kernel.
        let warden = Command::new("sh")
            .args(["-c", GUARD, &format!("-{}", child.id())])
            .args(folder)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        match warden {
            Ok(warden) => Ok(Self { child, warden }),
            Err(error) => {
                child.kill()?;
                child.wait()?;
                Err(error)
            }
        }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends a signal to the process (not to its group): SIGSTOP and SIGCONT pause it, SIGTERM asks it to end.
    ///
    /// # Errors
    /// The process no longer exists.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(self.pid(), signal)?)
    }

    /// Pauses (SIGSTOP) or continues (SIGCONT) the process.
    ///
    /// # Panics
    /// The process no longer exists.
    pub fn pause(&self, paused: bool) {
        let signal = if paused { Signal::STOP } else { Signal::CONT };
        self.signal(signal).expect("a process that runs can be paused");
    }

    /// Asks the process to end by `signal`, and waits for that up to `limit`. False if it did not end by itself: it is killed.
    ///
    /// # Panics
    /// The process no longer exists.
    #[must_use]
    pub fn stop(mut self, signal: Signal, limit: std::time::Duration) -> bool {
        self.signal(signal).expect("a process that runs can be asked to end");
        wait_until(limit, || matches!(self.try_wait(), Ok(Some(_))))
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// The operating system cannot report it.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills the group and waits for the process.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // The warden first: afterwards the group's number may belong to another group.
        let _ = self.warden.kill();
        let _ = self.warden.wait();
        let _ = kill_process_group(self.pid(), Signal::KILL);
        let _ = self.child.wait();
    }
}

impl Drop for Leashed {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits up to `limit` until `ready` returns true, asking every 20 ms.
pub fn wait_until(limit: std::time::Duration, mut ready: impl FnMut() -> bool) -> bool {
    let end = std::time::Instant::now() + limit;
    loop {
        if ready() {
            return true;
        }
        if std::time::Instant::now() >= end {
            return false;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// The most memory that a process has had since it started, in bytes (`VmHWM`); `None` once it has ended. `process` is its
/// number, or `self`.
#[must_use]
pub fn peak_memory(process: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes << 10)
}

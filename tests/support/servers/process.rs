//! Child processes that end with the test process, however that ends: [`Leashed`].

use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process, kill_process_group};

/// A child process in a process group of its own. Dropping it kills the group; if the test process dies first (a panic
/// in a static, SIGKILL), a small shell that waits for that does it.
#[derive(Debug)]
pub struct Leashed {
    child: Child,
    warden: Child,
}

impl Leashed {
    /// Starts `command`.
    ///
    /// # Errors
    /// The program, or the shell that guards it, cannot be started.
    pub fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.process_group(0).stdin(Stdio::null()).spawn()?;
        // `read` ends when the pipe's other end is closed, by us or by the kernel.
        let warden = Command::new("sh")
            .args(["-c", "read -r _; kill -s KILL -- \"$0\"", &format!("-{}", child.id())])
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
    /// The process is gone.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(kill_process(self.pid(), signal)?)
    }

    /// How it ended, if it did.
    ///
    /// # Errors
    /// The operating system cannot tell.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Kills the group and waits for the process.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // The warden first: afterwards the group's number may belong to somebody else.
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

/// Waits up to `limit` for `ready` to say yes, asking every 20 ms.
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

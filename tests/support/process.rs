//! A program under test while it runs: watched with bounded patience, signalled, and killed when dropped.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How often something is looked at that has no other way of telling.
const LOOK: Duration = Duration::from_millis(2);

/// A running program. Dropping it kills it and waits for its exit; the processes it started end because their pipes
/// close.
#[derive(Debug)]
pub struct Running {
    child: Child,
    started: Instant,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// How a program ended, and all it said.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
    /// How long it ran.
    pub took: Duration,
}

impl Ended {
    /// The exit code, unless a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// The signal that ended it, if one did.
    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    /// What the summary line says of `name`; 0 for one of the names that are only there if they count something. It is on
    /// standard output, or in the log of a run that was asked to end.
    ///
    /// # Panics
    /// If neither ends with such a line.
    pub fn summary(&self, name: &str) -> u64 {
        let last = |text: &str| {
            text.lines().last().and_then(|line| Some(line[line.find("received=")?..].to_owned()))
        };
        let line = last(&self.stdout).or_else(|| last(&self.stderr));
        let line = line.unwrap_or_else(|| panic!("it ended without a summary: {self:#?}"));
        let mut figures = line.split(' ').filter_map(|figure| figure.split_once('='));
        let number = figures.find(|(found, _)| *found == name).map_or(Ok(0), |(_, number)| number.parse());
        number.unwrap_or_else(|error| panic!("{name} in the summary: {error}: {self:#?}"))
    }
}

impl Running {
    /// Starts `command` in `folder`, with its output in files that begin with `name`.
    pub(crate) fn start(command: &mut Command, folder: &Path, name: &str) -> io::Result<Self> {
        let (stdout, stderr) = (folder.join(format!("{name}.stdout")), folder.join(format!("{name}.stderr")));
        let child = command
            .current_dir(folder)
            .stdin(Stdio::null())
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?)
            .spawn()?;
        Ok(Self { child, started: Instant::now(), stdout, stderr })
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// True until it has ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If it has not ended within `limit`; with what it said.
    pub fn wait_within(mut self, limit: Duration) -> Ended {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return self.ended(status);
            }
            assert!(
                Instant::now() < deadline,
                "the program has not ended within {limit:?}\n{}\n{}",
                text(&self.stdout),
                text(&self.stderr)
            );
            std::thread::sleep(LOOK);
        }
    }

    /// Kills it with SIGKILL, unless it has ended, and waits for its exit.
    pub fn kill(mut self) -> Ended {
        self.child.kill().expect("a child can be killed");
        let status = self.child.wait().expect("a child can be waited for");
        self.ended(status)
    }

    /// Asks it to end (SIGTERM).
    pub fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Sends `TERM` or `INT`.
    ///
    /// # Panics
    /// If it is another signal's name.
    pub fn send(&self, name: &str) {
        match name {
            "TERM" => self.signal(Signal::TERM),
            "INT" => self.signal(Signal::INT),
            other => panic!("tests send TERM or INT, not {other}"),
        }
    }

    /// Stops it (SIGSTOP): it takes no step until it may [go on](Self::go_on).
    pub fn stop(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a stopped program go on (SIGCONT).
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    /// What it has written to standard error so far.
    pub fn stderr(&self) -> String {
        text(&self.stderr)
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal)
            .expect("a child that is not reaped can be signalled");
    }

    fn ended(&self, status: ExitStatus) -> Ended {
        Ended { status, stdout: text(&self.stdout), stderr: text(&self.stderr), took: self.started.elapsed() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// Waits until something is true.
///
/// # Panics
/// If it is not within `limit`.
pub fn until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(LOOK);
    }
}

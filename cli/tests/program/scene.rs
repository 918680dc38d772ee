//! A folder with a configuration, and the program run on it from elsewhere.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Longer than anything here takes; what would hang fails instead.
const PATIENCE: Duration = Duration::from_secs(30);

/// One effect is one line in effects.log.
pub(crate) const CHARGE: &str = r#"command = ["sh", "-c", 'o=$(cat); echo "$o" >> effects.log']"#;

pub(crate) struct Scene {
    folder: TempDir,
}

/// How a command ended, and all it said.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ended {
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }
}

impl Scene {
    /// A folder with `onceward.toml`: these tables, and those that every test needs.
    pub(crate) fn new(tables: &str) -> Self {
        let scene = Self { folder: tempfile::tempdir().unwrap() };
        scene.configure(tables);
        scene
    }

    /// Orders in a file, each handled by appending it to effects.log, remembered in `store`.
    pub(crate) fn charging(store: &str, orders: &str) -> Self {
        let scene = Self::new(&format!("{ORDERS}[store.{store}\n[handler.exec]\n{CHARGE}\n"));
        scene.write("orders.ndjson", orders);
        scene
    }

    pub(crate) fn configure(&self, tables: &str) {
        let common = "scope = 'billing'\n[dead_letter]\nto = 'dead.ndjson'\n[key]\nfrom = ['json:/id']\n";
        self.write("onceward.toml", &format!("{common}{tables}"));
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    pub(crate) fn append(&self, name: &str, text: &str) {
        use std::io::Write;
        let mut file = fs::OpenOptions::new().create(true).append(true).open(self.path(name)).unwrap();
        file.write_all(text.as_bytes()).unwrap();
    }

    /// The lines of a file; none if it is not there.
    pub(crate) fn lines(&self, name: &str) -> Vec<String> {
        let text = fs::read_to_string(self.path(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// The lines of effects.log, sorted.
    pub(crate) fn effects(&self) -> Vec<String> {
        let mut effects = self.lines("effects.log");
        effects.sort();
        effects
    }

    /// `words`, where `@` is the configuration's path. It runs elsewhere than in the folder.
    pub(crate) fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
        let file = self.path("onceward.toml");
        for word in words.split(' ') {
            match word {
                "@" => command.arg(&file),
                word => command.arg(word),
            };
        }
        command.stdin(Stdio::null()).current_dir("/").env_remove("RUST_LOG").env_remove("ONCEWARD_LOG");
        command
    }

    /// Runs `words` to their end.
    pub(crate) fn execute(&self, words: &str) -> Ended {
        self.start(self.command(words)).end()
    }

    /// Starts a command, with its output in files of the folder.
    pub(crate) fn start(&self, mut command: Command) -> Running {
        let out = |name: &str| (self.path(name), File::create(self.path(name)).unwrap());
        let ((stdout, to_stdout), (stderr, to_stderr)) = (out("stdout"), out("stderr"));
        let child = command.stdout(to_stdout).stderr(to_stderr).spawn().unwrap();
        Running { child, stdout, stderr }
    }
}

/// The source of most tests.
pub(crate) const ORDERS: &str = "[source.file]\npath = 'orders.ndjson'\n";

/// A running program; killed when it is dropped.
pub(crate) struct Running {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn stderr(&self) -> String {
        text(&self.stderr)
    }

    pub(crate) fn is_running(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    /// Waits for its end, which must come.
    pub(crate) fn end(mut self) -> Ended {
        let status = until("the program ends", || self.child.try_wait().unwrap());
        Ended { status, stdout: text(&self.stdout), stderr: text(&self.stderr) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}

/// Waits until `found` answers.
pub(crate) fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = found() {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

/// `until`, for what is true or not.
pub(crate) fn wait(what: &str, mut so: impl FnMut() -> bool) {
    until(what, || so().then_some(()));
}

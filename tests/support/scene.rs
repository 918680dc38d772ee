//! A folder for one test, with configuration, input, database, ledger and dead letters, and the program run in it.

use std::cell::Cell;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use crate::database::Database;
use crate::effects::{self, Kind, Note};
use crate::process::{Ended, Running};
use crate::setup::Setup;

/// How long a run may take that is expected to end by itself.
const PATIENCE: Duration = Duration::from_secs(60);

/// A folder of its own. It is removed, unless the test fails.
#[derive(Debug)]
pub struct Scene {
    program: PathBuf,
    folder: Option<TempDir>,
    env: Vec<(String, String)>,
    runs: Cell<u32>,
}

impl Scene {
    /// An empty folder for runs of `program`.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        let folder = tempfile::Builder::new().prefix("onceward-").tempdir().expect("a temporary folder");
        Self { program: program.into(), folder: Some(folder), env: Vec::new(), runs: Cell::new(0) }
    }

    /// A folder with a configuration and its input.
    pub fn with(program: &str, setup: &Setup, lines: &[String]) -> Self {
        let scene = Self::new(program);
        scene.configure(setup);
        scene.write("orders.ndjson", &joined(lines));
        scene
    }

    /// Gives every program an environment variable.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The path of a file in the folder.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.as_ref().map_or_else(PathBuf::new, |folder| folder.path().join(name))
    }

    /// Writes a file.
    pub fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).expect("a file in the scene's folder");
    }

    /// Writes `onceward.toml`.
    pub fn configure(&self, setup: &Setup) {
        self.write("onceward.toml", setup.text().as_bytes());
    }

    /// The program with these arguments, in the folder.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(args).envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Starts a command line.
    pub fn start(&self, command: &mut Command) -> Running {
        self.runs.set(self.runs.get() + 1);
        let name = format!("run-{}", self.runs.get());
        Running::start(command, &self.path(""), &name).expect("the program under test starts")
    }

    /// Starts `onceward run onceward.toml`.
    pub fn run(&self) -> Running {
        self.run_file("onceward.toml")
    }

    /// Starts `onceward run` with another configuration.
    pub fn run_file(&self, config: &str) -> Running {
        self.start(&mut self.command(&["run", config]))
    }

    /// Starts `onceward run onceward.toml` with a crash point armed.
    pub fn run_with_crash_point(&self, plan: &str) -> Running {
        self.start(self.command(&["run", "onceward.toml"]).env("ONCEWARD_FAILPOINTS", plan))
    }

    /// Runs to the end of the file.
    pub fn run_to_end(&self) -> Ended {
        self.run().wait_within(PATIENCE)
    }

    /// Any other command line, to its end.
    pub fn execute(&self, args: &[&str]) -> Ended {
        self.start(&mut self.command(args)).wait_within(PATIENCE)
    }

    /// The ledger of effects and runs.
    pub fn notes(&self) -> Vec<Note> {
        effects::read(&self.path("effects.ndjson")).expect("the ledger is whole")
    }

    /// How many notes of a kind there are for each id.
    pub fn count(&self, kind: Kind) -> std::collections::BTreeMap<String, usize> {
        let mut counts = std::collections::BTreeMap::new();
        for note in self.notes().into_iter().filter(|note| note.kind == kind) {
            *counts.entry(note.id).or_default() += 1;
        }
        counts
    }

    /// The dead letters, one envelope each.
    pub fn letters(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.path("dead.ndjson")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).expect("a dead letter is JSON")).collect()
    }

    /// The database that is store and, for `[handler.sql]`, the place of effects.
    pub fn database(&self) -> Database {
        Database::open(&self.path("onceward.db"))
    }
}

/// Lines as a file holds them.
pub fn joined(lines: &[String]) -> Vec<u8> {
    lines.iter().flat_map(|line| [line.as_bytes(), b"\n"]).flatten().copied().collect()
}

impl Drop for Scene {
    #[allow(clippy::print_stdout)]
    fn drop(&mut self) {
        if std::thread::panicking()
            && let Some(folder) = self.folder.take()
        {
            println!("kept: {}", folder.keep().display());
        }
    }
}

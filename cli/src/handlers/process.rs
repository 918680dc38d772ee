//! Child process with a process group of its own, which is killed as a whole: [`ProcessGroup`].

use std::borrow::Cow;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use onceward::{Error, ErrorKind, HandlerError};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use tokio::process::{Child, Command};

use super::environment::Environment;
use super::{children, interpreter};

/// The time limit for the other members of a killed group to end. SIGKILL ends a process within microseconds, unless it is
/// blocked in the kernel (for example by a dead network file system).
const GROUP_GONE: Duration = Duration::from_secs(1);

/// A child and the group that it leads. Processes that it starts belong to the group, unless they leave it (`setsid`).
///
/// Dropping it kills the group without waiting; the runtime reaps the child later.
#[derive(Debug)]
pub(super) struct ProcessGroup {
    child: Child,
    /// `None` once the group has ended or was killed: its number may then be reused.
    group: Option<Pid>,
}

impl ProcessGroup {
    /// Starts `command` as the leader of a new group.
    pub(super) fn spawn(command: &mut Command) -> io::Result<Self> {
        let child = children::spawn(command.process_group(0).kill_on_drop(true))?;
        let group = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { child, group })
    }

    /// The child, for its pipes.
    pub(super) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// The process id of the child, until it has ended.
    pub(super) fn id(&self) -> Option<i32> {
        self.group.map(Pid::as_raw_pid)
    }

    /// Waits until the child has ended, and kills the rest of its group: an effect after the run would have no claim.
    ///
    /// # Cancel safety
    /// Safe: it may be dropped and called again.
    pub(super) async fn wait(&mut self) -> io::Result<ExitStatus> {
        let status = self.child.wait().await?;
        self.kill_rest();
        Ok(status)
    }

    /// The status of the child, if it has ended.
    pub(super) fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        let status = self.child.try_wait()?;
        if status.is_some() {
            self.kill_rest();
        }
        Ok(status)
    }

    /// Sends SIGTERM to the group. Does nothing once the child has ended.
    pub(super) fn terminate(&self) {
        if let Some(group) = self.group {
            // An error means that the group is empty.
            let _ = kill_process_group(group, Signal::TERM);
        }
    }

    /// Kills the group, waits until the child is reaped, and for at most a second until the rest has ended. Returns the status
    /// of the child, which may have ended before.
    ///
    /// # Cancel safety
    /// The first poll kills the group; dropping the future only ends the waiting.
    pub(super) async fn kill(&mut self) -> Option<ExitStatus> {
        let group = self.kill_once();
        let status = self.child.wait().await.ok();
        let Some(group) = group else { return status };
        children::forget(group.as_raw_pid());
        let gone = async {
            let mut pause = Duration::from_micros(200);
            while has_running_members(group) {
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        };
        if tokio::time::timeout(GROUP_GONE, gone).await.is_err() {
            tracing::warn!(group = group.as_raw_pid(), "killed process group still running after one second");
        }
        status
    }

    /// Kills the rest of the group after the child has been waited for.
    fn kill_rest(&mut self) {
        if let Some(group) = self.kill_once() {
            children::forget(group.as_raw_pid());
        }
    }

    /// Sends SIGKILL to the group, once. The child is not reaped yet, or only just, so the number still belongs to the
    /// group: numbers are reused only after all others.
    fn kill_once(&mut self) -> Option<Pid> {
        let group = self.group.take()?;
        // An error means that the group is empty.
        let _ = kill_process_group(group, Signal::KILL);
        Some(group)
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        self.kill_rest();
    }
}

/// True if a member of the group still runs. A zombie is a member too, and stays one if process 1 reaps no orphans (as in
/// many containers), so zombies are excluded by their state in /proc.
fn has_running_members(group: Pid) -> bool {
    if test_kill_process_group(group).is_err() {
        return false;
    }
    let Ok(processes) = std::fs::read_dir("/proc") else { return true };
    let mut any = false;
    for process in processes.flatten() {
        let Ok(stat) = std::fs::read_to_string(process.path().join("stat")) else { continue };
        // "pid (name) state parent group …", where the name may contain any character.
        let Some((_, rest)) = stat.rsplit_once(") ") else { continue };
        let mut fields = rest.split(' ');
        let (state, member) = (fields.next(), fields.nth(1));
        any = true;
        if !matches!(state, Some("Z" | "X"))
            && member.and_then(|id| id.parse().ok()) == Some(group.as_raw_pid())
        {
            return true;
        }
    }
    !any
}

/// A program and its arguments. `Debug` omits the arguments, which may contain secrets.
///
/// ```
/// use onceward_cli::handlers::Program;
/// assert!(Program::new(vec!["./charge.sh".into(), "--live".into()]).is_ok());
/// assert!(Program::new(vec![]).is_err());
/// ```
#[derive(Clone)]
pub struct Program {
    name: String,
    arguments: Vec<String>,
    directory: Option<PathBuf>,
    environment: Environment,
}

impl Program {
    /// A command: the program, then its arguments. A name without a slash is looked up in `PATH`.
    ///
    /// # Errors
    /// The command is empty or contains a NUL character.
    pub fn new(command: Vec<String>) -> Result<Self, Error> {
        let wrong = |what: &'static str| Error::new(ErrorKind::Config, "use this handler command", what);
        if command.iter().any(|part| part.contains('\0')) {
            return Err(wrong("it contains a NUL character, which cannot be passed to a program"));
        }
        let mut parts = command.into_iter();
        match parts.next().filter(|name| !name.is_empty()) {
            Some(name) => Ok(Self {
                name,
                arguments: parts.collect(),
                directory: None,
                environment: Environment::new(),
            }),
            None => {
                Err(wrong("it is empty; give the program and its arguments, for example [\"./charge.sh\"]"))
            }
        }
    }

    /// Runs the program in `directory`, to which a relative name with a slash refers.
    #[must_use]
    pub fn in_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = Some(directory.into());
        self
    }

    /// Sets the environment of the program.
    #[must_use]
    pub fn with_environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// What to start: where it would depend on the system whether the name is looked up before or after the change of
    /// directory, the name is made to stand for itself. A name without a slash is looked up here: with an environment of its
    /// own the system could not start it in the quick way, without a copy of this process.
    fn file(&self) -> Cow<'_, Path> {
        let name = Path::new(&self.name);
        match &self.directory {
            Some(directory) if self.name.contains('/') => {
                let joined = directory.join(name);
                Cow::Owned(std::path::absolute(&joined).unwrap_or(joined))
            }
            _ if self.name.contains('/') => Cow::Borrowed(name),
            _ => {
                let path = self.environment.path().map(OsString::from).or_else(|| std::env::var_os("PATH"));
                let here = self.directory.as_deref().unwrap_or(Path::new("."));
                which::which_in(name, path, here).map_or(Cow::Borrowed(name), Cow::Owned)
            }
        }
    }

    /// The name of the program, as configured.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Checks that the program can be started.
    ///
    /// # Errors
    /// The program, its directory or its interpreter is missing or not executable.
    pub(super) fn check(&self) -> Result<(), Error> {
        if let Some(directory) = self.directory.as_deref().filter(|directory| !directory.is_dir()) {
            let what = format!("{} is not a directory to run in", directory.display());
            return Err(Error::new(ErrorKind::Config, "start the handler's program", what));
        }
        let file = which::which(&*self.file()).map_err(|cause| {
            let what = format!(
                "{:?} is not an executable file{}; correct the handler's `command`, or make the file executable \
                 (chmod +x)",
                self.name,
                if self.name.contains('/') { "" } else { " in PATH" }
            );
            Error::new(ErrorKind::Config, "start the handler's program", what).with_source(cause)
        })?;
        interpreter::check(&file)
            .map_err(|what| Error::new(ErrorKind::Config, "start the handler's program", what))
    }

    /// A command with pipes as its three standard streams and the configured environment.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&*self.file());
        if !self.name.contains('/') {
            // The name as the system would set it after a lookup.
            command.arg0(&self.name);
        }
        command.args(&self.arguments);
        command.env_clear().envs(self.environment.variables(std::env::vars_os()));
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The error of a failed start: there was no effect, and in nearly all cases the message is not the cause.
    pub(super) fn not_started(&self, cause: &io::Error) -> HandlerError {
        let hint = match cause.kind() {
            io::ErrorKind::NotFound
                if self.name.contains('/') && std::fs::exists(self.file()).unwrap_or(false) =>
            {
                "; the file exists, so check the interpreter in its first line"
            }
            io::ErrorKind::NotFound => "; correct the handler's `command`",
            io::ErrorKind::PermissionDenied => "; make it executable (chmod +x)",
            io::ErrorKind::ArgumentListTooLong => "; the message's headers do not fit into its environment",
            _ => "",
        };
        let text = format!("cannot start {:?}: {cause}{hint}", self.name);
        match cause.kind() {
            io::ErrorKind::ArgumentListTooLong | io::ErrorKind::InvalidInput => HandlerError::retry(text),
            _ => HandlerError::unavailable(text),
        }
    }
}

impl std::fmt::Debug for Program {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Program({:?} with {} arguments)", self.name, self.arguments.len())
    }
}

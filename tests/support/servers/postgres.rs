//! A private Postgres server: [`Postgres`].

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::ports::free_port;
use crate::process::Leashed;

const START_LIMIT: Duration = Duration::from_secs(60);

const WAL_WRITER: &str = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'walwriter'";

/// A Postgres server of its own, on a free loopback port, with its data in a temporary folder. The superuser is
/// `postgres`, and no role needs a password. A root user runs it as the user `postgres`, since it refuses root. The
/// environment's `ONCEWARD_TEST_POSTGRES` names a major version to use instead of the installed one.
#[derive(Debug)]
pub struct Postgres {
    // Dropped first: the server goes before its folder.
    server: Option<Leashed>,
    folder: TempDir,
    port: u16,
    settings: Vec<String>,
    /// Where `initdb` and `postgres` are; the installed ones, if `None`.
    programs: Option<PathBuf>,
}

impl Postgres {
    /// Starts a server and waits until it answers (about 3 s).
    ///
    /// # Panics
    /// Postgres is not installed or does not start; the message says what to do.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As [`start`](Self::start), with more settings (`name=value`).
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with(settings: &[&str]) -> Self {
        let started = told_release().and_then(|programs| Self::try_start(settings, programs));
        started.unwrap_or_else(|error| panic!("Postgres does not start: {error}"))
    }

    /// A server of a major version, out of [`MAJORS`](crate::releases::MAJORS); its programs are fetched once per machine.
    ///
    /// # Panics
    /// As [`start`](Self::start), or its programs cannot be fetched.
    #[must_use]
    pub fn start_major(major: u32) -> Self {
        let started =
            crate::releases::programs(major).and_then(|programs| Self::try_start(&[], Some(programs)));
        started.unwrap_or_else(|error| panic!("Postgres {major} does not start: {error}"))
    }

    /// The server that the tests of one process share. They keep apart by their schemas, and leave it running.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn try_start(settings: &[&str], programs: Option<PathBuf>) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("postgres-").tempdir()?;
        if let Some((user, group)) = other_user()? {
            chown(folder.path(), Some(user), Some(group))?;
        }
        let mut server = Self {
            server: None,
            port: free_port()?,
            settings: settings.iter().map(|setting| (*setting).to_owned()).collect(),
            folder,
            programs,
        };
        let made = server
            .command("initdb")?
            .args(["--auth", "trust", "--username", "postgres", "--encoding", "UTF8", "--no-sync", "-D"])
            .arg(server.data())
            .output()?;
        if !made.status.success() {
            return Err(io::Error::other(String::from_utf8_lossy(&made.stderr).into_owned()));
        }
        server.launch()?;
        Ok(server)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn command(&self, name: &str) -> io::Result<Command> {
        let of_release =
            self.programs.as_ref().map(|folder| folder.join(name)).filter(|program| program.is_file());
        // `psql` is the installed one, whatever the server.
        let mut command = Command::new(of_release.map_or_else(|| program(name), Ok)?);
        command.current_dir(self.folder.path()).env("LC_ALL", "C.UTF-8");
        if let Some((user, group)) = other_user()? {
            command.uid(user).gid(group);
        }
        Ok(command)
    }

    fn launch(&mut self) -> io::Result<()> {
        let mut command = self.command("postgres")?;
        command.arg("-D").arg(self.data()).arg("-k").arg(self.folder.path());
        command.args(["-p", &self.port.to_string(), "-c", "listen_addresses=127.0.0.1"]);
        command.args(["-c", "max_connections=200"]);
        for setting in &self.settings {
            command.args(["-c", setting]);
        }
        let output = fs::File::options().create(true).append(true).open(self.output())?;
        self.server =
            Some(Leashed::spawn_in(self.folder.path(), command.stdout(output.try_clone()?).stderr(output))?);
        let end = Instant::now() + START_LIMIT;
        while self.psql("SELECT 1").is_err() {
            let ended = self.server.as_mut().map_or(Ok(None), Leashed::try_wait)?;
            if ended.is_some() || Instant::now() >= end {
                self.server = None;
                return Err(io::Error::other(format!("ended: {ended:?}; it said: {}", self.log())));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn output(&self) -> PathBuf {
        self.folder.path().join("output")
    }

    fn psql(&self, sql: &str) -> io::Result<String> {
        let port = self.port.to_string();
        let output = self
            .command("psql")?
            .args([
                "-X",
                "-q",
                "-A",
                "-t",
                "-v",
                "ON_ERROR_STOP=1",
                "-h",
                "127.0.0.1",
                "-U",
                "postgres",
                "-p",
            ])
            .args([&port, "-d", "postgres", "-c", sql])
            .output()?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
        }
    }

    /// Runs SQL as the superuser, by way of `psql`, and answers what it printed.
    ///
    /// # Panics
    /// The server refuses it.
    pub fn sql(&self, sql: &str) -> String {
        self.psql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Its address, for a proxy.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The URL for `user`.
    #[must_use]
    pub fn url(&self, user: &str) -> String {
        Self::url_at(self.address(), user)
    }

    /// The URL for `user` by way of a proxy.
    #[must_use]
    pub fn url_at(address: SocketAddr, user: &str) -> String {
        format!("postgres://{user}@{address}/postgres")
    }

    /// What the server has said since it was first started.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.output()).unwrap_or_default()
    }

    /// Stops the server at once, as `pg_ctl stop -m immediate` does: no checkpoint, recovery at the next start.
    ///
    /// # Panics
    /// It does not end.
    pub fn stop_immediate(&mut self) {
        self.stop(Signal::QUIT);
    }

    /// Stops the server in order; open transactions are rolled back.
    ///
    /// # Panics
    /// It does not end.
    pub fn stop_fast(&mut self) {
        self.stop(Signal::INT);
    }

    fn stop(&mut self, signal: Signal) {
        let Some(server) = self.server.take() else { return };
        let ended = server.stop(signal, START_LIMIT);
        assert!(ended, "Postgres did not stop; it said: {}", self.log());
    }

    /// Starts it again after a stop, on the same port and with the same data.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_again(&mut self) {
        assert!(self.server.is_none(), "the server runs");
        if let Err(error) = self.launch() {
            panic!("Postgres does not start again: {error}");
        }
    }

    /// Pauses the process that writes the log of commits that do not wait for it, so that a [`crash`](Self::crash) loses them. Returns
    /// its id. A commit that does wait writes all before it.
    ///
    /// # Panics
    /// The server does not answer.
    pub fn hold_wal_writer(&self) -> u32 {
        let id = self.sql(WAL_WRITER);
        signal(&id, Signal::STOP);
        id.parse().expect("the id of a process is a number")
    }

    /// Kills that process. The server takes it for a fault in shared memory: it ends all sessions at once, recovers from what is on disk,
    /// and goes on.
    ///
    /// # Panics
    /// The process no longer exists, or the server does not recover.
    pub fn crash(&self, wal_writer: u32) {
        let id = wal_writer.to_string();
        signal(&id, Signal::KILL);
        let end = Instant::now() + START_LIMIT;
        while self.psql(WAL_WRITER).map_or(true, |now| now.is_empty() || now == id) {
            assert!(Instant::now() < end, "Postgres did not recover; it said: {}", self.log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Pauses (SIGSTOP) or continues (SIGCONT) the process that takes connections. Those that are open go on: stall them
    /// with a proxy.
    ///
    /// # Panics
    /// The server does not run.
    pub fn pause(&self, paused: bool) {
        self.server.as_ref().expect("the server runs").pause(paused);
    }
}

fn signal(id: &str, signal: Signal) {
    let id = id.parse().ok().and_then(Pid::from_raw).expect("the id of a process is a number");
    kill_process(id, signal).expect("the server's process runs");
}

/// The programs of the major version that `ONCEWARD_TEST_POSTGRES` names, for tests of one release after the other.
fn told_release() -> io::Result<Option<PathBuf>> {
    let Some(told) = std::env::var_os("ONCEWARD_TEST_POSTGRES") else { return Ok(None) };
    let major = told.to_str().and_then(|told| told.parse().ok());
    let major =
        major.ok_or_else(|| io::Error::other("ONCEWARD_TEST_POSTGRES is no major version, such as 13"))?;
    crate::releases::programs(major).map(Some)
}

/// Where `name` is, or how to get it: the newest version that is installed.
fn program(name: &str) -> io::Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .max()
        .map(|version| Path::new("/usr/lib/postgresql").join(version.to_string()).join("bin").join(name));
    newest.filter(|program| program.is_file()).ok_or_else(|| {
        io::Error::other(format!("{name} is not installed; run: RUNLEVEL=1 apt-get install -y postgresql"))
    })
}

/// The user and group to run the server as: `postgres`, if this is root.
pub(crate) fn other_user() -> io::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd")?;
    let fields = users.lines().find_map(|line| line.strip_prefix("postgres:"));
    let numbers = fields.and_then(|fields| {
        let mut fields = fields.split(':').skip(1);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    });
    numbers.map(Some).ok_or_else(|| io::Error::other("there is no user postgres; install Postgres"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_starts_privately_and_keeps_what_was_committed_when_stopped_at_once() {
        let mut server = Postgres::start();
        server.sql("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)");
        server.stop_immediate();
        assert!(server.psql("SELECT 1").is_err());
        server.start_again();
        assert_eq!(server.sql("SELECT n FROM kept"), "7");
        let folder = server.folder.path().to_owned();
        drop(server);
        assert!(!folder.exists());
    }
}

//! Private Redis servers: one alone ([`Redis`]), with a replica ([`RedisReplicated`]) and a Sentinel ([`RedisSentinel`]), and a
//! cluster ([`RedisCluster`]).

mod cluster;
mod replicated;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

pub use cluster::RedisCluster;
pub use replicated::{RedisReplicated, RedisSentinel};
use tempfile::TempDir;

use crate::ports::free_port;
use crate::process::Leashed;

const START_LIMIT: Duration = Duration::from_secs(20);

/// A Redis server of its own, on a free loopback port, with its data in a temporary folder.
///
/// It keeps an append-only file, so that what it answered survives [`kill`](Self::kill); the rest is Redis's default.
#[derive(Debug)]
pub struct Redis {
    // Dropped first: the server goes before its folder.
    server: Option<Leashed>,
    folder: TempDir,
    port: u16,
    arguments: Vec<String>,
    tls: bool,
}

impl Redis {
    /// Starts a server and waits until it answers (about 0.1 s).
    ///
    /// # Panics
    /// Redis is not installed, or does not start; the message says what to do.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// As [`start`](Self::start), with more arguments, `["--maxmemory", "10mb"]` for example.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with(arguments: &[&str]) -> Self {
        match Self::try_start(arguments, None) {
            Ok(server) => server,
            Err(error) => panic!("Redis does not start: {error}"),
        }
    }

    /// As [`start`](Self::start), for TLS only, with certificate and key in PEM. Clients need no certificate.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with_tls(certificate: &str, key: &str) -> Self {
        match Self::try_start(&[], Some((certificate, key))) {
            Ok(server) => server,
            Err(error) => panic!("Redis does not start: {error}"),
        }
    }

    /// The server that the tests of one process share. They keep apart by their keys, and leave it running.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Redis> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn try_start(arguments: &[&str], tls: Option<(&str, &str)>) -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("redis-").tempdir()?;
        let mut server = Self {
            server: None,
            port: free_port()?,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            tls: tls.is_some(),
            folder,
        };
        if let Some((certificate, key)) = tls {
            fs::write(server.path("cert.pem"), certificate)?;
            fs::write(server.path("key.pem"), key)?;
        }
        server.launch()?;
        Ok(server)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn launch(&mut self) -> io::Result<()> {
        let mut command = Command::new(program("redis-server")?);
        let port = self.port.to_string();
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--daemonize", "no"]);
        command.arg("--dir").arg(self.folder.path());
        if self.tls {
            command.args(["--port", "0", "--tls-port", &port, "--tls-auth-clients", "no"]);
            command.arg("--tls-cert-file").arg(self.path("cert.pem"));
            command.arg("--tls-key-file").arg(self.path("key.pem"));
            command.arg("--tls-ca-cert-file").arg(self.path("cert.pem"));
        } else {
            command.args(["--port", &port]);
        }
        command.args(&self.arguments);
        let output = fs::File::options().create(true).append(true).open(self.path("output"))?;
        let server =
            Leashed::spawn_in(self.folder.path(), command.stdout(output.try_clone()?).stderr(output))?;
        let server = self.server.insert(server);
        await_listener(server, self.port, &self.folder.path().join("output"))
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address, for a proxy.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The URL, without user and password.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.tls { "rediss" } else { "redis" }, self.port)
    }

    /// The process id, if the server runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.server.as_ref().map(Leashed::id)
    }

    /// What the server has said since it was first started.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("output")).unwrap_or_default()
    }

    /// Kills the server with SIGKILL. Its files stay as they are.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }

    /// Stops the server in order. Its files stay.
    ///
    /// # Panics
    /// It does not end.
    pub fn stop(&mut self) {
        let Some(server) = self.server.take() else { return };
        let ended = server.stop(rustix::process::Signal::TERM, START_LIMIT);
        assert!(ended, "Redis did not stop; it said: {}", self.log());
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill`](Self::kill), on the same port and with the same files.
    /// It may still be loading them.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_again(&mut self) {
        assert!(self.server.is_none(), "the server runs");
        if let Err(error) = self.launch() {
            panic!("Redis does not start again: {error}");
        }
    }

    /// Sets an argument for the next [`start_again`](Self::start_again).
    pub fn set_argument(&mut self, name: &str, value: &str) {
        self.arguments.extend([name.to_owned(), value.to_owned()]);
    }

    /// Pauses (SIGSTOP) or continues (SIGCONT) the server.
    ///
    /// # Panics
    /// It does not run.
    pub fn pause(&self, paused: bool) {
        self.server.as_ref().expect("the server runs").pause(paused);
    }

    /// Runs `redis-cli` with these arguments and answers what it printed.
    ///
    /// # Panics
    /// It could not be run, or the server answered with an error.
    pub fn cli(&self, arguments: &[&str]) -> String {
        let said = cli(self.port, arguments).expect("redis-cli can be run");
        assert!(!said.contains("(error)"), "redis-cli {arguments:?}: {said}");
        said
    }

    /// The value of one line of `INFO`.
    ///
    /// # Panics
    /// There is no such line.
    #[must_use]
    pub fn info(&self, name: &str) -> String {
        let info = self.cli(&["INFO", "everything"]);
        let line = info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("INFO has no {name}")).trim().to_owned()
    }
}

/// Where `name` is, or how to get it.
fn program(name: &str) -> io::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file()).ok_or_else(
        || {
            io::Error::other(format!(
                "{name} is not installed; run: RUNLEVEL=1 apt-get install -y redis-server, \
             and see to it that the system's own server is not started"
            ))
        },
    )
}

fn cli(port: u16, arguments: &[&str]) -> io::Result<String> {
    let output = Command::new(program("redis-cli")?)
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "--no-auth-warning"])
        .args(arguments)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        Ok(said)
    } else {
        Err(io::Error::other(format!("{said}{}", String::from_utf8_lossy(&output.stderr))))
    }
}

fn await_listener(server: &mut Leashed, port: u16, output: &Path) -> io::Result<()> {
    let end = Instant::now() + START_LIMIT;
    while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        let ended = server.try_wait()?;
        if ended.is_some() || Instant::now() >= end {
            let said = fs::read_to_string(output).unwrap_or_default();
            return Err(io::Error::other(format!("ended: {ended:?}; it said: {said}")));
        }
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::wait_until;

    #[test]
    fn a_server_starts_privately_survives_a_kill_and_ends_when_dropped() {
        let mut server = Redis::start();
        assert_eq!(server.cli(&["SET", "kept", "yes"]).trim(), "OK");
        server.kill();
        assert!(cli(server.port(), &["PING"]).is_err());
        server.start_again();
        let kept = || cli(server.port(), &["GET", "kept"]).is_ok_and(|said| said.trim() == "yes");
        assert!(wait_until(START_LIMIT, kept));
        let (port, folder) = (server.port(), server.folder.path().to_owned());
        drop(server);
        assert!(cli(port, &["PING"]).is_err() && !folder.exists());
    }
}

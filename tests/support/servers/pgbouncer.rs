//! A PgBouncer in front of a Postgres server: [`PgBouncer`].

use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use tempfile::TempDir;

use crate::ports::free_port;
use crate::postgres::{Postgres, other_user};
use crate::process::Leashed;

const PROGRAM: &str = "/usr/sbin/pgbouncer";
const START_LIMIT: Duration = Duration::from_secs(60);

/// A pooler on a free loopback port. Every user connects as the superuser.
#[derive(Debug)]
pub struct PgBouncer {
    _process: Leashed,
    _folder: TempDir,
    port: u16,
}

impl PgBouncer {
    /// Starts one in front of `server`, with these lines of its configuration (`pool_mode = session`).
    ///
    /// # Panics
    /// It is not installed or does not start; the message says what to do.
    #[must_use]
    pub fn start(server: &Postgres, settings: &[&str]) -> Self {
        Self::try_start(server, settings).unwrap_or_else(|error| panic!("PgBouncer does not start: {error}"))
    }

    fn try_start(server: &Postgres, settings: &[&str]) -> io::Result<Self> {
        if !Path::new(PROGRAM).is_file() {
            return Err(io::Error::other("it is not installed; run: apt-get install -y pgbouncer"));
        }
        let folder = tempfile::Builder::new().prefix("pgbouncer-").tempdir()?;
        let port = free_port()?;
        let text = format!(
            "[databases]\npostgres = host=127.0.0.1 port={} user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
             listen_port = {port}\nunix_socket_dir =\nauth_type = any\n{}\n",
            server.address().port(),
            settings.join("\n")
        );
        let (config, output) = (folder.path().join("pgbouncer.ini"), folder.path().join("output"));
        fs::write(&config, text)?;
        let mut command = Command::new(PROGRAM);
        command.arg(&config);
        if let Some((user, group)) = other_user()? {
            command.uid(user).gid(group);
            std::os::unix::fs::chown(folder.path(), Some(user), Some(group))?;
            std::os::unix::fs::chown(&config, Some(user), Some(group))?;
        }
        let log = fs::File::create(&output)?;
        let mut process = Leashed::spawn_in(folder.path(), command.stdout(log.try_clone()?).stderr(log))?;
        let end = Instant::now() + START_LIMIT;
        while std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if process.try_wait()?.is_some() || Instant::now() >= end {
                return Err(io::Error::other(fs::read_to_string(&output)?));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { _process: process, _folder: folder, port })
    }

    /// Its address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }
}

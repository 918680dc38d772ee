//! [`RedisReplicated`], and a [`RedisSentinel`] that watches it.

use std::fs;
use std::process::Command;

use tempfile::TempDir;

use super::{Redis, START_LIMIT, await_listener, cli, program};
use crate::ports::free_port;
use crate::process::{Leashed, wait_until};

/// A primary and its replica.
#[derive(Debug)]
pub struct RedisReplicated {
    /// The one that takes writes.
    pub primary: Redis,
    /// The one that has them a little later.
    pub replica: Redis,
}

impl RedisReplicated {
    /// Starts both and waits until they are in step.
    ///
    /// # Panics
    /// Redis is not installed, or the replica does not come up.
    #[must_use]
    pub fn start() -> Self {
        let primary = Redis::start_with(&["--repl-diskless-sync-delay", "0"]);
        let replica = Redis::start_with(&["--replicaof", "127.0.0.1", &primary.port().to_string()]);
        let online = || {
            replica.info("master_link_status") == "up"
                && primary.cli(&["INFO", "replication"]).contains("state=online")
        };
        assert!(wait_until(START_LIMIT, online), "the replica does not come up");
        Self { primary, replica }
    }

    /// Waits until the replica has all that the primary has. (`WAIT` from a connection that wrote nothing waits for
    /// nothing.)
    ///
    /// # Panics
    /// The replica lags behind for too long.
    pub fn await_in_step(&self) {
        let goal = written(&self.primary, "master_repl_offset");
        let in_step = wait_until(START_LIMIT, || written(&self.replica, "slave_repl_offset") >= goal);
        assert!(in_step, "the replica lags behind");
    }
}

fn written(server: &Redis, name: &str) -> u64 {
    server.info(name).parse().expect("an offset is a number")
}

/// A Sentinel that watches one primary, with a quorum of one.
#[derive(Debug)]
pub struct RedisSentinel {
    _sentinel: Leashed,
    _folder: TempDir,
    port: u16,
}

impl RedisSentinel {
    /// Starts a Sentinel that calls the primary `name`, takes it for dead after half a second and waits until the
    /// replica is known to it.
    ///
    /// # Panics
    /// Redis is not installed, or the Sentinel does not find the replica.
    #[must_use]
    pub fn start(name: &str, primary: &Redis) -> Self {
        let folder =
            tempfile::Builder::new().prefix("sentinel-").tempdir().expect("there is a place for files");
        let port = free_port().expect("there is a free port");
        let configuration = folder.path().join("sentinel.conf");
        let lines = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {name} 127.0.0.1 {} 1\n\
             sentinel down-after-milliseconds {name} 500\nsentinel failover-timeout {name} 3000\n",
            folder.path().display(),
            primary.port()
        );
        fs::write(&configuration, lines).expect("the configuration can be written");
        let output = fs::File::create(folder.path().join("output")).expect("the output can be written");
        let program = program("redis-server").unwrap_or_else(|error| panic!("{error}"));
        let mut command = Command::new(program);
        command.arg(&configuration).arg("--sentinel").stdout(output);
        let mut sentinel = Leashed::spawn(&mut command).expect("the Sentinel starts");
        await_listener(&mut sentinel, port, &folder.path().join("output")).expect("the Sentinel listens");
        let known = wait_until(START_LIMIT, || {
            cli(port, &["SENTINEL", "replicas", name]).is_ok_and(|said| said.contains("runid"))
        });
        assert!(known, "the Sentinel finds no replica");
        Self { _sentinel: sentinel, _folder: folder, port }
    }

    /// The URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// The port of the primary that it names now.
    ///
    /// # Panics
    /// It does not answer.
    #[must_use]
    pub fn primary_port(&self, name: &str) -> u16 {
        let said =
            cli(self.port, &["SENTINEL", "get-master-addr-by-name", name]).expect("the Sentinel answers");
        let port = said.lines().last().map(|line| line.trim_start_matches("2) ").trim_matches('"'));
        port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("the Sentinel says {said}"))
    }
}

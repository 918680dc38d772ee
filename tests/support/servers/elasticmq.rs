//! A private SQS-compatible server: [`ElasticMq`].

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use tempfile::TempDir;

use crate::jars::{jars, missing};
use crate::ports::free_port;
use crate::process::Leashed;

const VERSION: &str = "1.6.14";
const START_LIMIT: Duration = Duration::from_secs(60);

/// An ElasticMQ server of its own, on a free loopback port, with SQS's strict limits.
///
/// Region, account and credentials may be anything. Queues and messages live in memory: they end with the process.
#[derive(Debug)]
pub struct ElasticMq {
    // Dropped first: the server goes before its folder.
    server: Option<Leashed>,
    folder: TempDir,
    port: u16,
}

impl ElasticMq {
    /// Starts a server and waits until it answers (about 3 s). The first call on a machine fetches it, by Maven.
    ///
    /// # Panics
    /// Java or Maven are not installed, or it does not start; the message says what to do.
    #[must_use]
    pub fn start() -> Self {
        match Self::try_start() {
            Ok(server) => server,
            Err(error) => panic!("ElasticMQ does not start: {error}"),
        }
    }

    /// The server that the tests of one process share. They keep apart by the names of their queues, and leave it running.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<ElasticMq> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn try_start() -> io::Result<Self> {
        let folder = tempfile::Builder::new().prefix("elasticmq-").tempdir()?;
        let mut server = Self { server: None, port: free_port()?, folder };
        let configuration = format!(
            "include classpath(\"application.conf\")\n\
             node-address {{ protocol = http, host = \"127.0.0.1\", port = {port}, context-path = \"\" }}\n\
             rest-sqs {{ enabled = true, bind-port = {port}, bind-hostname = \"127.0.0.1\", sqs-limits = strict }}\n\
             rest-stats {{ enabled = false }}\n",
            port = server.port
        );
        fs::write(server.folder.path().join("em.conf"), configuration)?;
        server.launch()?;
        Ok(server)
    }

    fn launch(&mut self) -> io::Result<()> {
        let jars = jars(
            &format!("elasticmq-server-{VERSION}"),
            &[("org.elasticmq", "elasticmq-server_2.13", VERSION)],
        )?;
        let output = fs::File::create(self.folder.path().join("output"))?;
        let mut command = Command::new("java");
        command
            .arg("-Xmx256m")
            .arg(format!("-Dconfig.file={}", self.folder.path().join("em.conf").display()))
            .arg("-cp")
            .arg(jars.join("*"))
            .arg("org.elasticmq.server.Main")
            .current_dir(self.folder.path())
            .stdout(output.try_clone()?)
            .stderr(output);
        let server =
            Leashed::spawn_in(self.folder.path(), &mut command).map_err(|error| missing("java", &error))?;
        let server = self.server.insert(server);
        let end = Instant::now() + START_LIMIT;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_err() {
            let ended = server.try_wait()?;
            if ended.is_some() || Instant::now() >= end {
                let said = fs::read_to_string(self.folder.path().join("output")).unwrap_or_default();
                return Err(io::Error::other(format!("ended: {ended:?}; it said: {said}")));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
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

    /// The endpoint to give to a client.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Kills it (SIGKILL): queues and messages are lost.
    pub fn kill(&mut self) {
        if let Some(server) = self.server.take() {
            server.kill();
        }
    }

    /// Starts it again after [`kill`](Self::kill), empty, on the same port.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_again(&mut self) {
        if let Err(error) = self.launch() {
            panic!("ElasticMQ does not start again: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_starts_privately_comes_back_after_a_kill_and_ends_when_dropped() {
        let mut server = ElasticMq::start();
        let address = server.address();
        server.kill();
        assert!(TcpStream::connect(address).is_err());
        server.start_again();
        assert!(TcpStream::connect(address).is_ok());
        drop(server);
        assert!(TcpStream::connect(address).is_err());
    }
}

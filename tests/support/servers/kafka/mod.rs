//! A private Kafka broker: [`Kafka`].

mod listener;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::jars::{jars, missing};
use crate::ports::free_port;
use crate::process::Leashed;
pub use listener::{Listener, Secrets, Security};

const VERSION: &str = "4.1.0";
const START_LIMIT: Duration = Duration::from_secs(60);

/// A Kafka broker of its own (KRaft, one node), on free loopback ports, with its data in a temporary folder.
///
/// It needs Java 17 and, once per machine, Maven, which puts the broker's jars (43 MB) under the user's cache folder.
/// Topics are not made by themselves.
#[derive(Debug)]
pub struct Kafka {
    // Dropped first: the broker goes before its folder.
    broker: Option<Leashed>,
    folder: TempDir,
    jars: PathBuf,
    port: u16,
}

impl Kafka {
    /// Starts a broker and waits until it takes connections (about 4 s).
    ///
    /// # Panics
    /// Java or Maven is not installed, or the broker does not start; the message says what to do.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("")
    }

    /// As [`start`](Self::start), with more lines for its configuration file.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with(lines: &str) -> Self {
        Self::started(Self::try_start(lines, &[], None))
    }

    /// As [`start`](Self::start), with further listeners. Those that are not in plain text need `secrets`.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with_listeners(listeners: &[Listener], secrets: Option<Secrets<'_>>) -> Self {
        Self::started(Self::try_start("", listeners, secrets))
    }

    fn started(broker: io::Result<Self>) -> Self {
        match broker {
            Ok(broker) => broker,
            Err(error) => panic!("Kafka does not start: {error}"),
        }
    }

    /// The broker that the tests of one process share. They keep apart by the names of their topics and groups, and leave
    /// it running.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn try_start(lines: &str, listeners: &[Listener], secrets: Option<Secrets<'_>>) -> io::Result<Self> {
        let jars = jars(
            &format!("kafka-and-tools-{VERSION}"),
            // And something that writes its log.
            &[
                ("org.apache.kafka", "kafka_2.13", VERSION),
                ("org.apache.kafka", "kafka-tools", VERSION),
                ("org.slf4j", "slf4j-simple", "1.7.36"),
            ],
        )?;
        let folder = tempfile::Builder::new().prefix("kafka-").tempdir()?;
        let (port, controller) = (free_port()?, free_port()?);
        let configuration = format!(
            "process.roles=broker,controller\nnode.id=1\ncontroller.quorum.voters=1@127.0.0.1:{controller}\n\
             {}log.dirs={}\n\
             offsets.topic.replication.factor=1\noffsets.topic.num.partitions=4\n\
             transaction.state.log.replication.factor=1\ntransaction.state.log.min.isr=1\n\
             transaction.state.log.num.partitions=4\ngroup.initial.rebalance.delay.ms=0\n\
             group.min.session.timeout.ms=1000\nauto.create.topics.enable=false\n{lines}\n",
            listener::lines(port, controller, listeners, secrets),
            folder.path().join("data").display()
        );
        if let Some(secrets) = secrets {
            fs::write(folder.path().join("identity.pem"), secrets.identity)?;
        }
        fs::write(folder.path().join("server.properties"), configuration)?;
        let mut broker = Self { broker: None, folder, jars, port };
        // Any 16 bytes in base64 name a cluster; one node needs no other to agree.
        let format = broker
            .java()
            .args(["kafka.tools.StorageTool", "format", "-t", "b25jZXdhcmQtdGVzdHMtMQ", "-c"])
            .arg(broker.folder.path().join("server.properties"))
            .args(listener::user(secrets))
            .output()
            .map_err(|error| missing("java", &error))?;
        if !format.status.success() {
            let said = String::from_utf8_lossy(&format.stderr).into_owned();
            return Err(io::Error::other(format!("its storage cannot be formatted: {said}")));
        }
        broker.launch()?;
        Ok(broker)
    }

    fn java(&self) -> Command {
        let mut command = Command::new("java");
        command
            // A broker lives for seconds: the second compiler and a concurrent collector cost 40 % of its processor time.
            .args(["-Xmx768m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC"])
            .args(["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-cp"])
            .arg(self.jars.join("*"))
            .current_dir(self.folder.path());
        command
    }

    fn launch(&mut self) -> io::Result<()> {
        let output = fs::File::create(self.folder.path().join("output"))?;
        let mut command = self.java();
        command.arg("kafka.Kafka").arg(self.folder.path().join("server.properties"));
        let broker =
            Leashed::spawn_in(self.folder.path(), command.stdout(output.try_clone()?).stderr(output))?;
        let address = self.address();
        let broker = self.broker.insert(broker);
        let end = Instant::now() + START_LIMIT;
        while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
            let ended = broker.try_wait()?;
            if ended.is_some() || Instant::now() >= end {
                let said = fs::read_to_string(self.folder.path().join("output")).unwrap_or_default();
                return Err(io::Error::other(format!("ended: {ended:?}; it said: {said}")));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// A broker with ACLs: a user without an ACL may use only resources without one.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with_acls() -> Self {
        Self::start_with(
            "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer\n\
             allow.everyone.if.no.acl.found=true",
        )
    }

    /// Lets clients without credentials do `operations` with a topic, and nothing else.
    ///
    /// # Panics
    /// Kafka's tool for that fails.
    pub fn allow_on_topic(&self, topic: &str, operations: &[&str]) {
        let mut tool = self.java();
        tool.args(["org.apache.kafka.tools.AclCommand", "--bootstrap-server", &self.bootstrap(), "--add"]);
        tool.args(["--allow-principal", "User:ANONYMOUS", "--topic", topic]);
        for operation in operations {
            tool.args(["--operation", operation]);
        }
        let ended = tool.output().expect("java runs");
        assert!(ended.status.success(), "ACLs are not added: {}", String::from_utf8_lossy(&ended.stderr));
    }

    /// Its address, for a proxy.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// What clients call `bootstrap.servers`.
    #[must_use]
    pub fn bootstrap(&self) -> String {
        self.address().to_string()
    }

    /// What the broker has printed: warnings and errors.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("output")).unwrap_or_default()
    }

    /// Stops the broker in order. Its data stay.
    ///
    /// # Panics
    /// It does not end within a minute.
    pub fn stop(&mut self) {
        let Some(broker) = self.broker.take() else { return };
        let ended = broker.stop(Signal::TERM, START_LIMIT);
        assert!(ended, "Kafka did not stop; it said: {}", self.log());
    }

    /// Kills the broker with SIGKILL. Its data stay as they are.
    pub fn kill(&mut self) {
        if let Some(broker) = self.broker.take() {
            broker.kill();
        }
    }

    /// Starts it again after [`stop`](Self::stop) or [`kill`](Self::kill), on the same ports and with the same data.
    ///
    /// # Panics
    /// It does not start.
    pub fn start_again(&mut self) {
        assert!(self.broker.is_none(), "the broker runs");
        if let Err(error) = self.launch() {
            panic!("Kafka does not start again: {error}");
        }
    }

    /// Removes all records of a partition while the broker does not run: as if a replica without them had been elected. The
    /// topic stays the same.
    ///
    /// # Panics
    /// The broker runs, or there is no such partition.
    pub fn empty_log(&self, topic: &str, partition: u32) {
        assert!(self.broker.is_none(), "the broker runs");
        let data = self.folder.path().join("data");
        let folder = data.join(format!("{topic}-{partition}"));
        for file in fs::read_dir(&folder).expect("the partition's folder") {
            let path = file.expect("a file").path();
            // It has the topic's id.
            if path.file_name().is_some_and(|name| name != "partition.metadata") {
                fs::remove_file(path).expect("a file that can be removed");
            }
        }
        for checkpoint in [
            "recovery-point-offset-checkpoint",
            "replication-offset-checkpoint",
            "log-start-offset-checkpoint",
        ] {
            // The broker recreates it from the logs that exist.
            let _ = fs::remove_file(data.join(checkpoint));
        }
    }

    /// Pauses (SIGSTOP) or continues (SIGCONT) the broker.
    ///
    /// # Panics
    /// The broker does not run.
    pub fn pause(&self, paused: bool) {
        self.broker.as_ref().expect("the broker runs").pause(paused);
    }
}

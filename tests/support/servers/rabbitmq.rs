//! A private RabbitMQ broker: [`RabbitMq`].

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use tempfile::TempDir;

use crate::ports::free_port;
use crate::process::Leashed;

/// Where Debian keeps the programs that do not insist on the system's own broker.
const PROGRAMS: &str = "/usr/lib/rabbitmq/bin";
/// On a machine with other work too, where 5 s become a minute.
const START_LIMIT: Duration = Duration::from_secs(120);

/// A RabbitMQ broker of its own, on free loopback ports, with its data in a temporary folder.
///
/// User and password are `guest`. Disk alarms are out of the way; everything else is RabbitMQ's default.
#[derive(Debug)]
pub struct RabbitMq {
    // Dropped first: the broker goes before its name server and its folder.
    broker: Option<Leashed>,
    _names: Leashed,
    folder: TempDir,
    port: u16,
    tls_port: Option<u16>,
    names_port: u16,
    distribution_port: u16,
}

/// Files for TLS, as the broker wants them.
#[derive(Clone, Copy, Debug)]
pub struct Tls<'a> {
    /// The certificate of the authority, PEM.
    pub authority: &'a str,
    /// The broker's certificate, PEM.
    pub certificate: &'a str,
    /// The broker's key, PEM.
    pub key: &'a str,
}

impl RabbitMq {
    /// Starts a broker and waits until it answers (about 5 s).
    ///
    /// # Panics
    /// RabbitMQ is not installed, or does not start; the message says what to do.
    #[must_use]
    pub fn start() -> Self {
        Self::start_with("", None)
    }

    /// As [`start`](Self::start), with more lines for its configuration file and, if given, a TLS listener.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_with(lines: &str, tls: Option<Tls<'_>>) -> Self {
        match Self::try_start(lines, tls) {
            Ok(broker) => broker,
            Err(error) => panic!("RabbitMQ does not start: {error}"),
        }
    }

    /// The broker that the tests of one process share. They keep apart by the names of their queues, and leave it running.
    ///
    /// # Panics
    /// As [`start`](Self::start).
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<RabbitMq> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn try_start(lines: &str, tls: Option<Tls<'_>>) -> io::Result<Self> {
        if !Path::new(PROGRAMS).join("rabbitmq-server").exists() {
            return Err(io::Error::other(
                "it is not installed; run: RUNLEVEL=1 apt-get install -y rabbitmq-server, \
                 and see to it that the system's own broker is not started",
            ));
        }
        let folder = tempfile::Builder::new().prefix("rabbitmq-").tempdir()?;
        let names_port = free_port()?;
        let names = Leashed::spawn(Command::new("epmd").args([
            "-address",
            "127.0.0.1",
            "-port",
            &names_port.to_string(),
        ]))?;
        let mut broker = Self {
            broker: None,
            _names: names,
            port: free_port()?,
            tls_port: tls.map(|_| free_port()).transpose()?,
            names_port,
            distribution_port: free_port()?,
            folder,
        };
        broker.write_configuration(lines, tls)?;
        broker.launch()?;
        Ok(broker)
    }

    fn write_configuration(&self, lines: &str, tls: Option<Tls<'_>>) -> io::Result<()> {
        let mut configuration = format!(
            "listeners.tcp.default = 127.0.0.1:{}\ndisk_free_limit.absolute = 1MB\nlog.file.level = warning\n{lines}\n",
            self.port
        );
        if let (Some(tls), Some(port)) = (tls, self.tls_port) {
            for (name, content) in [("ca", tls.authority), ("cert", tls.certificate), ("key", tls.key)] {
                fs::write(self.path(&format!("{name}.pem")), content)?;
            }
            configuration += &format!(
                "listeners.ssl.default = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\n\
                 ssl_options.keyfile = {}\nssl_options.verify = verify_none\n",
                self.path("ca.pem").display(),
                self.path("cert.pem").display(),
                self.path("key.pem").display(),
            );
        }
        fs::write(self.path("rabbitmq.conf"), configuration)?;
        fs::write(self.path("enabled_plugins"), "[].\n")
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn node(&self) -> String {
        format!("onceward-{}@localhost", self.port)
    }

    /// Keeps every part of the broker private and on the loopback.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(Path::new(PROGRAMS).join(program));
        let environment = [
            ("HOME", self.folder.path().to_owned()),
            ("RABBITMQ_CONFIG_FILE", self.path("rabbitmq.conf")),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", self.path("enabled_plugins")),
            ("RABBITMQ_MNESIA_BASE", self.path("data")),
            ("RABBITMQ_LOG_BASE", self.path("log")),
            ("RABBITMQ_PID_FILE", self.path("pid")),
        ];
        command
            .envs(environment)
            .env("RABBITMQ_NODENAME", self.node())
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("ERL_EPMD_PORT", self.names_port.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            // Quorum queues report their depth every 5 s otherwise.
            .env(
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1} -rabbit quorum_tick_interval 100",
            )
            .env("RABBITMQ_CTL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1}")
            // With it the start script becomes the broker, so that its process id is the broker's.
            .env("RABBITMQ_ALLOW_INPUT", "true")
            .current_dir(self.folder.path());
        command
    }

    fn launch(&mut self) -> io::Result<()> {
        let output = fs::File::create(self.path("output"))?;
        let broker = Leashed::spawn_in(
            self.folder.path(),
            self.command("rabbitmq-server").arg("-noinput").stdout(output.try_clone()?).stderr(output),
        )?;
        let broker = self.broker.insert(broker);
        let (port, tls_port) = (self.port, self.tls_port);
        let end = Instant::now() + START_LIMIT;
        while !(greets(port) && tls_port.is_none_or(accepts)) {
            let ended = broker.try_wait()?;
            if ended.is_some() || Instant::now() >= end {
                let said = fs::read_to_string(self.folder.path().join("output")).unwrap_or_default();
                return Err(io::Error::other(format!("ended: {ended:?}; it said: {said}")));
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// The port for AMQP.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The port for AMQP over TLS.
    ///
    /// # Panics
    /// The broker was started without TLS.
    #[must_use]
    pub fn tls_port(&self) -> u16 {
        self.tls_port.expect("this broker was started without TLS")
    }

    /// The address for AMQP, for a proxy.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The URL of its default virtual host.
    #[must_use]
    pub fn url(&self) -> String {
        url(self.port)
    }

    /// The process id of the broker, if it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.broker.as_ref().map(Leashed::id)
    }

    /// The broker's log.
    #[must_use]
    pub fn log(&self) -> String {
        let name = format!("{}.log", self.node());
        fs::read_to_string(self.path("log").join(name)).unwrap_or_default()
    }

    /// Stops the broker in order. Its data stay.
    ///
    /// # Panics
    /// It does not end within two minutes.
    pub fn stop(&mut self) {
        let Some(broker) = self.broker.take() else { return };
        let ended = broker.stop(rustix::process::Signal::TERM, START_LIMIT);
        assert!(ended, "RabbitMQ did not stop; its log says: {}", self.log());
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
            panic!("RabbitMQ does not start again: {error}");
        }
    }

    /// Pauses (SIGSTOP) or continues (SIGCONT) the broker.
    ///
    /// # Panics
    /// The broker does not run.
    pub fn pause(&self, paused: bool) {
        self.broker.as_ref().expect("the broker runs").pause(paused);
    }

    /// Runs `rabbitmqctl` (about 1 s) and answers what it printed.
    ///
    /// # Panics
    /// It failed; the message says what it printed.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let node = self.node();
        let mut command = self.command("rabbitmqctl");
        command.args(["--quiet", "--node", &node]).args(arguments);
        let output = command.output().expect("rabbitmqctl can be run");
        let (said, complained) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "rabbitmqctl {arguments:?}: {said}{complained}");
        said.into_owned()
    }

    /// Raises or clears the memory alarm, which blocks publishing connections.
    ///
    /// # Panics
    /// `rabbitmqctl` failed.
    pub fn memory_alarm(&self, raised: bool) {
        self.ctl(&["set_vm_memory_high_watermark", if raised { "0" } else { "0.4" }]);
    }

    /// Sets how long a delivery may stay unacknowledged before the broker closes its channel.
    /// It is looked at once a minute.
    ///
    /// # Panics
    /// `rabbitmqctl` failed.
    pub fn set_consumer_timeout(&self, timeout: Duration) {
        let value = timeout.as_millis();
        self.ctl(&["eval", &format!("application:set_env(rabbit, consumer_timeout, {value}).")]);
    }

    /// (ready, unacknowledged) messages of a queue; of a quorum queue, as it was up to 100 ms ago.
    ///
    /// # Panics
    /// There is no such queue.
    #[must_use]
    pub fn depth(&self, queue: &str) -> (u64, u64) {
        let listed = self.ctl(&[
            "list_queues",
            "--no-table-headers",
            "name",
            "messages_ready",
            "messages_unacknowledged",
        ]);
        let line = listed.lines().find_map(|line| line.strip_prefix(queue)?.strip_prefix('\t'));
        let numbers: Vec<u64> = line
            .map(|line| line.split('\t').filter_map(|number| number.trim().parse().ok()).collect())
            .unwrap_or_default();
        match numbers[..] {
            [ready, unacknowledged] => (ready, unacknowledged),
            _ => panic!("there is no queue {queue} in:\n{listed}"),
        }
    }
}

/// The URL of the default virtual host of a broker (or of a proxy to it) on this port.
#[must_use]
pub fn url(port: u16) -> String {
    format!("amqp://guest:guest@127.0.0.1:{port}/%2f")
}

/// True if a broker there answers a protocol header with `connection.start`: its listeners open last.
fn greets(port: u16) -> bool {
    let greet = || -> io::Result<bool> {
        let mut stream = connect(port)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"AMQP\x00\x00\x09\x01")?;
        let mut first = [0; 1];
        stream.read_exact(&mut first)?;
        Ok(first == [1])
    };
    greet().unwrap_or(false)
}

fn accepts(port: u16) -> bool {
    connect(port).is_ok()
}

fn connect(port: u16) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broker_starts_privately_survives_a_kill_and_ends_when_dropped() {
        let mut broker = RabbitMq::start();
        broker.ctl(&["await_startup"]);
        let queue = r#"rabbit_amqqueue:declare({resource, <<"/">>, queue, <<"kept">>}, true, false, [], none, <<"test">>)."#;
        broker.ctl(&["eval", queue]);
        // The broker's own log is written with a delay, and what a kill takes from it is not what is tested here.
        broker.ctl(&["eval", "mnesia:sync_log()."]);
        broker.kill();
        assert!(!greets(broker.port()));
        broker.start_again();
        assert_eq!(broker.depth("kept"), (0, 0));
        broker.stop();
        broker.start_again();
        let (port, names_port, folder) = (broker.port(), broker.names_port, broker.folder.path().to_owned());
        drop(broker);
        assert!(!accepts(port) && !accepts(names_port) && !folder.exists());
    }
}

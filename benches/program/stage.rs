//! The servers, the folder of the program's files, and runs of the program.

use std::fs::{self, File};
use std::ops::Range;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use onceward::{Outgoing, Publisher};
use onceward_kafka::{KafkaConnection, KafkaPublisher};
use onceward_test_servers::figures::Figures;
use onceward_test_servers::kafka::Kafka;
use onceward_test_servers::postgres::Postgres;
use onceward_test_servers::redis::Redis;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use tokio::runtime::Runtime;

pub(crate) const PARTITIONS: i32 = 8;
/// A message of [`Stage::lines`] with its line end.
const LINE_BYTES: usize = 257;
const LIMIT: Duration = Duration::from_secs(300);
/// How often the output of the program is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// The files of the program, and what its runs are measured with.
pub(crate) struct Stage {
    pub(crate) figures: Figures,
    pub(crate) runtime: Runtime,
    program: PathBuf,
    folder: tempfile::TempDir,
    names: AtomicU32,
}

/// A run of the program, killed when dropped.
pub(crate) struct Run {
    child: Child,
    output: PathBuf,
    log: PathBuf,
}

impl Stage {
    pub(crate) fn set(figures: Figures) -> Self {
        // target/PROFILE/deps/program-HASH lies beside target/PROFILE/onceward.
        let own = std::env::current_exe().unwrap();
        let beside = own.parent().unwrap().parent().unwrap().join("onceward");
        let program = std::env::var_os("ONCEWARD_BENCH_PROGRAM").map_or(beside, PathBuf::from);
        assert!(
            program.exists(),
            "{} is not there: build it with `cargo build --release -p onceward-cli`",
            program.display()
        );
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::Builder::new().prefix("onceward-").tempdir().unwrap();
        Self { figures, runtime, program, folder, names: AtomicU32::new(0) }
    }

    /// A name that nothing else has.
    pub(crate) fn name(&self, what: &str) -> String {
        format!("{what}-{}", self.names.fetch_add(1, Ordering::Relaxed))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a configuration: `scope`, the key, and what the part says.
    pub(crate) fn configuration(&self, tables: &str) -> String {
        let name = self.name("configuration");
        let text = format!(
            "scope = \"{name}\"\n[key]\nfrom = [\"json:/id\"]\n[policy]\non_exhausted = \"park\"\non_missing_key = \"reject\"\non_mismatch = \"ack\"\n{tables}"
        );
        let file = format!("{name}.toml");
        fs::write(self.path(&file), text).unwrap();
        file
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        // The SQS-compatible server takes any credentials.
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("AWS_ACCESS_KEY_ID", "any").env("AWS_SECRET_ACCESS_KEY", "any");
        command
    }

    /// Runs a command of the program to its end; its standard output.
    pub(crate) fn execute(&self, arguments: &[&str]) -> String {
        let ended = self.command(arguments).output().unwrap();
        let log = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{arguments:?}: {:?}\n{log}", ended.status);
        String::from_utf8(ended.stdout).unwrap()
    }

    /// Messages per second of a run to the end of its file.
    pub(crate) fn rate(&self, file: &str, messages: usize) -> f64 {
        let began = Instant::now();
        self.run(file).ended();
        messages as f64 / began.elapsed().as_secs_f64()
    }

    /// Starts `onceward run FILE`.
    pub(crate) fn run(&self, file: &str) -> Run {
        let name = self.name("run");
        let (output, log) = (self.path(&format!("{name}.stdout")), self.path(&format!("{name}.stderr")));
        let mut command = self.command(&["run", file]);
        command.stdout(File::create(&output).unwrap()).stderr(File::create(&log).unwrap());
        Run { child: command.spawn().unwrap(), output, log }
    }

    /// Lines of 256 bytes with an id each.
    pub(crate) fn lines(numbers: Range<usize>) -> impl Iterator<Item = String> {
        numbers.map(|number| {
            let start = format!("{{\"id\":\"{number:010}\",\"text\":\"");
            let rest = LINE_BYTES - 1 - start.len() - 2;
            format!("{start}{}\"}}", "x".repeat(rest))
        })
    }

    /// A file of the folder with these messages.
    pub(crate) fn file(&self, numbers: Range<usize>) -> String {
        let name = self.name("messages");
        let text: String = Self::lines(numbers).map(|line| line + "\n").collect();
        fs::write(self.path(&name), text).unwrap();
        name
    }

    /// A topic with so many messages, a record key each.
    pub(crate) fn topic(&self, broker: &Kafka, count: usize) -> String {
        let name = self.name("topic");
        let mut client = ClientConfig::new();
        client.set("bootstrap.servers", broker.bootstrap());
        self.runtime.block_on(async {
            let admin: AdminClient<_> = client.create().unwrap();
            let topic = NewTopic::new(&name, PARTITIONS, TopicReplication::Fixed(1));
            admin.create_topics([&topic], &AdminOptions::new()).await.unwrap()[0].as_ref().unwrap();
            let publisher = KafkaPublisher::open(KafkaConnection::new([broker.bootstrap()])).unwrap();
            let lines: Vec<_> = Self::lines(0..count).enumerate().collect();
            for batch in lines.chunks(5_000) {
                let outgoing = |(number, line): &(usize, String)| Outgoing {
                    destination: name.clone(),
                    order_key: Some(number.to_string().into()),
                    payload: line.clone().into(),
                    ..Outgoing::default()
                };
                let batch: Vec<_> = batch.iter().map(outgoing).collect();
                publisher.publish(&batch).await.into_iter().for_each(Result::unwrap);
            }
        });
        name
    }

    /// The table of a store, ready for use.
    pub(crate) fn redis(redis: &Redis) -> String {
        format!("[store.redis]\nurl = \"{}\"\n", redis.url())
    }

    pub(crate) fn postgres(postgres: &Postgres) -> String {
        format!("[store.postgres]\nurl = \"{}\"\n", postgres.url("postgres"))
    }
}

impl Run {
    /// Messages per second on standard output, between the first and the last of `lines` lines of 256 bytes: that a consumer
    /// joins its group takes seconds, and is not measured.
    pub(crate) fn rate(&mut self, lines: usize) -> f64 {
        let whole = lines * LINE_BYTES;
        let began = Instant::now();
        let mut first = None;
        loop {
            let written = usize::try_from(fs::metadata(&self.output).unwrap().len()).unwrap();
            if written > 0 && first.is_none() {
                first = Some((Instant::now(), written));
            }
            if let Some((began, before)) = first
                && written >= whole
            {
                return ((written - before) / LINE_BYTES) as f64 / began.elapsed().as_secs_f64();
            }
            let ended = self.child.try_wait().unwrap();
            let log = || fs::read_to_string(&self.log).unwrap();
            assert!(ended.is_none(), "it has ended: {ended:?}\n{}", log());
            assert!(began.elapsed() < LIMIT, "{written} of {whole} bytes after {LIMIT:?}\n{}", log());
            std::thread::sleep(LOOK);
        }
    }

    /// Waits for the end of a run that ends by itself, and in which each message was handled once.
    pub(crate) fn ended(mut self) {
        let status = self.child.wait().unwrap();
        let (output, log) =
            (fs::read_to_string(&self.output).unwrap(), fs::read_to_string(&self.log).unwrap());
        // On standard error if messages are on standard output.
        let right = |text: &str| {
            let last = text.lines().last();
            last.is_some_and(|line| line.contains("duplicates=0 retried=0 dead-lettered=0"))
        };
        assert!(status.success() && (right(&output) || right(&log)), "{status:?}\n{log}");
    }

    /// A line of the process's status in MiB: `VmRSS` is its resident memory, and `VmHWM` the most so far.
    pub(crate) fn mebibytes(&self, name: &str) -> f64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        let kib: f64 = value.trim().trim_end_matches(" kB").parse().unwrap();
        kib / 1024.0
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        // Both fail if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A configuration with short timings, changed key by key.

use toml::{Table, Value};

/// A configuration of the program under test; paths in it are relative to the scene's folder.
#[derive(Clone, Debug)]
pub struct Setup(Table);

const USUAL: &str = r#"
scope = "billing"

[source.file]
path = "orders.ndjson"

[store.sqlite]
path = "onceward.db"
lease = "1s"
timeout = "800ms"

[key]
from = ["json:/id"]

[pipeline]
concurrency = 4

[retry]
max_attempts = 3
initial = "50ms"
max = "200ms"

[dead_letter]
to = "dead.ndjson"
"#;

impl Setup {
    fn usual() -> Self {
        Self(USUAL.parse().expect("the usual configuration is TOML"))
    }

    /// Four `effect-worker` processes that live on.
    pub fn worker(effect_worker: &str) -> Self {
        let command = vec![effect_worker.to_owned(), "worker".into(), "effects.ndjson".into()];
        Self::usual()
            .set("handler.worker.command", command)
            .set("handler.worker.processes", 4)
            .set("handler.worker.timeout", "20s")
    }

    /// An `effect-worker` process for each message.
    pub fn exec(effect_worker: &str) -> Self {
        let command = vec![effect_worker.to_owned(), "exec".into(), "effects.ndjson".into()];
        Self::usual().set("handler.exec.command", command).set("handler.exec.timeout", "20s")
    }

    /// A statement in the completion's transaction.
    pub fn sql(statement: &str) -> Self {
        Self::usual()
            .set("guarantee", "effectively-once")
            .set("handler.sql.statement", statement)
            .set("handler.sql.timeout", "900ms")
    }

    /// Sets the value at a dotted path.
    ///
    /// # Panics
    /// If the path leads through a value that is no table.
    pub fn set(mut self, path: &str, value: impl Into<Value>) -> Self {
        let (tables, name) = path.rsplit_once('.').unwrap_or(("", path));
        let mut table = &mut self.0;
        for part in tables.split('.').filter(|part| !part.is_empty()) {
            let inner = table.entry(part).or_insert_with(|| Value::Table(Table::new()));
            table = inner.as_table_mut().expect("a table on the way");
        }
        table.insert(name.to_owned(), value.into());
        self
    }

    /// Leaves out the value or table at a dotted path.
    pub fn without(mut self, path: &str) -> Self {
        let (tables, name) = path.rsplit_once('.').unwrap_or(("", path));
        let mut table = Some(&mut self.0);
        for part in tables.split('.').filter(|part| !part.is_empty()) {
            table = table.and_then(|table| table.get_mut(part)).and_then(Value::as_table_mut);
        }
        table.and_then(|table| table.remove(name));
        self
    }

    /// The file's text.
    pub fn text(&self) -> String {
        self.0.to_string()
    }
}

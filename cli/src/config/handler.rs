//! `[handler.*]`: what is done with each message.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use onceward_plugin::value::{Address, HookUrl, HumanDuration, Secret};
use onceward_plugin::{Exposure, Secrets, check, choice, table};

use crate::plugins::PublishTarget;

/// What is done with each message: exactly one of these tables.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Handler {
    /// A POST to a URL.
    Http(HttpHandler),
    /// One process for each message.
    Exec(ExecHandler),
    /// Long-lived processes that read and answer JSON lines.
    Worker(WorkerHandler),
    /// A statement in the same transaction as the completion.
    Sql(SqlHandler),
    /// A confirmed publish to another broker.
    Publish(PublishTarget),
    /// A line on standard output.
    Stdout(StdoutHandler),
}

impl WorkerHandler {
    /// How many messages all processes can have at once.
    pub(super) fn messages_at_once(&self) -> u32 {
        self.processes.saturating_mul(self.in_flight).saturating_mul(self.batch)
    }
}

impl Secrets for HttpHandler {
    /// A connection on which requests could be read by others.
    fn exposure(&self) -> Option<Exposure> {
        check::is_remote(self.url.address(), &["http"]).then_some(Exposure {
            option: "url",
            problem: "is http:// on another host, so that the claim's token, which each request holds, and configured headers could \
                      be read on the way",
            fix: "write https://",
            is_allowed: self.allow_plaintext,
        })
    }
}

impl Handler {
    /// The name of the table: `http`, `exec`, `worker`, `sql`, `publish` or `stdout`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Http(_) => "http",
            Self::Exec(_) => "exec",
            Self::Worker(_) => "worker",
            Self::Sql(_) => "sql",
            Self::Publish(_) => "publish",
            Self::Stdout(_) => "stdout",
        }
    }

    /// The dotted path of the table that holds `timeout`, such as `handler.exec`.
    pub fn path(&self) -> String {
        match self {
            Self::Publish(target) => format!("handler.publish.{}", target.name()),
            other => format!("handler.{}", other.name()),
        }
    }

    /// How long one attempt may take.
    pub fn timeout(&self) -> HumanDuration {
        match self {
            Self::Http(handler) => handler.timeout,
            Self::Exec(handler) => handler.timeout,
            Self::Worker(handler) => handler.timeout,
            Self::Sql(handler) => handler.timeout,
            Self::Publish(target) => target.plugin().timeout(),
            Self::Stdout(handler) => handler.timeout,
        }
    }
}

choice! {
    /// What an HTTP status or an exit code means for the message.
    Meaning {
        /// The message is completed.
        Done,
        /// The run failed and uses an attempt.
        Retry,
        /// The message is dead-lettered.
        Permanent,
        /// The handler is not available: the message waits and uses no attempt.
        #[default]
        Unavailable,
    }
}

/// Declares a table with the options of a handler's program, before its own.
macro_rules! program_table {
    ($(#[$meta:meta])* $name:ident { $($body:tt)* }) => {
        table! {
            $(#[$meta])*
            $name [handler] {
                /// The program and its arguments. No shell is involved. It runs in the directory of the configuration file.
                pub command: Vec<Address>,
                /// Variables for its environment, such as { REGION = "eu" }. Their values are never printed.
                #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
                pub env: BTreeMap<String, Secret>,
                /// Variables that are passed on from this program's own environment, besides PATH, HOME, USER, LOGNAME,
                /// LANG, LANGUAGE, LC_…, TZ and TMPDIR. "*" represents all but those that ${…} in this file uses and the
                /// logins in OTEL_EXPORTER_OTLP_…, which are passed by their names only.
                #[serde(default, skip_serializing_if = "Vec::is_empty")]
                pub inherit_env: Vec<String>,
                $($body)*
            }
        }

        impl $name {
            /// The program, apart from how it is used.
            pub fn program(&self) -> HandlerProgram<'_> {
                HandlerProgram { command: &self.command, env: &self.env, inherit_env: &self.inherit_env }
            }
        }
    };
}

/// A handler's program, and what it gets of the environment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HandlerProgram<'a> {
    /// The program and its arguments.
    pub command: &'a [Address],
    /// Variables that are set.
    pub env: &'a BTreeMap<String, Secret>,
    /// Variables that are passed on, beside the usual ones.
    pub inherit_env: &'a [String],
}

table! {
    /// A POST of the payload. 2xx completes; 429, 502, 503, 504 and a server that cannot be reached use no attempt; 408, 425
    /// and other 5xx retry; 409 retries later; other 4xx dead-letter. A `Retry-After` is honoured.
    HttpHandler [handler] {
        /// Where to post. Redirects are not followed. The path is not printed: it often is a secret.
        pub url: HookUrl,
        /// Headers sent with every request, such as `Authorization`. They replace those of the message, such as
        /// `Content-Type`; those that name the message (`Idempotency-Key`, `Onceward-*`) cannot be set. Their values are
        /// never printed.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub headers: BTreeMap<String, Secret>,
        /// True lets requests, which hold the claim's token and the headers above, go readably to another host than
        /// this: http://. Only for networks that no untrusted host can reach.
        #[serde(default)]
        pub allow_plaintext: bool,
        /// How long an idle connection is kept for the next message, up to 1h; shorter than the server's own limit, which
        /// is 5s for many. "0s" opens a connection for each message.
        #[serde(default = "::onceward_plugin::default::secs::<4>")]
        pub keep_alive: HumanDuration,
        /// How many messages a request may hold, from 1 to 1000: those that are ready together, up to 1 MiB. From 2 on the
        /// body is a JSON array of messages, and that of a 2xx response an array with a result for each. If a request with
        /// several fails, each is sent alone next, and none uses an attempt.
        #[serde(default = "::onceward_plugin::default::count::<1>")]
        pub batch: u32,
        /// What a status means, where that is not the default: a status or a class, such as 404 = "retry" or "5xx" =
        /// "unavailable". A status goes before its class. "unavailable" uses no attempt, but a server that answers 503
        /// may have had the effect nevertheless.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub status: BTreeMap<String, Meaning>,
    }
}

program_table! {
    /// One process for each message: payload on standard input, the rest in `ONCEWARD_*` variables. Exit 0 completes,
    /// 75 and signals retry, 65 dead-letters, 126 and 127 (the shell cannot run or find a command) and a program that
    /// cannot be started use no attempt, other codes retry.
    ExecHandler {
        /// What an exit code from 1 to 255 means, where that is not the default, such as 3 = "permanent".
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        pub exit: BTreeMap<String, Meaning>,
    }
}

program_table! {
    /// Long-lived processes: one JSON line in, one JSON line out. The time a process needs to start does not count as
    /// handler time, and a process that ends before it has read a request uses no attempt.
    WorkerHandler {
        /// How many processes run, from 1 to 1024.
        #[serde(default = "::onceward_plugin::default::count::<4>")]
        pub processes: u32,
        /// How many requests a process has at once, from 1 to 1024, which it answers in any order by their `id`. If the
        /// process dies, all of them are in doubt: none uses an attempt, and each runs alone next. With `batch`, no more than
        /// 4096 messages in all.
        #[serde(default = "::onceward_plugin::default::count::<1>")]
        pub in_flight: u32,
        /// How many messages a line may hold, from 1 to 1000: those that are ready together, up to 1 MiB. From 2 on each
        /// line is an array of requests, and its answer an array of answers.
        #[serde(default = "::onceward_plugin::default::count::<1>")]
        pub batch: u32,
        /// How long a process may take from its start until it reads its first request (with `ready = true`: until it
        /// reports that it is ready), and a message may wait for a process, from 1ms to 12h.
        #[serde(default = "::onceward_plugin::default::secs::<30>")]
        pub start_timeout: HumanDuration,
        /// The processes write the line {"ready":true} once they can work, and get no request before.
        #[serde(default)]
        pub ready: bool,
    }
}

table! {
    /// A statement in the same transaction as the completion. Needs a store with transactions.
    SqlHandler [handler] {
        /// The statement. Its parameters: `$1` the payload, `$2` the key, `$3` the attempt from 1, `$4` the fence. Where
        /// the database types its parameters, `$1` is text: write `$1::jsonb` to look into it.
        pub statement: String,
        /// How many messages may share a transaction, from 1 to 1000 and no more than run at once: those that are ready
        /// together, one after the other, each in a savepoint. Worth it for statements of a few milliseconds.
        #[serde(default = "::onceward_plugin::default::count::<1>")]
        pub batch: u32,
    }
}

table! {
    /// One line for each message on standard output.
    StdoutHandler [handler] {}
}

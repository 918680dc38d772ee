//! Finds files with secrets that every user of the machine may read.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::config::{Config, ConfigError};

/// Readable by everybody. Readable by the group is accepted: Kubernetes mounts secrets like that.
const BY_OTHERS: u32 = 0o004;

/// A warning for each file that everybody may read. A missing file is reported when it is opened.
pub(super) fn secrets(config: &Config) -> Vec<ConfigError> {
    let is_readable = |mode: u32| mode & BY_OTHERS != 0;
    let files = config.secret_files().into_iter();
    let readable = files.filter(|(_, file)| {
        fs::metadata(file).is_ok_and(|found| found.is_file() && is_readable(found.permissions().mode()))
    });
    let remark = |(key, file): (String, std::path::PathBuf)| {
        let problem = format!("{} can be read by every user of this machine", file.display());
        config.refuse(&key, problem, "remove the permission: chmod o-rwx")
    };
    readable.map(remark).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_everybody_may_read_is_named_and_one_of_a_group_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        fs::write(&file, "hunter2").unwrap();
        let named = file.display();
        let password = |table: &str, more: &str| {
            let tables = match table.split('.').next() {
                Some("source") => "[store.memory]\n[handler.stdout]\n",
                Some("store") => "[source.file]\npath = '-'\n[handler.stdout]\n",
                Some("handler") => "[source.file]\npath = '-'\n[store.memory]\n",
                _ => "[source.file]\npath = '-'\n[store.sqlite]\npath = 'x'\n[handler.stdout]\n",
            };
            let key = "[key]\nfrom = ['message-id']\n[dead_letter]\nto = 'd'\n";
            format!("scope = 'a'\n{tables}{key}[{table}]\n{more}")
        };
        for (table, more, key) in [
            (
                "source.rabbitmq",
                "url = 'amqps://h'\nqueue = 'q'\npassword_file = 'FILE'\n",
                "source.rabbitmq.password_file",
            ),
            ("store.redis", "url = 'rediss://h'\npassword_file = 'FILE'\n", "store.redis.password_file"),
            (
                "store.postgres",
                "url = 'postgres://h/x'\npassword_file = 'FILE'\n",
                "store.postgres.password_file",
            ),
            ("store.postgres", "url = 'postgres://h/x?sslkey=FILE'\n", "store.postgres.url"),
            (
                "handler.publish.kafka",
                "brokers = ['h:1']\ntopic = 't'\npassword_file = 'FILE'\n",
                "handler.publish.kafka.password_file",
            ),
            (
                "outbox.kafka",
                "brokers = ['h:1']\nproperties.ssl.key.location = 'FILE'\n",
                "outbox.kafka.properties",
            ),
            (
                "outbox.rabbitmq",
                "url = 'amqps://h'\npassword_file = 'FILE'\n",
                "outbox.rabbitmq.password_file",
            ),
        ] {
            let text = password(table, &more.replace("FILE", &named.to_string()));
            let config = Config::parse(&text, &|_| None).unwrap_or_else(|error| panic!("{error}\n{text}"));
            for (mode, count) in [(0o644, 1), (0o604, 1), (0o640, 0), (0o600, 0)] {
                fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
                let found = secrets(&config);
                assert_eq!(found.len(), count, "{mode:o} {text}{found:?}");
                assert!(found.iter().all(|found| found.key() == Some(key)), "{found:?}");
            }
        }
    }
}

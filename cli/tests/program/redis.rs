//! `[store.redis]`: passwords that change, URLs, and what is logged about the server.

use std::io::Write as _;

use onceward_test_servers::redis::{Redis, RedisReplicated};
use rustix::process::Signal;
use serde_json::Value;

use super::scene::{CHARGE, ORDERS, Scene, wait};

fn store(url: &str, more: &str) -> String {
    format!("{ORDERS}follow = true\n[store.redis]\nurl = '{url}'\n{more}\n[handler.exec]\n{CHARGE}\n")
}

#[test]
fn a_password_file_is_read_again_for_each_new_connection() {
    let server = Redis::start();
    let set = |password: &str| {
        let password = format!(">{password}");
        server.cli(&["ACL", "SETUSER", "worker", "reset", "on", &password, "~*", "+@all"]);
    };
    set("first-canary");
    // Standard input has no checkpoints: only claims and completions need the store.
    let table = store(&server.url(), "username = 'worker'\npassword_file = 'pw'\n[retry]\nmax = '1s'");
    let scene = Scene::new(&table.replace("orders.ndjson", "-").replace("follow = true\n", ""));
    scene.write("pw", "first-canary\n");
    let (reader, mut orders) = std::io::pipe().unwrap();
    let mut command = scene.command("run @");
    command.stdin(reader);
    let running = scene.start(command);
    orders.write_all(b"{\"id\":1}\n").unwrap();
    wait("the first effect", || scene.effects().len() == 1);
    set("second-canary");
    server.cli(&["CLIENT", "KILL", "TYPE", "normal"]);
    orders.write_all(b"{\"id\":2}\n").unwrap();
    wait("the refusal", || server.cli(&["ACL", "LOG"]).contains("auth"));
    scene.write("pw", "second-canary\n");
    wait("the second effect", || scene.effects().len() == 2);
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(!ended.stderr.contains("canary"), "{ended:?}");
}

#[test]
fn a_url_may_say_valkey_and_a_database_and_nothing_that_has_no_effect() {
    let server = Redis::start();
    let at = |rest: &str| format!("valkey://127.0.0.1:{}{rest}", server.port());
    let scene = Scene::new(&store(&at("/?db=3"), ""));
    scene.write("orders.ndjson", "{\"id\":1}\n");
    let running = scene.start(scene.command("run @"));
    wait("the effect", || scene.effects().len() == 1);
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), Some(0));
    assert!(server.info("db3").contains("keys="), "the key is in database 3");

    for (rest, word) in [
        ("?ssl_cert_reqs=none", "ssl_cert_reqs"),
        ("/3?db=3&timeout=5", "timeout"),
        ("/1?db=2", "two databases"),
    ] {
        for command in ["run @", "check @"] {
            let scene = Scene::new(&store(&at(rest), ""));
            scene.write("orders.ndjson", "");
            let ended = scene.execute(command);
            assert!(matches!(ended.code(), Some(78 | 1)), "{rest}: {ended:?}");
            assert!(format!("{}{}", ended.stdout, ended.stderr).contains(word), "{rest}: {ended:?}");
        }
    }
}

#[test]
fn what_the_start_finds_is_said_once() {
    let servers = RedisReplicated::start();
    let scene = Scene::new(&store(&servers.primary.url(), ""));
    scene.write("orders.ndjson", "{\"id\":1}\n");
    let running = scene.start(scene.command("run @"));
    wait("the effect", || scene.effects().len() == 1);
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!(ended.stderr.matches("replicas, asynchronous").count(), 1, "{ended:?}");
}

#[test]
fn a_node_of_a_cluster_is_told_by_the_key_of_the_configuration() {
    let server = Redis::start_with(&["--cluster-enabled", "yes"]);
    let scene = Scene::new(&store(&server.url(), ""));
    scene.write("orders.ndjson", "");
    let ended = scene.execute("check @");
    assert!(ended.stdout.contains("topology = \"cluster\""), "{ended:?}");
}

/// A worker needs no right to read or to clean the audit trail.
#[test]
fn a_user_without_rights_to_the_audit_trail_has_keys_explained_and_purged() {
    let server = Redis::start();
    server.cli(&[
        "ACL", "SETUSER", "worker", "reset", "on", ">pw", "~*", "+@all", "-lrange", "-lindex", "-ltrim",
    ]);
    let table =
        store(&server.url(), "username = 'worker'\npassword_file = 'pw'").replace("follow = true\n", "");
    let scene = Scene::new(&table);
    scene.write("pw", "pw\n");
    scene.write("orders.ndjson", "{\"id\":\"a\"}\n");
    assert_eq!(scene.execute("run @").code(), Some(0));

    let explained = scene.execute("keys explain @ a");
    assert_eq!(explained.code(), Some(0), "{explained:?}");
    for words in ["is completed.", "  history      cannot be read ("] {
        assert!(explained.stdout.contains(words), "{words}: {explained:?}");
    }
    let explained = scene.execute("keys explain --json @ a");
    let line: Value = serde_json::from_str(&explained.stdout).unwrap();
    assert_eq!((&line["state"], &line["history"]), (&"completed".into(), &Value::Null));
    assert!(line["history_error"].as_str().unwrap().contains("lacks a permission"), "{line}");

    // A cleaning looks at the oldest entry, and there is one.
    let changed = scene.execute("keys complete --yes @ b");
    assert_eq!(changed.code(), Some(0), "{changed:?}");
    let purged = scene.execute("keys purge --json @");
    assert_eq!(purged.code(), Some(0), "{purged:?}");
    let line: Value = serde_json::from_str(&purged.stdout).unwrap();
    assert_eq!((&line["removed"], &line["audit_entries_removed"]), (&0.into(), &0.into()));
    assert!(purged.stderr.contains("entries of the audit trail stay"), "{purged:?}");
}

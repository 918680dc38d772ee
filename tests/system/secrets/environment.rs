//! The environment that handlers get: without the variables that the configuration uses.

use onceward_test_support::orders::order;
use onceward_test_support::scene::Scene;
use serde_json::json;

use super::leaks::leak;
use super::{CANARY, EXEC, execute};
use crate::stage::{EFFECT_WORKER, ONCEWARD};

/// What a handler wrote of its environment, with `more` in its table.
fn environment(handler: &str, more: &str) -> String {
    let scene = Scene::new(ONCEWARD);
    let (start, rest) = EXEC.split_once("[handler.exec]").expect("a handler");
    let (_, rest) = rest.split_once("[retry]").expect("what follows it");
    // A password of the configuration that the handler has no part in, and a variable that it does not use.
    let used = "[outbox.rabbitmq]\nurl = \"amqp://app:${SECRET}@127.0.0.1:1/\"\n";
    scene.write("onceward.toml", format!("{start}{handler}{more}\n{used}[retry]{rest}").as_bytes());
    scene.write("orders.ndjson", format!("{}\n", order("one", &json!({}))).as_bytes());
    let ended = execute(&scene, &["run", "onceward.toml"], None);
    assert_eq!(ended.code(), Some(0), "{ended:#?}");
    std::fs::read_to_string(scene.path("environment")).expect("the handler has run")
}

const EXEC_TABLE: &str = "[handler.exec]\ncommand = [\"sh\", \"-c\", \"env > environment\"]\n";
#[test]
fn a_handler_gets_neither_the_secrets_of_the_configuration_nor_what_it_has_no_need_of() {
    let worker = format!(
        "[handler.worker]\nprocesses = 1\ncommand = [\"sh\", \"-c\", \"env > environment; exec {EFFECT_WORKER} worker effects.ndjson\"]\n"
    );
    for table in [EXEC_TABLE, &worker] {
        let usual = environment(table, "");
        assert_eq!(leak(&usual, CANARY), None, "{table}");
        let has = |text: &str, name: &str| text.lines().any(|line| line.starts_with(&format!("{name}=")));
        assert!(has(&usual, "PATH") && !has(&usual, "UNUSED"), "{usual}");

        let all = environment(table, "inherit_env = [\"*\"]\nenv = { REGION = \"eu\" }\n");
        assert_eq!(leak(&all, CANARY), None, "{table}");
        assert!(has(&all, "UNUSED") && all.contains("REGION=eu\n"), "{all}");

        let named = environment(table, "inherit_env = [\"SECRET\"]\n");
        assert!(named.contains(&format!("SECRET={CANARY}\n")) && !has(&named, "UNUSED"), "{named}");
    }
}

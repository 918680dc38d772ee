//! The example `worker_python`, on a copy of its folder.
#![cfg(feature = "sqlite")]

use std::fs;
use std::path::Path;

use super::scene::Scene;

#[test]
fn the_python_worker_handles_each_order_once_and_refuses_what_is_no_order() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let scene = Scene::new("");
    fs::copy(examples.join("worker_python/orders.ndjson"), scene.path("orders.ndjson")).unwrap();
    fs::copy(examples.join("handlers/worker.py"), scene.path("worker.py")).unwrap();
    let configuration = fs::read_to_string(examples.join("worker_python/onceward.toml")).unwrap();
    let figures = configuration.lines().find_map(|line| line.strip_prefix("# It prints: ")).unwrap();
    scene.write("onceward.toml", &configuration.replace("../handlers/worker.py", "worker.py"));
    fs::create_dir(scene.path("state")).unwrap();

    let ended = scene.execute("run @");
    assert_eq!((ended.code(), ended.stdout.trim_end()), (Some(3), figures), "{ended:?}");
    let letters = scene.lines("state/orders.dead.ndjson");
    assert!(letters.len() == 1 && letters[0].contains("ord-4"), "{letters:?}");
}

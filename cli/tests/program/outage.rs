//! A store that is down at the start is waited for, and nothing is taken meanwhile.

use rustix::process::Signal;
use sqlx::{Connection, Executor, SqliteConnection};

use super::scene::{CHARGE, ORDERS, Scene, wait};

fn scene(telemetry: &str) -> Scene {
    let store = "[store.sqlite]\npath = 'onceward.db'\ntimeout = '200ms'\nlease = '5s'\n";
    let scene = Scene::new(&format!("{ORDERS}{store}[handler.exec]\n{CHARGE}\n{telemetry}"));
    scene.write("orders.ndjson", "{\"id\":1}\n{\"id\":2}\n");
    scene
}

/// Someone else has the file to himself.
async fn lock(scene: &Scene) -> SqliteConnection {
    let url = format!("sqlite:{}?mode=rwc", scene.path("onceward.db").display());
    let mut conn = SqliteConnection::connect(&url).await.unwrap();
    conn.execute("create table theirs (id integer)").await.unwrap();
    conn.execute("begin exclusive").await.unwrap();
    conn
}

#[tokio::test]
#[cfg(feature = "telemetry")]
async fn a_store_that_is_down_at_the_start_is_waited_for() {
    use super::telemetry::{address, request};
    let scene = scene("[telemetry]\nlisten = '127.0.0.1:0'\n");
    let mut lock = lock(&scene).await;
    let running = scene.start(scene.command("run @"));
    wait("the first try", || running.stderr().contains("waiting for the store"));
    let address = address(&running);
    let (status, body) = request(&address, "GET /health/ready");
    assert_eq!((status, body.starts_with("starting")), (503, true), "{body}");
    assert!(request(&address, "GET /metrics").1.contains("onceward_store_up{scope=\"billing\"} 0\n"));
    assert_eq!(request(&address, "GET /health/live").0, 200);
    // A few more tries, which are not logged one by one.
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    assert_eq!(running.stderr().matches("waiting for the store").count(), 1, "{}", running.stderr());
    assert_eq!(scene.effects().len(), 0);

    lock.execute("rollback").await.unwrap();
    let ended = running.end();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    assert!(ended.stderr.contains("all parts are ready"), "{ended:?}");
    assert_eq!(scene.effects().len(), 2);
}

#[tokio::test]
async fn a_signal_ends_the_wait_for_the_store() {
    let scene = scene("");
    let _lock = lock(&scene).await;
    let running = scene.start(scene.command("run @"));
    wait("the first try", || running.stderr().contains("waiting for the store"));
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!((ended.code(), ended.stdout.as_str()), (Some(0), ""), "{ended:?}");
    assert!(ended.stderr.contains("no message was consumed"), "{ended:?}");
}

#[tokio::test]
async fn a_file_that_is_no_database_ends_the_run_with_a_sentence() {
    let scene = scene("");
    scene.write("onceward.db", &"this is no database\n".repeat(200));
    let ended = scene.execute("run @");
    assert_eq!(ended.code(), Some(78), "{ended:?}");
    assert!(
        ended.stderr.lines().last().is_some_and(|line| line.contains("is not a SQLite database")),
        "{ended:?}"
    );
}

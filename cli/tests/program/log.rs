//! Checks the log: levels in every spelling, invalid filters, and few lines of each kind however much fails.

use super::scene::{CHARGE, Ended, ORDERS, Scene};

/// Each message fails for good, but for those whose id ends in 9: a handler that never succeeds is taken to be unavailable.
fn failing(messages: usize) -> Scene {
    let scene = Scene::new(&format!(
        "{ORDERS}[store.memory]\n[handler.exec]\ncommand = ['sh', '-c', 'case $(cat) in *9*) ;; *) exit 65;; esac']\n"
    ));
    let orders: String = (0..messages).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    scene.write("orders.ndjson", &orders);
    scene
}

fn with(scene: &Scene, filter: &str) -> Ended {
    let mut command = scene.command("run @");
    command.env("ONCEWARD_LOG", filter);
    scene.start(command).end()
}

fn count(ended: &Ended, part: &str) -> usize {
    ended.stderr.lines().filter(|line| line.contains(part)).count()
}

#[test]
fn a_flood_of_failures_has_few_lines_of_each_kind_and_loses_no_letter() {
    let scene = failing(300);
    let ended = scene.execute("run @");
    assert_eq!((ended.code(), scene.lines("dead.ndjson").len()), (Some(3), 243), "{ended:?}");
    let lines = count(&ended, "message dead-lettered");
    assert!((1..=20).contains(&lines), "{lines} lines: {}", ended.stderr);
    assert!(ended.stderr.lines().count() < 100, "{}", ended.stderr);
}

#[test]
fn every_spelling_of_a_level_logs_at_that_level() {
    for (filter, has_warnings, has_infos) in [
        ("warning", true, false),
        ("WARN", true, false),
        ("err", false, false),
        ("onceward=info", true, true),
        ("onceward_kafka=debug", true, true),
        ("info", true, true),
        ("", true, true),
        ("off", false, false),
    ] {
        let ended = with(&failing(1), filter);
        assert_eq!(ended.code(), Some(3), "{filter}: {ended:?}");
        assert_eq!(count(&ended, " WARN ") > 0, has_warnings, "{filter}: {ended:?}");
        assert_eq!(count(&ended, " INFO ") > 0, has_infos, "{filter}: {ended:?}");
    }
}

#[test]
fn what_is_no_filter_ends_with_78_and_a_sentence_and_takes_no_message() {
    for filter in ["verbose", "warnings", "onceward=loud", "info debug", "a=b=c"] {
        let scene = Scene::new(&format!("{ORDERS}[store.memory]\n[handler.exec]\n{CHARGE}\n"));
        scene.write("orders.ndjson", "{\"id\":1}\n");
        let ended = with(&scene, filter);
        assert_eq!((ended.code(), scene.effects().len()), (Some(78), 0), "{filter}: {ended:?}");
        assert!(ended.stderr.contains("ONCEWARD_LOG: ") && ended.stderr.contains(filter), "{ended:?}");
    }
}

/// The broker returns a message for a queue that is not there, and the client knows its payload, headers and the login.
#[cfg(feature = "rabbitmq")]
#[test]
fn no_level_logs_payloads_headers_or_passwords_of_the_amqp_client() {
    use super::scene::wait;
    use rustix::process::Signal;

    const CANARY: &str = "hunter2canary";
    let broker = onceward_test_servers::rabbitmq::RabbitMq::shared();
    broker.ctl(&["await_startup"]);
    broker.ctl(&["add_user", "canary", CANARY]);
    broker.ctl(&["set_permissions", "canary", ".*", ".*", ".*"]);
    let target =
        format!("url = 'amqp://canary:{CANARY}@127.0.0.1:{}'\nrouting_key = 'absent'\n", broker.port());
    let scene = Scene::new(&format!(
        "{ORDERS}format = 'envelope'\n[store.memory]\n[handler.publish.rabbitmq]\n{target}[retry]\nmax = '200ms'\n"
    ));
    let payload = format!("{{\\\"id\\\":1,\\\"x\\\":\\\"{CANARY}\\\"}}");
    scene.write(
        "orders.ndjson",
        &format!("{{\"payload\":\"{payload}\",\"headers\":{{\"authorization\":\"{CANARY}\"}}}}\n"),
    );
    let decimal: Vec<String> = CANARY.bytes().map(|byte| byte.to_string()).collect();
    for filter in ["trace", "lapin=trace", "info", "warn,lapin=warn"] {
        let mut command = scene.command("run @");
        command.env("ONCEWARD_LOG", filter);
        let running = scene.start(command);
        wait("a refusal", || running.stderr().contains("absent") || running.stderr().contains("returned"));
        running.signal(Signal::TERM);
        let said = running.end().stderr;
        let line = said.lines().find(|line| line.contains(CANARY) || line.contains(&decimal.join(", ")));
        assert_eq!(line, None, "{filter}");
    }
}

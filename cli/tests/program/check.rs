//! `onceward check`: one line for each finding, and 1 if any is an error.

#[cfg(any(feature = "sqlite", feature = "http"))]
use super::scene::ORDERS;
use super::scene::Scene;

fn severities(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.split(':').next()).collect()
}

#[test]
fn all_is_well() {
    let scene = Scene::charging("memory]", "{\"id\":1}\n");
    let ended = scene.execute("check @");
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let severities = severities(&ended.stdout);
    assert!(severities.iter().all(|severity| ["ok", "warning"].contains(severity)), "{ended:?}");
    for key in ["source.file.path", "store.memory", "handler.exec", "dead_letter.to"] {
        assert!(ended.stdout.lines().any(|line| line.contains(&format!(": {key}: "))), "{key}: {ended:?}");
    }
    assert_eq!(ended.stderr, "");
}

#[test]
fn each_part_that_is_not_there_is_an_error_of_its_own() {
    let source = "[source.file]\npath = 'absent.ndjson'\n";
    let scene = Scene::new(&format!("{source}[store.memory]\n[handler.exec]\ncommand = ['./absent.sh']\n"));
    let config = std::fs::read_to_string(scene.path("onceward.toml")).unwrap();
    scene.write("onceward.toml", &config.replace("'dead.ndjson'", "'absent/dead.ndjson'"));
    let ended = scene.execute("check @");
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    let errors: Vec<_> = ended.stdout.lines().filter(|line| line.starts_with("error: ")).collect();
    let file = scene.path("onceward.toml");
    for (line, key) in [(7, "source.file.path"), (9, "handler.exec"), (3, "dead_letter.to")] {
        let told = format!("error: {}:{line}: {key}: ", file.display());
        assert_eq!(errors.iter().filter(|error| error.starts_with(&told)).count(), 1, "{told}: {ended:?}");
    }
    assert_eq!(errors.len(), 3, "{ended:?}");
    assert!(errors.iter().any(|error| error.ends_with(" [file-not-readable]")), "{errors:?}");

    let json = scene.execute("check --json @");
    assert_eq!(json.code(), Some(1));
    let findings: Vec<serde_json::Value> =
        json.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let errors = findings.iter().filter(|finding| finding["severity"] == "error");
    assert_eq!(errors.count(), 3, "{json:?}");
    assert_eq!(findings.len(), ended.stdout.lines().count());
    for finding in &findings {
        let code = finding["code"].as_str();
        assert_eq!(code.is_some(), finding["severity"] != "ok", "{finding}");
        let explained =
            |code| finding["documentation"].as_str().unwrap().ends_with(&format!("findings.md#{code}"));
        assert!(code.is_none_or(explained), "{finding}");
    }
    let codes: Vec<_> = findings.iter().filter_map(|finding| finding["code"].as_str()).collect();
    for code in ["file-not-readable", "dead-letter-file-not-writable", "store-in-memory"] {
        assert!(codes.contains(&code), "{code}: {codes:?}");
    }
}

#[test]
#[cfg(feature = "sqlite")]
fn nothing_is_created_by_looking() {
    let scene = Scene::charging("sqlite]\npath = 'onceward.db'", "");
    let before = scene.execute("check @");
    assert_eq!(before.code(), Some(0), "{before:?}");
    assert!(before.stdout.contains("the first run creates it"), "{before:?}");
    assert!(!scene.path("onceward.db").exists() && !scene.path("dead.ndjson").exists());

    assert_eq!(scene.execute("migrate @").code(), Some(0));
    assert!(scene.execute("migrate @").stdout.ends_with("the schema is up to date\n"));
    let after = scene.execute("check @");
    assert!(!severities(&after.stdout).contains(&"error") && after.stdout.contains("WAL"), "{after:?}");
}

#[test]
#[cfg(feature = "sqlite")]
fn a_statement_that_does_not_compile_is_found() {
    let statement = "statement = 'insert into nowhere values ($1)'\ntimeout = '5s'\n";
    let store = "[store.sqlite]\npath = 'onceward.db'\n";
    let scene = Scene::new(&format!("{ORDERS}{store}[handler.sql]\n{statement}"));
    scene.write("orders.ndjson", "");
    assert_eq!(scene.execute("migrate @").code(), Some(0));
    let ended = scene.execute("check @");
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(ended.stdout.contains("handler.sql: ") && ended.stdout.contains("nowhere"), "{ended:?}");
}

#[test]
#[cfg(feature = "http")]
fn a_server_that_is_not_up_is_found() {
    let scene = Scene::new(&format!("{ORDERS}[store.memory]\n[handler.http]\nurl = 'http://127.0.0.1:1/'\n"));
    scene.write("orders.ndjson", "");
    let ended = scene.execute("check @");
    assert_eq!(ended.code(), Some(1), "{ended:?}");
    assert!(ended.stdout.contains("handler.http: ") && ended.stdout.contains("127.0.0.1:1"), "{ended:?}");
}

#[test]
fn a_right_that_is_missing_is_found() {
    use std::fs::{Permissions, set_permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let scene = Scene::charging("memory]", "{\"id\":1}\n");
    for (name, mode) in [("", 0o755), ("orders.ndjson", 0o600), ("onceward.toml", 0o644)] {
        set_permissions(scene.path(name), Permissions::from_mode(mode)).unwrap();
    }
    let mut command = scene.command("check @");
    if rustix::process::geteuid().is_root() {
        // Root has every right: this runs as an unprivileged user.
        command.uid(65_534);
    } else {
        set_permissions(scene.path("orders.ndjson"), Permissions::from_mode(0o000)).unwrap();
        set_permissions(scene.path(""), Permissions::from_mode(0o555)).unwrap();
    }
    let output = command.output().unwrap();
    set_permissions(scene.path(""), Permissions::from_mode(0o755)).unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    for key in ["source.file.path", "dead_letter.to"] {
        let told = format!(": {key}: ");
        assert!(
            text.lines().any(|line| line.starts_with("error: ") && line.contains(&told)),
            "{key}: {text}"
        );
    }
}

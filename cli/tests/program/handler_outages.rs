//! A handler that is not available for a while: no attempt is used, nothing is dead-lettered, and the backlog is handled
//! once it is back; a message that is refused meanwhile changes nothing of that.
//!
//! With `SLOW=1` the outage lasts two minutes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::Signal;

use super::scene::{ORDERS, Running, Scene, until, wait};

/// Two attempts, soon one after the other: an outage that used any would leave dead letters.
const RETRY: &str = "[retry]\nmax_attempts = 2\ninitial = '10ms'\nmax = '20ms'\n";

fn outage() -> Duration {
    Duration::from_secs(if std::env::var_os("SLOW").is_some() { 120 } else { 8 })
}

fn orders() -> String {
    let good = (0..60).map(|id| format!("{{\"id\":{id}}}\n"));
    good.chain(["{\"id\":\"bad\"}\n".to_owned()]).collect()
}

fn scene(handler: &str) -> Scene {
    let scene = Scene::new(&format!("{ORDERS}follow = true\n[store.memory]\n{handler}\n{RETRY}"));
    scene.write("orders.ndjson", "");
    scene
}

/// The end of each test: one line for each good message, all of them in the first attempt, and one dead letter.
fn all_is_handled(scene: &Scene, running: Running, effects: impl Fn() -> Vec<String>) {
    wait("the backlog", || effects().len() >= 60 && scene.lines("dead.ndjson").len() == 1);
    running.signal(Signal::TERM);
    let ended = running.end();
    assert_eq!(ended.code(), Some(0), "{ended:?}");
    let mut effects = effects();
    effects.sort();
    let mut expected: Vec<_> = (0..60).map(|id| format!("1 {{\"id\":{id}}}")).collect();
    expected.sort();
    assert_eq!(effects, expected, "{}", ended.stderr);
    let letters = scene.lines("dead.ndjson").concat();
    assert!(letters.contains("\"bad\"") || letters.contains("\\\"bad\\\""), "{letters}");
}

#[test]
#[cfg(feature = "http")]
fn a_server_that_refuses_connections() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let scene = scene(&format!("[handler.http]\nurl = 'http://{address}/orders'"));
    let running = scene.start(scene.command("run @"));
    wait("the start", || running.stderr().contains("the handler is not ready"));
    scene.write("orders.ndjson", &orders());
    std::thread::sleep(outage());
    assert_eq!(scene.lines("dead.ndjson").len(), 0, "{}", running.stderr());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let listener = until("the address is free", || TcpListener::bind(address).ok());
    std::thread::spawn({
        let seen = Arc::clone(&seen);
        move || {
            for connection in listener.incoming() {
                let seen = Arc::clone(&seen);
                std::thread::spawn(move || serve(connection.unwrap(), &seen));
            }
        }
    });
    all_is_handled(&scene, running, || seen.lock().unwrap().clone());
}

#[cfg(feature = "http")]
fn serve(connection: std::net::TcpStream, seen: &Mutex<Vec<String>>) {
    let mut from = BufReader::new(connection);
    loop {
        let (mut length, mut attempt) = (0, String::new());
        loop {
            let mut line = String::new();
            if from.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim_end().to_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
            if let Some(value) = line.strip_prefix("onceward-attempt: ") {
                attempt = value.to_owned();
            }
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body).unwrap();
        let body = String::from_utf8(body).unwrap();
        let status = if body.contains("bad") { "422 Unprocessable Content" } else { "200 OK" };
        if status.starts_with("200") {
            seen.lock().unwrap().push(format!("{attempt} {body}"));
        }
        write!(from.get_mut(), "HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n").unwrap();
    }
}

#[test]
fn a_program_that_is_missing() {
    let scene = scene("[handler.exec]\ncommand = ['./charge.sh']");
    let charge = "#!/bin/sh\no=$(cat)\ncase $o in *bad*) exit 65;; esac\necho \"$ONCEWARD_ATTEMPT $o\" >> effects.log\n";
    let install = || {
        scene.write("new.sh", charge);
        std::fs::set_permissions(scene.path("new.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(scene.path("new.sh"), scene.path("charge.sh")).unwrap();
    };
    install();
    let running = scene.start(scene.command("run @"));
    wait("the start", || running.stderr().contains("pipeline started"));
    std::fs::remove_file(scene.path("charge.sh")).unwrap();
    scene.write("orders.ndjson", &orders());
    std::thread::sleep(outage());
    assert_eq!((scene.effects().len(), scene.lines("dead.ndjson").len()), (0, 0), "{}", running.stderr());
    install();
    all_is_handled(&scene, running, || scene.effects());
}

/// It ends at once, as one whose import fails, as long as there is a file of this name.
const WORKER: &str = r#"
import json, os, sys
if os.path.exists("down"):
    sys.exit("ImportError: no module named billing")
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    answer = {"id": request["id"], "ok": "bad" not in request["payload"], "retry": False}
    if answer["ok"]:
        with open("effects.log", "a") as effects:
            effects.write(f"{request['attempt']} {request['payload']}\n")
    print(json.dumps(answer), flush=True)
"#;

#[test]
fn a_worker_that_does_not_start() {
    for ready in ["true", "false"] {
        let scene = scene(&format!("[handler.worker]\ncommand = ['python3', 'w.py']\nready = {ready}"));
        scene.write("w.py", WORKER);
        scene.write("down", "");
        let running = scene.start(scene.command("run @"));
        wait("the start", || running.stderr().contains("pipeline started"));
        scene.write("orders.ndjson", &orders());
        std::thread::sleep(outage());
        assert_eq!((scene.effects().len(), scene.lines("dead.ndjson").len()), (0, 0), "{}", running.stderr());
        std::fs::remove_file(scene.path("down")).unwrap();
        all_is_handled(&scene, running, || scene.effects());
    }
}

#[test]
fn a_reader_of_standard_output_that_goes_away_ends_the_run_quietly() {
    let scene = Scene::new(&format!("{ORDERS}[store.memory]\n[handler.stdout]\n{RETRY}"));
    let orders: String = (0..5_000).map(|id| format!("{{\"id\":{id}}}\n")).collect();
    scene.write("orders.ndjson", &orders);
    let mut child = scene
        .command("run @")
        .stdout(std::process::Stdio::piped())
        .stderr(std::fs::File::create(scene.path("log")).unwrap())
        .spawn()
        .unwrap();
    let mut first = String::new();
    BufReader::with_capacity(16, child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    let status = until("the program ends", || child.try_wait().unwrap());
    let log = scene.lines("log").join("\n");
    assert_eq!(status.code(), Some(0), "{log}");
    assert_eq!(scene.lines("dead.ndjson").len(), 0, "{log}");
    assert!(!log.contains("ERROR"), "{log}");
}

#[test]
fn a_run_that_ends_by_itself_fails_where_its_parts_cannot_be_opened() {
    let command = "[handler.exec]\ncommand = ['./charge.sh']\n";
    for (script, why) in
        [("#!/no/such/interpreter\n", "/no/such/interpreter"), ("#!/bin/sh\r\ntrue\r\n", "carriage return")]
    {
        let scene = Scene::new(&format!("{ORDERS}[store.memory]\n{command}"));
        scene.write("orders.ndjson", &orders());
        scene.write("charge.sh", script);
        std::fs::set_permissions(scene.path("charge.sh"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let ended = scene.execute("run @");
        assert_eq!(ended.code(), Some(78), "{ended:?}");
        assert!(ended.stderr.contains(why), "{ended:?}");
        assert_eq!(scene.lines("dead.ndjson").len(), 0);
        let checked = scene.execute("check @");
        assert!(checked.code() == Some(1) && checked.stdout.contains(why), "{checked:?}");
    }
}

#[test]
fn process_one_reaps_orphans() {
    let scene = Scene::new(&format!(
        "{ORDERS}follow = true\n[store.memory]\n[handler.exec]\ncommand = ['sh', '-c', '{}']\n",
        "setsid sleep 0.1 & echo done >> effects.log; ps -e -o stat= > processes"
    ));
    scene.write("orders.ndjson", &orders());
    let program = scene.command("run @");
    let mut command = std::process::Command::new("unshare");
    command.args(["--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]);
    let possible = std::process::Command::new("unshare")
        .args(["--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "true"])
        .output()
        .is_ok_and(|output| output.status.success());
    // Where this user may not create a process namespace there is nothing to test.
    if !possible {
        return;
    }
    command
        .arg(program.get_program())
        .args(program.get_args())
        .current_dir("/")
        .stdin(std::process::Stdio::null());
    let running = scene.start(command);
    wait("all effects", || scene.effects().len() >= 61);
    // One more message, whose handler looks at all processes of the namespace once the orphans have ended.
    std::thread::sleep(Duration::from_secs(2));
    scene.write("processes", "");
    scene.append("orders.ndjson", "{\"id\":\"last\"}\n");
    wait("the last effect", || scene.effects().len() >= 62 && !scene.lines("processes").is_empty());
    let zombies = scene.lines("processes").iter().filter(|stat| stat.starts_with('Z')).count();
    assert!(zombies <= 1, "{:?}", scene.lines("processes"));
    drop(running);
}

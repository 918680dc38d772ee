//! The status page and the report of `onceward observe` in a real browser: figures, content security policy, color schemes, and memory
//! over a thousand updates.
//!
//! ```sh
//! ONCEWARD_WRITE_SCREENSHOTS=1 cargo test -p onceward-cli --test browser    # writes docs/images
//! ```
#![cfg(feature = "telemetry")]
#![allow(clippy::unwrap_used)]

#[cfg(feature = "sqlite")]
mod actions;
mod chromium;
#[path = "../program/scene.rs"]
#[allow(dead_code)]
mod scene;

use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;

use chromium::Page;
use scene::{ORDERS, Running, Scene, until, wait};

/// Orders whose id ends with 7 are refused.
const HANDLER: &str = r#"command = ["sh", "-c", 'read -r o || true; case $o in *7}) exit 65;; esac; echo "$o" >> effects.log']"#;

/// A run that follows a file of orders, and the address of its page.
fn run() -> (Scene, Running, String) {
    run_with("[store.memory]\n", HANDLER, "")
}

fn run_with(store: &str, handler: &str, telemetry: &str) -> (Scene, Running, String) {
    let tables = format!(
        "{ORDERS}follow = true\n{store}[handler.exec]\n{handler}\n[telemetry]\nlisten = '127.0.0.1:0'\n{telemetry}"
    );
    let scene = Scene::new(&tables);
    scene.write("orders.ndjson", "");
    let running = scene.start(scene.command("run @"));
    let address = until("the address", || {
        let log = running.stderr();
        let line = log.lines().find(|line| line.contains("/status"))?.to_owned();
        line.split("address=").nth(1).map(str::to_owned)
    });
    (scene, running, format!("http://{address}/"))
}

/// Appends orders, every fourth of them twice.
fn publish(scene: &Scene, ids: std::ops::Range<u32>) {
    let line = |id: u32| format!("{{\"id\":{id}}}\n").repeat(if id.is_multiple_of(4) { 2 } else { 1 });
    scene.append("orders.ndjson", &ids.map(line).collect::<String>());
}

/// Writes a picture for the README where the environment asks for it.
fn keep(name: &str, picture: &[u8]) {
    if std::env::var_os("ONCEWARD_WRITE_SCREENSHOTS").is_some() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/images");
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(name), picture).unwrap();
    }
}

/// Pictures in the light and the dark color scheme, which differ; of the page above the element `end`.
fn in_both_schemes(page: &mut Page, end: &str) -> [Vec<u8>; 2] {
    let mut in_scheme = |scheme| {
        page.prefer(scheme);
        let background = page.evaluate("getComputedStyle(document.body).backgroundColor");
        let end = page.evaluate(&format!("document.querySelector('{end}').getBoundingClientRect().top"));
        let picture = page.picture(end.as_f64().unwrap());
        assert!(picture.starts_with(b"\x89PNG") && picture.len() > 5_000, "{} bytes", picture.len());
        (background, picture)
    };
    let ((light, in_light), (dark, in_dark)) = (in_scheme("light"), in_scheme("dark"));
    assert_ne!(light, dark);
    [in_light, in_dark]
}

fn stop(running: Running) {
    running.signal(Signal::TERM);
    assert_eq!(running.end().code(), Some(0));
}

#[test]
fn the_status_page_shows_the_figures_in_both_schemes_and_keeps_to_its_policy() {
    let (scene, running, url) = run();
    let mut page = Page::open();
    page.load(&url);
    wait("it is ready", || page.text("state") == "ready");
    for batch in 0..16 {
        publish(&scene, batch * 20..(batch + 1) * 20);
        std::thread::sleep(std::time::Duration::from_millis(500));
    }
    wait("every order is counted", || {
        let counts = page.text("counts");
        ["received\t400", "handled\t288", "duplicates\t80", "dead lettered\t32"]
            .iter()
            .all(|row| counts.contains(row))
    });
    assert_eq!((page.text("scope"), page.text("work")), ("billing".to_owned(), "run".to_owned()));
    assert!(page.text("source").starts_with("up") && page.text("store") == "up", "{}", page.text("source"));
    assert!(
        page.text("ages").contains("at most 1 s") && page.text("ages").contains("ttl 8 d"),
        "{}",
        page.text("ages")
    );
    assert!(page.text("errors").contains("store-in-memory"), "{}", page.text("errors"));
    let letters = page.text("letters");
    assert!(letters.lines().count() == 20 && letters.contains("permanent"), "{letters}");
    assert_eq!(page.evaluate("document.querySelectorAll('#letters button').length"), 0, "there is no token");
    let points = "document.getElementById('line-handled').getAttribute('points').split(' ').length";
    wait("ten seconds of history", || page.evaluate(points).as_u64() >= Some(10));
    // What follows names the folder of the test.
    let [light, dark] = in_both_schemes(&mut page, "#errors-heading");
    keep("status-light.png", &light);
    keep("status-dark.png", &dark);

    assert_eq!(page.evaluate("violations"), Value::Array(Vec::new()));
    let inline = "const script = document.createElement('script'); script.textContent = 'globalThis.ran = true'; \
                  document.head.append(script); typeof ran";
    assert_eq!(page.evaluate(inline), "undefined", "an inline script ran");
    wait("the violation", || page.evaluate("violations").to_string().contains("script-src-elem"));

    stop(running);
    wait("the page notices", || page.text("state").starts_with("no answer from the process"));
}

#[test]
fn a_thousand_updates_leave_the_page_as_large_as_it_was() {
    let (scene, running, url) = run();
    let mut page = Page::open();
    page.load(&url);
    wait("it is ready", || page.text("state") == "ready");
    publish(&scene, 0..400);
    let many = "(async () => { for (let i = 0; i < 100; i += 1) await update(); })()";
    page.evaluate(many);
    wait("the letters", || page.evaluate("document.getElementById('letters').children.length") == 20);
    let (nodes, heap) = page.memory();
    for batch in 0..10 {
        publish(&scene, 1_000 + batch * 10..1_010 + batch * 10);
        page.evaluate(many);
    }
    let (nodes_after, heap_after) = page.memory();
    assert!(nodes_after <= nodes + 10, "{nodes} -> {nodes_after} nodes");
    assert!(heap_after <= heap + (256 << 10), "{heap} -> {heap_after} bytes");
    stop(running);
}

#[test]
fn the_report_of_an_observation_is_drawn_without_a_script() {
    let scene = Scene::new(&format!("{ORDERS}[store.memory]\n[handler.exec]\n{HANDLER}\n"));
    scene.write("orders.ndjson", "");
    publish(&scene, 0..40);
    let file = scene.path("report.html");
    let ended = scene.execute(&format!("observe --html {} @", file.display()));
    assert_eq!(ended.code(), Some(3), "some are dead-lettered: {ended:?}");
    let mut page = Page::open();
    page.load(&format!("file://{}", file.display()));
    wait("the report", || page.evaluate("document.querySelectorAll('svg rect').length").as_u64() >= Some(6));
    let text = page.evaluate("document.body.innerText").to_string();
    for said in ["Duplicates of billing", "10 of 50 deliveries", "Recommended TTL", "Not in these figures"] {
        assert!(text.contains(said), "{said}: {text}");
    }
    in_both_schemes(&mut page, "figure");
    assert_eq!(page.evaluate("violations"), Value::Array(Vec::new()));
}

//! Dead letters are redriven and purged from the page, with the token.

use serde_json::{Value, json};

use crate::chromium::Page;
use crate::scene::{Scene, until, wait};
use crate::{in_both_schemes, run_with, stop};

const TOKEN: &str = "0123456789abcdef-a-token";

/// Orders are refused until the file `fixed` is there.
const HANDLER: &str =
    r#"command = ["sh", "-c", 'o=$(cat); test -e fixed || exit 65; echo "$o" >> effects.log']"#;

/// The texts of the buttons, or of what was done, of each letter.
fn cells(page: &mut Page) -> Value {
    page.evaluate("[...(document.getElementById('letters')?.children ?? [])].map((row) => row.lastElementChild.innerText.trim())")
}

/// Opens the dialog of the letter at `place`, fills it in and sends it.
fn ask(page: &mut Page, place: usize, action: &str, token: &str, why: &str, by: &str) {
    page.evaluate(&format!("document.querySelectorAll('#letters [data-action={action}]')[{place}].click()"));
    assert_eq!(page.evaluate("document.getElementById('action').open"), true);
    for (id, text) in [("token", token), ("why", why), ("by", by)] {
        page.evaluate(&format!("document.getElementById('action-{id}').value = {}", json!(text)));
    }
    page.evaluate("document.getElementById('action-do').click()");
}

fn close(page: &mut Page) {
    page.evaluate("document.getElementById('action-close').click()");
    assert_eq!(page.evaluate("document.getElementById('action').open"), false);
    wait("the token is cleared", || page.evaluate("document.getElementById('action-token').value") == "");
}

fn log(scene: &Scene) -> Vec<Value> {
    let output = scene.command("dlq log --json @").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_letter_is_redriven_and_another_purged_from_the_page() {
    let store = "[store.sqlite]\npath = 'onceward.db'\n";
    let (scene, running, url) = run_with(store, HANDLER, &format!("token = '{TOKEN}'\n"));
    let mut page = Page::open();
    page.load(&url);
    wait("it is ready", || page.text("state") == "ready");
    scene.append("orders.ndjson", "{\"id\":1}\n{\"id\":2}\n");
    let buttons = json!(["Redrive Purge", "Redrive Purge"]);
    wait("the letters", || cells(&mut page) == buttons);
    scene.write("fixed", "");

    ask(&mut page, 0, "redrive", "a wrong token", "fixed", "ann");
    wait("the refusal", || page.text("action-result") == "the token is wrong");
    close(&mut page);
    assert!(log(&scene).is_empty() && scene.effects().is_empty());

    ask(&mut page, 0, "redrive", TOKEN, "fixed", "ann");
    wait("the result", || page.text("action-result").starts_with("redriven"));
    close(&mut page);
    until("its effect", || scene.effects().pop());
    wait("what was done", || cells(&mut page) == json!(["redriven", "Redrive Purge"]));

    // The page still has the token.
    page.evaluate("document.querySelector('#letters [data-action=purge]').click()");
    assert_eq!(page.evaluate("document.getElementById('action-token').value"), TOKEN);
    in_both_schemes(&mut page, "#letters-heading");
    let background = "getComputedStyle(document.getElementById('action')).backgroundColor";
    page.prefer("light");
    let light = page.evaluate(background);
    page.prefer("dark");
    assert_ne!(page.evaluate(background), light);
    close(&mut page);
    ask(&mut page, 0, "purge", TOKEN, "a test", "");
    wait("the result", || page.text("action-result") == "purged");
    close(&mut page);
    wait("what was done", || cells(&mut page) == json!(["redriven", "purged"]));

    let entries: Vec<_> =
        log(&scene).iter().map(|entry| json!([entry["action"], entry["user"], entry["why"]])).collect();
    let expected = [
        json!(["redrive", "ann, status page", "fixed"]),
        json!(["redriven", "ann, status page", "fixed"]),
        json!(["purged", "status page", "a test"]),
    ];
    assert_eq!(entries, expected);
    let kept = page.evaluate("[localStorage.length, sessionStorage.length, document.cookie, location.href]");
    assert_eq!(kept, json!([0, 0, "", url]));
    assert_eq!(
        page.evaluate("document.body.outerHTML").as_str().map(|text| text.contains(TOKEN)),
        Some(false)
    );
    assert_eq!(page.evaluate("violations"), json!([]));
    stop(running);
    assert_eq!(scene.effects().len(), 1, "{:?}", scene.effects());
}

#[test]
fn a_page_without_a_token_has_no_action() {
    let store = "[store.sqlite]\npath = 'onceward.db'\n";
    let (scene, running, url) = run_with(store, HANDLER, "");
    let mut page = Page::open();
    page.load(&url);
    scene.append("orders.ndjson", "{\"id\":1}\n");
    wait("the letter", || cells(&mut page) == json!([""]));
    assert_eq!(page.evaluate("document.querySelectorAll('#letters button').length"), 0);
    stop(running);
}

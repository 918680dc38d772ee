//! Chromium without a window, controlled through its DevTools protocol over a pair of pipes: [`Browser`], [`Page`].

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// Longer than any command takes.
const PATIENCE: Duration = Duration::from_secs(120);

/// The width of a page, in pixels.
const WIDTH: u32 = 1_000;

/// Keeps the page's violations of its content security policy.
const WATCH: &str = "globalThis.violations = []; \
    document.addEventListener('securitypolicyviolation', (event) => violations.push(event.effectiveDirective));";

/// A browser with a profile of its own; killed when it is dropped.
pub(crate) struct Browser {
    child: Child,
    commands: File,
    messages: Receiver<Value>,
    sent: u64,
    _profile: TempDir,
}

/// One tab.
pub(crate) struct Page {
    browser: Browser,
    session: String,
}

impl Browser {
    /// Starts the browser. Debian's package `chromium` must be installed.
    fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let (commands, answers) = (profile.path().join("commands"), profile.path().join("answers"));
        let made = Command::new("mkfifo").arg(&commands).arg(&answers).status().unwrap();
        assert!(made.success());
        // The protocol is on the descriptors 3 and 4. The sandbox does not run as root, which containers are.
        let script = "exec chromium --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run \
                      --disable-background-networking --disable-component-update --hide-scrollbars \
                      --user-data-dir=\"$0\" --remote-debugging-pipe about:blank 3<\"$1\" 4>\"$2\"";
        let child = Command::new("sh")
            .args(["-c", script])
            .args([&profile.path().join("profile"), &commands, &answers])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let commands = OpenOptions::new().write(true).open(&commands).unwrap();
        let messages = receive(&answers);
        Self { child, commands, messages, sent: 0, _profile: profile }
    }

    fn command(&mut self, session: Option<&str>, method: &str, parameters: &Value) -> Value {
        self.sent += 1;
        let mut command = json!({"id": self.sent, "method": method, "params": parameters});
        if let Some(session) = session {
            command["sessionId"] = session.into();
        }
        let mut bytes = serde_json::to_vec(&command).unwrap();
        bytes.push(0);
        self.commands.write_all(&bytes).expect("chromium runs: install Debian's package chromium");
        loop {
            let message = self.messages.recv_timeout(PATIENCE);
            let message =
                message.unwrap_or_else(|_| panic!("chromium did not answer {method}: is it installed?"));
            if message["id"] == self.sent {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].clone();
            }
        }
    }
}

/// Reads messages, which end with a zero byte, in a thread that ends with the browser.
fn receive(answers: &Path) -> Receiver<Value> {
    let mut answers = BufReader::new(File::open(answers).unwrap());
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut message = Vec::new();
        while answers.read_until(0, &mut message).is_ok_and(|bytes| bytes > 0) {
            message.pop();
            if serde_json::from_slice(&message).map(|message: Value| sender.send(message)).is_err() {
                break;
            }
            message.clear();
        }
    });
    receiver
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Page {
    /// A tab that notes the violations of the policies of its pages.
    pub(crate) fn open() -> Self {
        let mut browser = Browser::start();
        let target = browser.command(None, "Target.createTarget", &json!({"url": "about:blank"}));
        let attach = json!({"targetId": target["targetId"], "flatten": true});
        let attached = browser.command(None, "Target.attachToTarget", &attach);
        let session = attached["sessionId"].as_str().unwrap().to_owned();
        let mut page = Self { browser, session };
        for method in ["Page.enable", "Runtime.enable", "Performance.enable", "HeapProfiler.enable"] {
            page.command(method, &json!({}));
        }
        page.command("Page.addScriptToEvaluateOnNewDocument", &json!({"source": WATCH}));
        let size = json!({"width": WIDTH, "height": 900, "deviceScaleFactor": 1, "mobile": false});
        page.command("Emulation.setDeviceMetricsOverride", &size);
        page
    }

    fn command(&mut self, method: &str, parameters: &Value) -> Value {
        self.browser.command(Some(&self.session), method, parameters)
    }

    /// Loads `url`; its load may still go on.
    pub(crate) fn load(&mut self, url: &str) {
        let loaded = self.command("Page.navigate", &json!({"url": url}));
        assert!(loaded["errorText"].is_null(), "{loaded}");
    }

    /// `light` or `dark`.
    pub(crate) fn prefer(&mut self, scheme: &str) {
        let features = json!({"features": [{"name": "prefers-color-scheme", "value": scheme}]});
        self.command("Emulation.setEmulatedMedia", &features);
    }

    /// The value of a script, which may be that of a promise.
    pub(crate) fn evaluate(&mut self, script: &str) -> Value {
        let parameters = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        let answer = self.command("Runtime.evaluate", &parameters);
        assert!(answer["exceptionDetails"].is_null(), "{script}: {answer}");
        answer["result"]["value"].clone()
    }

    /// The text of the element `id`.
    pub(crate) fn text(&mut self, id: &str) -> String {
        let text = self.evaluate(&format!("document.getElementById('{id}')?.innerText ?? ''"));
        text.as_str().unwrap().to_owned()
    }

    /// Nodes and bytes of the heap, without garbage.
    pub(crate) fn memory(&mut self) -> (u64, u64) {
        for _ in 0..3 {
            self.command("HeapProfiler.collectGarbage", &json!({}));
        }
        let metrics = self.command("Performance.getMetrics", &json!({}));
        let value = |name: &str| {
            let metrics = metrics["metrics"].as_array().unwrap();
            let metric = metrics.iter().find(|metric| metric["name"] == name).unwrap();
            metric["value"].as_f64().unwrap()
        };
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
        (value("Nodes") as u64, value("JSHeapUsedSize") as u64)
    }

    /// A picture of the page from its top to `height`, as PNG.
    pub(crate) fn picture(&mut self, height: f64) -> Vec<u8> {
        use base64::Engine as _;
        let clip = json!({"x": 0, "y": 0, "width": WIDTH, "height": height, "scale": 1});
        let shot = self.command("Page.captureScreenshot", &json!({"format": "png", "clip": clip}));
        base64::engine::general_purpose::STANDARD.decode(shot["data"].as_str().unwrap()).unwrap()
    }
}

//! The program that started this one: killed on order, or outlived.

use std::time::Duration;

use rustix::process::{Pid, Signal, getppid, kill_process};

/// The only program that is ever killed.
const UNDER_TEST: &str = "onceward-under-test";

/// Kills the parent, if it is the program under test and still there.
pub(crate) fn kill() {
    if let Some(parent) = under_test() {
        let _ = kill_process(parent, Signal::KILL);
    }
}

/// Returns once the parent has exited.
pub(crate) fn outlive() {
    while under_test().is_some() {
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn under_test() -> Option<Pid> {
    let parent = getppid()?;
    let program = std::fs::read_link(format!("/proc/{}/exe", parent.as_raw_nonzero())).ok()?;
    (program.file_name()?.to_str()? == UNDER_TEST).then_some(parent)
}

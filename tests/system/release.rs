//! The program that people run has no crash points: only the builds of the tests have them.

use std::fs;
use std::path::PathBuf;

use crate::stage::ONCEWARD;

/// The variable that arms them is named in the program if, and only if, it has them.
const NAME: &str = "ONCEWARD_FAILPOINTS";

fn names_them(program: &[u8]) -> bool {
    program.windows(NAME.len()).any(|window| window == NAME.as_bytes())
}

#[test]
fn the_sign_by_which_crash_points_are_told_is_in_a_build_that_has_them() {
    assert!(names_them(&fs::read(ONCEWARD).expect("the program under test")));
}

/// A release build, or the one that `ONCEWARD_PLAIN_BINARY` names, is looked at; `scripts/test` looks at the build of
/// README's first command. Without either there is nothing to look at, and this test reports that.
#[test]
#[allow(clippy::print_stderr)]
fn a_build_for_people_has_no_crash_points() {
    let release = || PathBuf::from(ONCEWARD).with_file_name("../release/onceward");
    let path = std::env::var_os("ONCEWARD_PLAIN_BINARY").map_or_else(release, PathBuf::from);
    match fs::read(&path) {
        Ok(program) => assert!(!names_them(&program), "{} has crash points", path.display()),
        Err(_) => eprintln!("not looked at: there is no {}", path.display()),
    }
}

//! `docs/reference/exit-codes.md`, from the documentation of the codes.

use onceward_cli::exit::Exit;

use super::{GENERATED, cell, compare};

/// Number and meaning of each code, as the source documents them.
fn codes() -> Vec<(u8, String)> {
    let source = include_str!("../../src/exit.rs");
    let (_, body) = source.split_once("pub enum Exit {").unwrap();
    let (body, _) = body.split_once("\n}").unwrap();
    let (mut found, mut doc) = (Vec::new(), String::new());
    for line in body.lines().map(str::trim) {
        if let Some(text) = line.strip_prefix("///") {
            doc.push_str(text);
        } else if let Some((_, number)) = line.split_once(" = ") {
            found.push((number.trim_end_matches(',').parse().unwrap(), std::mem::take(&mut doc)));
        }
    }
    found
}

#[test]
fn exit_codes_are_current() {
    let codes = codes();
    for exit in [Exit::Done, Exit::Failed, Exit::Usage, Exit::DeadLetters, Exit::Config, Exit::DrainDeadline]
    {
        assert!(codes.iter().any(|(number, _)| *number == exit.code()), "{exit:?} was not found");
    }
    let rows: String = codes.iter().map(|(number, doc)| format!("| {number} | {} |\n", cell(doc))).collect();
    let page = format!(
        "{GENERATED}# Exit codes\n\nOf every command of the program. Scripts may rely on them.\n\n| code | meaning |\n|---|---|\n{rows}\nA \
         closed pipe on standard output ends a command quietly, with 0. In a systemd unit, `RestartPreventExitStatus=78` keeps a wrong\n\
         configuration from being started again and again.\n"
    );
    compare("reference/exit-codes.md", &page);
}

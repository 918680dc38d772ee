//! The reference page of the codes of findings.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use onceward_cli::config::findings;
use regex_lite::Regex;

const INTRODUCTION: &str = "# Findings of `onceward check`\n\n\
    Each warning and each error of `onceward check` has a code. Codes stay the same from version to version, for alert rules and \
    exceptions: `onceward check --json FILE` prints `severity`, `code`, `documentation`, `key`, `line`, `message` and `fix` of each \
    finding. Warnings of the start check of a run have the field `code` in their log lines.\n";

#[test]
fn the_page_of_findings_is_generated() {
    let mut page = format!("{}{INTRODUCTION}", super::GENERATED);
    for finding in findings() {
        write!(page, "\n## {}\n\n{}\n\n*Fix:* {}\n", finding.code, finding.meaning, finding.fix).unwrap();
    }
    super::compare("reference/findings.md", &page);
}

#[test]
fn a_code_has_one_meaning_and_the_form_of_a_code() {
    let codes: Vec<_> = findings().into_iter().map(|finding| finding.code).collect();
    let unique: BTreeSet<_> = codes.iter().collect();
    assert_eq!(unique.len(), codes.len(), "{codes:?}");
    let form = Regex::new("^[a-z][a-z0-9]*(-[a-z0-9]+)*$").unwrap();
    assert!(codes.iter().all(|code| form.is_match(code)), "{codes:?}");
}

/// The codes in the sources are those of the page: each is explained, and none is explained that is reported nowhere.
#[test]
fn every_code_that_is_reported_is_explained_and_the_other_way_round() {
    let call = r#"(?:(?:Advice|Finding)::(?:warning|error)\(|\.code\(|into_warning\(|config\.warn\(|Finding::warning\(\s*config,|warn\()\s*"([a-z0-9-]+)""#;
    let kind = r#"ErrorKind::\w+ => "([a-z]+)""#;
    let (call, kind) = (Regex::new(call).unwrap(), Regex::new(kind).unwrap());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut reported = BTreeSet::from(["failed".to_owned(), "invalid-configuration".to_owned()]);
    let mut folders: Vec<_> =
        ["src", "plugin/src", "cli/src", "adapters"].map(|folder| root.join(folder)).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.extend((!path.ends_with("tests") && !path.ends_with("examples")).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                // Code in documentation is an example.
                let text = fs::read_to_string(&path).unwrap();
                let text: String = text
                    .lines()
                    .filter(|line| !line.trim_start().starts_with("//"))
                    .fold(String::new(), |text, line| text + line + "\n");
                reported.extend(call.captures_iter(&text).map(|found| found[1].to_owned()));
                if path.ends_with("finding_doc.rs") {
                    reported.extend(kind.captures_iter(&text).map(|found| found[1].to_owned()));
                }
            }
        }
    }
    let explained: BTreeSet<_> = findings().into_iter().map(|finding| finding.code.to_owned()).collect();
    assert_eq!(reported, explained);
}

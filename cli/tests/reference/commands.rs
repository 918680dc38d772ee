//! `docs/reference/commands.md` and the man pages, from the definition of the command line.

use std::fmt::Write;

use clap::Command;
use onceward_cli::args::CommandLine;

use super::{GENERATED, cell, compare};

/// The definition as it is printed: usage and global flags are complete.
fn definition() -> Command {
    let mut command = CommandLine::clap().disable_help_subcommand(true);
    command.build();
    command
}

fn describe(command: &Command, path: &str, page: &mut String) {
    let path = format!("{path} {}", command.get_name());
    let path = path.trim();
    let subcommands: Vec<_> = command.get_subcommands().collect();
    if subcommands.is_empty() {
        let mut command = command.clone();
        let usage = command.render_usage().to_string();
        let usage = usage.trim_start_matches("Usage: ").lines().map(str::trim).collect::<Vec<_>>().join("\n");
        let about =
            command.get_long_about().or(command.get_about()).map(ToString::to_string).unwrap_or_default();
        writeln!(page, "## {path}\n\n{}\n\n```text\n{usage}\n```\n", about.trim()).unwrap();
        let arguments: Vec<_> = command
            .get_arguments()
            .filter(|argument| !argument.is_hide_set() && argument.get_id() != "help")
            .collect();
        if !arguments.is_empty() {
            page.push_str("| argument | |\n|---|---|\n");
        }
        for argument in &arguments {
            let help =
                argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
            let default =
                argument.get_default_values().iter().map(|value| value.to_string_lossy()).collect::<Vec<_>>();
            let default = match default.as_slice() {
                [] => String::new(),
                values if argument.get_action().takes_values() => format!(" Default: `{}`", values.join(" ")),
                _ => String::new(),
            };
            let values = argument.get_possible_values();
            let names: Vec<_> = values.iter().map(|value| format!("`{}`", value.get_name())).collect();
            let values = match argument.get_action().takes_values() && !names.is_empty() {
                true => format!(" One of {}.", names.join(", ")),
                false => String::new(),
            };
            let name = cell(&argument.to_string());
            writeln!(page, "| `{name}` | {}{values}{default} |", cell(&help)).unwrap();
        }
        if !arguments.is_empty() {
            page.push('\n');
        }
    }
    for subcommand in subcommands {
        describe(subcommand, path, page);
    }
}

#[test]
fn commands_are_current() {
    let mut page = format!(
        "{GENERATED}# Commands\n\nAs `onceward COMMAND --help` prints them. The same is in the man pages of [docs/man](https://github.com/onceward/onceward/tree/main/docs/man), and in the \
         completions\nthat `onceward completions SHELL` prints. Exit codes are on [a page of their own](exit-codes.md).\n\n"
    );
    describe(&definition(), "", &mut page);
    compare("reference/commands.md", page.trim_end_matches('\n').to_owned().as_str().trim_end());
}

fn man(command: &Command, parent: &str) -> usize {
    let name = match parent {
        "" => command.get_name().to_owned(),
        parent => format!("{parent}-{}", command.get_name()),
    };
    let subcommands: Vec<_> = command.get_subcommands().collect();
    // The adapters of a build do not belong into a page that is checked in.
    let titled = command.clone().long_version(env!("CARGO_PKG_VERSION"));
    let mut text = Vec::new();
    clap_mangen::Man::new(titled).date("").manual("Onceward").source("onceward").render(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    let lines: Vec<_> = text.lines().map(str::trim_end).collect();
    compare(&format!("man/{name}.1"), &format!("{}\n", lines.join("\n")));
    1 + subcommands.into_iter().map(|subcommand| man(subcommand, &name)).sum::<usize>()
}

#[test]
fn man_pages_are_current() {
    let pages = man(&definition(), "");
    let found = std::fs::read_dir(super::path("man")).unwrap().count();
    assert_eq!(found, pages, "docs/man holds pages of commands that are gone");
}

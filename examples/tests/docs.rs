//! The documentation agrees with itself and with the code: links lead somewhere, excerpts are verbatim, and the book holds
//! every page.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Prefixes of links to files of the repository that must also work outside of it.
const REPOSITORY: [&str; 2] =
    ["https://github.com/onceward/onceward/blob/main/", "https://github.com/onceward/onceward/tree/main/"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// All markdown files of the repository, by their paths from its root.
fn pages() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && name != "node_modules" && !name.starts_with('.') {
                walk(&path, found);
            } else if name.ends_with(".md") {
                found.push(path);
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    walk(&root, &mut found);
    found.iter().map(|path| path.strip_prefix(&root).unwrap().to_owned()).collect()
}

fn read(page: &Path) -> String {
    fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{}: {error}", page.display()))
}

/// The lines outside of code blocks, without code spans.
fn prose(text: &str) -> String {
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if !fenced {
            for (number, part) in line.split('`').enumerate() {
                // A code span may be a link's text; only what it says is left out.
                prose.push_str(if number % 2 == 0 { part } else { "code" });
            }
            prose.push('\n');
        }
    }
    prose
}

/// The targets of a page's links: inline ones and definitions.
fn targets(text: &str) -> Vec<String> {
    let prose = prose(text);
    let mut found = Vec::new();
    for (at, _) in prose.match_indices("](") {
        let target = prose[at + 2..].split([')', ' ', '\n']).next().unwrap();
        found.push(target.to_owned());
    }
    for line in prose.lines() {
        if let Some((_, target)) = line.strip_prefix('[').and_then(|rest| rest.split_once("]: ")) {
            found.push(target.split(' ').next().unwrap().to_owned());
        }
    }
    found
}

/// As GitHub, mdBook and rustdoc make it of a heading, near enough for the headings here.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_')).collect()
}

fn anchors(text: &str) -> BTreeSet<String> {
    let mut fenced = false;
    let outside = |line: &&str| {
        let fence = line.starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    };
    let headings = text.lines().filter(outside).filter_map(|line| {
        let text = line.trim_start_matches('#');
        (text.len() < line.len()).then(|| anchor(&text.replace('`', "")))
    });
    headings.collect()
}

/// `page`'s link `target` as a path from the root. `None` if it leads out of the repository.
fn resolve(page: &Path, target: &str) -> Option<PathBuf> {
    if let Some(path) = REPOSITORY.iter().find_map(|prefix| target.strip_prefix(prefix)) {
        return Some(path.into());
    }
    if target.contains("://") || target.starts_with("mailto:") || target.starts_with("crate::") {
        return None;
    }
    let mut path = PathBuf::new();
    for part in page.parent().unwrap().join(target).components() {
        match part {
            Component::ParentDir => {
                assert!(path.pop(), "{}: {target} leads out of the repository", page.display())
            }
            part => path.push(part),
        }
    }
    Some(path)
}

#[test]
fn every_link_leads_somewhere() {
    let mut broken = Vec::new();
    let mut looked_at = 0;
    for page in pages() {
        let text = read(&page);
        for target in targets(&text) {
            let (path, fragment) =
                target.split_once('#').map_or((&*target, None), |(path, at)| (path, Some(at)));
            let found = if path.is_empty() { Some(page.clone()) } else { resolve(&page, path) };
            let Some(found) = found else { continue };
            looked_at += 1;
            let lost = match fragment {
                _ if !root().join(&found).exists() => true,
                Some(at) if found.extension().is_some_and(|end| end == "md") => {
                    !anchors(&read(&found)).contains(at)
                }
                _ => false,
            };
            if lost {
                broken.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
    assert!(looked_at > 100, "only {looked_at} links were found");
}

#[test]
fn every_reference_has_a_definition() {
    let mut missing = Vec::new();
    for page in pages().into_iter().filter(|page| page.starts_with("docs")) {
        let prose = prose(&read(&page));
        for (at, _) in prose.match_indices("][") {
            let label = prose[at + 2..].split(']').next().unwrap();
            if !prose.contains(&format!("\n[{label}]: ")) {
                missing.push(format!("{}: [{label}]", page.display()));
            }
        }
    }
    assert!(missing.is_empty(), "references without a definition:\n{}", missing.join("\n"));
}

#[test]
fn links_of_chapters_work_in_rustdoc() {
    let in_rustdoc = read(Path::new("src/guide_links.md"));
    let chapters =
        pages().into_iter().filter(|page| page.starts_with("docs/guide") && !page.ends_with("README.md"));
    let mut relative = Vec::new();
    for page in chapters {
        let text = read(&page);
        for (at, _) in prose(&text).match_indices("](") {
            relative.push(format!("{}: {}", page.display(), &prose(&text)[at..].lines().next().unwrap()));
        }
        for line in text.lines().filter(|line| line.starts_with('[')) {
            let Some((label, target)) = line.split_once(": ") else { continue };
            if !target.contains("://") && !in_rustdoc.contains(&format!("{label}: ")) {
                relative.push(format!("{}: {line}", page.display()));
            }
        }
    }
    assert!(
        relative.is_empty(),
        "write links of a chapter as [text][label], with a label of src/guide_links.md:\n{}",
        relative.join("\n")
    );
}

#[test]
fn excerpts_are_verbatim() {
    let mut count = 0;
    for page in pages() {
        let text = read(&page);
        let mut rest = text.as_str();
        while let Some((_, after)) = rest.split_once("\n<!-- from ") {
            let (source, after) = after.split_once(" -->\n").unwrap();
            let (_, block) = after.split_once('\n').unwrap();
            let (block, after) = block.split_once("```").unwrap();
            let found = read(Path::new(source)).contains(block);
            assert!(found, "{}: this is not in {source}:\n{block}", page.display());
            (rest, count) = (after, count + 1);
        }
    }
    assert!(count > 3, "only {count} excerpts were found");
}

#[test]
fn the_book_holds_every_page_once() {
    let summary = read(Path::new("docs/SUMMARY.md"));
    let mut listed = targets(&summary);
    listed.sort();
    let inside = |page: &PathBuf| {
        let page = page.strip_prefix("docs").ok()?;
        let other = ["SUMMARY.md", "decisions", "internals"].iter().any(|other| page.starts_with(other));
        (!other).then(|| page.to_string_lossy().into_owned())
    };
    let mut written: Vec<_> = pages().iter().filter_map(inside).collect();
    written.sort();
    assert_eq!(listed, written, "docs/SUMMARY.md and the folder docs");
}

#[test]
fn relative_links_of_the_book_stay_inside() {
    let listed: BTreeSet<_> = targets(&read(Path::new("docs/SUMMARY.md"))).into_iter().collect();
    let mut outside = Vec::new();
    for page in &listed {
        let page = Path::new("docs").join(page);
        for target in targets(&read(&page)) {
            let path = target.split('#').next().unwrap();
            if path.is_empty() || target.contains("://") {
                continue;
            }
            let found = resolve(&page, path).unwrap();
            let inside =
                found.strip_prefix("docs").is_ok_and(|found| listed.contains(&*found.to_string_lossy()));
            if !inside {
                outside.push(format!("{}: {target}", page.display()));
            }
        }
    }
    assert!(outside.is_empty(), "write these with {}:\n{}", REPOSITORY[0], outside.join("\n"));
}

#[test]
fn every_chapter_is_in_rustdoc() {
    let guide = read(Path::new("src/guide.rs"));
    for page in
        pages().into_iter().filter(|page| page.starts_with("docs/guide") && !page.ends_with("README.md"))
    {
        let name = page.file_name().unwrap().to_string_lossy().into_owned();
        assert!(guide.contains(&format!("= \"{name}\";")), "{name} is not in src/guide.rs");
    }
}

/// Files of the crates' sources, without those for tests.
fn sources() -> String {
    fn walk(folder: &Path, all: &mut String) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, all);
            } else if path.extension().is_some_and(|end| end == "rs") {
                all.push_str(&fs::read_to_string(path).unwrap());
            }
        }
    }
    let root = root();
    let mut all = String::new();
    walk(&root.join("src"), &mut all);
    for adapter in fs::read_dir(root.join("adapters")).unwrap() {
        walk(&adapter.unwrap().path().join("src"), &mut all);
    }
    all
}

#[test]
fn every_header_of_ours_is_in_the_reference() {
    let sources = sources();
    let constants = sources.lines().filter_map(|line| {
        let (declared, value) = line.trim().split_once(": &str = \"onceward-")?;
        let is_constant = declared.contains("const ") && value.ends_with("\";");
        is_constant.then(|| format!("onceward-{}", value.trim_end_matches("\";")))
    });
    let declared: BTreeSet<_> = constants.filter(|name| name != "onceward-").collect();
    let page = read(Path::new("docs/reference/headers.md"));
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let described: BTreeSet<_> =
        rows.filter(|name| name.starts_with("onceward-")).map(str::to_owned).collect();
    assert!(declared.len() > 20, "{declared:?}");
    assert_eq!(declared, described, "the sources, and docs/reference/headers.md");
}

#[test]
fn the_installation_page_agrees_with_the_manifests() {
    let page = read(Path::new("docs/guide/install.md"));
    let program = read(Path::new("cli/Cargo.toml"));
    let (_, features) = program.split_once("[features]\n").unwrap();
    let names =
        features.lines().take_while(|line| !line.starts_with('[')).filter_map(|line| line.split_once(" = "));
    let users = names
        .map(|(name, _)| name)
        .filter(|name| !name.starts_with('#') && !["default", "failpoints"].contains(name));
    let missing: Vec<_> = users.filter(|name| !page.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "features of the program that the page does not name: {missing:?}");

    let workspace = read(Path::new("Cargo.toml"));
    for client in ["lapin", "rdkafka", "aws-sdk-sqs", "google-cloud-pubsub", "redis", "sqlx"] {
        let declared = workspace.lines().find(|line| line.starts_with(&format!("{client} = "))).unwrap();
        let version = declared.split('"').nth(1).unwrap();
        let mut parts = version.split('.');
        let shown = match (parts.next().unwrap(), parts.next()) {
            ("0", Some(minor)) => format!("0.{minor}"),
            (major, _) => major.to_owned(),
        };
        // As the adapter re-exports it.
        let named = format!("::{}` {shown}", client.replace('-', "_"));
        assert!(page.contains(&named), "the page does not say {named}");
    }

    let image = read(Path::new("deploy/Dockerfile"));
    let installed = image.lines().filter(|line| line.contains("apt-get install"));
    for package in installed
        .flat_map(|line| line.split_whitespace().filter(|word| word.starts_with("lib") || *word == "cmake"))
    {
        assert!(page.contains(package), "the page does not name the package {package}");
    }
}

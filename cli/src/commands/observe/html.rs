//! The report as a page of its own, with plots and without scripts: [`page`].

use std::fmt::Write as _;

use super::chart::bars;
use super::markup::escaped;
use super::report::ObserveReport;
use super::text;

/// A page that loads nothing and runs nothing.
pub(super) fn page(report: &ObserveReport) -> String {
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Duplicates of {scope}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n\
         <h1>Duplicates of {scope}</h1>\n<p class=\"about\">{heading}</p>\n",
        scope = escaped(&report.scope),
        style = include_str!("report.css"),
        heading = escaped(&text::heading(report)),
    );
    page += "<h2>Figures</h2>\n<table>\n";
    for (name, fact) in text::facts(report) {
        // Writing to a string cannot fail.
        let _ =
            writeln!(page, "<tr><th scope=\"row\">{}</th><td>{}</td></tr>", escaped(name), escaped(&fact));
    }
    page += "</table>\n";
    charts(report, &mut page);
    let recommended = &report.recommended;
    section(&mut page, "Recommended key", Some(&text::key(report)), &recommended.key.reasons);
    section(&mut page, "Recommended TTL", Some(&text::ttl(report)), &recommended.ttl.reasons);
    section(&mut page, "Not in these figures", None, &report.limits);
    page += "</main>\n</body>\n</html>\n";
    page
}

fn charts(report: &ObserveReport, page: &mut String) {
    if let Some(age) = &report.duplicate_age_ms {
        let name = |up_to: Option<u64>| {
            up_to.map_or_else(|| "more".to_owned(), |ms| format!("≤ {}", text::millis(ms)))
        };
        let counts: Vec<_> = age.histogram.iter().map(|bar| (name(bar.up_to), bar.count)).collect();
        figure(page, "Age of duplicates", "Time between the completion of a key and its duplicate", &counts);
    }
    let names = ["1", "2", "3", "4", "5 to 9", "10 or more"];
    let counts: Vec<_> =
        names.into_iter().map(str::to_owned).zip(report.keys.by_deliveries.iter().copied()).collect();
    let of = if report.keys.is_estimate { "sampled keys" } else { "keys" };
    figure(page, "Deliveries of a key", &format!("Number of {of} by their deliveries"), &counts);
}

fn figure(page: &mut String, title: &str, caption: &str, counts: &[(String, u64)]) {
    let _ = write!(
        page,
        "<h2>{}</h2>\n<figure>\n{}<figcaption>{}</figcaption>\n</figure>\n",
        escaped(title),
        bars(title, counts),
        escaped(caption)
    );
}

fn section(page: &mut String, title: &str, value: Option<&str>, lines: &[String]) {
    let _ = writeln!(page, "<h2>{}</h2>", escaped(title));
    if let Some(value) = value {
        let _ = writeln!(page, "<p><code>{}</code></p>", escaped(value));
    }
    *page += "<ul>\n";
    for line in lines {
        let _ = writeln!(page, "<li>{}</li>", escaped(line));
    }
    *page += "</ul>\n";
}

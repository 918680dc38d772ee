//! Checks that many options share, for plugins and for the program: each names the option to a [`Reporter`].

use std::fmt::Debug;
use std::ops::RangeInclusive;

use onceward::adapter::is_local_host;
use url::Url;

use crate::value::{Address, Credentials, HumanDuration};
use crate::{Checked, Context, Finding, Problem};

/// Makes the error of a check: for a plugin its [`Context`], in whose table the option is.
pub trait Reporter {
    /// The error.
    type Problem;

    /// A problem of the option.
    fn report(&self, option: &str, problem: &str, fix: &str) -> Self::Problem;
}

impl Reporter for Context<'_> {
    type Problem = Problem;

    fn report(&self, option: &str, problem: &str, fix: &str) -> Problem {
        self.problem(option, problem, fix)
    }
}

/// Refuses an empty name.
///
/// # Errors
/// The problem.
pub fn text<R: Reporter>(reporter: &R, option: &str, text: &str) -> Result<(), R::Problem> {
    if text.trim().is_empty() { Err(reporter.report(option, "is empty", "write its name")) } else { Ok(()) }
}

/// Refuses an empty list, and empty items in it.
///
/// # Errors
/// The problem.
pub fn texts<R: Reporter, T>(
    reporter: &R,
    option: &str,
    texts: &[T],
    is_empty: impl Fn(&T) -> bool,
) -> Result<(), R::Problem> {
    if texts.is_empty() {
        return Err(reporter.report(option, "is an empty list", "write at least one"));
    }
    match texts.iter().position(is_empty) {
        Some(index) => {
            Err(reporter.report(&format!("{option}[{index}]"), "is empty", "write its name or leave it out"))
        }
        None => Ok(()),
    }
}

/// Refuses an empty address.
///
/// # Errors
/// The problem.
pub fn address<R: Reporter>(reporter: &R, option: &str, address: &Address) -> Result<(), R::Problem> {
    if address.is_empty() { Err(reporter.report(option, "is empty", "write where it is")) } else { Ok(()) }
}

/// Refuses an address that is not a URL with one of these schemes.
///
/// # Errors
/// The problem.
pub fn url<R: Reporter>(
    reporter: &R,
    option: &str,
    address: &Address,
    schemes: &[&str],
) -> Result<(), R::Problem> {
    if address.has_scheme(schemes) {
        return Ok(());
    }
    let schemes: Vec<_> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
    let fix = format!(
        "write one that starts with {}, with `@`, `/`, `:`, `?` and `#` in a password percent-encoded",
        schemes.join(" or ")
    );
    Err(reporter.report(option, "is not a URL of the kind needed here", &fix))
}

/// Refuses a number outside its range.
///
/// # Errors
/// The problem.
pub fn within<R: Reporter, N: PartialOrd + Copy + Debug>(
    reporter: &R,
    option: &str,
    number: N,
    range: RangeInclusive<N>,
) -> Result<(), R::Problem> {
    if range.contains(&number) {
        return Ok(());
    }
    let fix = format!("write a whole number from {:?} to {:?}", range.start(), range.end());
    Err(reporter.report(option, "is out of range", &fix))
}

/// Refuses a duration outside its range, which an adapter's configuration struct may give in the standard library's type.
///
/// # Errors
/// The problem.
pub fn duration<R: Reporter, D: Into<HumanDuration> + Copy>(
    reporter: &R,
    option: &str,
    duration: HumanDuration,
    range: RangeInclusive<D>,
) -> Result<(), R::Problem> {
    let (shortest, longest): (HumanDuration, HumanDuration) =
        ((*range.start()).into(), (*range.end()).into());
    if (shortest..=longest).contains(&duration) {
        return Ok(());
    }
    let fix = format!("write a duration from {shortest} to {longest}");
    Err(reporter.report(option, "is out of range", &fix))
}

/// Refuses credentials that are given twice, or an empty password. `url` is the address, where that can hold a login too.
///
/// # Errors
/// The problem.
pub fn credentials(context: &Context<'_>, given: Credentials<'_>, url: Option<&Address>) -> Checked {
    let password = if given.password_file.is_some() { "password_file" } else { "password" };
    if given.password.is_some() && given.password_file.is_some() {
        return Err(context.problem(
            "password_file",
            format!("is given as well as {}", context.key("password")),
            "keep one of the two",
        ));
    }
    let given_here = given.password.is_some() || given.password_file.is_some();
    if given_here && url.is_some_and(Address::has_password) {
        return Err(context.problem(
            password,
            format!("is given, and {} holds a password too", context.key("url")),
            "keep one of the two",
        ));
    }
    if given.password.is_some_and(|password| password.is_empty()) {
        return Err(context.problem("password", "is empty", "write it or leave it out"));
    }
    Ok(())
}

/// True for a URL with one of these schemes that leads to another host.
pub fn is_remote(address: &Address, schemes: &[&str]) -> bool {
    address.has_scheme(schemes) && is_on_another_host(address)
}

/// True for a URL that leads to another host, or whose host cannot be read.
pub fn is_on_another_host(address: &Address) -> bool {
    !Url::parse(address.expose()).is_ok_and(|url| url.host_str().is_some_and(is_local_host))
}

/// True for a URL with a user name or a password in it.
pub fn has_login(address: &Address) -> bool {
    Url::parse(address.expose()).is_ok_and(|url| !url.username().is_empty() || url.password().is_some())
}

/// True for URLs that lead to the same resource: equal but for letter case in scheme and host, a default port, the login, the
/// query and a slash at the end.
pub fn is_same_url(one: &str, other: &str) -> bool {
    plain_url(one) == plain_url(other)
}

/// A URL reduced to what [`is_same_url`] compares; another text as it is.
pub fn plain_url(text: &str) -> String {
    let Ok(mut url) = Url::parse(text) else { return text.to_owned() };
    url.set_query(None);
    // A URL that cannot have a login has none.
    let _ = (url.set_username(""), url.set_password(None));
    url.as_str().trim_end_matches('/').to_owned()
}

/// A warning about a schema that lacks steps of this version.
pub fn missing_migrations(context: &Context<'_>, store: &str, missing: u32) -> Option<Finding> {
    (missing > 0).then(|| {
        Finding::warning(
            "schema-steps-missing",
            context.table(),
            format!("{store} answers, and its schema lacks {missing} of this version's steps; the next run takes them"),
            "if the user of a run may not change the schema, let one that may run `onceward migrate` first",
        )
    })
}

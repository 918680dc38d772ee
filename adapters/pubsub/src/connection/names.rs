//! Full names of subscriptions and topics.

use onceward::Error;

use crate::error;

/// The collection that a name belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Collection {
    Subscriptions,
    Topics,
}

impl Collection {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Subscriptions => "subscriptions",
            Self::Topics => "topics",
        }
    }

    /// True for `projects/PROJECT/COLLECTION/NAME`.
    pub(crate) fn is_full(self, name: &str) -> bool {
        let mut parts = name.split('/');
        let starts = parts.next() == Some("projects")
            && parts.next().is_some_and(|project| !project.is_empty())
            && parts.next() == Some(self.word());
        starts && parts.next().is_some_and(|name| !name.is_empty()) && parts.next().is_none()
    }

    /// The full name: `name` itself, or the one of a short name in `project`.
    ///
    /// # Errors
    /// `Config` for a name in another form, or a short one without a project.
    pub(crate) fn full_name(self, name: &str, project: Option<&str>) -> Result<String, Error> {
        if self.is_full(name) {
            return Ok(name.to_owned());
        }
        let word = self.word();
        if name.is_empty() || name.contains('/') {
            let what = format!("the name must be projects/PROJECT/{word}/NAME, or NAME alone with a project");
            return Err(error::config(format!("use one of the {word} of Pub/Sub"), what));
        }
        match project.filter(|project| !project.is_empty() && !project.contains('/')) {
            Some(project) => Ok(format!("projects/{project}/{word}/{name}")),
            None => {
                let what =
                    format!("it has no project; set `project`, or write projects/PROJECT/{word}/{name}");
                Err(error::config(format!("use {name}"), what))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_name_is_completed_with_the_project() {
        let of = |name, project| Collection::Topics.full_name(name, project);
        assert_eq!(of("orders", Some("shop")).unwrap(), "projects/shop/topics/orders");
        assert_eq!(of("projects/a/topics/b", Some("shop")).unwrap(), "projects/a/topics/b");
        for (name, project) in [
            ("orders", None),
            ("orders", Some("")),
            ("", Some("shop")),
            ("a/b", Some("shop")),
            ("projects/a/subscriptions/b", Some("shop")),
            ("projects/a/topics/", Some("shop")),
            ("projects//topics/b", Some("shop")),
            ("projects/a/topics/b/c", Some("shop")),
        ] {
            assert!(of(name, project).is_err(), "{name} {project:?}");
        }
    }
}

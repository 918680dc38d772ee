//! `${NAME}` in values.

use onceward_cli::config::{Config, Store};

use crate::examples::{base_with, refusal};

#[test]
fn variables_are_replaced_in_values_only_and_stay_text() {
    let env = |name: &str| match name {
        "PATH" => Some("a' \"b\"; path2 = 'c".to_owned()),
        _ => None,
    };
    let config = Config::parse(&base_with("'onceward.db'", "\"x-${PATH}-$${PATH}\""), &env).unwrap();
    let Store::Sqlite(store) = &config.store else { panic!("{:?}", config.store) };
    assert_eq!(store.path.to_str(), Some("x-a' \"b\"; path2 = 'c-${PATH}"));
}

#[test]
fn a_variable_that_is_not_set_or_no_name_is_refused_at_its_line() {
    assert_eq!(
        refusal(&base_with("'billing'", "\"\"\"a\nb ${UNSET}\"\"\"")),
        "line 2: scope: the environment variable UNSET is not set; set it, or write $${UNSET} for the text itself"
    );
    assert_eq!(
        refusal(&base_with("['json:/id']", "['json:/id', '${no name}']")),
        "line 7: key.from[1]: `${` is not followed by a variable's name and `}`; \
         write ${NAME} with letters, digits and `_`, or `$${` for the text itself"
    );
}

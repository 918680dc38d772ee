//! Operators for statements on connections whose `search_path` is not the store's own.
//!
//! There, a name that says no schema is looked up in the session's path, in which others may have put an operator, a function
//! or a type that fits better than the one in `pg_catalog`. So such statements name the schema of every function, operator
//! and type that is not a keyword (`bigint` is one, `bytea` and `text` are not); `IN` and `IS DISTINCT FROM` look up `=` by its
//! name and have no place in them. `unnest` with several arguments is the parser's own and always that of `pg_catalog`.
//!
//! All of these operators bind alike, and tighter than `AND` and `NOT`: mind the parentheses.

pub(crate) const EQ: &str = "OPERATOR(pg_catalog.=)";
pub(crate) const GT: &str = "OPERATOR(pg_catalog.>)";
pub(crate) const GE: &str = "OPERATOR(pg_catalog.>=)";
pub(crate) const LE: &str = "OPERATOR(pg_catalog.<=)";
pub(crate) const PLUS: &str = "OPERATOR(pg_catalog.+)";
pub(crate) const MINUS: &str = "OPERATOR(pg_catalog.-)";
pub(crate) const CONCAT: &str = "OPERATOR(pg_catalog.||)";
pub(crate) const OVERLAPS: &str = "OPERATOR(pg_catalog.&&)";
pub(crate) const BYTEAS: &str = "pg_catalog.bytea[]";

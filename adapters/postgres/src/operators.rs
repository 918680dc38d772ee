//! Schema-qualified operators for statements on connections whose `search_path` the store does not control.
//!
//! There, an unqualified name is resolved in the session's path, in which other roles may have created an operator, a function
//! or a type that matches better than the one in `pg_catalog`. So such statements qualify every function, operator and type
//! that is not a keyword (`bigint` is one, `bytea` and `text` are not), and use neither `IN` nor `IS DISTINCT FROM`, which
//! resolve `=` by its name. `unnest` with several arguments is part of the grammar and always that of `pg_catalog`.
//!
//! All of these operators have the same precedence, which is higher than that of `AND` and `NOT`: mind the parentheses.

pub(crate) const EQ: &str = "OPERATOR(pg_catalog.=)";
pub(crate) const GT: &str = "OPERATOR(pg_catalog.>)";
pub(crate) const GE: &str = "OPERATOR(pg_catalog.>=)";
pub(crate) const LE: &str = "OPERATOR(pg_catalog.<=)";
pub(crate) const PLUS: &str = "OPERATOR(pg_catalog.+)";
pub(crate) const MINUS: &str = "OPERATOR(pg_catalog.-)";
pub(crate) const CONCAT: &str = "OPERATOR(pg_catalog.||)";
pub(crate) const OVERLAPS: &str = "OPERATOR(pg_catalog.&&)";
pub(crate) const BYTEAS: &str = "pg_catalog.bytea[]";

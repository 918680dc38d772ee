-- What operators changed, such as dead letters. It is only appended to, and never expires.
CREATE TABLE onceward_audit (
    number      INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    scope       INTEGER NOT NULL,
    subject     TEXT    NOT NULL,
    settles     INTEGER NOT NULL,
    entry       TEXT    NOT NULL,
    written_at  INTEGER NOT NULL
) STRICT;

CREATE INDEX onceward_audit_by_scope ON onceward_audit (scope, number);

-- Letters that are done with, where nothing can be deleted.
CREATE INDEX onceward_audit_by_subject ON onceward_audit (scope, subject) WHERE settles;

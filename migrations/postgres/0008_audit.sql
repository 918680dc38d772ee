-- What operators changed, such as dead letters. It is only appended to, and never expires.
CREATE TABLE "@schema@".audit (
    number      bigint  NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    scope       bigint  NOT NULL,
    subject     text    NOT NULL,
    settles     boolean NOT NULL,
    entry       text    NOT NULL,
    written_at  bigint  NOT NULL
);

CREATE INDEX audit_by_scope ON "@schema@".audit (scope, number);

-- Letters that are done with, where nothing can be deleted.
CREATE INDEX audit_by_subject ON "@schema@".audit (scope, subject) WHERE settles;

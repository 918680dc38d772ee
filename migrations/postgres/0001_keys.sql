-- `"@schema@"` is replaced by the schema's name, validated and quoted before the statements run.

-- What the schema was written as. `format` is the version of the records below, `key_format` of the encoding that is
-- hashed into keys, `fence_floor` the largest fence of all records that were removed.
CREATE TABLE "@schema@".meta (
    name  text   NOT NULL PRIMARY KEY,
    value bigint NOT NULL
);

-- Scopes are written once and kept: keys refer to them by number, which saves their names in every row.
CREATE TABLE "@schema@".scopes (
    id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text   NOT NULL UNIQUE
);

-- One row a key. Times are microseconds since the epoch, in the server's clock. No column draws from a sequence: claims
-- that conflict would burn its values.
CREATE TABLE "@schema@".keys (
    scope       bigint   NOT NULL,
    fence       bigint   NOT NULL,
    lease_until bigint   NOT NULL,             -- 0 in states without a lease
    first_at    bigint   NOT NULL,
    written_at  bigint   NOT NULL,             -- 0: forgotten, only the fence still counts
    ttl         bigint   NOT NULL,             -- microseconds the record outlives its last write or its lease
    expires_at  bigint   NOT NULL,
    attempts    integer  NOT NULL,
    lost        integer  NOT NULL,
    generation  integer  NOT NULL,
    state       smallint NOT NULL,             -- 0 absent, 1 pending, 2 failed, 3 terminal, 4 completed, 5 dead
    reason      smallint,                      -- why it failed for good
    started     boolean  NOT NULL,             -- true: a lapse of the lease counts as an attempt
    key         bytea    NOT NULL,             -- 16 bytes
    owner       bytea    NOT NULL,             -- 16 bytes, fresh for every claim
    fingerprint bytea,                         -- 16 bytes
    error       text,
    result      bytea,
    PRIMARY KEY (scope, key)
);

CREATE INDEX keys_by_expiry ON "@schema@".keys (expires_at);

-- How far sources without a broker have been read.
CREATE TABLE "@schema@".checkpoints (
    scope       bigint NOT NULL,
    source      text   NOT NULL,
    incarnation text   NOT NULL,
    position    bigint NOT NULL,
    evidence    text   NOT NULL,
    written_at  bigint NOT NULL,
    PRIMARY KEY (scope, source)
);

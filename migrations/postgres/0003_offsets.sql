-- How far each partition of a log has been processed: written in the transactions of the effects, under the epoch of the
-- owner. Below the watermark all is processed or skipped; `done` holds what is processed above it, in order.
CREATE TABLE "@schema@".processed_offsets (
    scope       bigint   NOT NULL,
    epoch       bigint   NOT NULL,
    watermark   bigint   NOT NULL,
    written_at  bigint   NOT NULL,
    partition   bigint   NOT NULL,
    group_name  text     NOT NULL,
    incarnation text     NOT NULL,
    done        bigint[] NOT NULL,
    PRIMARY KEY (scope, group_name, incarnation, partition)
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

-- Rows that are not emptied, the oldest first: an emptied one is a mark that stays.
CREATE INDEX onceward_audit_entries ON onceward_audit (scope, number) WHERE entry <> '';

-- Rows that are not emptied, the oldest first: an emptied one is a mark that stays.
CREATE INDEX audit_entries ON "@schema@".audit (scope, number) WHERE entry <> '';

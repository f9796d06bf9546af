-- Version 14. The file into which the rows before an anchor were archived: who wants to prove an anchor needs it.

-- file: its name; '' if it is not known.
ALTER TABLE operation_anchor ADD COLUMN file TEXT NOT NULL DEFAULT '';

UPDATE operation_anchor SET file = COALESCE(
  (SELECT operation.target_name FROM operation WHERE operation.id = operation_anchor.operation_id), '');

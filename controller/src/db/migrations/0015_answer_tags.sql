-- Version 15. Answers that are given again have their entity tag again; '': there was none.

ALTER TABLE kept_answer ADD COLUMN etag TEXT NOT NULL DEFAULT '';

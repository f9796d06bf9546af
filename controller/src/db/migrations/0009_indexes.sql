-- Version 9: indexes for a large catalog. A partial index serves the few rows that a word picks out, and nothing else: one over
-- all rows would lure the engine into collecting and sorting most of the table.

-- Copies of a content by state, and of a state by place.
DROP INDEX entry_content;
CREATE INDEX entry_content ON entry (content_id, status, location_id);
CREATE INDEX entry_status ON entry (status, location_id, content_id);

-- Ids are unique across kinds: the kind need not come first. Other versions may have made the last one.
DROP INDEX operation_target;
CREATE INDEX operation_target ON operation (target_id, time_us, id);
CREATE INDEX operation_kind ON operation (target_kind, time_us, id);
CREATE INDEX IF NOT EXISTS operation_action ON operation (action, time_us, id);

-- What a tenant sees, and what is rare.
CREATE INDEX image_domain ON image (domain_id, id);
CREATE INDEX image_public ON image (id) WHERE visibility = 'public';
CREATE INDEX image_iso ON image (id) WHERE kind = 'iso';
CREATE INDEX image_rare ON image (status, id) WHERE status <> 'active';

-- Version 9: indexes for a large catalog. A partial index serves the few rows that a word picks out, and nothing else: one over
-- all rows would lure the engine into collecting and sorting most of the table.

-- Copies of a content by state, and of a state by place.
DROP INDEX entry_content;
CREATE INDEX entry_content ON entry (content_id, status, location_id);
CREATE INDEX entry_status ON entry (status, location_id, content_id);

-- A target is asked for with and without its kind, a kind also alone. An index that an earlier version made stays.
DROP INDEX operation_target;
CREATE INDEX operation_target ON operation (target_id, target_kind, time_us, id);
CREATE INDEX operation_kind ON operation (target_kind, time_us, id);

-- What a tenant sees, and what is rare. Sorting by status goes by an expression, so that its index serves the order alone.
DROP INDEX image_status;
DROP INDEX image_visibility;
-- The usual order has all that lists filter by beside it: a filter that few images pass is asked of the index, not of their rows.
DROP INDEX image_created;
CREATE INDEX image_created ON image (created_us, id, deleted_us, status, visibility, project_id, domain_id, kind, format, os_type,
  architecture, virtualisation, protected, featured, virtual_bytes, updated_us);
CREATE INDEX image_state ON image ((COALESCE(status, '')), id);
CREATE INDEX image_public ON image (id) WHERE visibility = 'public';
CREATE INDEX image_iso ON image (id) WHERE kind = 'iso';
CREATE INDEX image_rare ON image (status, id) WHERE status <> 'active';

-- The sums that the system's page and its gauges show, without reading the records.
CREATE INDEX image_sums ON image (original_kept, original_bytes, status, deleted_us) WHERE deleted_us IS NULL;
CREATE INDEX content_sums ON content (stored_bytes);

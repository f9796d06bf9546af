-- Version 4: uploads that outlive their connection, and images that the controller fetches by itself.

-- One open upload per image. kind: whole (one request; ends with it), resumable, fetch (by the controller).
-- offset_bytes: what is durable in the part file. mark: resumable: by what the sender knows its file again; fetch: by what
-- the source says that it is still the same file. A row ends with its upload.
CREATE TABLE upload (
  id TEXT NOT NULL PRIMARY KEY,
  image_id TEXT NOT NULL UNIQUE REFERENCES image (id),
  kind TEXT NOT NULL,
  size_bytes BIGINT,
  offset_bytes BIGINT NOT NULL,
  mark TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL
);
CREATE INDEX upload_idle ON upload (kind, updated_us);

-- Where the file came from, without user, password and query; '' for an upload. source_hidden: 1 if there were any, so that
-- a second fetch needs the whole URL again.
ALTER TABLE image ADD COLUMN source TEXT NOT NULL DEFAULT '';
ALTER TABLE image ADD COLUMN source_hidden BIGINT NOT NULL DEFAULT 0;

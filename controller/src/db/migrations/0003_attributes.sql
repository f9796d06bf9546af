-- Version 3: attributes of images, tags, the recycle bin, and an index for each order of the list.

ALTER TABLE image ADD COLUMN virtualisation TEXT NOT NULL DEFAULT '';
ALTER TABLE image ADD COLUMN disk_bytes BIGINT;
ALTER TABLE image ADD COLUMN disk_driver TEXT NOT NULL DEFAULT 'auto';
ALTER TABLE image ADD COLUMN network_driver TEXT NOT NULL DEFAULT 'auto';
ALTER TABLE image ADD COLUMN os_language TEXT NOT NULL DEFAULT '';
ALTER TABLE image ADD COLUMN app_platform TEXT NOT NULL DEFAULT '';
ALTER TABLE image ADD COLUMN password_enabled BIGINT NOT NULL DEFAULT 0;
ALTER TABLE image ADD COLUMN description_folded TEXT NOT NULL DEFAULT '';

-- Tags as they were written, JSON: read with their record, in one row and one revision. image_tag is for searching.
ALTER TABLE image ADD COLUMN tags TEXT NOT NULL DEFAULT '[]';

-- In the recycle bin: since when, and the state that comes back.
ALTER TABLE image ADD COLUMN binned_us BIGINT;
ALTER TABLE image ADD COLUMN binned_from TEXT;

CREATE TABLE image_tag (
  image_id TEXT NOT NULL REFERENCES image (id),
  tag_folded TEXT NOT NULL,
  PRIMARY KEY (image_id, tag_folded)
);
CREATE INDEX image_tag_tag ON image_tag (tag_folded, image_id);

CREATE INDEX image_created ON image (created_us, id);
CREATE INDEX image_updated ON image (updated_us, id);
CREATE INDEX image_status ON image (status, id);
CREATE INDEX image_size ON image ((COALESCE(virtual_bytes, 0)), id);

-- Version 8. Who else uses an image, what projects may have, and what they had.

ALTER TABLE image ADD COLUMN featured BIGINT NOT NULL DEFAULT 0;
CREATE INDEX image_featured ON image (id) WHERE featured = 1;
CREATE INDEX image_visibility ON image (visibility, id);
CREATE INDEX image_domain ON image (domain_id, id);

-- A receiver's list is answered from the index alone.
DROP INDEX share_target;
CREATE INDEX share_target ON share (kind, target, status, image_id);

-- Limits of single projects. NULL follows the configured default, 0 is no limit.
CREATE TABLE quota (
  project_id TEXT NOT NULL PRIMARY KEY REFERENCES project (id),
  images BIGINT,
  bytes BIGINT,
  imports BIGINT,
  updated_us BIGINT NOT NULL
);

-- One operator alone should not meet a limit: the first project has none unless somebody sets one.
INSERT INTO quota (project_id, images, bytes, imports, updated_us)
  SELECT project.id, 0, 0, 0, project.created_us FROM project JOIN domain ON domain.id = project.domain_id
  WHERE project.name_folded = 'default' AND domain.name_folded = 'default';

-- How long which project was charged with how many bytes of an image; to_us is NULL while it is. Rows outlive their image.
CREATE TABLE tenure (
  image_id TEXT NOT NULL,
  n BIGINT NOT NULL,
  project_id TEXT NOT NULL,
  bytes BIGINT NOT NULL,
  from_us BIGINT NOT NULL,
  to_us BIGINT,
  PRIMARY KEY (image_id, n)
);
CREATE INDEX tenure_project ON tenure (project_id, from_us);

INSERT INTO tenure (image_id, n, project_id, bytes, from_us)
  SELECT id, 1, project_id, COALESCE(original_bytes, data_bytes, 0), created_us FROM image
  WHERE deleted_us IS NULL AND visibility <> 'public' AND COALESCE(original_bytes, data_bytes, 0) > 0;

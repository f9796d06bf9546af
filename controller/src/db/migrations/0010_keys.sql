-- Version 10. Keys that encrypt images, and which host was given what opens one.

-- sealed: the key under the master key with the fingerprint in `master`.
CREATE TABLE image_key (
  id TEXT NOT NULL PRIMARY KEY,
  name TEXT NOT NULL,
  name_key TEXT NOT NULL UNIQUE,
  domain_id TEXT NOT NULL REFERENCES domain (id),
  project_id TEXT NOT NULL REFERENCES project (id),
  sealed TEXT NOT NULL,
  master TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  sealed_us BIGINT NOT NULL
);
CREATE INDEX image_key_project ON image_key (project_id, id);
CREATE INDEX image_key_domain ON image_key (domain_id, id);

-- No REFERENCES: a deleted image remembers its key, which may be gone.
ALTER TABLE image ADD COLUMN key_id TEXT;
CREATE INDEX image_key_id ON image (key_id) WHERE key_id IS NOT NULL;

-- An import whose encrypted content is stored and whose original may be gone already: it is only to be recorded.
CREATE TABLE encrypted_import (
  image_id TEXT NOT NULL PRIMARY KEY REFERENCES image (id),
  disk_bytes BIGINT NOT NULL,
  made TEXT NOT NULL,
  created_us BIGINT NOT NULL
);

-- Locations that were given what opens a content. They get it again as long as they hold the content.
CREATE TABLE key_given (
  location_id TEXT NOT NULL REFERENCES location (id),
  content_id TEXT NOT NULL,
  given_us BIGINT NOT NULL,
  PRIMARY KEY (location_id, content_id)
);

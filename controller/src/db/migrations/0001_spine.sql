-- Version 1. Types are TEXT, BIGINT and BYTEA alone, so that one text serves SQLite and PostgreSQL.
-- Ids and digests: their Display form. Times: microseconds since the epoch (*_us). Flags: 0 or 1. JSON is never looked into.
-- An optional text that is part of a key is '' when absent, because NULLs never collide in a UNIQUE.

CREATE TABLE meta (
  key TEXT NOT NULL PRIMARY KEY,
  value TEXT NOT NULL
);

CREATE TABLE domain (
  id TEXT NOT NULL PRIMARY KEY,
  name TEXT NOT NULL,
  name_folded TEXT NOT NULL UNIQUE,
  disabled BIGINT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL
);

CREATE TABLE project (
  id TEXT NOT NULL PRIMARY KEY,
  domain_id TEXT NOT NULL REFERENCES domain (id),
  name TEXT NOT NULL,
  name_folded TEXT NOT NULL,
  disabled BIGINT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL,
  UNIQUE (domain_id, name_folded)
);

CREATE TABLE token (
  id TEXT NOT NULL PRIMARY KEY,
  secret_hash TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL,
  role TEXT NOT NULL,
  scope TEXT NOT NULL,
  domain_id TEXT REFERENCES domain (id),
  project_id TEXT REFERENCES project (id),
  expires_us BIGINT,
  revoked_us BIGINT,
  last_used_us BIGINT,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL
);

CREATE TABLE content (
  content_id TEXT NOT NULL PRIMARY KEY,
  kind TEXT NOT NULL,
  raw_bytes BIGINT NOT NULL,
  data_bytes BIGINT NOT NULL,
  stored_bytes BIGINT NOT NULL,
  n_chunks BIGINT NOT NULL,
  damaged BIGINT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL
);

-- name_key: project id and folded name while the image lives, its own id afterwards: one live image per name and project.
CREATE TABLE image (
  id TEXT NOT NULL PRIMARY KEY,
  name TEXT NOT NULL,
  name_folded TEXT NOT NULL,
  name_key TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL,
  status TEXT NOT NULL,
  stage TEXT,
  percent BIGINT NOT NULL,
  reason TEXT NOT NULL,
  format TEXT,
  container_format TEXT NOT NULL,
  visibility TEXT NOT NULL,
  domain_id TEXT NOT NULL REFERENCES domain (id),
  project_id TEXT NOT NULL REFERENCES project (id),
  architecture TEXT NOT NULL,
  os_type TEXT NOT NULL,
  distribution TEXT NOT NULL,
  version TEXT NOT NULL,
  description TEXT NOT NULL,
  min_disk_bytes BIGINT NOT NULL,
  min_memory_bytes BIGINT NOT NULL,
  protected BIGINT NOT NULL,
  properties TEXT NOT NULL,
  expected TEXT NOT NULL,
  original_bytes BIGINT,
  original_kept BIGINT NOT NULL,
  sha256 TEXT,
  sha512 TEXT,
  md5 TEXT,
  blake3 TEXT,
  virtual_bytes BIGINT,
  data_bytes BIGINT,
  content_id TEXT REFERENCES content (content_id),
  revision BIGINT NOT NULL,
  deleted_us BIGINT,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL
);
CREATE INDEX image_name ON image (name_folded, id);
CREATE INDEX image_content ON image (content_id);
CREATE INDEX image_project ON image (project_id, id);

-- Every one and two neighbouring characters of the folded name of an image that is not deleted: search by equality, which
-- an index serves in any language. Names in Chinese have no blanks, and two characters are a word.
CREATE TABLE image_gram (
  gram TEXT NOT NULL,
  image_id TEXT NOT NULL REFERENCES image (id),
  PRIMARY KEY (gram, image_id)
);
CREATE INDEX image_gram_image ON image_gram (image_id);

CREATE TABLE share (
  image_id TEXT NOT NULL REFERENCES image (id),
  kind TEXT NOT NULL,
  target TEXT NOT NULL,
  status TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL,
  PRIMARY KEY (image_id, kind, target)
);
CREATE INDEX share_target ON share (kind, target, status);

CREATE TABLE job (
  id TEXT NOT NULL PRIMARY KEY,
  kind TEXT NOT NULL,
  image_id TEXT NOT NULL,
  state TEXT NOT NULL,
  attempt BIGINT NOT NULL,
  spec TEXT NOT NULL,
  error TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL
);
CREATE INDEX job_state ON job (state, id);
CREATE INDEX job_image ON job (image_id);

CREATE TABLE join_token (
  id TEXT NOT NULL PRIMARY KEY,
  secret_hash TEXT NOT NULL UNIQUE,
  uses_left BIGINT NOT NULL,
  expires_us BIGINT NOT NULL,
  name_glob TEXT NOT NULL,
  preset TEXT NOT NULL,
  revoked_us BIGINT,
  created_by TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL
);

CREATE TABLE location (
  id TEXT NOT NULL PRIMARY KEY,
  name TEXT NOT NULL,
  name_folded TEXT NOT NULL UNIQUE,
  kind TEXT NOT NULL,
  state TEXT NOT NULL,
  platform TEXT NOT NULL,
  region TEXT NOT NULL,
  zone TEXT NOT NULL,
  rack TEXT NOT NULL,
  account TEXT NOT NULL,
  ip TEXT NOT NULL,
  serial TEXT NOT NULL,
  labels TEXT NOT NULL,
  advertised TEXT NOT NULL,
  nic_mbps BIGINT NOT NULL,
  agent_id TEXT UNIQUE,
  join_token_id TEXT,
  cert_serial TEXT NOT NULL,
  cert_not_after_us BIGINT,
  revoked_us BIGINT,
  boot TEXT,
  last_seen_us BIGINT,
  budget_bytes BIGINT NOT NULL,
  used_bytes BIGINT NOT NULL,
  free_bytes BIGINT NOT NULL,
  floor_bytes BIGINT NOT NULL,
  degraded TEXT NOT NULL,
  generation BIGINT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL
);

-- Agents whose certificate was revoked; the row outlives a location that enrols again with a new key.
CREATE TABLE revoked_agent (
  agent_id TEXT NOT NULL PRIMARY KEY,
  location_id TEXT NOT NULL,
  revoked_us BIGINT NOT NULL
);

CREATE TABLE intent (
  id TEXT NOT NULL PRIMARY KEY,
  image_id TEXT NOT NULL REFERENCES image (id),
  content_id TEXT NOT NULL REFERENCES content (content_id),
  location_id TEXT NOT NULL REFERENCES location (id),
  origin TEXT NOT NULL,
  prewarm_id TEXT NOT NULL,
  priority TEXT NOT NULL,
  deadline_us BIGINT,
  hold TEXT NOT NULL,
  hold_until_us BIGINT,
  rate_bytes_per_s BIGINT,
  wish TEXT NOT NULL,
  force BIGINT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL,
  UNIQUE (image_id, location_id, origin, prewarm_id)
);
CREATE INDEX intent_location ON intent (location_id, content_id);
CREATE INDEX intent_prewarm ON intent (prewarm_id);
CREATE INDEX intent_hold ON intent (hold, hold_until_us);
CREATE INDEX intent_content ON intent (content_id);

CREATE TABLE entry (
  location_id TEXT NOT NULL REFERENCES location (id),
  content_id TEXT NOT NULL,
  status TEXT NOT NULL,
  reason TEXT NOT NULL,
  fault BIGINT,
  next_try_us BIGINT,
  done_bytes BIGINT NOT NULL,
  data_bytes BIGINT NOT NULL,
  moved_bytes BIGINT NOT NULL,
  reused_bytes BIGINT NOT NULL,
  allocated_bytes BIGINT NOT NULL,
  leases BIGINT NOT NULL,
  last_used_us BIGINT,
  reported_us BIGINT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL,
  PRIMARY KEY (location_id, content_id)
);
CREATE INDEX entry_content ON entry (content_id, location_id);

CREATE TABLE lease (
  location_id TEXT NOT NULL REFERENCES location (id),
  lease_id TEXT NOT NULL,
  content_id TEXT NOT NULL,
  kind TEXT NOT NULL,
  consumer TEXT NOT NULL,
  since_us BIGINT NOT NULL,
  PRIMARY KEY (location_id, lease_id)
);
CREATE INDEX lease_content ON lease (content_id, location_id);

CREATE TABLE prewarm (
  id TEXT NOT NULL PRIMARY KEY,
  image_id TEXT NOT NULL,
  content_id TEXT NOT NULL,
  name TEXT NOT NULL,
  state TEXT NOT NULL,
  targets TEXT NOT NULL,
  priority TEXT NOT NULL,
  deadline_us BIGINT,
  start_us BIGINT,
  rate_bytes_per_s BIGINT,
  keep TEXT NOT NULL,
  keep_s BIGINT,
  created_by TEXT NOT NULL,
  finished_us BIGINT,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL
);
CREATE INDEX prewarm_state ON prewarm (state, id);
CREATE INDEX prewarm_image ON prewarm (image_id, id);

CREATE TABLE prewarm_target (
  prewarm_id TEXT NOT NULL REFERENCES prewarm (id),
  location_id TEXT NOT NULL REFERENCES location (id),
  state TEXT NOT NULL,
  reason TEXT NOT NULL,
  attempts BIGINT NOT NULL,
  done_us BIGINT,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL,
  PRIMARY KEY (prewarm_id, location_id)
);

CREATE TABLE operation (
  id TEXT NOT NULL PRIMARY KEY,
  seq BIGINT UNIQUE,
  time_us BIGINT NOT NULL,
  who TEXT NOT NULL,
  who_kind TEXT NOT NULL,
  action TEXT NOT NULL,
  target_kind TEXT NOT NULL,
  target_id TEXT NOT NULL,
  target_name TEXT NOT NULL,
  result TEXT NOT NULL,
  details TEXT NOT NULL,
  prev_hash TEXT,
  hash TEXT
);
CREATE INDEX operation_time ON operation (time_us, id);
CREATE INDEX operation_target ON operation (target_kind, target_id, time_us, id);
CREATE INDEX operation_who ON operation (who, time_us, id);

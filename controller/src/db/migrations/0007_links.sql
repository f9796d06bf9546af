-- Version 7: download links, answers that idempotency keys give again, and where the operation log in this database begins.

-- secret_hash: BLAKE3 of what stands in the address. No REFERENCES: a link outlives its image, to say that it is gone.
CREATE TABLE link (
  id TEXT NOT NULL PRIMARY KEY,
  image_id TEXT NOT NULL,
  secret_hash TEXT NOT NULL UNIQUE,
  format TEXT NOT NULL,
  created_by TEXT NOT NULL,
  expires_us BIGINT NOT NULL,
  revoked_us BIGINT,
  first_used_us BIGINT,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL
);
CREATE INDEX link_image ON link (image_id, id);
CREATE INDEX link_expires ON link (expires_us);

-- key_hash: BLAKE3 of caller and key. body: '' unless the answer may be kept.
CREATE TABLE kept_answer (
  key_hash TEXT NOT NULL PRIMARY KEY,
  caller TEXT NOT NULL,
  request_hash TEXT NOT NULL,
  state TEXT NOT NULL,
  status BIGINT NOT NULL,
  body TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  expires_us BIGINT NOT NULL
);
CREATE INDEX kept_answer_caller ON kept_answer (caller, expires_us);
CREATE INDEX kept_answer_expires ON kept_answer (expires_us);

-- The newest row of each archived segment: the rest of the chain follows it.
CREATE TABLE operation_anchor (
  seq BIGINT NOT NULL PRIMARY KEY,
  hash TEXT NOT NULL,
  operation_id TEXT NOT NULL,
  created_us BIGINT NOT NULL
);
CREATE INDEX operation_action ON operation (action, time_us, id);

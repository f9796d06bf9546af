-- Version 2: users with passwords and grants, tokens that belong to a user, domains and projects that come and go.
-- A deleted domain, project or user keeps its row, because images, tokens and the log name it; its folded name becomes
-- its id, so that the name is free again.

-- token_revision: tokens of a user that carry an older one are over. It counts changes of the password and the times the user was
-- disabled; a token that is being made meanwhile carries the old number.
CREATE TABLE user_account (
  id TEXT NOT NULL PRIMARY KEY,
  domain_id TEXT NOT NULL REFERENCES domain (id),
  name TEXT NOT NULL,
  name_folded TEXT NOT NULL,
  password_hash TEXT,
  disabled BIGINT NOT NULL,
  token_revision BIGINT NOT NULL,
  deleted_us BIGINT,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL,
  UNIQUE (domain_id, name_folded)
);

-- scope_key: the id of project or domain, or 'system': NULLs never collide in a UNIQUE.
CREATE TABLE role_grant (
  id TEXT NOT NULL PRIMARY KEY,
  user_id TEXT NOT NULL REFERENCES user_account (id),
  role TEXT NOT NULL,
  scope TEXT NOT NULL,
  domain_id TEXT REFERENCES domain (id),
  project_id TEXT REFERENCES project (id),
  scope_key TEXT NOT NULL,
  created_by TEXT NOT NULL,
  created_us BIGINT NOT NULL,
  UNIQUE (user_id, scope_key, role)
);
CREATE INDEX role_grant_domain ON role_grant (domain_id, id);
CREATE INDEX role_grant_project ON role_grant (project_id, id);

ALTER TABLE token ADD COLUMN user_id TEXT;
ALTER TABLE token ADD COLUMN grant_id TEXT;
ALTER TABLE token ADD COLUMN user_revision BIGINT;
CREATE INDEX token_user ON token (user_id, id);
CREATE INDEX token_domain ON token (domain_id, id);
CREATE INDEX token_project ON token (project_id, id);

ALTER TABLE domain ADD COLUMN deleted_us BIGINT;
ALTER TABLE project ADD COLUMN deleted_us BIGINT;
CREATE INDEX project_name ON project (name_folded, id);
CREATE INDEX user_account_name ON user_account (name_folded, id);

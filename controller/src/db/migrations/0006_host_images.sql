-- Version 6. Host images: disk images in an order, and the prewarm jobs of all their disks.

-- name_key: project id and folded name: one host image per name and project. A deleted one leaves no row.
CREATE TABLE host_image (
  id TEXT NOT NULL PRIMARY KEY,
  name TEXT NOT NULL,
  name_folded TEXT NOT NULL,
  name_key TEXT NOT NULL UNIQUE,
  visibility TEXT NOT NULL,
  domain_id TEXT NOT NULL REFERENCES domain (id),
  project_id TEXT NOT NULL REFERENCES project (id),
  description TEXT NOT NULL,
  architecture TEXT NOT NULL,
  os_type TEXT NOT NULL,
  distribution TEXT NOT NULL,
  version TEXT NOT NULL,
  os_language TEXT NOT NULL,
  app_platform TEXT NOT NULL,
  disk_driver TEXT NOT NULL,
  network_driver TEXT NOT NULL,
  min_disk_bytes BIGINT NOT NULL,
  min_memory_bytes BIGINT NOT NULL,
  protected BIGINT NOT NULL,
  revision BIGINT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL
);
CREATE INDEX host_image_name ON host_image (name_folded, id);
CREATE INDEX host_image_project ON host_image (project_id, id);

-- position 0 is the system disk, n is data disk n.
CREATE TABLE host_image_member (
  host_image_id TEXT NOT NULL REFERENCES host_image (id),
  position BIGINT NOT NULL,
  image_id TEXT NOT NULL REFERENCES image (id),
  PRIMARY KEY (host_image_id, position),
  UNIQUE (host_image_id, image_id)
);
CREATE INDEX host_image_member_image ON host_image_member (image_id);

CREATE TABLE host_image_gram (
  gram TEXT NOT NULL,
  host_image_id TEXT NOT NULL REFERENCES host_image (id),
  PRIMARY KEY (gram, host_image_id)
);
CREATE INDEX host_image_gram_host_image ON host_image_gram (host_image_id);

-- Jobs with one group_id were made together, one per disk. Name and id of the host image are those of that time.
ALTER TABLE prewarm ADD COLUMN group_id TEXT;
ALTER TABLE prewarm ADD COLUMN host_image_id TEXT;
ALTER TABLE prewarm ADD COLUMN host_image_name TEXT;
CREATE INDEX prewarm_group ON prewarm (group_id, id);

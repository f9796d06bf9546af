-- Version 17. Wishes to remove are few among all: lists of them begin there.
CREATE INDEX intent_remove ON intent (image_id, location_id) WHERE wish = 'remove';

-- Whether an image may be seen, without reading its row: for counts, which ask it of thousands.
CREATE INDEX image_seen ON image (id, deleted_us, status, visibility, project_id, domain_id);

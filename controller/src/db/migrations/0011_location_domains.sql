-- Version 11. Whose a location is: NULL is the system's alone.

ALTER TABLE location ADD COLUMN domain_id TEXT;
CREATE INDEX location_domain ON location (domain_id, id);

-- Version 13. Of which image a location was given what opens it: the image may be deleted before the copy is gone.

-- No REFERENCES, as with its content; '': not known.
ALTER TABLE key_given ADD COLUMN image_id TEXT NOT NULL DEFAULT '';
UPDATE key_given SET image_id = COALESCE(
  (SELECT MIN(image.id) FROM image WHERE image.content_id = key_given.content_id AND image.key_id IS NOT NULL), '');
CREATE INDEX key_given_content ON key_given (content_id);
CREATE INDEX key_given_image ON key_given (image_id);

-- Version 16. Which images a copy is there for.

-- A copy is found by its content, which images of several owners may have. An image has a row from the day it is wanted at a
-- location until the copy is gone from there: holds end sooner, and the copy stays as unheld cache.
CREATE TABLE placement (
  image_id TEXT NOT NULL REFERENCES image (id),
  location_id TEXT NOT NULL REFERENCES location (id),
  PRIMARY KEY (image_id, location_id)
);

-- Of older copies it is known where no other image has the content.
INSERT INTO placement (image_id, location_id)
SELECT intent.image_id, intent.location_id FROM intent WHERE intent.wish = 'keep'
UNION
SELECT image.id, entry.location_id FROM entry JOIN image ON image.content_id = entry.content_id
WHERE NOT EXISTS (SELECT twin.id FROM image twin WHERE twin.content_id = image.content_id AND twin.id <> image.id);

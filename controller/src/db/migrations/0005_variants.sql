-- Version 5. Variants: the disk of an image in other formats. A row is its own job: `queued` waits, `saving` is being made.
-- asked: 1 if somebody waits for it; those go before the ones that every import queues. Sums and bytes are NULL until `active`.

CREATE TABLE variant (
  image_id TEXT NOT NULL REFERENCES image (id),
  format TEXT NOT NULL,
  status TEXT NOT NULL,
  asked BIGINT NOT NULL,
  attempt BIGINT NOT NULL,
  reason TEXT NOT NULL,
  bytes BIGINT,
  sha256 TEXT,
  md5 TEXT,
  blake3 TEXT,
  queued_us BIGINT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL,
  PRIMARY KEY (image_id, format)
);
CREATE INDEX variant_queue ON variant (status, asked, queued_us);

-- What the scan hook said of the disk and when; NULL without one.
ALTER TABLE image ADD COLUMN scan_verdict TEXT;
ALTER TABLE image ADD COLUMN scanned_us BIGINT;

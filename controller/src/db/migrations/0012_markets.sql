-- Version 12. Markets: signed catalogs of images that can be imported.

-- catalog, signature: the file as it was signed. url: '' if editions are given by hand.
CREATE TABLE market (
  id TEXT NOT NULL PRIMARY KEY,
  name TEXT NOT NULL,
  name_folded TEXT NOT NULL UNIQUE,
  public_key TEXT NOT NULL,
  url TEXT NOT NULL,
  catalog TEXT NOT NULL,
  signature TEXT NOT NULL,
  catalog_name TEXT NOT NULL,
  serial BIGINT NOT NULL,
  entries BIGINT NOT NULL,
  created_us BIGINT NOT NULL,
  updated_us BIGINT NOT NULL
);

-- The newest edition that was ever here, also of a market that was removed.
CREATE TABLE market_edition (
  public_key TEXT NOT NULL,
  catalog_name TEXT NOT NULL,
  serial BIGINT NOT NULL,
  text_hash TEXT NOT NULL,
  updated_us BIGINT NOT NULL,
  PRIMARY KEY (public_key, catalog_name)
);

-- What was imported from where. No REFERENCES: the row is made before its image, and outlives both.
CREATE TABLE market_import (
  image_id TEXT NOT NULL PRIMARY KEY,
  public_key TEXT NOT NULL,
  catalog_name TEXT NOT NULL,
  entry_key TEXT NOT NULL,
  sha256 TEXT NOT NULL,
  size_bytes BIGINT NOT NULL,
  created_us BIGINT NOT NULL
);
CREATE INDEX market_import_entry ON market_import (public_key, catalog_name, entry_key);

#!/usr/bin/env python3
"""Counts what an image must cost on the wire, without using a line of Hearth.

usage: stored_bytes.py BASE.raw NEXT.raw

Cuts both raw disks by the published rule (ARCHITECTURE.md and protocol/src/manifest.rs): a chunk ends after a 4 KiB
block whose xxh3-64 has low 32 bits below 2**32/13, has 4 to 64 blocks, and never spans a block of zeros. Prints, as
JSON, the stored bytes (zstd 3, or raw where that saves under 3 %) of all distinct chunks of NEXT and of those that BASE
does not have. Chunks are compared by SHA-256.
Needs Debian's python3-xxhash and python3-zstandard.
"""
import hashlib
import json
import os
import sys

import xxhash
import zstandard

BLOCK, MIN_BLOCKS, MAX_BLOCKS, BELOW = 4096, 4, 64, 2**32 // 13
ZERO = bytes(BLOCK)


def extents(fd):
    end, at = os.fstat(fd).st_size, 0
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return
        at = os.lseek(fd, data, os.SEEK_HOLE)
        yield data // BLOCK * BLOCK, -(-at // BLOCK) * BLOCK


def chunks(path):
    fd = os.open(path, os.O_RDONLY)
    chunk = []
    last = None
    for start, end in extents(fd):
        if last is not None and start > last and chunk:
            yield b"".join(chunk)
            chunk = []
        for offset in range(start, end, BLOCK):
            if last is not None and offset < last:
                continue
            block = os.pread(fd, BLOCK, offset)
            last = offset + BLOCK
            if block == ZERO[: len(block)]:
                if chunk:
                    yield b"".join(chunk)
                    chunk = []
                continue
            chunk.append(block)
            marked = xxhash.xxh3_64_intdigest(block) & 0xFFFFFFFF < BELOW
            if len(chunk) == MAX_BLOCKS or (marked and len(chunk) >= MIN_BLOCKS):
                yield b"".join(chunk)
                chunk = []
    if chunk:
        yield b"".join(chunk)
    os.close(fd)


def main(base, following):
    have = {hashlib.sha256(chunk).digest() for chunk in chunks(base)}
    pack = zstandard.ZstdCompressor(level=3)
    seen, totals = set(), {"stored_bytes": 0, "stored_new_bytes": 0, "raw_bytes": 0, "raw_new_bytes": 0, "chunks": 0, "new_chunks": 0}
    for chunk in chunks(following):
        digest = hashlib.sha256(chunk).digest()
        if digest in seen:
            continue
        seen.add(digest)
        packed = len(pack.compress(chunk))
        stored = packed if packed <= len(chunk) * 0.97 else len(chunk)
        new = digest not in have
        for name, value in (("stored_bytes", stored), ("raw_bytes", len(chunk)), ("chunks", 1)):
            totals[name] += value
        if new:
            for name, value in (("stored_new_bytes", stored), ("raw_new_bytes", len(chunk)), ("new_chunks", 1)):
                totals[name] += value
    print(json.dumps(totals))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])

#!/usr/bin/env python3
"""Reads a Holdfast repository in a directory, without Holdfast.

Written from docs/repository-format.md alone ("section" below means one of that page), with Python's standard library
and the binaries `zstd` and, for sealed repositories, `age`. It is the proof that the page is enough: the test suite
compares what this gives with what Holdfast restores. Slow but sure: it verifies every hash and checksum there is.

  read_repository.py REPOSITORY list
  read_repository.py REPOSITORY restore CLUSTER SYSTEM_IDENTIFIER BACKUP TARGET [--tablespace OID=DIRECTORY ...]
  read_repository.py REPOSITORY wal-list CLUSTER SYSTEM_IDENTIFIER
  read_repository.py REPOSITORY wal CLUSTER SYSTEM_IDENTIFIER NAME DESTINATION
  read_repository.py REPOSITORY tail-list CLUSTER SYSTEM_IDENTIFIER
  read_repository.py REPOSITORY tail CLUSTER SYSTEM_IDENTIFIER SEGMENT DESTINATION
  read_repository.py hash FILE...

--identity FILE names the age identity. Exit status: 0 done, 1 damaged or refused, 3 the WAL file, or the
tail, is not there. `tail` writes what there is of the segment, padded with zeros to its size.
"""
import argparse
import collections
import json
import os
import re
import subprocess
import sys
import tempfile

from blake3_crc32c import Blake3, blake3, crc32c

FORMAT = 1
MARKER_MAX, CLEAR_MAX = 64 << 10, 4 << 20
PLAIN_MAX, STORED_MAX = 1 << 20, 2 << 20
WAL_FRAME_MAX, WAL_FILE_MAX = 64 << 20, 1 << 30
SPAN_BLOCKS, HASH_BYTES = 2048, 16
CRC_MAX = 64 << 10
COMPONENT = re.compile(r"[A-Za-z0-9._-]{1,255}")
RUN = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]{4}")
HASH = re.compile(r"[0-9a-f]{64}")
WAL_NAME = re.compile(r"([0-9A-F]{8})(?:([0-9A-F]{8})[0-9A-F]{8}(?:(\.partial)|(\.[0-9A-F]{8}\.backup))?|(\.history))")


TAIL_MAX = 16 << 20
TAIL = re.compile(r"([0-9A-F]{24})-([0-9a-f]{8})-([0-9a-f]{8})-(none|\d{1,16})-([0-9a-f]{32})-[0-9a-f]{8}\.zst(?:\.age|\.gpg)?")
Tail = collections.namedtuple("Tail", "key segment start end commit hash")


class Damaged(Exception):
    pass


class Missing(Exception):
    pass


def need(condition, what):
    if not condition:
        raise Damaged(what)


def is_size(value, most=2**53 - 1):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= most


class Store:
    """Section 2: objects as files below a directory; section 5: opening them."""

    def __init__(self, root, identity):
        self.root, self.identity = root, identity
        self.opened = collections.OrderedDict()

    def path(self, key):
        parts = key.split("/") if isinstance(key, str) else []
        good = all(COMPONENT.fullmatch(p) and p not in (".", "..") and not p.startswith(".tmp-") for p in parts)
        need(parts and good and len(key) <= 900, f"{key!r} is not a key")
        return os.path.join(self.root, *parts)

    def names(self, prefix):
        """The last components of the keys directly below a prefix."""
        place = self.path(prefix)
        if not os.path.isdir(place):
            return []
        return sorted(n for n in os.listdir(place) if COMPONENT.fullmatch(n) and not n.startswith(".tmp-"))

    def read(self, key, most):
        try:
            with open(self.path(key), "rb") as file:
                data = file.read(most + 1)
        except FileNotFoundError:
            raise Missing(f"{key} is not there") from None
        need(len(data) <= most, f"{key} is larger than it can be")
        return data

    def clear(self, key, most=CLEAR_MAX):
        """Section 3."""
        data = self.read(key, most)
        match = re.fullmatch(rb'(.*),"checksum":"([0-9a-f]{64})"\}\n', data, re.DOTALL)
        need(match, f"{key} does not have the form of a clear object")
        need(blake3(match[1] + b"}").hex().encode() == match[2], f"{key}: its checksum does not fit")
        value = json.loads(data)
        need(isinstance(value, dict) and isinstance(value.get("format"), int), f"{key} states no format")
        if value["format"] > FORMAT:
            raise Damaged(f"{key} has the newer format {value['format']}: use a newer reader")
        need(value["format"] == FORMAT, f"{key} has an unknown format")
        return value

    def open(self, stored):
        """The plain bytes of a stored object as a file, after comparing size and hash of what is stored."""
        key = stored["key"]
        if key in self.opened:
            self.opened.move_to_end(key)
            return self.opened[key]
        need(is_size(stored["sizeBytes"]) and HASH.fullmatch(stored["hash"]), f"{key} is not described")
        path = self.path(key)
        hasher, size = Blake3(), 0
        try:
            with open(path, "rb") as file:
                while data := file.read(PLAIN_MAX):
                    hasher.update(data)
                    size += len(data)
        except FileNotFoundError:
            raise Damaged(f"{key} is not there") from None
        need(size == stored["sizeBytes"], f"{key} has {size} bytes of {stored['sizeBytes']}")
        need(hasher.digest().hex() == stored["hash"], f"{key} is not what was stored")
        plain = self.unseal(key)
        self.opened[key] = plain
        if len(self.opened) > 4:
            self.opened.popitem(last=False)[1].close()
        return plain

    def unseal(self, key):
        path = self.path(key)
        need(not key.endswith(".gpg"), f"{key} is sealed with gpg")
        try:
            if not key.endswith(".age"):
                return open(path, "rb")
            need(os.path.exists(path), f"{key} is not there")
        except FileNotFoundError:
            raise Damaged(f"{key} is not there") from None
        plain = tempfile.TemporaryFile()
        command = ["age", "--decrypt", "--identity", self.identity or "/nonexistent", "--", path]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=plain, stderr=subprocess.PIPE, check=False)
        need(done.returncode == 0, f"{key} does not open: {done.stderr.decode(errors='replace').strip()}")
        plain.seek(0)
        return plain

    def read_part(self, stored, offset, length):
        plain = self.open(stored)
        plain.seek(offset)
        data = plain.read(length)
        need(len(data) == length, f"{stored['key']} ends within a frame")
        return data

    def lines(self, stored):
        """JSON lines of an object."""
        plain = self.open(stored)
        plain.seek(0)
        for line in plain:
            need(line.endswith(b"\n"), f"{stored['key']} ends within a line")
            yield json.loads(line)


def decompress(frame, most):
    """One zstd frame, at most `most` bytes. Two frames in a row are told by the size that the first one states."""
    need(frame[:4] == b"\x28\xb5\x2f\xfd", "this is no zstd frame")
    with tempfile.TemporaryFile() as source:
        source.write(frame)
        source.seek(0)
        with subprocess.Popen(["zstd", "-dcq"], stdin=source, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as zstd:
            data = zstd.stdout.read(most + 1)
            if len(data) > most:
                zstd.kill()
                raise Damaged("a frame is larger than it can be")
    need(zstd.returncode == 0, "a frame does not decompress")
    need(content_size(frame) == len(data), "a frame does not hold what it says")
    return data


def content_size(frame):
    """RFC 8878, section 3.1.1.1."""
    descriptor = frame[4]
    need(descriptor & 0x04, "a frame has no checksum")
    single, kind = descriptor >> 5 & 1, descriptor >> 6
    width = (single, 2, 4, 8)[kind]
    need(width, "a frame does not state its size")
    at = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    return int.from_bytes(frame[at : at + width], "little") + (256 if width == 2 else 0)


# --- WAL, section 6 ---------------------------------------------------------------------------------------------------


def wal_place(name):
    match = WAL_NAME.fullmatch(name)
    need(match and match[1] != "00000000", f"{name!r} is not the name of a WAL file")
    kind = "history" if match[5] else "partial" if match[3] else "backup-label" if match[4] else "segment"
    return kind, match[1], match[2] or "history"


def wal_header(store, history, name):
    kind, timeline, folder = wal_place(name)
    key = f"{history}/wal/{timeline}/{folder}/{name}.json"
    header = store.clear(key)
    _, cluster, identifier = history.split("/")
    expected = {"kind": kind, "name": name, "cluster": cluster, "systemIdentifier": identifier}
    for member, value in (expected | {"timeline": int(timeline, 16)}).items():
        need(header.get(member) == value, f"{key}: its {member} is not that of its place")
    stored, frames = header["stored"], header["frames"]
    own = f"{history}/wal-data/{timeline}/{folder}/{name}-{header['hash'][:16]}-"
    need(HASH.fullmatch(header["hash"]) and stored["key"].startswith(own), f"{key}: its data is not its own")
    suffix = {"none": ".zst", "age": ".zst.age", "gpg": ".zst.gpg"}.get(header["seal"])
    need(suffix and re.fullmatch("[0-9a-f]{8}" + re.escape(suffix), stored["key"][len(own) :]), f"{key}: its seal")
    need(is_size(header["sizeBytes"], WAL_FILE_MAX), f"{key}: its size")
    need(all(is_size(f["sizeBytes"], WAL_FRAME_MAX) and is_size(f["storedBytes"]) for f in frames), f"{key}: its frames")
    need(sum(f["sizeBytes"] for f in frames) == header["sizeBytes"], f"{key}: its frames do not add up")
    return header


def extract_wal(store, history, name, destination):
    """Under a temporary name until everything is compared: section 6."""
    header = wal_header(store, history, name)
    stored = header["stored"]
    hasher, at = Blake3(), 0
    temporary = f"{destination}.unverified"
    with open(temporary, "wb") as out:
        for frame in header["frames"]:
            need(frame["storedBytes"] <= 2 * WAL_FRAME_MAX, "a frame is larger than it can be")
            data = decompress(store.read_part(stored, at, frame["storedBytes"]), frame["sizeBytes"])
            need(len(data) == frame["sizeBytes"], f"{stored['key']}: a frame is too short")
            at += frame["storedBytes"]
            hasher.update(data)
            out.write(data)
    plain = store.open(stored)
    need(plain.seek(0, os.SEEK_END) == at, f"{stored['key']}: bytes follow the last frame")
    need(hasher.digest().hex() == header["hash"], f"{name} is not what was archived")
    os.rename(temporary, destination)


def list_wal(store, history):
    for timeline in store.names(f"{history}/wal"):
        for folder in store.names(f"{history}/wal/{timeline}"):
            for entry in store.names(f"{history}/wal/{timeline}/{folder}"):
                if entry.endswith(".json") and WAL_NAME.fullmatch(entry[:-5]):
                    yield entry[:-5]


def tails_of(store, history, segment):
    _, timeline, folder = wal_place(segment)
    prefix = f"{history}/wal-tail/{timeline}/{folder}"
    for entry in store.names(prefix):
        match = TAIL.fullmatch(entry)
        if match and match[1] == segment:
            start, end = int(match[2], 16), int(match[3], 16)
            if start < end <= start + TAIL_MAX:
                commit = None if match[4] == "none" else int(match[4])
                yield Tail(f"{prefix}/{entry}", segment, start, end, commit, match[5])


def chain(tails):
    """The longest run from the segment's start."""
    tails, chosen, end = list(tails), [], 0
    while True:
        further = [tail for tail in tails if tail.start <= end < tail.end]
        if not further:
            return chosen
        chosen.append(max(further, key=lambda tail: tail.end))
        end = chosen[-1].end


def has_header(store, history, segment):
    try:
        return bool(wal_header(store, history, segment))
    except Missing:
        return False


def list_tails(store, history):
    for timeline in store.names(f"{history}/wal-tail"):
        for folder in store.names(f"{history}/wal-tail/{timeline}"):
            entries = store.names(f"{history}/wal-tail/{timeline}/{folder}")
            for segment in sorted({match[1] for match in map(TAIL.fullmatch, entries) if match}):
                tails = chain(tails_of(store, history, segment))
                if tails and wal_place(segment)[1:] == (timeline, folder) and not has_header(store, history, segment):
                    yield {"segment": segment, "end": tails[-1].end, "commit": tails[-1].commit, "tails": len(tails)}


def tail_bytes(store, tail):
    with store.unseal(tail.key) as plain:
        frame = plain.read(2 * TAIL_MAX + 1)
    try:
        need(len(frame) <= 2 * TAIL_MAX, "it is larger than it can be")
        data = decompress(frame, tail.end - tail.start)
    except Damaged as error:
        raise Damaged(f"{tail.key}: {error}") from None
    need(len(data) == tail.end - tail.start, f"{tail.key} does not hold what its name says")
    need(blake3(data).hex()[:32] == tail.hash, f"{tail.key} is not what was stored")
    return data


def extract_tail(store, history, segment, destination):
    need(wal_place(segment)[0] == "segment", f"{segment} is no segment")
    need(not has_header(store, history, segment), f"{segment} is complete: its tails are of no use")
    data = b""
    for tail in chain(tails_of(store, history, segment)):
        data += tail_bytes(store, tail)[len(data) - tail.start :]
    if not data:
        raise Missing(f"there is no tail of {segment}")
    need(len(data) >= 40, f"there is too little of {segment}")
    identifier, size = int.from_bytes(data[24:32], "little"), int.from_bytes(data[32:36], "little")
    need(str(identifier) == history.split("/")[2], f"{segment} is of another cluster")
    need(is_size(size, WAL_FILE_MAX) and size >= 1 << 20 and size & (size - 1) == 0, f"{segment}: its size")
    per_high = (1 << 32) // size
    position = (int(segment[8:16], 16) * per_high + int(segment[16:], 16)) * size
    need(int.from_bytes(data[8:16], "little") == position, f"{segment} holds other WAL")
    need(len(data) <= size, f"there is more of {segment} than it can have")
    temporary = f"{destination}.unverified"
    with open(temporary, "wb") as out:
        out.write(data + bytes(size - len(data)))
    os.rename(temporary, destination)
    print(len(data))


# --- Base backups, section 7 ------------------------------------------------------------------------------------------


def read_record(store, history, backup):
    """Section 7.1."""
    key = f"{history}/base/{backup}.json"
    record = store.clear(key)
    _, cluster, identifier = history.split("/")
    for member, value in {"kind": "base", "id": backup, "cluster": cluster, "systemIdentifier": identifier}.items():
        need(record.get(member) == value, f"{key}: its {member} is not that of its place")
    layout = record["layout"]
    need(layout["hash"] == "blake3-128" and layout["compression"] == "zstd", f"{key}: its layout is unknown")
    need(is_size(layout["blockSizeBytes"], PLAIN_MAX) and layout["blockSizeBytes"], f"{key}: its block size")
    run = f"{history}/data/{backup}/"
    need(record["references"]["key"] == run + "references.jsonl", f"{key}: its references are not its own")
    need(plain_key(record["index"]["key"]) == run + "index.jsonl", f"{key}: its index is not its own")
    return record


def plain_key(key):
    return re.sub(r"\.(age|gpg)$", "", key)


class Cursor:
    """Section 7.4."""

    def __init__(self, data):
        self.data, self.at = data, 0

    def bytes(self, count):
        need(self.at + count <= len(self.data), "a chunk ends within an entry")
        self.at += count
        return self.data[self.at - count : self.at]

    def uint(self):
        value = 0
        for shift in range(0, 56, 7):
            byte = self.bytes(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                need(value < 2**53, "a number is out of range")
                return value
        raise Damaged("a number is out of range")

    def text(self):
        return self.bytes(self.uint())


Stored = collections.namedtuple("Stored", "run pack offset length start hashes")
Zeros = collections.namedtuple("Zeros", "blocks")
Entry = collections.namedtuple("Entry", "kind path mode size crc span extents", defaults=(None,) * 5)
FILE, SPAN, DIRECTORY = range(3)


def blocks_of(extent):
    return extent.blocks if isinstance(extent, Zeros) else len(extent.hashes) // HASH_BYTES


def sort_key(entry):
    return entry.path + b"\0" + (b"%08x" % entry.span if entry.kind == SPAN else b"")


def decode_chunk(data):
    cursor = Cursor(data)
    need(cursor.bytes(4) == b"HFM1", "this is no chunk")
    runs = [cursor.text().decode("ascii") for _ in range(cursor.uint())]
    need(all(RUN.fullmatch(run) for run in runs), "a chunk names an impossible run")
    entries = []
    for _ in range(cursor.uint()):
        kind, path = cursor.uint(), cursor.text()
        if kind == FILE:
            mode, size = cursor.uint(), cursor.uint()
            crc = int.from_bytes(cursor.bytes(4), "little")
            entries.append(Entry(kind, path, mode=mode, size=size, crc=crc, extents=decode_extents(cursor, runs)))
        elif kind == SPAN:
            entries.append(Entry(kind, path, span=cursor.uint(), extents=decode_extents(cursor, runs)))
        elif kind == DIRECTORY:
            entries.append(Entry(kind, path, mode=cursor.uint()))
        else:
            raise Damaged(f"an entry has the unknown kind {kind}")
    need(cursor.at == len(data), "bytes follow the last entry")
    return entries


def decode_extents(cursor, runs):
    extents = []
    for _ in range(cursor.uint()):
        head = cursor.uint()
        blocks = head // 2
        need(1 <= blocks <= SPAN_BLOCKS, "an extent has an impossible number of blocks")
        if head % 2:
            extents.append(Zeros(blocks))
            continue
        run = cursor.uint()
        need(run < len(runs), "an extent names no run")
        pack, offset, length, start = (cursor.uint() for _ in range(4))
        need(length <= STORED_MAX, "a frame is larger than it can be")
        extents.append(Stored(runs[run], pack, offset, length, start, cursor.bytes(blocks * HASH_BYTES)))
    return extents


class Backup:
    def __init__(self, store, history, record):
        self.store, self.history, self.record = store, history, record
        self.packs = {plain_key(line["key"]): line for line in store.lines(record["references"])}
        self.frames = collections.OrderedDict()

    def pack(self, run, kind, number):
        key = f"{self.history}/data/{run}/{kind}{number:06d}.pack"
        need(key in self.packs, f"{key} is used but not in the references")
        return self.packs[key]

    def entries(self):
        """Sections 7.3 to 7.5: every chunk against its hash, in rising order."""
        last = b""
        for line in list(self.store.lines(self.record["index"])):
            stored = self.pack(line["run"], "m", line["pack"])
            need(line["bytes"] <= STORED_MAX and line["plainBytes"] <= PLAIN_MAX, "a chunk is larger than it can be")
            data = decompress(self.store.read_part(stored, line["offset"], line["bytes"]), line["plainBytes"])
            need(blake3(data).hex() == line["hash"], f"{stored['key']}: a chunk is not what was stored")
            entries = decode_chunk(data)
            need(entries and sort_key(entries[0]) == line["first"].encode("latin-1"), "a chunk begins elsewhere")
            for entry in entries:
                need(sort_key(entry) > last, f"{entry.path!r} is out of order")
                last = sort_key(entry)
                yield entry

    def frame(self, extent):
        """The plain bytes; a few are kept, as the blocks of one lie in many files."""
        place = (extent.run, extent.pack, extent.offset, extent.length)
        if place not in self.frames:
            stored = self.pack(extent.run, "b", extent.pack)
            self.frames[place] = decompress(self.store.read_part(stored, extent.offset, extent.length), PLAIN_MAX)
            if len(self.frames) > 64:
                self.frames.popitem(last=False)
        self.frames.move_to_end(place)
        return self.frames[place]

    def blocks(self, extent, size, block_size):
        """`size` bytes, each block compared with its hash: sections 7.4 and 7.6."""
        data = self.frame(extent)[extent.start : extent.start + size]
        need(len(data) == size, "a frame is too short for its blocks")
        for number in range(blocks_of(extent)):
            digest = blake3(data[number * block_size : (number + 1) * block_size])[:HASH_BYTES]
            expected = extent.hashes[number * HASH_BYTES : (number + 1) * HASH_BYTES]
            need(digest == expected, f"a block in b{extent.pack} of {extent.run} is not what was backed up")
        return data


# --- Restoring, section 8 ---------------------------------------------------------------------------------------------


class Tree:
    def __init__(self, root, tablespaces):
        """`tablespaces`: location by oid, all as bytes."""
        self.root, self.tablespaces = root, tablespaces

    def place(self, path):
        parts = path.split(b"/")
        good = b"\0" not in path and all(part not in (b"", b".", b"..") for part in parts)
        need(good, f"{path!r} is an impossible path")
        if parts[0] == b"pg_tblspc" and len(parts) > 1 and parts[1] in self.tablespaces:
            need(len(parts) > 2, f"{path!r} is a tablespace")
            return b"/".join([self.tablespaces[parts[1]], *parts[2:]])
        return self.root + b"/" + path


PENDING = b".unverified"
CONTROL = b"global/pg_control"


def restore(backup, target, tablespaces):
    tree = Tree(target, tablespaces)
    os.makedirs(target, mode=0o700, exist_ok=True)
    need(not os.listdir(target), f"{target!r} is not empty")
    os.chmod(target, 0o700)
    for location in tablespaces.values():
        os.makedirs(location, mode=0o700, exist_ok=True)
        need(not os.listdir(location), f"{location!r} is not empty")
    count = total = 0
    current = None
    for entry in backup.entries():
        if current and entry.kind != SPAN:
            current.finish()
            current = None
        if entry.kind == DIRECTORY:
            place = tree.place(entry.path)
            os.mkdir(place)
            os.chmod(place, entry.mode)
        elif entry.kind == FILE:
            current = FileWriter(backup, tree, entry)
            count += 1
            total += entry.size
        else:
            need(current, f"{entry.path!r} has a span without a file")
            current.span(entry)
    if current:
        current.finish()
    files = backup.record["files"]
    need((count, total) == (files["count"], files["sizeBytes"]), "the map does not add up to the record's files")
    for oid, location in tablespaces.items():
        os.symlink(location, target + b"/pg_tblspc/" + oid)
    os.rename(target + b"/" + CONTROL + PENDING, target + b"/" + CONTROL)


def write_tablespace_map(target, tablespaces):
    with open(target + b"/tablespace_map", "wb") as file:
        for oid, location in tablespaces.items():
            file.write(oid + b" " + re.sub(rb"([\n\r\\])", rb"\\\1", location) + b"\n")


class FileWriter:
    def __init__(self, backup, tree, entry):
        self.backup, self.entry = backup, entry
        self.block_size = backup.record["layout"]["blockSizeBytes"]
        self.at = self.spans = self.crc = 0
        self.has_spans = entry.size > SPAN_BLOCKS * self.block_size
        name = entry.path + (PENDING if entry.path == CONTROL else b"")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        self.file = os.fdopen(os.open(tree.place(name), flags, 0o600), "wb")
        os.fchmod(self.file.fileno(), entry.mode)
        need(not (self.has_spans and entry.extents), f"{entry.path!r} has extents and spans")
        self.write(entry.extents)

    def span(self, entry):
        good = self.has_spans and entry.path == self.entry.path and entry.span == self.spans
        need(good and self.at == entry.span * SPAN_BLOCKS * self.block_size, f"{entry.path!r} has a span out of place")
        self.spans += 1
        self.write(entry.extents)
        full = min(self.entry.size, self.spans * SPAN_BLOCKS * self.block_size)
        need(self.at == full, f"{entry.path!r} has a span that is not full")

    def write(self, extents):
        for extent in extents:
            blocks = blocks_of(extent)
            size = min(blocks * self.block_size, self.entry.size - self.at)
            need(size > (blocks - 1) * self.block_size, f"{self.entry.path!r} has too many blocks")
            if isinstance(extent, Zeros):
                need(size == blocks * self.block_size, f"{self.entry.path!r} has a short block among its zeros")
                self.file.seek(size, os.SEEK_CUR)
                data = bytes(size)
            else:
                data = self.backup.blocks(extent, size, self.block_size)
                self.file.write(data)
            if self.entry.size <= CRC_MAX:
                self.crc = crc32c(data, self.crc)
            self.at += size

    def finish(self):
        path = self.entry.path
        need(self.at == self.entry.size, f"{path!r} is not described to its end")
        # Too slow for large files in pure Python; their blocks were compared all the same.
        need(self.entry.size > CRC_MAX or self.crc == self.entry.crc, f"{path!r}: its CRC-32C does not fit")
        self.file.truncate(self.entry.size)
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()


# --- The command line -------------------------------------------------------------------------------------------------


def list_backups(store):
    for cluster in store.names("clusters"):
        for identifier in store.names(f"clusters/{cluster}"):
            history = f"clusters/{cluster}/{identifier}"
            for name in store.names(f"{history}/base"):
                if not name.endswith(".json"):
                    continue
                try:
                    record = read_record(store, history, name[:-5])
                    shown = {member: record[member] for member in ("label", "startLsn", "stopLsn", "timeline", "wal")}
                except (Damaged, KeyError, ValueError, TypeError) as error:
                    shown = {"damaged": str(error)}
                yield {"cluster": cluster, "systemIdentifier": identifier, "id": name[:-5], **shown}


def main():
    if sys.argv[1:2] == ["hash"]:
        for path in sys.argv[2:]:
            with open(path, "rb") as file:
                data = file.read()
            print(blake3(data).hex(), f"{crc32c(data):08x}")
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identity")
    parser.add_argument("--tablespace", action="append", default=[])
    parser.add_argument("repository")
    parser.add_argument("command", choices=["list", "restore", "wal-list", "wal", "tail-list", "tail"])
    parser.add_argument("rest", nargs="*")
    options = parser.parse_args()
    store = Store(options.repository, options.identity)
    store.clear("holdfast.json", MARKER_MAX)
    if options.command == "list":
        for backup in list_backups(store):
            print(json.dumps(backup))
        return
    cluster, identifier, *rest = options.rest
    history = f"clusters/{cluster}/{identifier}"
    if options.command == "wal-list":
        print("\n".join(list_wal(store, history)))
    elif options.command == "tail-list":
        for tail in list_tails(store, history):
            print(json.dumps(tail))
    elif options.command == "tail":
        extract_tail(store, history, *rest)
    elif options.command == "wal":
        extract_wal(store, history, *rest)
    else:
        backup_id, target = rest
        record = read_record(store, history, backup_id)
        tablespaces = {str(t["oid"]).encode(): t["location"].encode() for t in record["tablespaces"]}
        moved = dict(os.fsencode(mapping).split(b"=", 1) for mapping in options.tablespace)
        need(moved.keys() <= tablespaces.keys(), "no such tablespace")
        restore(Backup(store, history, record), os.fsencode(target), tablespaces | moved)
        if moved:
            write_tablespace_map(os.fsencode(target), tablespaces | moved)


if __name__ == "__main__":
    try:
        main()
    except Missing as error:
        sys.exit(print(f"missing: {error}", file=sys.stderr) or 3)
    except (Damaged, KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        sys.exit(print(f"refused: {type(error).__name__}: {error}", file=sys.stderr) or 1)

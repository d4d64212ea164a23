"""The tables of an index in PostgreSQL, without those of records and their history.

Text is compared by the numbers of its characters, as in SQLite, whatever the locale of the database is.
"""

from __future__ import annotations

from filestore.repository.index.postgres.revisions import REVISION_CHECK_STATE

TABLES = (
    # `going` says that the row is condemned. `frame_digest` is BLAKE3 of the frame, or NULL where nobody has computed it yet.
    # There is room in each page, so that a new time of a row needs no new entry of the primary key.
    """CREATE TABLE chunks (
        namespace text COLLATE "C" NOT NULL,
        digest bytea NOT NULL,
        size bigint NOT NULL,
        stored_size bigint NOT NULL,
        last_seen bigint NOT NULL,
        going boolean NOT NULL,
        frame_digest bytea,
        object_id bytea NOT NULL DEFAULT '',
        PRIMARY KEY (namespace, digest)
    ) WITH (fillfactor = 85)""",
    # Which object of the store is the manifest with a digest.
    """CREATE TABLE manifests (
        namespace text COLLATE "C" NOT NULL,
        digest bytea NOT NULL,
        object_id bytea NOT NULL,
        PRIMARY KEY (namespace, digest)
    )""",
    # Objects that could not be read, of chunks whose rows were removed for that.
    """CREATE TABLE lost_frames (
        namespace text COLLATE "C" NOT NULL,
        digest bytea NOT NULL,
        object_id bytea NOT NULL,
        PRIMARY KEY (namespace, digest, object_id)
    )""",
    # The frame of `digest` can be decoded only together with the chunk `base`.
    """CREATE TABLE bases (
        namespace text COLLATE "C" NOT NULL,
        digest bytea NOT NULL,
        base bytea NOT NULL,
        PRIMARY KEY (namespace, digest, base)
    )""",
    "CREATE INDEX bases_by_base ON bases (namespace, base)",
    # The last position of a record: later ones are larger, even if the clock is set back or that record is removed. And how
    # many records were stored: a row for each namespace, so that namespaces do not wait for each other.
    """CREATE TABLE clocks (
        namespace text COLLATE "C" NOT NULL PRIMARY KEY,
        last bigint NOT NULL,
        commits bigint NOT NULL DEFAULT 0
    )""",
    # Times are in microseconds since 1970. `expires_at` is NULL for a token that does not expire.
    """CREATE TABLE access_tokens (
        digest bytea NOT NULL PRIMARY KEY,
        namespace text COLLATE "C" NOT NULL,
        label text COLLATE "C" NOT NULL,
        created_at bigint NOT NULL,
        scope text COLLATE "C" NOT NULL,
        prefix text COLLATE "C" NOT NULL,
        expires_at bigint,
        used_at bigint
    ) WITH (fillfactor = 85)""",
    # `secret` is the secret, which never changes, and `keys` what replaced the first key that signs URLs.
    """CREATE TABLE secrets (
        kind text COLLATE "C" NOT NULL PRIMARY KEY CHECK (kind IN ('secret', 'keys')),
        value bytea NOT NULL
    )""",
    """CREATE TABLE uses (
        namespace text COLLATE "C" NOT NULL,
        file_id text COLLATE "C" NOT NULL,
        pipeline_id text COLLATE "C" NOT NULL,
        pipeline_name text COLLATE "C" NOT NULL,
        is_graph boolean NOT NULL,
        PRIMARY KEY (namespace, file_id, pipeline_id)
    )""",
    "CREATE INDEX uses_by_pipeline ON uses (namespace, pipeline_id)",
    """CREATE TABLE policies (
        namespace text COLLATE "C" NOT NULL PRIMARY KEY,
        keep_last bigint,
        older_than_seconds bigint
    )""",
    """CREATE TABLE tasks (
        namespace text COLLATE "C" NOT NULL,
        task text COLLATE "C" NOT NULL,
        state text COLLATE "C" NOT NULL,
        PRIMARY KEY (namespace, task)
    )""",
    'CREATE TABLE meta (key text COLLATE "C" NOT NULL PRIMARY KEY, value text COLLATE "C" NOT NULL)',
    "INSERT INTO meta (key, value) VALUES ('index_id', replace(gen_random_uuid()::text, '-', ''))",
    # The last removals of a namespace. `digests` are those that it removed, one after the other, or NULL if they are too many.
    """CREATE TABLE removals (
        namespace text COLLATE "C" NOT NULL,
        number bigint NOT NULL,
        digests bytea,
        PRIMARY KEY (namespace, number)
    )""",
    # `token` is the digest of a token, or empty for the quota of the namespace itself.
    """CREATE TABLE quotas (
        namespace text COLLATE "C" NOT NULL,
        token bytea NOT NULL,
        size bigint,
        stored_size bigint,
        name_count bigint,
        uploads bigint,
        connections bigint,
        requests_per_second bigint,
        bytes_per_second bigint,
        PRIMARY KEY (namespace, token)
    )""",
    """CREATE TABLE usage (
        namespace text COLLATE "C" NOT NULL PRIMARY KEY,
        record_count bigint NOT NULL DEFAULT 0,
        name_count bigint NOT NULL DEFAULT 0,
        size bigint NOT NULL DEFAULT 0,
        manifests_size bigint NOT NULL DEFAULT 0,
        chunk_count bigint NOT NULL DEFAULT 0,
        stored_size bigint NOT NULL DEFAULT 0
    ) WITH (fillfactor = 50)""",
    # A process that was started before a migration must not write to tables that it does not know.
    f"""CREATE FUNCTION check_revision(known text) RETURNS void LANGUAGE plpgsql STABLE AS $$
    DECLARE found text;
    BEGIN
        SELECT version_num INTO found FROM alembic_version;
        IF found COLLATE "C" > known COLLATE "C" THEN
            RAISE EXCEPTION USING ERRCODE = '{REVISION_CHECK_STATE}', MESSAGE = found;
        END IF;
    END $$""",
)

_ADD_CHUNKS = """INSERT INTO usage AS kept (namespace, chunk_count, stored_size) {counted}
    ON CONFLICT (namespace) DO UPDATE SET chunk_count = kept.chunk_count + excluded.chunk_count,
        stored_size = kept.stored_size + excluded.stored_size;"""
_ADDED = "SELECT namespace, count(*), sum(stored_size) FROM added GROUP BY namespace"
_REMOVED = "SELECT namespace, -count(*), -sum(stored_size) FROM removed GROUP BY namespace"
# Most statements that change rows leave their sizes as they are, and count nothing.
_REPLACED = """SELECT namespace, sum(number), sum(stored_size) FROM (
        SELECT namespace, 1 AS number, stored_size FROM added UNION ALL SELECT namespace, -1, -stored_size FROM removed
    ) AS changed GROUP BY namespace HAVING sum(number) != 0 OR sum(stored_size) != 0"""
# 1 if no other record has the name, or else 0. The record itself is in the table, or not any more.
_NAMES = "(SELECT count(*) FROM (SELECT 1 FROM records WHERE namespace = {row}.namespace AND name = {row}.name LIMIT 2) AS named)"
_ADD_RECORD = """INSERT INTO usage AS kept (namespace, record_count, name_count, size, manifests_size)
    VALUES ({row}.namespace, {sign}1, {sign}({names} = {others})::int, {sign}{row}.size, {sign}{row}.manifest_size)
    ON CONFLICT (namespace) DO UPDATE SET record_count = kept.record_count + excluded.record_count,
        name_count = kept.name_count + excluded.name_count, size = kept.size + excluded.size,
        manifests_size = kept.manifests_size + excluded.manifests_size;"""
_COUNT_IN = _ADD_RECORD.format(row="NEW", sign="", names=_NAMES.format(row="NEW"), others=1)
_COUNT_OUT = _ADD_RECORD.format(row="OLD", sign="-", names=_NAMES.format(row="OLD"), others=0)
_RESIZE = """UPDATE usage SET size = size + NEW.size - OLD.size,
    manifests_size = manifests_size + NEW.manifest_size - OLD.manifest_size WHERE namespace = NEW.namespace;"""
_MOVED = "NEW.namespace != OLD.namespace OR NEW.name != OLD.name"
_RESIZED = "NEW.size != OLD.size OR NEW.manifest_size != OLD.manifest_size"


def _trigger(name: str, when: str, what: str) -> tuple[str, str]:
    function = f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {what} RETURN NULL; END $$"
    return function, f"CREATE TRIGGER {name} AFTER {when} EXECUTE FUNCTION {name}()"


TRIGGERS = (
    # The rows of chunks are counted once for each statement, because one statement writes many.
    *_trigger(
        "chunks_added",
        "INSERT ON chunks REFERENCING NEW TABLE AS added FOR EACH STATEMENT",
        _ADD_CHUNKS.format(counted=_ADDED),
    ),
    *_trigger(
        "chunks_removed",
        "DELETE ON chunks REFERENCING OLD TABLE AS removed FOR EACH STATEMENT",
        _ADD_CHUNKS.format(counted=_REMOVED),
    ),
    *_trigger(
        "chunks_replaced",
        "UPDATE ON chunks REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT",
        _ADD_CHUNKS.format(counted=_REPLACED),
    ),
    *_trigger("record_added", "INSERT ON records FOR EACH ROW", _COUNT_IN),
    *_trigger("record_removed", "DELETE ON records FOR EACH ROW", _COUNT_OUT),
    *_trigger(
        "record_moved",
        f"UPDATE OF namespace, name ON records FOR EACH ROW WHEN ({_MOVED})",
        _COUNT_OUT + _COUNT_IN,
    ),
    *_trigger(
        "record_resized",
        f"UPDATE OF size, manifest_size ON records FOR EACH ROW WHEN (({_RESIZED}) AND NOT ({_MOVED}))",
        _RESIZE,
    ),
)
"""What counts rows for `usage`. They follow the tables of records."""

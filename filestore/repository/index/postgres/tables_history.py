"""The tables of records, commits, labels, owners and secondary digests in an index in PostgreSQL.

Texts are compared by their bytes, as in SQLite. Times are in microseconds since 1970.
"""

from __future__ import annotations

_RECORDS = (
    # `position` is the order of the records of a namespace: the record that was stored last has the largest one.
    """CREATE TABLE records (
        namespace text COLLATE "C" NOT NULL,
        id text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        kind text COLLATE "C" NOT NULL,
        digest bytea NOT NULL,
        size bigint NOT NULL,
        created_at bigint NOT NULL,
        updated_at bigint NOT NULL,
        position bigint NOT NULL,
        manifest_size bigint NOT NULL,
        PRIMARY KEY (namespace, id),
        UNIQUE (namespace, name, kind, digest)
    )""",
    "CREATE UNIQUE INDEX records_by_position ON records (namespace, position)",
    "CREATE INDEX records_by_time ON records (namespace, updated_at)",
    "CREATE INDEX records_by_name ON records (namespace, name, position)",
    "CREATE INDEX records_by_digest ON records (namespace, digest, position)",
)
_HISTORY = (
    # `number` counts the commits of a name. `parent` is the number of the commit before it on its line.
    """CREATE TABLE commits (
        namespace text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        number bigint NOT NULL,
        id bytea NOT NULL,
        parent bigint,
        branch text COLLATE "C" NOT NULL,
        file_id text COLLATE "C" NOT NULL,
        message text COLLATE "C" NOT NULL,
        author text COLLATE "C" NOT NULL,
        created_at bigint NOT NULL,
        PRIMARY KEY (namespace, name, number)
    )""",
    # The namespace and the name come last: PostgreSQL, which expects a name to have few commits, would find a commit by any index
    # that begins with them, and look at all commits of the name.
    "CREATE UNIQUE INDEX commits_by_id ON commits (id, namespace, name)",
    "CREATE INDEX commits_by_branch ON commits (branch, namespace, name, number)",
    "CREATE INDEX commits_by_parent ON commits (parent, namespace, name)",
    "CREATE INDEX commits_by_record ON commits (namespace, file_id)",
    """CREATE TABLE labels (
        namespace text COLLATE "C" NOT NULL,
        name text COLLATE "C" NOT NULL,
        label text COLLATE "C" NOT NULL,
        kind text COLLATE "C" NOT NULL,
        number bigint NOT NULL,
        created_at bigint NOT NULL,
        PRIMARY KEY (namespace, name, label)
    )""",
    "CREATE INDEX labels_by_commit ON labels (namespace, name, number)",
    # `folded` is the owner in lower case.
    """CREATE TABLE owners (
        folded text COLLATE "C" NOT NULL PRIMARY KEY,
        owner text COLLATE "C" NOT NULL,
        namespace text COLLATE "C" NOT NULL,
        created_at bigint NOT NULL
    )""",
    "CREATE INDEX owners_by_namespace ON owners (namespace, owner)",
)
_DIGESTS = (
    # In the content of the record `source`, the content with this file digest begins at `start`.
    """CREATE TABLE content_digests (
        namespace text COLLATE "C" NOT NULL,
        digest bytea NOT NULL,
        size bigint NOT NULL,
        sha256 bytea NOT NULL,
        blob_id bytea NOT NULL,
        source bytea NOT NULL,
        start bigint NOT NULL,
        PRIMARY KEY (namespace, digest)
    )""",
    "CREATE INDEX content_digests_by_sha256 ON content_digests (namespace, sha256, digest)",
    "CREATE INDEX content_digests_by_source ON content_digests (namespace, source)",
    """CREATE TABLE tree_digests (
        namespace text COLLATE "C" NOT NULL,
        digest bytea NOT NULL,
        content bytea NOT NULL,
        PRIMARY KEY (namespace, digest)
    )""",
    # Rows go with the last record that leads to their content.
    """CREATE FUNCTION remove_digests_of_no_record() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT EXISTS (SELECT 1 FROM records WHERE namespace = OLD.namespace AND digest = OLD.digest) THEN
            DELETE FROM content_digests WHERE namespace = OLD.namespace AND source = OLD.digest;
            DELETE FROM tree_digests WHERE namespace = OLD.namespace AND digest = OLD.digest;
        END IF;
        RETURN NULL;
    END
    $$""",
    "CREATE TRIGGER digests_of_no_record AFTER DELETE ON records FOR EACH ROW EXECUTE FUNCTION remove_digests_of_no_record()",
)
TABLES: tuple[str, ...] = (*_RECORDS, *_HISTORY, *_DIGESTS)
"""The statements that make them, in this order."""

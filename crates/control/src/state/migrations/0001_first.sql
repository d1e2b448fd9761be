-- The first schema. Never edited: what it made is on people's disks. Times are milliseconds
-- since 1970. What refers to something that may be gone (audit, operations, changes) keeps
-- its name and no foreign key.

CREATE TABLE users (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    is_operator INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

-- `data_key`: the key of the team's secrets, wrapped by the envelope key.
CREATE TABLE teams (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    data_key BLOB NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;

CREATE TABLE memberships (
    team_id INTEGER NOT NULL REFERENCES teams (id) ON DELETE CASCADE,
    user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role TEXT NOT NULL CHECK (role IN ('viewer', 'deployer', 'owner')),
    PRIMARY KEY (team_id, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX memberships_of_user ON memberships (user_id);

-- With `user_id`: a person's, for all their teams or for `team_id` alone. Without: the
-- team's own, with `role`.
CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    hash BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    user_id INTEGER REFERENCES users (id) ON DELETE CASCADE,
    team_id INTEGER REFERENCES teams (id) ON DELETE CASCADE,
    role TEXT NOT NULL CHECK (role IN ('viewer', 'deployer', 'owner')),
    scopes TEXT NOT NULL,
    created_ms INTEGER NOT NULL,
    expires_ms INTEGER,
    used_ms INTEGER,
    CHECK (user_id IS NOT NULL OR team_id IS NOT NULL)
) STRICT;
CREATE INDEX tokens_of_user ON tokens (user_id);
CREATE INDEX tokens_of_team ON tokens (team_id);

-- Links that let somebody in, once. With `user_id`: that person. Without: whoever opens it
-- becomes a user, or joins the team.
CREATE TABLE invitations (
    hash BLOB PRIMARY KEY,
    user_id INTEGER REFERENCES users (id) ON DELETE CASCADE,
    team_id INTEGER REFERENCES teams (id) ON DELETE CASCADE,
    role TEXT NOT NULL CHECK (role IN ('viewer', 'deployer', 'owner')),
    is_operator INTEGER NOT NULL,
    expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE device_sign_ins (
    device_hash BLOB PRIMARY KEY,
    code_hash BLOB NOT NULL UNIQUE,
    name TEXT NOT NULL,
    user_id INTEGER REFERENCES users (id) ON DELETE CASCADE,
    expires_ms INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at_ms INTEGER NOT NULL,
    team_id INTEGER,
    who TEXT NOT NULL,
    token_id TEXT,
    origin TEXT NOT NULL,
    action TEXT NOT NULL,
    subject TEXT NOT NULL,
    detail TEXT
) STRICT;
CREATE INDEX audit_of_team ON audit (team_id, number);

-- `configuration_id`: the variables that the next release starts from.
CREATE TABLE apps (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    team_id INTEGER NOT NULL REFERENCES teams (id),
    name TEXT NOT NULL,
    current_release INTEGER,
    last_release INTEGER NOT NULL DEFAULT 0,
    configuration_id INTEGER NOT NULL,
    is_going INTEGER NOT NULL DEFAULT 0,
    created_ms INTEGER NOT NULL,
    UNIQUE (team_id, name)
) STRICT;

CREATE TABLE configurations (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    app_id INTEGER NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    created_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX configurations_of_app ON configurations (app_id);

-- `value`: UTF-8, or sealed with the team's data key.
CREATE TABLE variables (
    configuration_id INTEGER NOT NULL REFERENCES configurations (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    value BLOB NOT NULL,
    is_secret INTEGER NOT NULL,
    PRIMARY KEY (configuration_id, name)
) STRICT, WITHOUT ROWID;

CREATE TABLE releases (
    app_id INTEGER NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    number INTEGER NOT NULL,
    image TEXT NOT NULL,
    configuration_id INTEGER NOT NULL REFERENCES configurations (id),
    state TEXT NOT NULL CHECK (state IN ('pending', 'ready', 'failed')),
    description TEXT NOT NULL,
    note TEXT,
    created_ms INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (app_id, number)
) STRICT, WITHOUT ROWID;

CREATE TABLE resources (
    id TEXT PRIMARY KEY,
    team_id INTEGER NOT NULL REFERENCES teams (id),
    kind TEXT NOT NULL CHECK (kind IN ('key-value', 'sqlite')),
    name TEXT NOT NULL,
    quota_bytes INTEGER NOT NULL,
    is_going INTEGER NOT NULL DEFAULT 0,
    created_ms INTEGER NOT NULL,
    UNIQUE (team_id, kind, name)
) STRICT;

CREATE TABLE links (
    app_id INTEGER NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    kind TEXT NOT NULL CHECK (kind IN ('key-value', 'sqlite')),
    label TEXT NOT NULL,
    resource_id TEXT NOT NULL REFERENCES resources (id),
    PRIMARY KEY (app_id, kind, label)
) STRICT, WITHOUT ROWID;
CREATE INDEX links_of_resource ON links (resource_id);

CREATE TABLE domains (
    app_id INTEGER NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    host TEXT NOT NULL,
    txt_value TEXT NOT NULL,
    verified_ms INTEGER,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (app_id, host)
) STRICT, WITHOUT ROWID;
-- Who shows that it is theirs has it; anybody may say so before.
CREATE UNIQUE INDEX domains_verified ON domains (host) WHERE verified_ms IS NOT NULL;

-- `request`: what to do, as JSON, so that it can be taken up again after a crash.
CREATE TABLE operations (
    id TEXT PRIMARY KEY,
    team_id INTEGER NOT NULL,
    app_id INTEGER NOT NULL,
    app_name TEXT NOT NULL,
    kind TEXT NOT NULL,
    release INTEGER,
    progress TEXT NOT NULL CHECK (progress IN ('running', 'done', 'failed')),
    request TEXT NOT NULL,
    error TEXT,
    created_ms INTEGER NOT NULL,
    ended_ms INTEGER,
    created_by TEXT NOT NULL
) STRICT;
-- One at a time for each app.
CREATE UNIQUE INDEX operations_running ON operations (app_id) WHERE progress = 'running';
CREATE INDEX operations_of_app ON operations (app_id, created_ms);

CREATE TABLE steps (
    operation_id TEXT NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    name TEXT NOT NULL,
    progress TEXT NOT NULL CHECK (progress IN ('waiting', 'running', 'done', 'failed')),
    duration_us INTEGER,
    detail TEXT,
    PRIMARY KEY (operation_id, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE changes (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL CHECK (kind IN ('put', 'remove')),
    team_id INTEGER NOT NULL,
    team_name TEXT NOT NULL,
    app_id INTEGER NOT NULL,
    app_name TEXT NOT NULL,
    release INTEGER
) STRICT;
CREATE INDEX changes_of_app ON changes (app_id, number);

-- `answer`: sealed, since it may hold what is shown only once. NULL while the request runs.
CREATE TABLE idempotency (
    caller TEXT NOT NULL,
    key TEXT NOT NULL,
    request BLOB NOT NULL,
    status INTEGER,
    answer BLOB,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (caller, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idempotency_by_age ON idempotency (created_ms);

CREATE TABLE certificates (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    changed_ms INTEGER NOT NULL
) STRICT;

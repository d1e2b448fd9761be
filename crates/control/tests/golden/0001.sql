PRAGMA user_version = 1;
PRAGMA application_id = 2003399536;
CREATE TABLE users (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    is_operator INTEGER NOT NULL,
    created_ms INTEGER NOT NULL
) STRICT;
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
CREATE TABLE domains (
    app_id INTEGER NOT NULL REFERENCES apps (id) ON DELETE CASCADE,
    host TEXT NOT NULL,
    txt_value TEXT NOT NULL,
    verified_ms INTEGER,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (app_id, host)
) STRICT, WITHOUT ROWID;
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
CREATE TABLE idempotency (
    caller TEXT NOT NULL,
    key TEXT NOT NULL,
    request BLOB NOT NULL,
    status INTEGER,
    answer BLOB,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (caller, key)
) STRICT, WITHOUT ROWID;
CREATE TABLE certificates (
    name TEXT PRIMARY KEY,
    value BLOB NOT NULL,
    changed_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX memberships_of_user ON memberships (user_id);
CREATE INDEX tokens_of_user ON tokens (user_id);
CREATE INDEX tokens_of_team ON tokens (team_id);
CREATE INDEX audit_of_team ON audit (team_id, number);
CREATE INDEX configurations_of_app ON configurations (app_id);
CREATE INDEX links_of_resource ON links (resource_id);
CREATE UNIQUE INDEX domains_verified ON domains (host) WHERE verified_ms IS NOT NULL;
CREATE UNIQUE INDEX operations_running ON operations (app_id) WHERE progress = 'running';
CREATE INDEX operations_of_app ON operations (app_id, created_ms);
CREATE INDEX changes_of_app ON changes (app_id, number);
CREATE INDEX idempotency_by_age ON idempotency (created_ms);
INSERT INTO users VALUES (1, 'alice', 1, 1795196780083);
INSERT INTO users VALUES (2, 'vera', 0, 1795196780176);
INSERT INTO teams VALUES (1, 'shop', x'ebc75463b828ee023a357bdec804045533d1d0241777e4f87beaf54d42ccf110bdbf875f3f0bb5384ee4ff099cd6d378a17c1b786823cf3768f78138', 1795196780083);
INSERT INTO memberships VALUES (1, 1, 'owner');
INSERT INTO memberships VALUES (1, 2, 'viewer');
INSERT INTO tokens VALUES ('60180a967e24ef881c151e1709395a97', x'f86dc6ddd72e31167157fe4ddca56c2d25805656ef105f9d4191a2bbd4a1df02', 'sign-in', 1, NULL, 'owner', 'apps:read apps:deploy secrets:write logs:read data:read data:write resources:write registry:pull registry:push team:admin user:admin server:admin', 1795196780095, NULL, 1795196780111);
INSERT INTO tokens VALUES ('baa4fbadf56a7e24cbf571dce4bf1123', x'16dedcfe4338fd44ac1e52257357608ddb9a642a183144ac9c31d2d82164ee65', 'sign-in', 2, NULL, 'owner', 'apps:read apps:deploy secrets:write logs:read data:read data:write resources:write registry:pull registry:push team:admin user:admin server:admin', 1795196780177, NULL, NULL);
INSERT INTO tokens VALUES ('1b403fdb4b6c27c09e4bae5c6ba60fa7', x'33cb759623ff172e0aeaae20fe42407572a75db322a77e574f8ae39b24c1f6be', 'ci', NULL, 1, 'owner', 'apps:read', 1795196780192, NULL, NULL);
INSERT INTO invitations VALUES (x'a5e7d16647221a2129c08b23ef016de365558d81d8f5de960da0c012941ffaba', NULL, 1, 'viewer', 0, 1795801580178);
INSERT INTO device_sign_ins VALUES (x'0e6ce6a9e251bce7beadc861a33f15d5ba69b33afee4db5c9471a266a20f05d3', x'ae0795dfaa34aa521f1009fb2cf8dffd829c8b435056f5f501325cf506d4baf9', 'a machine', NULL, 1795197680178);
INSERT INTO audit VALUES (1, 1795196780070, NULL, 'wisp', NULL, 'server', 'invitation.create', 'owner', NULL);
INSERT INTO audit VALUES (2, 1795196780083, 1, 'alice', NULL, 'unknown', 'team.create', 'shop', NULL);
INSERT INTO audit VALUES (3, 1795196780083, NULL, 'alice', NULL, 'unknown', 'user.sign-in', 'alice', NULL);
INSERT INTO audit VALUES (4, 1795196780095, NULL, 'alice', NULL, 'unknown', 'token.create', '60180a967e24ef881c151e1709395a97', 'apps:read apps:deploy secrets:write logs:read data:read data:write resources:write registry:pull registry:push team:admin user:admin server:admin');
INSERT INTO audit VALUES (5, 1795196780121, 1, 'alice', '60180a967e24ef881c151e1709395a97', 'unknown', 'app.create', 'web', NULL);
INSERT INTO audit VALUES (6, 1795196780127, 1, 'alice', '60180a967e24ef881c151e1709395a97', 'unknown', 'release.create', 'web', 'release 1');
INSERT INTO audit VALUES (7, 1795196780137, 1, 'wisp', NULL, 'server', 'resource.create', 'web.default', 'key-value');
INSERT INTO audit VALUES (8, 1795196780137, 1, 'wisp', NULL, 'server', 'resource.create', 'web.default', 'sqlite');
INSERT INTO audit VALUES (9, 1795196780158, 1, 'alice', '60180a967e24ef881c151e1709395a97', 'unknown', 'variables.change', 'web', 'set password');
INSERT INTO audit VALUES (10, 1795196780174, 1, 'alice', '60180a967e24ef881c151e1709395a97', 'unknown', 'domain.add', 'web', 'www.example.com');
INSERT INTO audit VALUES (11, 1795196780174, 1, 'alice', '60180a967e24ef881c151e1709395a97', 'unknown', 'domain.verify', 'web', 'www.example.com');
INSERT INTO audit VALUES (12, 1795196780176, 1, 'alice', '60180a967e24ef881c151e1709395a97', 'unknown', 'invitation.create', 'viewer', NULL);
INSERT INTO audit VALUES (13, 1795196780176, 1, 'vera', NULL, 'unknown', 'member.join', 'vera', 'viewer');
INSERT INTO audit VALUES (14, 1795196780176, NULL, 'vera', NULL, 'unknown', 'user.sign-in', 'vera', NULL);
INSERT INTO audit VALUES (15, 1795196780177, NULL, 'vera', NULL, 'unknown', 'token.create', 'baa4fbadf56a7e24cbf571dce4bf1123', 'apps:read apps:deploy secrets:write logs:read data:read data:write resources:write registry:pull registry:push team:admin user:admin server:admin');
INSERT INTO audit VALUES (16, 1795196780178, 1, 'alice', '60180a967e24ef881c151e1709395a97', 'unknown', 'invitation.create', 'viewer', NULL);
INSERT INTO audit VALUES (17, 1795196780192, 1, 'alice', '60180a967e24ef881c151e1709395a97', 'unknown', 'token.create', '1b403fdb4b6c27c09e4bae5c6ba60fa7', 'apps:read');
INSERT INTO apps VALUES (1, 1, 'web', 2, 2, 2, 0, 1795196780121);
INSERT INTO configurations VALUES (1, 1, 1795196780121);
INSERT INTO configurations VALUES (2, 1, 1795196780157);
INSERT INTO variables VALUES (2, 'password', x'd9f047b1fd230f58d306a8efdc91ed24a8b8b792b480ac0c6acb0d8ed9fd470c798ecbedc72cfeeba18a5ec083cf431da4', 1);
INSERT INTO releases VALUES (1, 1, 'sha256:0101010101010101010101010101010101010101010101010101010101010101', 1, 'ready', '{"name":"web","components":[{"id":"web","outbound":[{"value":"https://api.example.com","line":9}],"key_value_stores":[{"value":"default","line":10}],"sqlite_databases":[{"value":"default","line":11}],"ai_models":[],"limits":{}}],"triggers":[{"kind":"http","route":"/...","line":4}],"variables":[],"migrations_count":0}', NULL, 1795196780127, 'alice');
INSERT INTO releases VALUES (1, 2, 'sha256:0101010101010101010101010101010101010101010101010101010101010101', 2, 'ready', '{"name":"web","components":[{"id":"web","outbound":[{"value":"https://api.example.com","line":9}],"key_value_stores":[{"value":"default","line":10}],"sqlite_databases":[{"value":"default","line":11}],"ai_models":[],"limits":{}}],"triggers":[{"kind":"http","route":"/...","line":4}],"variables":[],"migrations_count":0}', 'set password', 1795196780157, 'alice');
INSERT INTO resources VALUES ('2ba09824d100b02c8cb871b9d1c27218', 1, 'key-value', 'web.default', 1073741824, 0, 1795196780137);
INSERT INTO resources VALUES ('b77e1719230b357b18a02193ac477004', 1, 'sqlite', 'web.default', 1073741824, 0, 1795196780137);
INSERT INTO links VALUES (1, 'key-value', 'default', '2ba09824d100b02c8cb871b9d1c27218');
INSERT INTO links VALUES (1, 'sqlite', 'default', 'b77e1719230b357b18a02193ac477004');
INSERT INTO domains VALUES (1, 'www.example.com', 'wisp-3a4b16343a014bb2b208bfffc961b21a', 1795196780174, 1795196780174);
INSERT INTO operations VALUES ('1a99382ee1bdf8082659ef21cbf45c71', 1, 1, 'web', 'deploy', 1, 'done', '{"previous":null}', NULL, 1795196780127, 1795196780156, 'alice');
INSERT INTO operations VALUES ('0a8820c5b5535629b7a87d82da17e9c7', 1, 1, 'web', 'configure', 2, 'done', '{"previous":1}', NULL, 1795196780158, 1795196780172, 'alice');
INSERT INTO steps VALUES ('0a8820c5b5535629b7a87d82da17e9c7', 0, 'validate', 'done', 279, NULL);
INSERT INTO steps VALUES ('0a8820c5b5535629b7a87d82da17e9c7', 1, 'check', 'done', 603, NULL);
INSERT INTO steps VALUES ('0a8820c5b5535629b7a87d82da17e9c7', 2, 'swap', 'done', 2191, NULL);
INSERT INTO steps VALUES ('0a8820c5b5535629b7a87d82da17e9c7', 3, 'drain', 'done', 833, NULL);
INSERT INTO steps VALUES ('1a99382ee1bdf8082659ef21cbf45c71', 0, 'validate', 'done', 761, NULL);
INSERT INTO steps VALUES ('1a99382ee1bdf8082659ef21cbf45c71', 1, 'compile', 'done', 422, NULL);
INSERT INTO steps VALUES ('1a99382ee1bdf8082659ef21cbf45c71', 2, 'provision', 'done', 3732, '2 new resources');
INSERT INTO steps VALUES ('1a99382ee1bdf8082659ef21cbf45c71', 3, 'migrate', 'done', 795, NULL);
INSERT INTO steps VALUES ('1a99382ee1bdf8082659ef21cbf45c71', 4, 'check', 'done', 224, NULL);
INSERT INTO steps VALUES ('1a99382ee1bdf8082659ef21cbf45c71', 5, 'swap', 'done', 2352, NULL);
INSERT INTO steps VALUES ('1a99382ee1bdf8082659ef21cbf45c71', 6, 'drain', 'done', 403, NULL);
INSERT INTO changes VALUES (3, 'put', 1, 'shop', 1, 'web', 2);
INSERT INTO idempotency VALUES ('60180a967e24ef881c151e1709395a97', 'golden', x'37ee85e2e39981dee593ff280367cded1dd9b6b8946caddf4cc1bd95eff96226', 201, x'750d842127c60173d766d0a406a3938562662f93c2fc28e167178538c441699ecd20b0ea99123deb6f6f8c7241a8f2cb91f707a9aaa1c523f4b4750483b00365bd2ebfa0d68454cc9facc80fe4c8cbf82d6a6f6504c587cbfb1edc6067f2d60ead42aaea171b66f533c4d4fe6d0edaec92a452b8830be4696ab8e38bb1e316f1f7f1bb4c5b1fa13bcf479795f6770e1e216e053ef4ebd3b14932b853fed96503c5ee7b688719af4dddf41bd39499411beb84c0fa815795cd9a18e2b8740439b3421022d1bc21ad74f56abb9d4903bee141eddd9f59e2a18c05ac05dd8123e1c42745037a72', 1795196780191);
INSERT INTO certificates VALUES ('www.example.com', x'b255d83c40b9584e0387f0eba4e6ef71a51c293d7852723d20200a16a125829459a03723df98236053', 1795196780190);
INSERT INTO sqlite_sequence VALUES ('audit', 17);
INSERT INTO sqlite_sequence VALUES ('users', 2);
INSERT INTO sqlite_sequence VALUES ('teams', 1);
INSERT INTO sqlite_sequence VALUES ('apps', 1);
INSERT INTO sqlite_sequence VALUES ('configurations', 2);
INSERT INTO sqlite_sequence VALUES ('changes', 3);

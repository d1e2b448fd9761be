PRAGMA user_version = 2;
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
, origin TEXT NOT NULL DEFAULT '') STRICT, WITHOUT ROWID;
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
CREATE INDEX device_sign_ins_of_origin ON device_sign_ins (origin, expires_ms);
INSERT INTO users VALUES (1, 'alice', 1, 1795208583833);
INSERT INTO users VALUES (2, 'vera', 0, 1795208583870);
INSERT INTO teams VALUES (1, 'shop', x'1b47a6f48c0203d779a5e9ab8faf87087656789996f495b1c7649540b1c84ab9699dad42270e1181025fa5ae9df4126e4b4ad4a21ca50df83c0c4f83', 1795208583833);
INSERT INTO memberships VALUES (1, 1, 'owner');
INSERT INTO memberships VALUES (1, 2, 'viewer');
INSERT INTO tokens VALUES ('43f8ab37afd622133e567a97d9d8041f', x'ba2d382ae1475c811748e65af1375d968685cdb09f23afd626eedf3f53cd0332', 'sign-in', 1, NULL, 'owner', 'apps:read apps:deploy secrets:write logs:read data:read data:write resources:write registry:pull registry:push team:admin user:admin server:admin', 1795208583835, NULL, 1795208583836);
INSERT INTO tokens VALUES ('efe39ed0dd0a648a0387d72f9e402d1a', x'2c4d3bc8d3ba7e5e57b415458c400b3c11b8e99841b9019fef5e8039928b7afc', 'sign-in', 2, NULL, 'owner', 'apps:read apps:deploy secrets:write logs:read data:read data:write resources:write registry:pull registry:push team:admin user:admin server:admin', 1795208583871, NULL, NULL);
INSERT INTO tokens VALUES ('a784821b4b2d857fc13b86e0c2a71736', x'c2d4242e69c3368e32a8eb456384bab08e4e1352ecca8c2d571cd0dd95b8bf0e', 'ci', NULL, 1, 'owner', 'apps:read', 1795208583877, NULL, NULL);
INSERT INTO invitations VALUES (x'4c675665b6fcd9d3d2fd1c22c6fb104b2b9e539c5fabfe6ea9e2ccaf3329be97', NULL, 1, 'viewer', 0, 1795813383872);
INSERT INTO device_sign_ins VALUES (x'e9de8e4d9ed25270748c6a46c9e32155322eba0633d4fe104cbfba54c959167b', x'11961678f11555e008ea040fdccc1a4effc51d5c67ccf3f2e7fb3843590bc708', 'a machine', NULL, 1795209483872, 'unknown');
INSERT INTO audit VALUES (1, 1795208583829, NULL, 'wisp', NULL, 'server', 'invitation.create', 'owner', NULL);
INSERT INTO audit VALUES (2, 1795208583833, 1, 'alice', NULL, 'unknown', 'team.create', 'shop', NULL);
INSERT INTO audit VALUES (3, 1795208583833, NULL, 'alice', NULL, 'unknown', 'user.sign-in', 'alice', NULL);
INSERT INTO audit VALUES (4, 1795208583835, NULL, 'alice', NULL, 'unknown', 'token.create', '43f8ab37afd622133e567a97d9d8041f', 'apps:read apps:deploy secrets:write logs:read data:read data:write resources:write registry:pull registry:push team:admin user:admin server:admin');
INSERT INTO audit VALUES (5, 1795208583837, 1, 'alice', '43f8ab37afd622133e567a97d9d8041f', 'unknown', 'app.create', 'web', NULL);
INSERT INTO audit VALUES (6, 1795208583840, 1, 'alice', '43f8ab37afd622133e567a97d9d8041f', 'unknown', 'release.create', 'web', 'release 1');
INSERT INTO audit VALUES (7, 1795208583845, 1, 'wisp', NULL, 'server', 'resource.create', 'web.default', 'key-value');
INSERT INTO audit VALUES (8, 1795208583845, 1, 'wisp', NULL, 'server', 'resource.create', 'web.default', 'sqlite');
INSERT INTO audit VALUES (9, 1795208583854, 1, 'alice', '43f8ab37afd622133e567a97d9d8041f', 'unknown', 'variables.change', 'web', 'set password');
INSERT INTO audit VALUES (10, 1795208583864, 1, 'alice', '43f8ab37afd622133e567a97d9d8041f', 'unknown', 'domain.add', 'web', 'www.example.com');
INSERT INTO audit VALUES (11, 1795208583867, 1, 'alice', '43f8ab37afd622133e567a97d9d8041f', 'unknown', 'domain.verify', 'web', 'www.example.com');
INSERT INTO audit VALUES (12, 1795208583870, 1, 'alice', '43f8ab37afd622133e567a97d9d8041f', 'unknown', 'invitation.create', 'viewer', NULL);
INSERT INTO audit VALUES (13, 1795208583870, 1, 'vera', NULL, 'unknown', 'member.join', 'vera', 'viewer');
INSERT INTO audit VALUES (14, 1795208583870, NULL, 'vera', NULL, 'unknown', 'user.sign-in', 'vera', NULL);
INSERT INTO audit VALUES (15, 1795208583871, NULL, 'vera', NULL, 'unknown', 'token.create', 'efe39ed0dd0a648a0387d72f9e402d1a', 'apps:read apps:deploy secrets:write logs:read data:read data:write resources:write registry:pull registry:push team:admin user:admin server:admin');
INSERT INTO audit VALUES (16, 1795208583872, 1, 'alice', '43f8ab37afd622133e567a97d9d8041f', 'unknown', 'invitation.create', 'viewer', NULL);
INSERT INTO audit VALUES (17, 1795208583877, 1, 'alice', '43f8ab37afd622133e567a97d9d8041f', 'unknown', 'token.create', 'a784821b4b2d857fc13b86e0c2a71736', 'apps:read');
INSERT INTO apps VALUES (1, 1, 'web', 2, 2, 2, 0, 1795208583836);
INSERT INTO configurations VALUES (1, 1, 1795208583837);
INSERT INTO configurations VALUES (2, 1, 1795208583854);
INSERT INTO variables VALUES (2, 'password', x'a015b89c51f9ef87680110682c721b67974a710c63f0bff4a5a618d0157bedf2ec3fe8d2ec5fe9c4d562289063c8eaddfe', 1);
INSERT INTO releases VALUES (1, 1, 'sha256:0101010101010101010101010101010101010101010101010101010101010101', 1, 'ready', '{"name":"web","components":[{"id":"web","outbound":[{"value":"https://api.example.com","line":9}],"key_value_stores":[{"value":"default","line":10}],"sqlite_databases":[{"value":"default","line":11}],"ai_models":[],"limits":{}}],"triggers":[{"kind":"http","route":"/...","line":4}],"variables":[],"migrations_count":0}', NULL, 1795208583839, 'alice');
INSERT INTO releases VALUES (1, 2, 'sha256:0101010101010101010101010101010101010101010101010101010101010101', 2, 'ready', '{"name":"web","components":[{"id":"web","outbound":[{"value":"https://api.example.com","line":9}],"key_value_stores":[{"value":"default","line":10}],"sqlite_databases":[{"value":"default","line":11}],"ai_models":[],"limits":{}}],"triggers":[{"kind":"http","route":"/...","line":4}],"variables":[],"migrations_count":0}', 'set password', 1795208583854, 'alice');
INSERT INTO resources VALUES ('f3c0e1dc21e6a951e573d29cedd880cd', 1, 'key-value', 'web.default', 1073741824, 0, 1795208583845);
INSERT INTO resources VALUES ('e3fc16e5ecd0574f291c77f78f28fb6d', 1, 'sqlite', 'web.default', 1073741824, 0, 1795208583845);
INSERT INTO links VALUES (1, 'sqlite', 'default', 'e3fc16e5ecd0574f291c77f78f28fb6d');
INSERT INTO links VALUES (1, 'key-value', 'default', 'f3c0e1dc21e6a951e573d29cedd880cd');
INSERT INTO domains VALUES (1, 'www.example.com', 'wisp-5232c8b83a27945940c86121b24958e3', 1795208583867, 1795208583864);
INSERT INTO operations VALUES ('43837a37009f8bd74a2427ce77171efb', 1, 1, 'web', 'deploy', 1, 'done', '{"previous":null}', NULL, 1795208583839, 1795208583852, 'alice');
INSERT INTO operations VALUES ('d7801fc3a1d4a41215228e16d4a39dec', 1, 1, 'web', 'configure', 2, 'done', '{"previous":1}', NULL, 1795208583854, 1795208583863, 'alice');
INSERT INTO steps VALUES ('43837a37009f8bd74a2427ce77171efb', 0, 'validate', 'done', 372, NULL);
INSERT INTO steps VALUES ('43837a37009f8bd74a2427ce77171efb', 1, 'compile', 'done', 220, NULL);
INSERT INTO steps VALUES ('43837a37009f8bd74a2427ce77171efb', 2, 'provision', 'done', 1118, '2 new resources');
INSERT INTO steps VALUES ('43837a37009f8bd74a2427ce77171efb', 3, 'migrate', 'done', 513, NULL);
INSERT INTO steps VALUES ('43837a37009f8bd74a2427ce77171efb', 4, 'check', 'done', 458, NULL);
INSERT INTO steps VALUES ('43837a37009f8bd74a2427ce77171efb', 5, 'swap', 'done', 1907, NULL);
INSERT INTO steps VALUES ('43837a37009f8bd74a2427ce77171efb', 6, 'drain', 'done', 434, NULL);
INSERT INTO steps VALUES ('d7801fc3a1d4a41215228e16d4a39dec', 0, 'validate', 'done', 534, NULL);
INSERT INTO steps VALUES ('d7801fc3a1d4a41215228e16d4a39dec', 1, 'check', 'done', 246, NULL);
INSERT INTO steps VALUES ('d7801fc3a1d4a41215228e16d4a39dec', 2, 'swap', 'done', 1969, NULL);
INSERT INTO steps VALUES ('d7801fc3a1d4a41215228e16d4a39dec', 3, 'drain', 'done', 288, NULL);
INSERT INTO changes VALUES (3, 'put', 1, 'shop', 1, 'web', 2);
INSERT INTO idempotency VALUES ('43f8ab37afd622133e567a97d9d8041f', 'golden', x'37ee85e2e39981dee593ff280367cded1dd9b6b8946caddf4cc1bd95eff96226', 201, x'acf73dee21bc023c7dea9a6bb3f6199b7b40652d9b52be703dc742d37c56f56a245e88277a529323ffd53d1dc36a7b9be31ab9a4ecd5ad00fd641e0eeb7faf5b5dfb2821e35c14275df3f10127c5b87c11bba8336bb70f85bd98df67da21565626255bbd14017ec07ce4b6d63b72fe843b27cc48f973ca56ae76fd7825da3034590ec8906b8bd04669940c0b13b8e3eda8ef9e0849b01b92054d837ce6ed90a03883241cb72aec88ba332db282ce7590418454051475705f7dde28368dac2eb6205171ef25ff7dcb3123509590ad176ae9ad86ed4388b40d6046c0123665fa65d65107fbb4', 1795208583876);
INSERT INTO certificates VALUES ('www.example.com', x'bc4e99ac2c08df278804c3f68f778af38065754b617b928efb20c451c2c2a65bb657d4f57408c94266', 1795208583875);
INSERT INTO sqlite_sequence VALUES ('audit', 17);
INSERT INTO sqlite_sequence VALUES ('users', 2);
INSERT INTO sqlite_sequence VALUES ('teams', 1);
INSERT INTO sqlite_sequence VALUES ('apps', 1);
INSERT INTO sqlite_sequence VALUES ('configurations', 2);
INSERT INTO sqlite_sequence VALUES ('changes', 3);

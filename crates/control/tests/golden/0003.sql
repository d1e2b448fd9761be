PRAGMA user_version = 3;
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
, place INTEGER NOT NULL DEFAULT 0) STRICT;
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
CREATE INDEX configurations_of_app ON configurations (app_id);
CREATE INDEX links_of_resource ON links (resource_id);
CREATE UNIQUE INDEX domains_verified ON domains (host) WHERE verified_ms IS NOT NULL;
CREATE UNIQUE INDEX operations_running ON operations (app_id) WHERE progress = 'running';
CREATE INDEX operations_of_app ON operations (app_id, created_ms);
CREATE INDEX changes_of_app ON changes (app_id, number);
CREATE INDEX idempotency_by_age ON idempotency (created_ms);
CREATE INDEX device_sign_ins_of_origin ON device_sign_ins (origin, expires_ms);
CREATE UNIQUE INDEX audit_of_team ON audit (team_id, place);
INSERT INTO users VALUES (1, 'alice', 1, 1795210243960);
INSERT INTO users VALUES (2, 'vera', 0, 1795210244018);
INSERT INTO teams VALUES (1, 'shop', x'6e389f4141a94bc805facc4e8f80638257915e090c93769b2bbd555d417026114affd5e11f74d0056770c66811309ef6e4b86649a77ef455afb9f30f', 1795210243961);
INSERT INTO memberships VALUES (1, 1, 'owner');
INSERT INTO memberships VALUES (1, 2, 'viewer');
INSERT INTO tokens VALUES ('027f6fe8ef6a925663864c89892ac360', x'6bf3fc4e721571dd0c99a6f7dd55e674a9a7629d682eb08f95085bfe5664583a', 'sign-in', 1, NULL, 'owner', 'apps:read apps:deploy secrets:write logs:read data:read data:write resources:write registry:pull registry:push team:admin user:admin server:admin', 1795210243964, NULL, 1795210243971);
INSERT INTO tokens VALUES ('10f80ac88d0fea10c575decbd9ac784e', x'94bd04eece5cb214b3333dab8d00b30645298e39cf4e24fcf75080693887514f', 'sign-in', 2, NULL, 'owner', 'apps:read apps:deploy secrets:write logs:read data:read data:write resources:write registry:pull registry:push team:admin user:admin server:admin', 1795210244019, NULL, NULL);
INSERT INTO tokens VALUES ('abf9b90e9d70df114ebcaa55c63068dd', x'5dff001221f0d75687d9b1ebbb4b2824f849d7db9fee9d6d652a8341e2f87256', 'ci', NULL, 1, 'owner', 'apps:read', 1795210244031, NULL, NULL);
INSERT INTO invitations VALUES (x'3f69d01630b7672e6ef61e4871bf8b239afaddd655bcbf605fa4aa7da446074c', NULL, 1, 'viewer', 0, 1795815044020);
INSERT INTO device_sign_ins VALUES (x'bdf7a02b9b04a44d747a6aefeceb0cf5079955cee108f3cd37cd14d446a60f57', x'd7b455137a1a3df133bf2ebc9595bd3b37218d95b2e7e4fb0c46b151409cf790', 'a machine', NULL, 1795211144023, 'unknown');
INSERT INTO audit VALUES (1, 1795210243959, NULL, 'wisp', NULL, 'server', 'invitation.create', 'owner', NULL, 1);
INSERT INTO audit VALUES (2, 1795210243961, 1, 'alice', NULL, 'unknown', 'team.create', 'shop', NULL, 1);
INSERT INTO audit VALUES (3, 1795210243961, NULL, 'alice', NULL, 'unknown', 'user.sign-in', 'alice', NULL, 2);
INSERT INTO audit VALUES (4, 1795210243964, NULL, 'alice', NULL, 'unknown', 'token.create', '027f6fe8ef6a925663864c89892ac360', 'apps:read apps:deploy secrets:write logs:read data:read data:write resources:write registry:pull registry:push team:admin user:admin server:admin', 3);
INSERT INTO audit VALUES (5, 1795210243974, 1, 'alice', '027f6fe8ef6a925663864c89892ac360', 'unknown', 'app.create', 'web', NULL, 2);
INSERT INTO audit VALUES (6, 1795210243976, 1, 'alice', '027f6fe8ef6a925663864c89892ac360', 'unknown', 'release.create', 'web', 'release 1', 3);
INSERT INTO audit VALUES (7, 1795210243987, 1, 'wisp', NULL, 'server', 'resource.create', 'web.default', 'key-value', 4);
INSERT INTO audit VALUES (8, 1795210243987, 1, 'wisp', NULL, 'server', 'resource.create', 'web.default', 'sqlite', 5);
INSERT INTO audit VALUES (9, 1795210243998, 1, 'alice', '027f6fe8ef6a925663864c89892ac360', 'unknown', 'variables.change', 'web', 'set password', 6);
INSERT INTO audit VALUES (10, 1795210244011, 1, 'alice', '027f6fe8ef6a925663864c89892ac360', 'unknown', 'domain.add', 'web', 'www.example.com', 7);
INSERT INTO audit VALUES (11, 1795210244012, 1, 'alice', '027f6fe8ef6a925663864c89892ac360', 'unknown', 'domain.verify', 'web', 'www.example.com', 8);
INSERT INTO audit VALUES (12, 1795210244016, 1, 'alice', '027f6fe8ef6a925663864c89892ac360', 'unknown', 'invitation.create', 'viewer', NULL, 9);
INSERT INTO audit VALUES (13, 1795210244018, 1, 'vera', NULL, 'unknown', 'member.join', 'vera', 'viewer', 10);
INSERT INTO audit VALUES (14, 1795210244018, NULL, 'vera', NULL, 'unknown', 'user.sign-in', 'vera', NULL, 4);
INSERT INTO audit VALUES (15, 1795210244019, NULL, 'vera', NULL, 'unknown', 'token.create', '10f80ac88d0fea10c575decbd9ac784e', 'apps:read apps:deploy secrets:write logs:read data:read data:write resources:write registry:pull registry:push team:admin user:admin server:admin', 5);
INSERT INTO audit VALUES (16, 1795210244020, 1, 'alice', '027f6fe8ef6a925663864c89892ac360', 'unknown', 'invitation.create', 'viewer', NULL, 11);
INSERT INTO audit VALUES (17, 1795210244032, 1, 'alice', '027f6fe8ef6a925663864c89892ac360', 'unknown', 'token.create', 'abf9b90e9d70df114ebcaa55c63068dd', 'apps:read', 12);
INSERT INTO apps VALUES (1, 1, 'web', 2, 2, 2, 0, 1795210243974);
INSERT INTO configurations VALUES (1, 1, 1795210243974);
INSERT INTO configurations VALUES (2, 1, 1795210243998);
INSERT INTO variables VALUES (2, 'password', x'b79c7ff2b612d48e3b50168086c7fcb905fa4dd6c126bd33855c6918fc48132660cfe516ed0c6f26308080be7b903ee19f', 1);
INSERT INTO releases VALUES (1, 1, 'sha256:0101010101010101010101010101010101010101010101010101010101010101', 1, 'ready', '{"name":"web","components":[{"id":"web","outbound":[{"value":"https://api.example.com","line":9}],"key_value_stores":[{"value":"default","line":10}],"sqlite_databases":[{"value":"default","line":11}],"ai_models":[],"limits":{}}],"triggers":[{"kind":"http","route":"/...","line":4}],"variables":[],"migrations_count":0}', NULL, 1795210243976, 'alice');
INSERT INTO releases VALUES (1, 2, 'sha256:0101010101010101010101010101010101010101010101010101010101010101', 2, 'ready', '{"name":"web","components":[{"id":"web","outbound":[{"value":"https://api.example.com","line":9}],"key_value_stores":[{"value":"default","line":10}],"sqlite_databases":[{"value":"default","line":11}],"ai_models":[],"limits":{}}],"triggers":[{"kind":"http","route":"/...","line":4}],"variables":[],"migrations_count":0}', 'set password', 1795210243998, 'alice');
INSERT INTO resources VALUES ('c3183e35952aebe27748a5173a9d3a63', 1, 'key-value', 'web.default', 1073741824, 0, 1795210243987);
INSERT INTO resources VALUES ('7d18cffe1a494f5949fc0927ccbb78e5', 1, 'sqlite', 'web.default', 1073741824, 0, 1795210243987);
INSERT INTO links VALUES (1, 'sqlite', 'default', '7d18cffe1a494f5949fc0927ccbb78e5');
INSERT INTO links VALUES (1, 'key-value', 'default', 'c3183e35952aebe27748a5173a9d3a63');
INSERT INTO domains VALUES (1, 'www.example.com', 'wisp-a81d2261e02583db7ed762babaab2b82', 1795210244012, 1795210244011);
INSERT INTO operations VALUES ('25859948fe85686d0a699d356671b1a6', 1, 1, 'web', 'deploy', 1, 'done', '{"previous":null}', NULL, 1795210243976, 1795210243997, 'alice');
INSERT INTO operations VALUES ('23f5d72b661203bc97d357dc9d9684ab', 1, 1, 'web', 'configure', 2, 'done', '{"previous":1}', NULL, 1795210243998, 1795210244006, 'alice');
INSERT INTO steps VALUES ('23f5d72b661203bc97d357dc9d9684ab', 0, 'validate', 'done', 507, NULL);
INSERT INTO steps VALUES ('23f5d72b661203bc97d357dc9d9684ab', 1, 'check', 'done', 368, NULL);
INSERT INTO steps VALUES ('23f5d72b661203bc97d357dc9d9684ab', 2, 'swap', 'done', 2280, NULL);
INSERT INTO steps VALUES ('23f5d72b661203bc97d357dc9d9684ab', 3, 'drain', 'done', 222, NULL);
INSERT INTO steps VALUES ('25859948fe85686d0a699d356671b1a6', 0, 'validate', 'done', 731, NULL);
INSERT INTO steps VALUES ('25859948fe85686d0a699d356671b1a6', 1, 'compile', 'done', 210, NULL);
INSERT INTO steps VALUES ('25859948fe85686d0a699d356671b1a6', 2, 'provision', 'done', 1635, '2 new resources');
INSERT INTO steps VALUES ('25859948fe85686d0a699d356671b1a6', 3, 'migrate', 'done', 246, NULL);
INSERT INTO steps VALUES ('25859948fe85686d0a699d356671b1a6', 4, 'check', 'done', 337, NULL);
INSERT INTO steps VALUES ('25859948fe85686d0a699d356671b1a6', 5, 'swap', 'done', 1964, NULL);
INSERT INTO steps VALUES ('25859948fe85686d0a699d356671b1a6', 6, 'drain', 'done', 327, NULL);
INSERT INTO changes VALUES (3, 'put', 1, 'shop', 1, 'web', 2);
INSERT INTO idempotency VALUES ('027f6fe8ef6a925663864c89892ac360', 'golden', x'37ee85e2e39981dee593ff280367cded1dd9b6b8946caddf4cc1bd95eff96226', 201, x'31ebdd83dfb39c8c2d0ed9d300d1dc5a735bce710f2c9ddbff3fa81d424c106b9ba5789733382b2d79a6e54a2e1b754ed51092bb94498e5b9c7ef16a0ea59a0bee311caf58b9fea43ea53cc13a9419910b59e4f14b80f1627d3f14f878a75e23af695b49c548341a364f38aae02e5c1b6bb30fde06b028d1679e29d5524d88ec436d5268becb1fcaeb1d335ac5d6fc17aa12f1a51f7e2b2d7723dd80f330542f9f2a22fe626857e853660accdee67afdafe193765a2ca6f4803d86b408de0f12b6981afe67a1191c3c9321fc04cbe2ef0d2e0627df291d3547aff06bc2332f56be6015c585', 1795210244029);
INSERT INTO certificates VALUES ('www.example.com', x'f116a5a46c54c71c025794f2e230fc71f156ca4f7db125b94f1d020e7c422287a2a8b201ab6c39fc5f', 1795210244024);
INSERT INTO sqlite_sequence VALUES ('audit', 17);
INSERT INTO sqlite_sequence VALUES ('users', 2);
INSERT INTO sqlite_sequence VALUES ('teams', 1);
INSERT INTO sqlite_sequence VALUES ('apps', 1);
INSERT INTO sqlite_sequence VALUES ('configurations', 2);
INSERT INTO sqlite_sequence VALUES ('changes', 3);

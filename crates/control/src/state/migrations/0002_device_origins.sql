-- From which client a sign-in by code began, so that none fills the list for all others.
ALTER TABLE device_sign_ins ADD COLUMN origin TEXT NOT NULL DEFAULT '';
CREATE INDEX device_sign_ins_of_origin ON device_sign_ins (origin, expires_ms);

-- Numbers of the audit log within each team: those of all teams together told each how much the
-- others do.
ALTER TABLE audit ADD COLUMN place INTEGER NOT NULL DEFAULT 0;
UPDATE audit SET place = placed.place FROM
    (SELECT number, row_number() OVER (PARTITION BY team_id ORDER BY number) AS place FROM audit) AS placed
    WHERE placed.number = audit.number;
DROP INDEX audit_of_team;
CREATE UNIQUE INDEX audit_of_team ON audit (team_id, place);

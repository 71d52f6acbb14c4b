-- PostgreSQL: a table whose rows are written with a fencing token, unless a higher token has been seen.
--
-- `psql -f` makes the table and prepares both statements for its session. In a program, take the statements themselves: $1 is
-- the name, $2 the token of the grant, $3 the value.
--
-- The answer is one row if it was done, and no row (`INSERT 0 0`) if it was refused: then nothing changed, and the lock has had
-- a later holder. bigint compares tokens as numbers and holds all of them; the CHECK refuses what is none.
--
-- Safe under concurrency: ON CONFLICT locks the row, waits for whoever is writing it, and compares with what that one has
-- committed. At READ COMMITTED, PostgreSQL's default, it never fails for that reason; above that it may end with a
-- serialization failure (SQLSTATE 40001), and can be repeated.
--
-- Where other tables belong to the same lock, write them after it in the same transaction, and roll back if it was refused: the
-- row stays locked until the transaction ends, so that no other holder gets in between.

CREATE TABLE IF NOT EXISTS fenced (
  name  text PRIMARY KEY,
  token bigint NOT NULL CHECK (token BETWEEN 1 AND 9007199254740991),
  value text
);

-- Safe to repeat until the same holder has written something else, which a repeat would undo.
PREPARE fenced_write (text, bigint, text) AS
INSERT INTO fenced (name, token, value) VALUES ($1, $2, $3)
ON CONFLICT (name) DO UPDATE SET token = excluded.token, value = excluded.value
WHERE fenced.token <= excluded.token
RETURNING token;

-- For whoever computes the new value from the old one: answers the value (NULL if there is none yet), and from now on lower
-- tokens are refused. Without it an earlier holder can still write between this holder's read and its write. Safe to repeat.
PREPARE fenced_read (text, bigint) AS
INSERT INTO fenced (name, token) VALUES ($1, $2)
ON CONFLICT (name) DO UPDATE SET token = excluded.token
WHERE fenced.token <= excluded.token
RETURNING value;

-- The answers of earlier runs. The schema's version is in `user_version`, that it is ours in
-- `application_id`.

-- name: create
CREATE TABLE answers (
  number INTEGER PRIMARY KEY,
  exchange BLOB NOT NULL UNIQUE,  -- digest of what was asked, of which model, and where
  model TEXT NOT NULL,            -- provider:model
  kept_at REAL NOT NULL,          -- seconds since 1970
  answer BLOB NOT NULL            -- as it came
);
CREATE INDEX answers_by_model ON answers (model, kept_at);

-- name: version_2
ALTER TABLE answers ADD COLUMN expires_at REAL; -- NULL: stays good
CREATE INDEX answers_that_expire ON answers (expires_at) WHERE expires_at IS NOT NULL;

-- name: find
SELECT exchange, kept_at, expires_at, answer FROM answers WHERE exchange IN (VALUES (?));

-- Of those who have kept an answer, whoever wants it the longest decides. (NULL is the longest: the
-- maximum of it and anything is NULL.)
-- name: keep
INSERT INTO answers (exchange, model, kept_at, expires_at, answer) VALUES (?, ?, ?, ?, ?)
ON CONFLICT (exchange) DO UPDATE SET
  model = excluded.model, kept_at = excluded.kept_at, answer = excluded.answer,
  expires_at = max(answers.expires_at, excluded.expires_at);

-- name: remove_expired
DELETE FROM answers WHERE number IN (
  SELECT number FROM answers WHERE expires_at < ? ORDER BY expires_at LIMIT ?
);

-- name: models
SELECT model, count(*), min(kept_at), max(kept_at) FROM answers GROUP BY model ORDER BY model;

-- name: clear
DELETE FROM answers WHERE (:model IS NULL OR model = :model) AND kept_at < :before;

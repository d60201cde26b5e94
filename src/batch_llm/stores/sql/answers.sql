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

-- name: find
SELECT exchange, kept_at, answer FROM answers WHERE exchange IN (VALUES (?));

-- name: keep
INSERT INTO answers (exchange, model, kept_at, answer) VALUES (?, ?, ?, ?)
ON CONFLICT (exchange) DO UPDATE SET
  model = excluded.model, kept_at = excluded.kept_at, answer = excluded.answer;

-- name: models
SELECT model, count(*), min(kept_at), max(kept_at) FROM answers GROUP BY model ORDER BY model;

-- name: clear
DELETE FROM answers WHERE (:model IS NULL OR model = :model) AND kept_at < :before;

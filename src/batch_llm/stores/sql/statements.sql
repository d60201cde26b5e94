-- name: find
SELECT number, content, state, session, error_code, attempts FROM items WHERE item_id = ?;

-- name: last_number
SELECT coalesce(max(number), 0) FROM items;

-- name: last_session
SELECT coalesce(max(session), 0) FROM sessions;

-- name: begin_session
INSERT INTO sessions (session, started_at) VALUES (?, ?);

-- name: end_session
UPDATE sessions SET ended_at = ? WHERE session = ?;

-- name: recover
UPDATE items SET state = 'pending' WHERE state = 'running';

-- name: insert
INSERT INTO items (number, item_id, content, state, session, error_code, attempts, finished_at)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: reopen
UPDATE items SET state = 'pending' WHERE number = ? AND state IN ('done', 'failed');

-- name: start
UPDATE items SET state = 'running', content = ?, session = ? WHERE number = ?;

-- name: forget
UPDATE items SET state = 'pending' WHERE number = ?;

-- name: finish
UPDATE items SET state = ?, session = ?, error_code = ?, attempts = ?, finished_at = ?
WHERE number = ?;

-- name: payload
INSERT OR REPLACE INTO payloads
  (number, output, error, model, usage, seconds, safety_ratings, response_body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: try
INSERT INTO tries
  (number, session, attempt, started_at, seconds, input_tokens, output_tokens, usage, error_code,
   error)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: record
SELECT item_id, content, state, output, error, error_code, model, usage, attempts, seconds,
       safety_ratings, response_body
FROM items LEFT JOIN payloads USING (number) WHERE number = ?;

-- name: records
SELECT item_id, content, state, output, error, error_code, model, usage, attempts, seconds,
       safety_ratings, response_body, number
FROM items LEFT JOIN payloads USING (number)
WHERE number > ? AND state IN (SELECT value FROM json_each(?)) ORDER BY number LIMIT ?;

-- name: tries
SELECT attempt, started_at, seconds, usage, error_code, error FROM tries
WHERE number = ? ORDER BY rowid;

-- name: counts
SELECT state, count(*) FROM items GROUP BY state;

-- name: retry_all
UPDATE items SET state = 'pending' WHERE state = 'failed';

-- name: retry_some
UPDATE items SET state = 'pending'
WHERE state = 'failed' AND error_code IN (SELECT value FROM json_each(?));

-- name: manifest
SELECT name, value FROM manifest;

-- name: note
INSERT OR REPLACE INTO manifest (name, value) VALUES (?, ?);

-- Those that end in a row of VALUES are given many rows at once: see `many`.

-- name: find
SELECT number, content, state, session, error_code, attempts FROM items WHERE item_id = ?;

-- name: ids
SELECT item_id FROM items;

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

-- The usual result, see `ledger_groups.KINDS`: in three tables, without what is empty then.
-- name: insert_done
INSERT INTO items (number, item_id, content, state, session, attempts, finished_at)
VALUES (?, ?, ?, ?, ?, ?, ?);

-- name: payload_answer
INSERT OR REPLACE INTO payloads (number, output, model, usage, seconds)
VALUES (?, ?, ?, ?, ?);

-- name: try_told
INSERT INTO tries
  (number, session, attempt, started_at, seconds, input_tokens, output_tokens, usage, billed_as)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: reopen
UPDATE items SET state = 'pending'
WHERE state IN ('done', 'failed') AND number IN (VALUES (?));

-- name: start
WITH new (number, content, session) AS (VALUES (?, ?, ?))
UPDATE items SET state = 'running', content = new.content, session = new.session
FROM new WHERE items.number = new.number;

-- name: forget
UPDATE items SET state = 'pending' WHERE number IN (VALUES (?));

-- name: finish
WITH new (number, state, session, error_code, attempts, finished_at) AS (
  VALUES (?, ?, ?, ?, ?, ?)
)
UPDATE items SET state = new.state, session = new.session, error_code = new.error_code,
  attempts = new.attempts, finished_at = new.finished_at
FROM new WHERE items.number = new.number;

-- name: payload
INSERT OR REPLACE INTO payloads
  (number, output, error, model, usage, seconds, safety_ratings, response_body)
VALUES (?, ?, ?, ?, ?, ?, ?, ?);

-- name: try
INSERT INTO tries
  (number, session, attempt, started_at, seconds, input_tokens, output_tokens, usage, error_code,
   error, billed_as, change)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: billed_as
INSERT INTO billed_as (id, model, server, tier)
VALUES (?, ?, ?, ?);

-- name: all_billed_as
SELECT model, server, tier, id FROM billed_as;

-- name: has_results
SELECT EXISTS (SELECT 1 FROM items WHERE state IN ('done', 'failed'));

-- name: calls_of_session
SELECT has_booked_calls FROM sessions WHERE session = ?;

-- name: has_booked_calls
UPDATE sessions SET has_booked_calls = 1 WHERE session = ?;

-- name: last_tries
SELECT number, attempt, started_at FROM tries ORDER BY rowid DESC LIMIT 50000;

-- name: longest_output
SELECT coalesce(max(output_tokens), 0), count(output_tokens) FROM tries;

-- name: add_pending
INSERT OR IGNORE INTO items (number, item_id, content, state, session)
VALUES (?, ?, ?, 'pending', ?);

-- name: cut_off
INSERT INTO tries
  (number, session, attempt, started_at, seconds, input_tokens, output_tokens, usage, error_code,
   error, billed_as, most_input_tokens, most_output_tokens, content)
VALUES (?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?, ?, ?, ?);

-- name: cut_off_calls
SELECT tries.rowid, number, content, attempt, model, server, tier, most_input_tokens,
       most_output_tokens, known_input_tokens
FROM tries LEFT JOIN billed_as ON id = billed_as
WHERE most_output_tokens IS NOT NULL;

-- The answers are read once, however many calls were cut off: `tries` has no index by item.
-- name: told_inputs
WITH cut AS MATERIALIZED (
  SELECT tries.rowid AS at, number, billed_as, items.session AS session
  FROM tries JOIN items USING (number)
  WHERE most_output_tokens IS NOT NULL AND known_input_tokens IS NULL AND attempt = 1
    AND items.content = tries.content AND state IN ('done', 'failed')
)
SELECT at, max(input_tokens)
FROM tries AS answered CROSS JOIN cut
  ON cut.number = answered.number AND cut.session = answered.session
  AND cut.billed_as = answered.billed_as
WHERE EXISTS (SELECT 1 FROM cut) AND attempt = 1 AND input_tokens IS NOT NULL AND change IS NULL
GROUP BY at;

-- name: note_known_input
UPDATE tries SET known_input_tokens = ? WHERE rowid = ?;

-- name: means
SELECT model, server, tier, sum(1 + CAST(seconds * 1000 AS INTEGER)),
       sum((1 + CAST(seconds * 1000 AS INTEGER)) * input_tokens),
       sum((1 + CAST(seconds * 1000 AS INTEGER)) * output_tokens)
FROM tries JOIN billed_as ON id = billed_as
WHERE input_tokens IS NOT NULL AND output_tokens IS NOT NULL GROUP BY billed_as;

-- name: record
SELECT item_id, content, state, output, error, error_code, model, usage, attempts, seconds,
       safety_ratings, response_body
FROM items LEFT JOIN payloads USING (number) WHERE number = ?;

-- name: look_up
SELECT item_id, content, state, output, error, error_code, model, usage, attempts, seconds,
       safety_ratings, response_body, number, session, asked.key
FROM json_each(?) AS asked JOIN items ON item_id = asked.value LEFT JOIN payloads USING (number);

-- name: look_up_one
SELECT item_id, content, state, output, error, error_code, model, usage, attempts, seconds,
       safety_ratings, response_body, number, session
FROM items LEFT JOIN payloads USING (number) WHERE item_id = ?;

-- name: ahead
SELECT item_id, content, state, output, error, error_code, model, usage, attempts, seconds,
       safety_ratings, response_body, number, session
FROM items LEFT JOIN payloads USING (number) WHERE number > ? ORDER BY number LIMIT ?;

-- name: settled
SELECT number, content, state, error_code, attempts FROM items
WHERE number > ? AND state IN ('done', 'failed') ORDER BY number LIMIT ?;

-- name: numbers
SELECT asked.key, number FROM json_each(?) AS asked JOIN items ON item_id = asked.value;

-- name: records
SELECT item_id, content, state, output, error, error_code, model, usage, attempts, seconds,
       safety_ratings, response_body, number
FROM items LEFT JOIN payloads USING (number)
WHERE number > ? AND state IN (SELECT value FROM json_each(?)) ORDER BY number LIMIT ?;

-- name: tries
SELECT attempt, started_at, seconds, input_tokens, output_tokens, usage, error_code, error,
       change, model, server, tier
FROM tries LEFT JOIN billed_as ON id = billed_as WHERE number = ? ORDER BY tries.rowid;

-- name: counts
SELECT state, count(*) FROM items GROUP BY state;

-- name: retry_all
UPDATE items SET state = 'pending', content = coalesce(?, content) WHERE state = 'failed';

-- name: retry_some
UPDATE items SET state = 'pending', content = coalesce(?, content)
WHERE state = 'failed' AND error_code IN (SELECT value FROM json_each(?));

-- name: damaged_texts
SELECT 'what is noted of ' || name || ' is no JSON' FROM manifest WHERE NOT json_valid(value)
UNION ALL
SELECT 'the result of ' || quote(item_id) || ' is no JSON' FROM items JOIN payloads USING (number)
WHERE NOT (json_valid(coalesce(output, 'null')) AND json_valid(usage)
           AND json_valid(coalesce(safety_ratings, 'null')))
UNION ALL
SELECT 'the tokens of an attempt of ' || quote(item_id) || ' are no JSON'
FROM items JOIN tries USING (number) WHERE NOT json_valid(coalesce(usage, 'null'));

-- name: manifest
SELECT name, value FROM manifest;

-- name: note
INSERT OR REPLACE INTO manifest (name, value) VALUES (?, ?);

-- The first schema. `items` is narrow and often read; what is large stands in `payloads`.
CREATE TABLE manifest (
  name TEXT PRIMARY KEY,
  value TEXT NOT NULL -- JSON
) WITHOUT ROWID;

CREATE TABLE sessions (
  session INTEGER PRIMARY KEY, -- from 1; one for each time that the run was started or went on
  started_at REAL NOT NULL,    -- seconds since 1970
  ended_at REAL                -- NULL: still going on, or cut off
);

CREATE TABLE items (
  number INTEGER PRIMARY KEY,  -- in the order in which they were first started
  item_id TEXT NOT NULL UNIQUE,
  content BLOB NOT NULL,       -- digest of the id and of what was asked
  state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed')),
  session INTEGER NOT NULL,    -- the one that changed the state last
  error_code TEXT,
  attempts INTEGER NOT NULL DEFAULT 0,
  finished_at REAL
);

CREATE TABLE payloads (
  number INTEGER PRIMARY KEY REFERENCES items,
  output TEXT,                 -- JSON; NULL after a failure
  error TEXT,
  model TEXT,                  -- as the provider answered it
  usage TEXT NOT NULL,         -- JSON: tokens by kind, of all attempts that led to the result
  seconds REAL NOT NULL,
  safety_ratings TEXT,         -- JSON
  response_body BLOB
);

CREATE TABLE tries (
  number INTEGER NOT NULL REFERENCES items,
  session INTEGER NOT NULL,
  attempt INTEGER NOT NULL,    -- from 1; a refused call has the number that it did not use up
  started_at REAL NOT NULL,    -- seconds since 1970
  seconds REAL NOT NULL,
  input_tokens INTEGER,        -- NULL where nobody knows
  output_tokens INTEGER,
  usage TEXT,                  -- JSON
  error_code TEXT,             -- NULL after a success
  error TEXT
);

CREATE TRIGGER legal_steps_only BEFORE UPDATE OF state ON items
WHEN NOT (
  (OLD.state = 'running' AND NEW.state IN ('pending', 'done', 'failed'))
  OR (OLD.state = 'pending' AND NEW.state = 'running')
  OR (OLD.state IN ('done', 'failed') AND NEW.state = 'pending')
)
BEGIN
  SELECT RAISE(ABORT, 'no such step between two states');
END;

CREATE VIEW results AS
SELECT item_id, output, model,
       json_extract(usage, '$.input_tokens') AS input_tokens,
       json_extract(usage, '$.output_tokens') AS output_tokens,
       attempts, seconds, datetime(finished_at, 'unixepoch') AS finished_at
FROM items JOIN payloads USING (number)
WHERE state = 'done';

CREATE VIEW failed AS
SELECT item_id, error_code, error, model,
       json_extract(usage, '$.input_tokens') AS input_tokens,
       json_extract(usage, '$.output_tokens') AS output_tokens,
       attempts, seconds, datetime(finished_at, 'unixepoch') AS finished_at
FROM items JOIN payloads USING (number)
WHERE state = 'failed';

CREATE VIEW attempts AS
SELECT item_id, tries.session, attempt, datetime(started_at, 'unixepoch') AS started_at, seconds,
       input_tokens, output_tokens, coalesce(tries.error_code, 'ok') AS verdict, error
FROM tries JOIN items USING (number);

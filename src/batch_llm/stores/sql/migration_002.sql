-- Under whose price a call's tokens are counted, and what a call may have taken of which nobody
-- knows: the process ended while it was under way.
CREATE TABLE billed_as (
  id INTEGER PRIMARY KEY,
  model TEXT NOT NULL,         -- provider:model, as asked for; empty where it could not be seen
  server TEXT NOT NULL,        -- empty: the provider's own
  tier TEXT NOT NULL,
  UNIQUE (model, server, tier)
);

ALTER TABLE tries ADD COLUMN billed_as INTEGER REFERENCES billed_as; -- NULL: the call cost nothing
ALTER TABLE tries ADD COLUMN most_input_tokens INTEGER;
ALTER TABLE tries ADD COLUMN most_output_tokens INTEGER;

-- Whether the calls that were under way when the session's process ended are booked.
ALTER TABLE sessions ADD COLUMN has_booked_calls INTEGER NOT NULL DEFAULT 0;

DROP VIEW attempts;
CREATE VIEW attempts AS
SELECT item_id, tries.session, attempt, datetime(started_at, 'unixepoch') AS started_at, seconds,
       input_tokens, output_tokens, coalesce(tries.error_code, 'ok') AS verdict, error,
       billed_as.model AS model, most_input_tokens, most_output_tokens
FROM tries LEFT JOIN items USING (number) LEFT JOIN billed_as ON billed_as.id = tries.billed_as;

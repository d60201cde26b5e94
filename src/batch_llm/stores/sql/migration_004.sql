-- What is known of a call of which nobody knows what it took: what it asked, and how much input that
-- was, told by the next call that asked the same.
ALTER TABLE tries ADD COLUMN content BLOB; -- of such calls alone
ALTER TABLE tries ADD COLUMN known_input_tokens INTEGER; -- NULL: not told yet
CREATE INDEX tries_cut_off ON tries (number) WHERE most_output_tokens IS NOT NULL;

DROP VIEW attempts;
CREATE VIEW attempts AS
SELECT item_id, tries.session, attempt, datetime(started_at, 'unixepoch') AS started_at, seconds,
       input_tokens, output_tokens, coalesce(tries.error_code, 'ok') AS verdict, error,
       billed_as.model AS model, coalesce(known_input_tokens, most_input_tokens) AS
       most_input_tokens, most_output_tokens
FROM tries LEFT JOIN items USING (number) LEFT JOIN billed_as ON billed_as.id = tries.billed_as;

-- What an attempt asked otherwise than the one before it.
ALTER TABLE tries ADD COLUMN change TEXT; -- NULL: nothing

CREATE VIEW changes AS
SELECT item_id, tries.session, attempt, change
FROM tries JOIN items USING (number) WHERE change IS NOT NULL;
